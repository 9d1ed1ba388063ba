"""The networks, timing in turns, lines of code, and where results are kept."""

import io
import json
import platform
import sys
import time
import tokenize
from collections.abc import Callable, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

Tasks = dict[str, Callable[[], Any]]
Clocks = dict[str, Callable[[], float]]
Times = dict[str, list[float]]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIRST_IMPRESSIONS = ROOT / "_build" / "benchmarks"  # of fewer rounds than ROUNDS
ROUNDS = 3
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
BETWEEN = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def plain_network(*, pool_first: bool = False) -> nn.Sequential:
    """The chapters' network as its source writes it, or with the second ReLU after the pooling."""
    ends = [nn.MaxPool2d(2), nn.ReLU()] if pool_first else [nn.ReLU(), nn.MaxPool2d(2)]
    first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
    linear = nn.Linear(64 * 14 * 14, 10)
    return nn.Sequential(first, nn.ReLU(), second, *ends, nn.Flatten(), linear)


def trained_network(name: str, *, pool_first: bool = False) -> nn.Sequential:
    """A network that ships with advlib, written so, its weights as torch lays them out."""
    from advlib.book import trained  # a worker has no advlib

    net = plain_network(pool_first=pool_first).eval()
    weights = trained.network(name, device="cpu").parameters()
    with torch.no_grad():
        for mine, shipped in zip(net.parameters(), weights, strict=True):
            mine.copy_(shipped)
    return net


def timed(task: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Time that one call of `task` takes, and what it gives."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    found = task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, found


def clocks(tasks: Tasks, device: torch.device) -> Clocks:
    """Make each task tell the time it takes."""
    return {name: partial(_clock, task, device) for name, task in tasks.items()}


def _clock(task: Callable[[], Any], device: torch.device) -> float:
    return timed(task, device)[0]


def in_turns(
    tasks: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> Times:
    """Run each task once a round, so that a slow moment of the machine meets all of them.

    The order turns by one from round to round. A first round does not count, if `warm_up`.
    """
    names = list(tasks)
    for name in names if warm_up else ():
        tasks[name]()
    times: Times = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(tasks[name]())
    return times


def ratio(times: Times, slow: str, fast: str) -> float:
    """Median over the rounds of how many times longer `slow` took than `fast` in that round."""
    return median(s / f for s, f in zip(times[slow], times[fast], strict=True))


def code_lines(path: Path) -> int:
    """Lines of a Python file without docstrings, comments and blank lines."""
    text = io.StringIO(path.read_text("utf-8"))
    tokens = [t for t in tokenize.generate_tokens(text.readline) if t.type not in NO_CODE]
    lines: set[int] = set()
    start = True  # of a statement: a string that is all of it says something, but does nothing
    for token, after in zip_longest(tokens, tokens[1:]):
        alone = start and (after is None or after.type == tokenize.NEWLINE)
        if token.type not in BETWEEN and not (token.type == tokenize.STRING and alone):
            lines |= set(range(token.start[0], token.end[0] + 1))
        start = token.type in BETWEEN
    return len(lines)


def device_name(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = (models or [platform.processor() or platform.machine()])[0]
    return f"{model}, {torch.get_num_threads()} threads"


def save(name: str, device: torch.device, content: dict[str, Any]) -> None:
    """Write results/NAME.json, or what is only a first impression into _build/benchmarks."""
    found = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        **content,
    }
    folder = RESULTS if content.get("rounds", ROUNDS) >= ROUNDS else FIRST_IMPRESSIONS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.json" if device.type == "cpu" else f"{name}-{device.type}.json")
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}", flush=True)


def table(header: list[str], rows: list[list[Any]]) -> None:
    """Print aligned columns."""
    shown = [[f"{c:,.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
    for row in (header, *shown):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
