"""Timing in turns, the machine's speed, peak memory, and where results are kept."""

import json
import multiprocessing
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.worker import forget_peak, memory, timed

Tasks = dict[str, Callable[[], Any]]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 7  # fewer are a first impression


def in_turns(
    tasks: Tasks, rounds: int, device: torch.device, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Time each task once a round, so that a slow moment of the machine meets all of them.

    The order turns by one from round to round. A first round is not timed, if `warm_up`.
    """
    names = list(tasks)
    if warm_up:
        for name in names:
            tasks[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(timed(tasks[name], device)[0])
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of how many times longer `slow` took than `fast` in that round."""
    return median(s / f for s, f in zip(times[slow], times[fast], strict=True))


def forward_and_back_flop(net: nn.Module, size: int) -> int:
    """Multiplications and additions of one image's way forward and of its gradient back.

    For networks like the chapters': every convolution keeps the image's size.
    """
    flop, pixels = 0, size * size
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            flop += 2 * layer.weight.numel() * pixels
        elif isinstance(layer, nn.Linear):
            flop += 2 * layer.weight.numel()
    return 2 * flop


def peak_megabytes(function: Callable[..., Any], *arguments: Any) -> float:
    """Memory that one call takes beyond what was there before it, at its peak.

    The call runs in a process of its own, which holds nothing else. `function(*arguments)` runs
    there and returns (device, task); only `task()` is measured.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (function, arguments))


def _measure(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    device, task = function(*arguments)
    forget_peak(device)
    before = memory(device)
    task()
    return (memory(device, peak=True) - before) / 2**20


def device_name(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in _lines(Path("/proc/cpuinfo"))
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    return f"{model}, {torch.get_num_threads()} threads"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def save(name: str, device: torch.device, content: dict[str, Any]) -> None:
    """Write results/NAME-DEVICE.json, unless there were too few rounds to trust."""
    if content.get("rounds", ROUNDS) < ROUNDS:
        print(f"not written: results of fewer than {ROUNDS} rounds")
        return
    found = {"device": device_name(device), "torch": torch.__version__, **content}
    path = RESULTS / f"{name}-{device.type}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}", flush=True)


def load(name: str, device: torch.device, like: dict[str, Any]) -> dict[str, Any]:
    """Results measured before, if in the same way on the same kind of machine; else `like`."""
    path = RESULTS / f"{name}-{device.type}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    now = {"device": device_name(device), "torch": torch.__version__, **like}
    same = all(found.get(key) == now[key] for key in now if not isinstance(now[key], (list, dict)))
    return found if same else like


def table(header: list[str], rows: list[list[Any]]) -> None:
    """Print aligned columns."""
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
