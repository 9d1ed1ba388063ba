"""What each part of advlib's speed is worth: the time without it over the time with it."""

import json
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advlib import Batches, accuracy, bim, fast, load_data
from advlib.book import recipes, trained
from benchmarks import common, peers
from benchmarks.training import epoch
from benchmarks.worker import OURS

MALLOC = {  # glibc keeps what is freed instead of giving it back
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}
EPS, ALPHA = peers.EPS, peers.EPS / 10
BIM = partial(bim, eps=EPS, alpha=ALPHA, steps=peers.STEPS)
KINDS = ("standard", "robust")
Rows = list[dict[str, Any]]


def main(device: torch.device, rounds: int, images: int, steps: list[int]) -> None:
    """Measure one part after the other, print, and save after each."""
    few, rows = min(rounds, peers.FEW), []
    for measure in (
        partial(in_attacks, device, rounds, images),
        partial(early_exit, device, few, 2 * images),
        *(partial(repetition, device, few, images // 12, n) for n in steps),
        partial(training, device, rounds),
        partial(allocator, device, rounds, images),
        partial(importing, min(rounds, 5)),
    ):
        for row in measure():
            rows.append(row)
            print(row, flush=True)
        common.save("parts", device, {"rounds": rounds, "images": images, "rows": rows})


def compared(times: common.Times, **of: Any) -> Rows:
    """Return a row for each task but the first, which is the one that leaves nothing out."""
    best, *others = times
    return [
        {
            "part": name,
            **of,
            "rounds": len(times[name]),
            "with_s": median(times[best]),
            "without_s": median(times[name]),
            "ratio": common.ratio(times, name, best),
        }
        for name in others
    ]


def in_attacks(device: torch.device, rounds: int, images: int) -> Rows:
    """BIM without blocks, without channels last, without both, and in the source's order."""
    net = network("standard", device)
    source = common.trained_network("standard").to(device).to(memory_format=torch.channels_last)
    plain = common.trained_network("standard", pool_first=True).to(device)
    x, y = first_images(device, images)

    def without_blocks(net: nn.Module) -> None:
        with fast.off():
            BIM(net, x, y)

    tasks: common.Tasks = {
        "": lambda: BIM(net, x, y),
        "blocks": lambda: without_blocks(net),
        "channels last": lambda: BIM(plain, x, y),
        "blocks and channels last": lambda: without_blocks(plain),
        "pooling before ReLU": lambda: BIM(source, x, y),
    }
    return compared(common.in_turns(common.clocks(tasks, device), rounds))


def early_exit(device: torch.device, rounds: int, images: int) -> Rows:
    """Stop at success, or not, in accuracy under BIM."""
    rows: Rows = []
    batches = Batches(*first_images(device, images), batch_size=peers.LARGE)
    for kind in KINDS:
        task = partial(accuracy, network(kind, device), batches)
        tasks: common.Tasks = {
            "": partial(task, attack=partial(BIM, early_exit=True)),
            "early exit": partial(task, attack=BIM),
        }
        times = common.in_turns(common.clocks(tasks, device), rounds)
        rows += compared(times, network=kind)
    return rows


def repetition(device: torch.device, rounds: int, images: int, steps: int) -> Rows:
    """Stop where BIM goes in circles, or take all its steps; both stop at success."""
    rows: Rows = []
    x, y = first_images(device, images)
    early = partial(bim, eps=EPS, alpha=ALPHA, steps=steps, early_exit=True)
    for kind in KINDS:
        net = network(kind, device)
        tasks: common.Tasks = {
            "": partial(early, net, x, y),
            "stop at repetition": partial(stop_at_success, net, x, y, steps),
        }
        with fast.off():
            times = common.in_turns(common.clocks(tasks, device), rounds, warm_up=False)
        rows += compared(times, network=kind, steps=steps)
    return rows


def stop_at_success(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """BIM that leaves an image as soon as it is broken, and never looks whether it repeats."""
    x_adv, standing = x.clone(), torch.arange(len(x), device=x.device)
    for _ in range(steps):
        now = x_adv[standing].requires_grad_()
        scores = net(now)
        loss = cross_entropy(scores, y[standing], reduction="sum")
        moved = now.detach() + ALPHA * torch.autograd.grad(loss, now)[0].sign()
        right = scores.argmax(1) == y[standing]
        standing, moved = standing[right], moved[right]
        before = x[standing]
        x_adv[standing] = (before + (moved - before).clamp(-EPS, EPS)).clamp(0, 1)
    return x_adv


def training(device: torch.device, rounds: int) -> Rows:
    """An epoch of standard training, and one of FGSM adversarial training."""
    tasks: common.Tasks = {
        "": partial(epoch, recipes.STANDARD, device),
        "FGSM over standard epoch": partial(epoch, recipes.ROBUST, device),
    }
    return compared(common.in_turns(common.clocks(tasks, device), rounds))


def allocator(device: torch.device, rounds: int, images: int) -> Rows:
    """Have glibc keep freed memory, or not, for advlib and for the fastest peer."""
    path = common.RESULTS / "peers.json"
    fastest = json.loads(path.read_text())["fastest"] if path.exists() else {}
    names = [OURS, fastest.get("500", {"fastest": "adv_lib"})["fastest"]]
    tasks: dict[str, common.Clocks] = {name: {} for name in names}
    with ExitStack() as processes:
        for part, environment in (("", MALLOC), ("settings of glibc", {})):
            given = (*peers.material("default"), device, processes, environment)
            for library in peers.started(names, *given):
                ask = partial(library.ask, "run", "standard", images, EPS, peers.STEPS)
                tasks[library.name][part] = ask
        times = {name: common.in_turns(tasks[name], rounds) for name in names}
    return [row for name in names for row in compared(times[name], library=name)]


def importing(rounds: int) -> Rows:
    """A process that imports torch, and one that imports advlib."""

    def process(module: str) -> None:
        command = [sys.executable, "-c", f"import {module}"]
        subprocess.run(command, cwd=common.ROOT, check=True)

    tasks: common.Tasks = {
        "": partial(process, "torch"),
        "import of advlib over torch": partial(process, "advlib"),
    }
    return compared(common.in_turns(common.clocks(tasks, torch.device("cpu")), rounds))


def network(kind: str, device: torch.device) -> nn.Sequential:
    """A network that ships with advlib, as it is: pooling first, channels last."""
    return trained.network(kind, device=device)


def first_images(device: torch.device, images: int) -> tuple[Tensor, Tensor]:
    """Test images and their labels."""
    test = load_data(device=device)[1]
    return test.x[:images], test.y[:images]
