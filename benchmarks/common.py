"""Timing in turns, the machine's speed, peak memory, and where results are kept."""

import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

Tasks = dict[str, Callable[[], Any]]

RESULTS = Path(__file__).parent / "results"


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(task: Callable[[], Any], device: torch.device) -> float:
    """Time that one call of `task` takes."""
    synchronize(device)
    began = time.perf_counter()
    task()
    synchronize(device)
    return time.perf_counter() - began


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
            times[name].append(seconds(tasks[name], device))
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of how many times longer `slow` took than `fast` in that round."""
    return median(s / f for s, f in zip(times[slow], times[fast], strict=True))


def matmul(device: torch.device, n: int | None = None) -> Callable[[], Any]:
    """One float32 product of square matrices: the yardstick of what the machine can do."""
    n = n or matmul_size(device)
    a, b, out = (torch.rand(n, n, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def matmul_size(device: torch.device) -> int:
    """Side of the yardstick's matrices."""
    return 8192 if device.type == "cuda" else 2048


def forward_and_back_flop(net: nn.Module, size: int) -> int:
    """Multiplications and additions of one image's way forward and of its gradient back."""
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
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    before = _memory("VmRSS")
    task()
    return (_memory("VmHWM") - before) / 1024


def _memory(name: str) -> int:
    """A line of this process's memory status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}: peak memory is measured on Linux only")


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
    """Write results/NAME-DEVICE.json."""
    found = {"device": device_name(device), "torch": torch.__version__, **content}
    path = RESULTS / f"{name}-{device.type}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")


def table(header: list[str], rows: list[list[Any]]) -> None:
    """Print aligned columns."""
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
