"""BIM by advlib and by six well-known libraries, on the source's network, in turns."""

import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from advlib import load_data
from benchmarks import common
from benchmarks.worker import LIBRARIES, OURS

EPS, STEPS = 0.1, 20  # alpha is a tenth of eps
LAYOUTS = {"default": torch.contiguous_format, "channels-last": torch.channels_last}
LARGE, FEW = 1000, 1  # a batch above takes minutes, so that so many rounds will do


class Library:
    """A library in a process of its own (benchmarks/worker.py), with its own environment."""

    def __init__(self, name: str, environment: dict[str, str] | None = None) -> None:
        """Start the process."""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=common.ROOT,
            env={**os.environ, **(environment or {})},
        )
        self.name = name

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have `Worker.method(*arguments)` called there; return or raise what it gives."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((method, arguments), self.process.stdin)
        self.process.stdin.flush()
        answer = pickle.load(self.process.stdout)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer


def main(
    device: torch.device, rounds: int, batch_sizes: list[int], layout: str, images: int
) -> None:
    """Measure, print, and save after each batch size."""
    name = "peers" if layout == "default" else f"peers-{layout}"
    found: dict[str, Any] = {"rounds": rounds, "layout": layout, "eps": EPS, "steps": STEPS}
    found |= {"libraries": {}, "rows": [], "fastest": {}, "accuracy": []}
    with ExitStack() as processes:
        libraries = started(list(LIBRARIES), *material(layout), device, processes)
        found["libraries"] = {library.name: library.ask("about") for library in libraries}
        print(*found["libraries"].items(), sep="\n", flush=True)
        for size in batch_sizes:
            rows = _compare(libraries, size, rounds if size <= LARGE else min(rounds, FEW))
            found["rows"] += rows
            fastest = min(rows[1:], key=lambda row: row["median_s"])
            found["fastest"][str(size)] = {
                "fastest": fastest["library"],
                "ratio": fastest["times_advlib"],
            }
            common.save(name, device, found)
        found["accuracy"] = _accuracies(libraries, found["rows"], min(rounds, FEW), images)
        common.save(name, device, found)


def autoattack(device: torch.device, rounds: int, images: int) -> None:
    """Time AutoAttack and torchattacks' on both networks, in turns, and compare what is left."""
    rows = []
    with ExitStack() as processes:
        pair = started([OURS, "torchattacks"], *material("default"), device, processes)
        for kind in ("standard", "robust"):
            row = {"network": kind, "eps": EPS, "images": images}
            arguments = dict.fromkeys(pair, (kind, images, EPS))
            rows.append(row | _answers("autoattack", arguments, min(rounds, FEW)))
            print(rows[-1], flush=True)
            common.save("autoattack", device, {"rounds": rounds, "rows": rows})


def material(layout: str) -> tuple[dict[str, Any], Any]:
    """Both networks, their weights laid out so, and the test images."""
    nets = {kind: common.trained_network(kind) for kind in ("standard", "robust")}
    for net in nets.values():
        net.to(memory_format=LAYOUTS[layout])
    return nets, load_data(device="cpu")[1]


def started(
    names: list[str],
    nets: dict[str, Any],
    test: Any,
    device: torch.device,
    processes: ExitStack,
    environment: dict[str, str] | None = None,
) -> list[Library]:
    """The libraries that work here, each until `processes` ends; the others are reported."""
    files = str(Path(processes.enter_context(tempfile.TemporaryDirectory())) / "nets.pt")
    torch.save({"nets": nets, "x": test.x, "y": test.y}, files)
    working = []
    for name in names:
        library = Library(name, environment)
        processes.callback(library.process.communicate)
        try:
            library.ask("start", name, files, str(device))
            working.append(library)
        except (RuntimeError, EOFError, OSError) as error:
            print(f"not measured: {name} ({error})")
    if len(working) < 2 or working[0].name != OURS:
        raise SystemExit("no other library works here; make bench installs them")
    return working


def _compare(libraries: list[Library], size: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one batch size."""
    attack = ("standard", size, EPS, STEPS)
    few = min(size, 500)  # enough to see that all do the same
    checked = {
        library.name: library.ask("check", "standard", few, EPS, STEPS) for library in libraries
    }
    check_same(checked, few)
    timers = {library.name: partial(library.ask, "run", *attack) for library in libraries}
    times = common.in_turns(timers, rounds, warm_up=False)
    rows = [
        {
            "library": library.name,
            "batch_size": size,
            "rounds": rounds,
            "median_s": median(times[library.name]),
            "times_advlib": common.ratio(times, library.name, OURS),
            **checked[library.name],
        }
        for library in libraries
    ]
    print(f"\nbatch {size}, {rounds} rounds")
    common.table(list(rows[0]), [list(row.values()) for row in rows])
    return rows


def check_same(checked: dict[str, dict[str, float]], images: int) -> None:
    """Stop unless the attacks that `Worker.check` has seen did about the same.

    Some libraries give an image's last step, others the first that breaks it, or its strongest.
    """
    ours = checked[OURS]["robust_accuracy"]
    for name, found in checked.items():
        if abs(found["robust_accuracy"] - ours) > max(0.02, 2.5 / images):
            raise SystemExit(f"{name} did something else: {checked}")


def _accuracies(
    libraries: list[Library], rows: list[dict[str, Any]], rounds: int, images: int
) -> list[dict[str, Any]]:
    """Accuracy under BIM, of the test set: by the fastest peer at its best batch size, and ours."""
    best = min(
        (row for row in rows if row["library"] != OURS),
        key=lambda row: row["median_s"] / row["batch_size"],
    )
    sizes = {OURS: LARGE, best["library"]: best["batch_size"]}
    pair = {library: sizes[library.name] for library in libraries if library.name in sizes}
    found = []
    for kind in ("standard", "robust"):
        arguments = {library: (kind, images, size, EPS, STEPS) for library, size in pair.items()}
        row = {"network": kind, "images": images, "batch_size": sizes}
        found.append(row | _answers("robust_accuracy", arguments, rounds))
        print("accuracy:", found[-1], flush=True)
    return found


def _answers(method: str, arguments: dict[Library, tuple[Any, ...]], rounds: int) -> dict[str, Any]:
    """Time a question to advlib and to another library, in turns, and keep their answers."""
    answers = {}

    def ask(library: Library) -> float:
        took, answers[library.name] = library.ask(method, *arguments[library])
        return took

    times = common.in_turns(
        {library.name: partial(ask, library) for library in arguments}, rounds, warm_up=False
    )
    ours, peer = times
    return {
        "rounds": rounds,
        "robust_accuracy": answers,
        "median_s": {name: median(values) for name, values in times.items()},
        "ratio": common.ratio(times, peer, ours),
    }


def speed_table(found: dict[str, Any]) -> str:
    """Write results as README's table: each library's time over advlib's, and what it holds."""
    sizes = [int(size) for size in found["fastest"]]
    lines = [
        "| library | version | lines of code | " + " | ".join(f"batch {s:,}" for s in sizes) + " |",
        "|---|---|---|" + "---|" * len(sizes),
    ]
    for name, about in found["libraries"].items():
        rows = {row["batch_size"]: row for row in found["rows"] if row["library"] == name}
        cells = [name, about["version"], f"{about['lines']:,}"]
        cells += [f"{rows[s]['times_advlib']:.2f}" for s in sizes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
