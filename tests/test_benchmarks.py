"""The measuring itself, and the results that book and README show."""

import importlib
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn

from advlib import Batches, accuracy, autoattack, bim, digit_net, load_data
from benchmarks import build, common, costs, peers
from benchmarks.worker import LIBRARIES, OURS
from tools import readme_table

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
is_chapter = importlib.import_module("notebooks").is_chapter  # readme_table has found book/_ext


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_tasks_are_timed_in_turns_and_the_order_changes():
    calls = []
    tasks = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = common.in_turns(tasks, 4, CPU)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    calls.clear()
    common.in_turns(tasks, 1, CPU, warm_up=False)
    assert "".join(calls) == "abc"


def test_ratio_is_the_median_of_the_rounds_ratios():
    times = {"slow": [2.0, 90.0, 4.0], "fast": [1.0, 30.0, 4.0]}
    assert common.ratio(times, "slow", "fast") == 2.0


def test_arithmetic_of_the_network_is_that_of_its_layers():
    by_hand = 28 * 28 * 9 * (32 + 32 * 64) + 64 * 14 * 14 * 10  # multiplications, forward
    assert common.forward_and_back_flop(digit_net(), 28) == 4 * by_hand


def test_operations_and_bytes_of_an_image_are_those_of_its_layers():
    first, second, linear = 28 * 28 * 9 * 32, 28 * 28 * 9 * 32 * 64, 64 * 14 * 14 * 10
    forward = 2 * (first + second + linear)
    found = costs.count(digit_net(), (1, 28, 28))
    assert found["forward_flop"] == forward
    assert found["training_flop"] == 3 * forward - 2 * first  # none for the pixels
    assert found["attack_flop"] == 2 * forward
    # what both ReLUs put out, what the pooling puts out, and where it took that from (int64)
    kept = 4 * 28 * 28 * (32 + 64) + (4 + 8) * 14 * 14 * 64
    assert found["activation_bytes"] == kept
    assert found["parameters"] == 9 * 32 + 32 + 9 * 32 * 64 + 64 + 64 * 14 * 14 * 10 + 10


def test_a_tensor_that_two_layers_keep_is_counted_once():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    assert costs.count(net, (6,))["activation_bytes"] == 4 * 5


def test_costs_trains_with_as_many_gradients_as_it_says(monkeypatch):
    calls = []
    gradient = costs.engine.gradient
    monkeypatch.setattr(
        costs.engine, "gradient", lambda *given: calls.append(len(given[1])) or gradient(*given)
    )
    net = digit_net(generator=torch.Generator().manual_seed(0))
    before = net.linear.weight.clone()
    costs.train(net, costs.batches("digit_net", CPU, 6, 3), 4)
    assert calls == [3] * 4 * 2
    assert not torch.equal(net.linear.weight, before)


def test_processes_take_longer_for_a_larger_sum():
    found = costs.all_reduce(CPU, 1)
    assert found["backend"] == "gloo"
    assert [row["numbers"] for row in found["rows"]] == costs.NUMBERS
    assert 0 < found["rows"][0]["median_s"] < found["rows"][-1]["median_s"]


def allocate(megabytes):
    return CPU, lambda: torch.ones(megabytes * 2**18).sum()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_what_the_call_takes_and_not_what_was_there():
    assert common.peak_megabytes(allocate, 300) == pytest.approx(300, rel=0.1)


def test_an_attack_that_does_something_else_is_not_compared():
    x, y = (part[:20] for part in load_data()[1][:2])
    net = digit_net(generator=torch.Generator().manual_seed(0))
    same = {name: bim(net, x, y, eps=0.1, alpha=0.01, steps=3) for name in (OURS, "other")}
    checked = peers.check_same(net, x, y, same)
    assert checked["other"] == checked[OURS]
    for other in (bim(net, x, y, eps=0.09, alpha=0.03, steps=3), x):
        with pytest.raises(SystemExit, match="other did something else"):
            peers.check_same(net, x, y, same | {"other": other})


@pytest.fixture
def material():
    """A network by two names, and images, as the workers get them."""
    test = load_data()[1]
    net = digit_net(generator=torch.Generator().manual_seed(0)).eval()
    return {"standard": net, "robust": net}, test._replace(x=test.x[:20], y=test.y[:20])


def test_a_library_is_asked_in_its_own_process(material):
    nets, test = material
    net, (x, y, *_) = nets["standard"], test
    with ExitStack() as processes:
        libraries = peers.started([OURS, OURS], nets, test, CPU, processes)
        took, found = libraries[1].ask("run", "standard", 5, 0.1, 3)
        torch.testing.assert_close(found, bim(net, x[:5], y[:5], eps=0.1, alpha=0.01, steps=3))
        assert took > 0
        _, right = libraries[0].ask("robust_accuracy", "standard", 8, 0.1, 3)
        early = partial(bim, eps=0.1, alpha=0.01, steps=3, early_exit=True)
        assert right == accuracy(net, Batches(x, y), attack=early)
        _, left = libraries[0].ask("autoattack", "robust", 4, 0.05)
        generator = torch.Generator().manual_seed(0)
        strong = partial(autoattack, eps=0.05, generator=generator)
        assert left == accuracy(net, Batches(x[:4], y[:4]), attack=strong)
        with pytest.raises(RuntimeError, match="KeyError: 'no net'"):
            libraries[0].ask("run", "no net", 5, 0.1, 3)
    assert [library.process.poll() for library in libraries] == [0, 0]


def test_a_library_that_does_not_work_is_reported(material, capsys):
    with ExitStack() as processes, pytest.raises(SystemExit, match="no other library works here"):
        peers.started([OURS, "no such library"], *material, CPU, processes)
    assert "not measured: no such library (KeyError: 'no such library')" in capsys.readouterr().out


def test_other_libraries_run_without_advlib_in_their_process():
    code = "import sys, benchmarks.worker; sys.exit('advlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_results_of_the_same_machine_are_kept_and_others_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "ROOT", tmp_path)
    first = {"rounds": 7, "rows": [1]}
    common.save("a", CPU, first | {"rounds": 6})
    assert "not written" in capsys.readouterr().out
    assert common.load("a", CPU, like={"rounds": 7, "rows": []}) == {"rounds": 7, "rows": []}
    common.save("a", CPU, first)
    assert common.load("a", CPU, like={"rounds": 7, "rows": []})["rows"] == [1]
    assert common.load("a", CPU, like={"rounds": 3, "rows": []})["rows"] == []
    monkeypatch.setattr(common, "device_name", lambda device: "another machine")
    assert common.load("a", CPU, like={"rounds": 7, "rows": []})["rows"] == []


def test_published_comparison_is_complete_and_fair():
    found = result("peers-cpu")
    assert found["rounds"] >= 7
    assert list(found["fastest"]) == ["100", "500", "5000"]
    for size in (100, 500, 5000):
        rows = [row for row in found["rows"] if row["batch_size"] == size]
        assert len(rows) == len(LIBRARIES)
        robust = [row["robust_accuracy"] for row in rows]
        assert max(robust) - min(robust) <= 0.005
        assert max(row["linf"] for row in rows) - min(row["linf"] for row in rows) <= 1e-5
        fastest = max(rows, key=lambda row: row["images_per_s"] * (row["peer"] != OURS))
        assert found["fastest"][str(size)]["fastest"] == fastest["peer"]
    for row in found["rows"]:
        assert row["images_per_s"] == pytest.approx(row["batch_size"] / row["median_s"])
        assert 0 < row["fraction_of_matmul_peak"] < 1.2


def test_published_scaling_of_memory_is_flat():
    rows = result("scaling-cpu")["rows"]
    for varied in ("images", "steps"):
        peaks = [row["peak_mb"] for row in rows if row["varied"] == varied]
        assert len(peaks) == 5
        assert max(peaks) < 2 * min(peaks) + 20


def test_published_training_has_every_recipe_and_seed():
    found = result("training-cpu")
    runs = {(run["recipe"], run["seed"]) for run in found["runs"]}
    assert runs == {(name, seed) for name in ("source", "fast", "long") for seed in (0, 1, 2)}
    assert set(found["summary"]) == {"source", "fast", "long"}


def test_published_costs_are_complete_and_near_the_model():
    found = result("costs-cpu")
    networks = found["networks"]
    assert set(networks) == {*costs.SUBJECTS, "resnet50"}
    assert networks["digit_net"] == costs.count(digit_net(), (1, 28, 28))
    points = {(row["network"], row["steps"]) for row in found["training"]}
    assert points == {(name, steps) for name in costs.SUBJECTS for steps in costs.STEPS}
    for row in found["training"]:
        assert row["ratio"] == pytest.approx(row["ratio_of_flop"], rel=0.25)
    assert len(found["memory"]) == 10
    for row in found["memory"]:
        if row["network"] == "preact_resnet18":
            assert 0.9 < row["peak_mb"] / row["predicted_mb"] < 2.5
    assert [row["numbers"] for row in found["all_reduce"]["rows"]] == costs.NUMBERS


def test_published_efficiency_of_two_processes_is_that_of_its_times():
    found = result("distributed-cpu")
    one, two = found["median_s"]
    assert found["processes"] == [1, 2]
    assert found["rounds"] >= common.ROUNDS
    assert found["efficiency"] == pytest.approx(one / two, rel=0.2)
    assert found["efficiency"] >= 0.85


MAKEFILE = """
$(STAMP): pyproject.toml
	false
test: $(STAMP)
	@echo "== lint: quick"
	@sleep 0.2
	@echo "=== 3 passed in 1s ==="
	@echo "== test: slow (a little)"
	@exit $(FAULT)
	@sleep 1.1
"""


def test_parts_of_a_target_are_timed_by_its_messages(tmp_path, capfd):
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "installed").touch()
    environment = dict(os.environ) | {"FAULT": "0"}
    found = build.make("make test again", tmp_path, environment)
    assert list(found) == ["make test again", "make test again: slow"]
    assert 1.1 < found["make test again: slow"] < found["make test again"] - 0.2
    assert "3 passed" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="make test failed"):
        build.make("make test", tmp_path, environment | {"FAULT": "1"})


def test_a_clone_is_measured_with_its_own_package_and_an_empty_home(tmp_path, monkeypatch):
    root = tmp_path / "root"
    package = root / "advlib" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    monkeypatch.setattr(common, "ROOT", root)
    git = ["git", "-C", root, "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (root / "uncommitted").touch()
    clone, environment = build.cold(tmp_path / "cold")
    assert (clone / "advlib" / "__init__.py").exists()
    assert not (clone / "uncommitted").exists()
    assert not list(Path(environment["HOME"]).iterdir())
    subprocess.run([*git, "rm", "-rq", "advlib"], check=True)
    subprocess.run([*git, "commit", "-qm", "second", "--allow-empty"], check=True)
    with pytest.raises(SystemExit, match="another advlib"):
        build.cold(tmp_path / "second")


def test_rows_above_their_limits_are_named():
    cost = {"book/01_load_data": 1.7, "book/03_standard_training": 6.9, "make book": 17.0}
    cost |= {"make test": 27.1, "make test: unit tests": 20.0}
    found = {"rows": {name: {"yardsticks": value} for name, value in cost.items()}}
    assert build.above(found) == ["book/01_load_data", "make test"]


@pytest.mark.parametrize(
    ("yardsticks", "words"),
    [
        (0.0, "under a minute"),
        (0.8, "under a minute"),  # a minute of 75 s
        (0.81, "under 2 minutes"),
        (1.71, "under 3 minutes"),  # 59.9 s of 35 s
        (1.72, "1 to 3 minutes"),
        (2.4, "1 to 3 minutes"),
        (6.0, "3 to 8 minutes"),
        (12.0, "7 to 15 minutes"),
    ],
)
def test_minutes_hold_on_the_fastest_and_the_slowest_machine(yardsticks, words):
    assert readme_table.minutes(yardsticks) == words


# benchmarks/build.py leaves the tests out that are called test_published_build...


def test_published_build_has_every_page_and_target_and_keeps_the_limits():
    found = result("build")
    chapters = [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md") if is_chapter(path)]
    targets = ["make book", "make test", "make test again"]
    assert len(found["yardsticks_s"]) == 3
    assert found["yardstick_s"] == median(found["yardsticks_s"])
    assert {name for name in found["rows"] if ":" not in name} == {*chapters, *targets}
    assert "make test: unit tests" in found["rows"]
    for row in found["rows"].values():
        assert row["yardsticks"] == pytest.approx(row["seconds"] / found["yardstick_s"], abs=0.01)
    for target in targets:
        parts = [
            row["seconds"] for name, row in found["rows"].items() if name.startswith(f"{target}:")
        ]
        assert sum(parts) == pytest.approx(found["rows"][target]["seconds"], abs=10)
    assert build.above(found) == ["make test again"]  # the unit tests are most of it


def test_published_build_is_what_readme_says():
    assert readme_table.build_sentence(result("build")) in (ROOT / "README.md").read_text("utf-8")


def test_readme_has_the_table_of_the_published_comparison():
    assert peers.speed_table(result("peers-cpu")) in (ROOT / "README.md").read_text("utf-8")
