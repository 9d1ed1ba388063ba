"""What is computed for the site: the attack lab's data and picture, and the card of the book."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advlib import bim, load_data, plots, predict
from advlib.book import trained
from advlib.book.figures import one_change, surest

NAMES = ("standard", "robust", "provable")
PER_CLASS = 2
EPS = 0.1


def networks() -> dict[str, nn.Module]:
    """Three of the book's networks, on the CPU, their weights in half precision, as on the page."""
    nets = {name: trained.network(name, device="cpu") for name in NAMES}
    return {name: net.half().float().eval() for name, net in nets.items()}


def digits(nets: dict[str, nn.Module]) -> tuple[Tensor, Tensor]:
    """The first test images of each class that all networks get right, and their labels."""
    test = load_data(device="cpu")[1]
    x, y = test.x[:300], test.y[:300]
    right = torch.stack([predict(net, x) == y for net in nets.values()]).all(0)
    chosen = torch.cat([(right & (y == k)).nonzero()[:PER_CLASS, 0] for k in range(10)])
    return x[chosen], y[chosen]


def write_lab(folder: Path, nets: dict[str, nn.Module]) -> None:
    """Write `weights.js` and `still.png` into `folder`; `nets` as from `networks`."""
    x, y = digits(nets)
    pixels = map(_base64, (x * 255).round().byte())
    shown = [{"pixels": p, "label": label} for p, label in zip(pixels, y.tolist(), strict=True)]
    text = json.dumps({"networks": {n: _stored(net) for n, net in nets.items()}, "digits": shown})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.js").write_text(f"window.advlibLab = {text};\n")
    _still(nets, x, y).savefig(folder / "still.png")


def _still(nets: dict[str, nn.Module], x: Tensor, y: Tensor) -> Any:
    """A digit that the attack breaks for the first network only: as it is, and below attacked."""
    attacked = [bim(net, x, y, eps=EPS, alpha=EPS / 10, steps=20) for net in nets.values()]
    broken = [predict(net, x_adv) != y for net, x_adv in zip(nets.values(), attacked, strict=True)]
    i = int((broken[0] & ~torch.stack(broken[1:]).any(0)).nonzero()[0])
    shown, titles = [], []
    for images in ([x] * len(nets), attacked):
        for (name, net), x_adv in zip(nets.items(), images, strict=True):
            [(read, sure)] = plots._read(net, x_adv[i : i + 1])
            titles.append(f"{name}\n{read} {'✓' if read == y[i] else '✗'} {sure}")
            shown.append(x_adv[i])
    return plots.show_images(torch.stack(shown), titles, columns=len(nets))


def _stored(net: nn.Module) -> dict[str, Any]:
    parameters = list(net.parameters())
    weights = torch.cat([p.detach().half().flatten() for p in parameters])
    return {"weights": _base64(weights), "shape": [len(p) for p in parameters[::2]]}


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.numpy().tobytes()).decode("ascii")


def front_picture(net: nn.Module, width: float = 6.6) -> Any:
    """The front page's figure: one digit, its change, and what `net` reads; for README, too."""
    test = load_data(device="cpu")[1]
    x, y = test.x[:500], test.y[:500]
    attacked = bim(net, x, y, eps=EPS, alpha=0.01, steps=20)
    i = surest(net, x, attacked)
    return one_change(net, x[i : i + 1], attacked[i : i + 1], width=width)


def write_card(path: Path, net: nn.Module) -> None:
    """Shown where a link is shared: the front page's picture under the title; 1200 by 630."""
    figure = front_picture(net, width=10)
    figure.set_size_inches(1200 / figure.dpi, 630 / figure.dpi)
    figure.get_layout_engine().set(w_pad=0.3, h_pad=0.3)
    figure.suptitle("Adversarial robustness, hands on", size=34, weight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
