"""What the book and its tests cost, cold, in seconds and in yardsticks (benchmarks/yardstick.py).

The last commit is cloned into an empty folder, with an empty home, once for `make book` and once
for `make test`; only the installation is the present one. A GPU, if there is one, is hidden.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import common

LIMITS = {"make book": 23.0, "make test": 34.0, "make test again": 6.0}
LIMITS |= {"book/03_standard_training": 7.0, "book/05_fgsm_adversarial_training": 7.0}
LIMITS |= {"book/06_robust_evaluation": 2.5}
PAGE_LIMIT = 1.6  # of every other page
FORCING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # which kernels torch takes
PAGES = """import json, pathlib, sys
sys.path.insert(0, "book/_ext")
import execution
print(json.dumps(execution.seconds(pathlib.Path.cwd())))"""
WHERE = "import importlib.util as i; print(i.find_spec('advlib').origin)"
# They check the file that is only being made: a new page has no row in it yet.
DESELECT = "--deselect=tests/test_benchmarks.py::test_published_build"


def main() -> None:
    """Measure, print the table and write build.json."""
    with TemporaryDirectory() as folder:
        yardsticks = [yardstick()]
        clone, environment = cold(Path(folder) / "test")
        whole = make("make test", clone, environment)
        pages = json.loads(run([sys.executable, "-c", PAGES], clone, environment))
        whole |= make("make test again", clone, environment)
        yardsticks.append(yardstick())
        clone, environment = cold(Path(folder) / "book")
        whole |= make("make book", clone, environment)
        yardsticks.append(yardstick())
    unit = median(yardsticks)
    found = {
        "device": common.device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in FORCING if name in os.environ},
        "date": datetime.date.today().isoformat(),
        "yardsticks_s": yardsticks,
        "yardstick_s": unit,
        "rows": {
            name: {"seconds": round(seconds, 1), "yardsticks": round(seconds / unit, 2)}
            for name, seconds in (dict(sorted(pages.items())) | whole).items()
        },
    }
    path = common.RESULTS / "build.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    report(found)


def yardstick() -> float:
    """Seconds of one yardstick, in a process of its own."""
    script = common.ROOT / "benchmarks" / "yardstick.py"
    return float(run([sys.executable, str(script)], common.ROOT, dict(os.environ)))


def cold(folder: Path) -> tuple[Path, dict[str, str]]:
    """A clone of the last commit, and an environment that has an empty home and its advlib."""
    clone, home = folder / "clone", folder / "home"
    home.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", common.ROOT, clone], check=True)
    (clone / ".git" / "installed").touch()  # so that make leaves the environment as it is
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "XDG_"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(clone), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"ADVLIB_REQUIRE_BROWSER": "1", "PYTEST_ADDOPTS": DESELECT}
    where = run([sys.executable, "-c", WHERE], home, environment)
    if not Path(where.strip()).is_relative_to(clone.resolve()):
        raise SystemExit(f"the clone would be measured with another advlib: {where.strip()}")
    return clone, environment


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a command prints."""
    done = subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def make(name: str, clone: Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of a target and of those of its parts (`== ...` lines) that take a second or more."""
    command = [*name.split()[:2], f"VENV={sys.prefix}", "STAMP=.git/installed"]
    marks = [(time.perf_counter(), "start")]
    with subprocess.Popen(
        command,
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if match := re.match(r"== \w+: ([^(\n]*)", line):
                marks.append((time.perf_counter(), match[1].strip()))
    if process.returncode:
        raise SystemExit(f"{name} failed, so nothing is written")
    marks.append((time.perf_counter(), "end"))
    parts = {f"{name}: {part}": end - start for (start, part), (end, _) in pairwise(marks)}
    return {name: marks[-1][0] - marks[0][0]} | {k: v for k, v in parts.items() if v >= 1}


def limit(name: str) -> float | None:
    """The most yardsticks that a row may have; None for a part of a target."""
    return LIMITS.get(name, None if name.startswith("make ") else PAGE_LIMIT)


def above(found: dict[str, Any]) -> list[str]:
    """The rows over their limits."""
    limits = {name: limit(name) for name in found["rows"]}
    return [n for n, most in limits.items() if most and found["rows"][n]["yardsticks"] > most]


def report(found: dict[str, Any]) -> None:
    """Print the rows beside their limits."""
    over = above(found)
    rows = [
        [name, row["seconds"], row["yardsticks"], limit(name) or "", "above" * (name in over)]
        for name, row in found["rows"].items()
    ]
    common.table(["", "seconds", "yardsticks", "limit", ""], rows)
    print(f"one yardstick: {found['yardstick_s']} s, of {found['yardsticks_s']}")
    print(f"above: {', '.join(over) or 'none'}")
