"""The attack lab's data: both chapter networks and some digits as a script, and a still picture."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advlib import bim, load_data, plots, predict, trained

PER_CLASS = 2
EPS = 0.1
HEAD = "// Written when the book is built, by book/_ext/lab.py.\n"


def rounded(net: nn.Module) -> nn.Module:
    """Round the weights to half precision, in place: what the page computes with."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half())
    return net


def networks() -> dict[str, nn.Module]:
    """Both chapter networks, on the CPU, as the page knows them."""
    names = ("standard", "robust")
    return {name: rounded(trained.network(name, device="cpu")).eval() for name in names}


def write_lab(folder: Path, nets: dict[str, nn.Module]) -> None:
    """Write `weights.js` and `still.png` into `folder`; `nets` as from `networks`."""
    test = load_data(device="cpu")[1]
    right = torch.stack([predict(net, test.x) == test.y for net in nets.values()]).all(0)
    chosen = torch.cat([(right & (test.y == k)).nonzero()[:PER_CLASS, 0] for k in range(10)])
    x, y = test.x[chosen], test.y[chosen]
    digits = [
        {"pixels": _base64((image * 255).round().byte()), "label": label}
        for image, label in zip(x, y.tolist(), strict=True)
    ]
    stored = {name: _stored(net) for name, net in nets.items()}
    text = json.dumps({"networks": stored, "digits": digits})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.js").write_text(f"{HEAD}window.advlibLab = {text};\n")
    _still(nets, x, y).savefig(folder / "still.png")


def _still(nets: dict[str, nn.Module], x: Tensor, y: Tensor) -> Any:
    """A digit that the attack breaks for the first network and not for the second."""
    pairs = [(x, bim(net, x, y, eps=EPS, alpha=EPS / 8, steps=20)) for net in nets.values()]
    answers = [
        [predict(net, image) for image in pair]
        for net, pair in zip(nets.values(), pairs, strict=True)
    ]
    i = ((answers[0][1] != y) & (answers[1][1] == y)).nonzero()[0].item()
    titles = [f"{a[i]} {'✓' if a[i] == y[i] else '✗'}" for pair in answers for a in pair]
    return plots.show_images(
        torch.stack([image[i] for pair in pairs for image in pair]), titles, columns=2
    )


def _stored(net: nn.Module) -> dict[str, Any]:
    parameters = list(net.parameters())
    weights = torch.cat([p.detach().half().flatten() for p in parameters])
    return {"weights": _base64(weights), "shape": [len(p) for p in parameters[::2]]}


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.numpy().tobytes()).decode("ascii")
