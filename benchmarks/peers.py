"""BIM by advlib and by four well-known libraries, on the chapter network, in turns."""

import pickle
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from advlib import engine, load_data, trained
from benchmarks import common
from benchmarks.worker import LIBRARIES, OURS

EPS, STEPS = 0.1, 20  # alpha is a tenth of eps
LAYOUTS = {"default": torch.contiguous_format, "channels-last": torch.channels_last}


class Library:
    """A library in a process of its own (benchmarks/worker.py)."""

    def __init__(self, name: str) -> None:
        """Start the process."""
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=common.ROOT
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

    def __enter__(self) -> "Library":
        """Nothing to do: the process runs."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self.process.communicate()


def main(
    device: torch.device, rounds: int, batch_sizes: list[int], layout: str, accuracy_rounds: int
) -> None:
    """Measure and print; after each batch size, save what is new beside what was there."""
    nets, test = material(layout)
    name = "peers" if layout == "default" else f"peers-{layout}"
    found: dict[str, Any] = {"rounds": rounds, "layout": layout, "rows": [], "fastest": {}}
    found = common.load(name, device, like=found)
    with ExitStack() as processes:
        libraries = started(list(LIBRARIES), nets, test, device, processes)
        for size in batch_sizes:
            rows, fastest = _compare(libraries, nets["standard"], test, size, device, rounds)
            found["rows"] = [r for r in found["rows"] if r["batch_size"] != size] + rows
            found["rows"].sort(key=lambda row: row["batch_size"])
            found["fastest"][str(size)] = fastest
            found["fastest"] = {
                key: found["fastest"][key] for key in sorted(found["fastest"], key=int)
            }
            common.save(name, device, found)
        if accuracy_rounds:
            found["accuracy_only"] = _accuracies(libraries, found["rows"], accuracy_rounds)
            common.save(name, device, found)


def autoattack(device: torch.device, images: int, repeats: int) -> None:
    """Time AutoAttack and torchattacks' on both networks, in turns, and compare what is left."""
    nets, test = material("default")
    runs = []
    with ExitStack() as processes:
        pair = started([OURS, "torchattacks"], nets, test, device, processes)
        for kind in nets:
            times: dict[str, list[float]] = {library.name: [] for library in pair}
            left = {}
            for _ in range(repeats):
                for library in pair:
                    took, left[library.name] = library.ask("autoattack", kind, images, EPS)
                    times[library.name].append(took)
            runs.append(
                {
                    "network": kind,
                    "eps": EPS,
                    "images": images,
                    "repeats": repeats,
                    "robust_accuracy": left,
                    "median_s": {name: median(values) for name, values in times.items()},
                    "ratio": common.ratio(times, "torchattacks", OURS),
                }
            )
            print(runs[-1], flush=True)
    common.save("autoattack", device, {"rows": runs})


def material(layout: str) -> tuple[dict[str, Any], Any]:
    """Both networks, their weights laid out so, and the test images."""
    nets = {kind: trained.network(kind, device="cpu").eval() for kind in ("standard", "robust")}
    for net in nets.values():
        net.to(memory_format=LAYOUTS[layout])
    return nets, load_data(device="cpu")[1]


def started(
    names: list[str], nets: dict[str, Any], test: Any, device: torch.device, processes: ExitStack
) -> list[Library]:
    """The libraries that work here, each until `processes` ends; the others are reported."""
    files = str(Path(processes.enter_context(tempfile.TemporaryDirectory())) / "nets.pt")
    torch.save({"nets": nets, "x": test.x, "y": test.y}, files)
    working = []
    for name in names:
        library = processes.enter_context(Library(name))
        try:
            library.ask("start", name, files, str(device))
            working.append(library)
        except (RuntimeError, EOFError, OSError) as error:
            print(f"not measured: {name} ({error})")
    if len(working) < 2 or working[0].name != OURS:
        raise SystemExit("no other library works here; make bench installs them")
    return working


def _compare(
    libraries: list[Library],
    net: nn.Module,
    test: Any,
    size: int,
    device: torch.device,
    rounds: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one batch size, and advlib's speed over the fastest of the others."""
    _, *others = libraries
    attack = ("standard", size, EPS, STEPS)
    results = {library.name: library.ask("run", *attack)[1].cpu() for library in libraries}
    checked = check_same(net, test.x[:size], test.y[:size], results)
    times: dict[str, list[float]] = {library.name: [] for library in libraries}
    peaks = []
    with Library("matrix product") as yardstick:
        for i in range(rounds):
            first = i % len(libraries)
            for library in libraries[first:] + libraries[:first]:
                times[library.name].append(library.ask("run", *attack)[0])
            peaks.append(yardstick.ask("matrix_product", str(device)))
    flop = common.forward_and_back_flop(net, 28) * STEPS * size
    rows = [
        {
            "peer": library.name,
            "batch_size": size,
            "median_s": median(times[library.name]),
            "images_per_s": size / median(times[library.name]),
            "robust_accuracy": checked[library.name][0],
            "linf": checked[library.name][1],
            "peak_mb": library.ask("peak_megabytes", "standard", size),
            "times_advlib": common.ratio(times, library.name, OURS),
            "fraction_of_matmul_peak": flop / median(times[library.name]) / max(peaks),
        }
        for library in libraries
    ]
    quickest = min((library.name for library in others), key=lambda name: median(times[name]))
    fastest = {"fastest": quickest, "ratio": common.ratio(times, quickest, OURS)}
    _print(rows, max(peaks), device, fastest)
    return rows, fastest


def check_same(
    net: nn.Module, x: Tensor, y: Tensor, results: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """Robust accuracy and largest change of each result, once they are known to agree."""
    checked = {}
    for name, x_adv in results.items():
        right = (engine.logits(net, x_adv).argmax(1) == y).float().mean().item()
        checked[name] = right, (x_adv - x).abs().max().item()
    ours_right, ours_linf = checked[OURS]
    same = max(0.005, 1.5 / len(x))  # half a point, but never less than one image
    for name, (right, linf) in checked.items():
        if abs(right - ours_right) > same or abs(linf - ours_linf) > 1e-5:
            raise SystemExit(f"{name} did something else: {checked}")
    return checked


def _accuracies(
    libraries: list[Library], rows: list[dict[str, Any]], rounds: int
) -> list[dict[str, Any]]:
    """Robust accuracy of the test set: the fastest peer at its best batch size, and ours."""
    ours, *others = libraries
    best = max((row for row in rows if row["peer"] != OURS), key=lambda row: row["images_per_s"])
    (peer,) = (library for library in others if library.name == best["peer"])
    found = []
    for kind, eps in (("standard", EPS), ("robust", EPS), ("standard", 2 * EPS)):
        times: dict[str, list[float]] = {OURS: [], peer.name: []}
        for _ in range(rounds):
            took, mine = ours.ask("robust_accuracy", kind, 1000, eps, STEPS)
            times[OURS].append(took)
            took, theirs = peer.ask("robust_accuracy", kind, best["batch_size"], eps, STEPS)
            times[peer.name].append(took)
        found.append(
            {
                "network": kind,
                "eps": eps,
                "peer": peer.name,
                "batch_size": best["batch_size"],
                "rounds": rounds,
                "ratio": common.ratio(times, peer.name, OURS),
                "median_s": median(times[OURS]),
                "peer_median_s": median(times[peer.name]),
                "robust_accuracy": mine,
                "peer_robust_accuracy": theirs,
            }
        )
        print("accuracy only:", found[-1], flush=True)
    return found


def _print(
    rows: list[dict[str, Any]], peak: float, device: torch.device, fastest: dict[str, Any]
) -> None:
    print(f"\nbatch {rows[0]['batch_size']}, {common.device_name(device)}, ", end="")
    print(f"matrix product {peak / 1e9:.0f} GFLOP/s")
    common.table(
        ["", "s", "images/s", "times advlib's", "of peak", "robust acc.", "linf", "peak MB"],
        [
            [
                row["peer"],
                f"{row['median_s']:.3f}",
                f"{row['images_per_s']:.0f}",
                f"{row['times_advlib']:.2f}",
                f"{row['fraction_of_matmul_peak']:.2f}",
                f"{row['robust_accuracy']:.4f}",
                f"{row['linf']:.4f}",
                f"{row['peak_mb']:.0f}",
            ]
            for row in rows
        ],
    )
    print(f"advlib against the fastest, {fastest['fastest']}: {fastest['ratio']:.2f}", flush=True)


def speed_table(found: dict[str, Any]) -> str:
    """Write results as README's table: speed and memory against the fastest other library."""
    lines = [
        "| batch | fastest of the others | advlib's speed over it | peak memory, MB | advlib's |",
        "|---|---|---|---|---|",
    ]
    for size, fastest in found["fastest"].items():
        rows = {row["peer"]: row for row in found["rows"] if str(row["batch_size"]) == size}
        memory = [rows[name]["peak_mb"] for name in (fastest["fastest"], OURS)]
        cells = [f"{int(size):,}", fastest["fastest"], f"{fastest['ratio']:.2f}"]
        lines.append("| " + " | ".join([*cells, *(f"{mb:,.0f}" for mb in memory)]) + " |")
    return "\n".join(lines) + "\n"
