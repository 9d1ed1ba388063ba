"""What is computed for the site: the attack lab's data and picture, and the card of the book."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from advlib import bim, load_data, plots, predict
from advlib.book import trained
from advlib.plots import BLUE, RED

PER_CLASS = 2
EPS = 0.1


def networks() -> dict[str, nn.Module]:
    """Both chapter networks, on the CPU, with the weights in half precision, as the page does."""
    nets = {name: trained.network(name, device="cpu") for name in ("standard", "robust")}
    return {name: net.half().float().eval() for name, net in nets.items()}


def write_lab(folder: Path, nets: dict[str, nn.Module]) -> None:
    """Write `weights.js` and `still.png` into `folder`; `nets` as from `networks`."""
    test = load_data(device="cpu")[1]
    right = torch.stack([predict(net, test.x) == test.y for net in nets.values()]).all(0)
    chosen = torch.cat([(right & (test.y == k)).nonzero()[:PER_CLASS, 0] for k in range(10)])
    x, y = test.x[chosen], test.y[chosen]
    pixels = map(_base64, (x * 255).round().byte())
    digits = [{"pixels": p, "label": label} for p, label in zip(pixels, y.tolist(), strict=True)]
    text = json.dumps({"networks": {n: _stored(net) for n, net in nets.items()}, "digits": digits})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.js").write_text(f"window.advlibLab = {text};\n")
    _still(nets, x, y).savefig(folder / "still.png")


def _still(nets: dict[str, nn.Module], x: Tensor, y: Tensor) -> Any:
    """A digit that the attack breaks for the first network and not for the second."""
    shown = []
    for net in nets.values():
        pair = (x, bim(net, x, y, eps=EPS, alpha=EPS / 8, steps=20))
        shown += [(images, predict(net, images)) for images in pair]
    i = ((shown[1][1] != y) & (shown[3][1] == y)).nonzero()[0].item()
    titles = [f"{read[i]} {'✓' if read[i] == y[i] else '✗'}" for _, read in shown]
    return plots.show_images(torch.stack([images[i] for images, _ in shown]), titles, columns=2)


def _stored(net: nn.Module) -> dict[str, Any]:
    parameters = list(net.parameters())
    weights = torch.cat([p.detach().half().flatten() for p in parameters])
    return {"weights": _base64(weights), "shape": [len(p) for p in parameters[::2]]}


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.numpy().tobytes()).decode("ascii")


def write_card(path: Path, net: nn.Module) -> None:
    """Shown where a link is shared: a digit, what BIM adds, what `net` reads then; 1200 by 630."""
    test = load_data(device="cpu")[1]
    x, y = test.x[:200], test.y[:200]
    attacked = bim(net, x, y, eps=EPS, alpha=EPS / 8, steps=20)
    before, after = predict(net, x), predict(net, attacked)
    i = int(((before == y) & (after != y)).nonzero()[0])
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    signed = {"cmap": "RdBu_r", "vmin": -EPS, "vmax": EPS}
    shown = [
        (x[i], grey, f"read as {before[i]} ✓", BLUE),
        ((attacked - x)[i], signed, f"at most {EPS} a pixel", "black"),
        (attacked[i], grey, f"read as {after[i]} ✗", RED),
    ]
    figure = Figure(figsize=(12, 6.3), dpi=100)
    figure.text(0.5, 0.86, "Adversarial robustness, hands on", ha="center", size=36, weight="bold")
    for left, (image, colours, words, colour) in zip((0.06, 0.38, 0.7), shown, strict=True):
        axes = figure.add_axes((left, 0.22, 0.24, 0.24 * 1200 / 630))
        axes.imshow(image[0], interpolation="nearest", **colours)
        axes.set_axis_off()
        figure.text(left + 0.12, 0.11, words, ha="center", size=26, color=colour)
    for middle, sign in ((0.34, "+"), (0.66, "=")):
        figure.text(middle, 0.45, sign, ha="center", va="center", size=48)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
