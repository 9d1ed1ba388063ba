"""The networks that ship with advlib: trained by the book's recipes, with their whole history.

`make networks` trains them again. Beside this file lies one file a network, in the format of
`advlib.checkpoint`, and `index.json` with the digest of each, and the accuracies that it had when
it was made. Loading runs nothing of what is in a file.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advlib import checkpoint
from advlib.book import recipes
from advlib.checks import check_choice, check_device
from advlib.data import SHIPPED, Batches, load_data
from advlib.evaluation import accuracy, mean_iou
from advlib.training import History
from advlib.training.state import read_history

FOLDER = Path(__file__).parent
MARGIN = 0.05  # training again on another machine may change an accuracy by so much


@dataclass(frozen=True)
class Trained:
    """What the file of a network holds.

    Attributes:
        net: the network, in training mode on the CPU; None if only the history is kept.
        history: what `fit` saw.
        seconds: processor time of the training, its evaluation included, on `machine`.
        machine: what it ran on.
        torch: version of PyTorch.
    """

    net: nn.Sequential | None
    history: History
    seconds: float
    machine: str
    torch: str


def network(name: str, *, device: str | torch.device | None = None) -> nn.Sequential:
    """Return a network that ships with advlib, on `device` (by default `pick_device()`).

    Raises:
        ValueError: `name` is not one of `recipes.SHIPPED`, or is of a training whose weights are
            not kept; or the network was made from other digits or by another recipe.
        OSError: its file is missing or damaged.
    """
    target = check_device("device", device)
    net = load(name).net
    if net is None:
        raise ValueError(f"name must be of a network with weights; of {name!r} the history is kept")
    return net.to(target)


def history(name: str) -> History:
    """Return what `fit` saw when it trained a network that ships. Errors as in `network`."""
    return load(name).history


def load(name: str) -> Trained:
    """Return all that the file of a network holds. Raises the errors of `network`."""
    check_choice("name", name, list(recipes.SHIPPED))
    path = FOLDER / f"{name}.pt"
    try:
        known = index()
        if name not in known:
            raise ValueError(f"network {name!r} has not been trained: run `make networks`")
        digest = _digest(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename} is missing: install advlib again") from error
    if digest != known[name]["sha256"]:
        raise OSError(f"{path} is damaged (SHA-256 {digest}): install advlib again")
    content = checkpoint.read(path)
    recipe = recipes.SHIPPED[name]
    for what, saved, present in (
        (f"from other {recipe.data}", content["data"], SHIPPED[recipe.data][0]),
        # a field that is younger than the file has its default there
        ("by another recipe", asdict(recipes.Recipe()) | content["recipe"], asdict(recipe)),
    ):
        if saved != present:
            raise ValueError(f"network {name!r} was made {what}: run `make networks`")
    net = None
    if content["net"] is not None:
        net = recipe.net()
        weights = {key: value.float() for key, value in content["net"].items()}
        checkpoint.fill(net, weights, path)
    history = read_history(content["history"], path)
    return Trained(net, history, content["seconds"], content["machine"], content["torch"])


def index() -> dict[str, dict[str, Any]]:
    """Return what was committed of each network: its digest, and its accuracies."""
    found: dict[str, dict[str, Any]] = json.loads((FOLDER / "index.json").read_text("utf8"))
    return found


def measured(net: nn.Module, data: str) -> dict[str, float]:
    """Accuracy on all test images, clean and under the book's BIM; of maps mean IoU, with less."""
    test = load_data(data, device=next(net.parameters()).device)[1]
    maps = data == "scenes"
    measure, bim = (mean_iou, recipes.MAPS_BIM) if maps else (accuracy, recipes.BIM)
    batches = Batches(test.x, test.y)
    return {
        kind: round(measure(net, batches, attack=attack), 4)
        for kind, attack in (("clean", None), ("bim", bim))
    }


def make(names: Iterable[str], *, device: str | None = None, check: bool = False) -> list[str]:
    """Train networks again, say what changed, and write them, or with `check` only compare.

    Returns the names of those that differ from what is shipped by more than `MARGIN`.
    """
    differ = []
    for name in names:
        recipe = recipes.SHIPPED[name]
        began = time.process_time()
        net, history = recipes.train(recipe, device=device)
        if history.stopped:
            raise KeyboardInterrupt  # half-trained networks are not shipped
        seconds = time.process_time() - began
        if name in recipes.HALF:
            net.half().float()
        now = measured(net, recipe.data)
        if name in recipes.HISTORIES:
            now |= {kind: values[-1] for kind, values in history.metrics.items()}
        known = index() if (FOLDER / "index.json").exists() else {}
        old = known.get(name, {})
        words = ", ".join(f"{kind} {old.get(kind, 'new')} -> {now[kind]}" for kind in now)
        print(f"{name}: {words}, {seconds:.0f} s", flush=True)
        shared = now.keys() & old.keys()
        if not old or any(abs(now[kind] - old[kind]) > MARGIN for kind in shared):
            differ.append(name)
        if check:
            continue
        weights = None if name in recipes.HISTORIES else net.cpu().state_dict()
        if weights and name in recipes.HALF:
            weights = {key: value.half() for key, value in weights.items()}
        content = {
            "recipe": asdict(recipe),
            "data": SHIPPED[recipe.data][0],
            "torch": str(torch.__version__),  # else of a class that is not loaded
            "machine": recipes.machine(device),
            "seconds": round(seconds, 1),
            "history": asdict(history),
            "net": weights,
        }
        checkpoint.write(FOLDER / f"{name}.pt", content)
        known[name] = {"sha256": _digest(FOLDER / f"{name}.pt"), **now}
        kept = {key: known[key] for key in recipes.SHIPPED if key in known}
        partial = FOLDER / "index.partial"
        partial.write_text(json.dumps(kept, indent=1) + "\n", "utf8")
        os.replace(partial, FOLDER / "index.json")
    return differ


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
