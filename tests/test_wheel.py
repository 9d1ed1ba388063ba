"""The package as pip installs it: nothing is left out, and it works away from the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 14_000_000
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
ELSEWHERE = """
import sys
import torch, advlib
from advlib.book import recipes, trained

train, test = advlib.load_data(device="cpu")
net = advlib.digit_net()
history = advlib.fit(net, advlib.Batches(train.x[:200], train.y[:200]), epochs=1, lr=0.1)
assert history.loss[1] < history.loss[0]
x, y = test.x[:20], test.y[:20]
attacked = advlib.bim(net, x, y, eps=0.1, alpha=0.05, steps=2)
assert 0.09 < (attacked - x).abs().max() < 0.11
for name, recipe in recipes.SHIPPED.items():
    net, least = trained.load(name).net, trained.index()[name].get("clean", 1) - 0.2
    if net is not None:
        x, y = (part[:20] for part in advlib.load_data(recipe.data, device="cpu")[1][:2])
        assert (advlib.predict(net, x) == y).float().mean() > least, name
paths = {module.__file__ for name, module in sys.modules.items() if name.startswith("advlib")}
assert all(path.startswith(sys.argv[1]) for path in paths), paths
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CONTENT"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.partial")
    shutil.copytree(ROOT / "advlib", source / "advlib", ignore=ignored)
    run(*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, source)
    (found,) = out.iterdir()
    return found


def test_the_wheel_is_light_and_holds_every_file(wheel):
    assert wheel.stat().st_size <= LIMIT
    files = [path for path in (ROOT / "advlib").rglob("*") if path.is_file()]
    passing = (".pyc", ".partial")
    ours = {path.relative_to(ROOT).as_posix() for path in files if path.suffix not in passing}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name[:7] == "advlib/"} == ours


def test_what_is_installed_trains_attacks_and_loads_every_network(wheel, tmp_path):
    target, home = tmp_path / "target", tmp_path / "home"
    home.mkdir()
    run(*PIP, "install", "--no-index", "--no-deps", "--target", target, wheel)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(target)}
    environment |= {"OMP_NUM_THREADS": "1"}
    run(sys.executable, "-c", ELSEWHERE, target, cwd=home, env=environment)
    assert list(home.iterdir()) == []
