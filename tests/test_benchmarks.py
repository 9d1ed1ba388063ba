"""The measuring itself, and the results that book and README show."""

import importlib
import json
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch

from advlib import Batches, accuracy, autoattack, bim, load_data
from benchmarks import build, common, parts, peers
from benchmarks.worker import LIBRARIES, OURS
from tools import readme_table

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
is_chapter = importlib.import_module("contents").is_chapter  # readme_table has found book/_ext


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_tasks_take_turns_and_a_ratio_is_the_median_of_the_rounds_ratios():
    calls = []
    tasks = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    assert common.in_turns(tasks, 4)["a"] == [4, 9, 11, 13]
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    (row,) = parts.compared({"": [1.0, 2.0, 3.0], "blocks": [2.0, 5.0, 9.0]}, network="robust")
    seconds = {"with_s": 2.0, "without_s": 5.0, "ratio": 2.5}
    assert row == {"part": "blocks", "network": "robust", "rounds": 3} | seconds


def test_lines_of_code_leave_out_docstrings_comments_and_blank_lines(tmp_path):
    path = tmp_path / "code.py"
    for text, lines in {
        "": 0,
        '"""One\n\ntwo."""\n\n# no\nx = """a\nb"""  # two\n': 2,
        'def f():\n    "doc"\n\n    f(\n    )\n': 3,
    }.items():
        path.write_text(text)
        assert common.code_lines(path) == lines


def test_either_order_of_layers_and_the_reference_loop_compute_what_ships():
    x, y = (part[:20] for part in load_data(device="cpu")[1][:2])
    net, pool_first = (common.trained_network("standard", pool_first=p) for p in (False, True))
    assert [type(layer).__name__ for layer in net][3:5] == ["ReLU", "MaxPool2d"]
    torch.testing.assert_close(pool_first(x), net(x))
    early = bim(net, x, y, eps=0.1, alpha=0.01, steps=8, early_exit=True)
    torch.testing.assert_close(parts.stop_at_success(net, x, y, 8), early)


@pytest.fixture
def material():
    """A network by two names, and images, as the workers get them."""
    net, test = common.trained_network("standard"), load_data(device="cpu")[1]
    return {"standard": net, "robust": net}, test._replace(x=test.x[:20], y=test.y[:20])


def test_a_library_is_asked_in_its_own_process(material):
    net, (x, y, *_) = material[0]["standard"], material[1]
    with ExitStack() as processes:
        libraries = peers.started([OURS, OURS], *material, CPU, processes)
        found = libraries[1].ask("check", "standard", 5, 0.1, 3)
        x_adv = bim(net, x[:5], y[:5], eps=0.1, alpha=0.01, steps=3)
        assert found["robust_accuracy"] == accuracy(net, Batches(x_adv, y[:5]))
        assert found["linf"] == pytest.approx((x_adv - x[:5]).abs().max().item())
        assert libraries[1].ask("run", "standard", 5, 0.1, 3) > 0
        early = partial(bim, eps=0.1, alpha=0.01, steps=3, early_exit=True)
        right = accuracy(net, Batches(x, y), attack=early)
        assert libraries[0].ask("robust_accuracy", "standard", 20, 8, 0.1, 3)[1] == right
        strong = partial(autoattack, eps=0.3, generator=torch.Generator().manual_seed(0))
        left = accuracy(net, Batches(x[:4], y[:4]), attack=strong)
        assert libraries[0].ask("autoattack", "robust", 4, 0.3)[1] == left
        about = libraries[0].ask("about")
        assert 0 < about["attack_lines"] < about["lines"]
        with pytest.raises(RuntimeError, match="KeyError: 'no net'"):
            libraries[0].ask("run", "no net", 5, 0.1, 3)
    assert [library.process.poll() for library in libraries] == [0, 0]


def test_a_library_that_does_not_work_or_does_something_else_is_not_compared(material, capsys):
    with ExitStack() as processes, pytest.raises(SystemExit, match="no other library works here"):
        peers.started([OURS, "no such library"], *material, CPU, processes)
    assert "not measured: no such library (KeyError: 'no such library')" in capsys.readouterr().out
    peers.check_same({OURS: {"robust_accuracy": 0.3}, "other": {"robust_accuracy": 0.31}}, 500)
    with pytest.raises(SystemExit, match="other did something else"):
        peers.check_same({OURS: {"robust_accuracy": 0.3}, "other": {"robust_accuracy": 0.4}}, 500)


def test_other_libraries_run_without_advlib_in_their_process():
    code = "import sys, benchmarks.worker; sys.exit('advlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_published_comparison_is_complete_fair_and_as_fast_as_promised():
    found = result("peers")
    assert (found["layout"], found["eps"], found["steps"]) == ("default", 0.1, 20)
    assert list(found["libraries"]) == list(LIBRARIES)
    for size, promised in ((100, 0.9), (500, 1.8), (5000, 1.8)):
        rows = {row["library"]: row for row in found["rows"] if row["batch_size"] == size}
        assert list(rows) == list(LIBRARIES)
        peers.check_same(rows, min(size, 500))
        fastest = min(list(rows)[1:], key=lambda name: rows[name]["median_s"])
        ratio = rows[fastest]["times_advlib"]
        assert found["fastest"][str(size)] == {"fastest": fastest, "ratio": ratio}
        assert ratio >= promised
        assert all(19 < row["forward"] < 23 for row in rows.values())
    assert found["accuracy"][0]["ratio"] >= 2.5
    assert peers.speed_table(found) in (ROOT / "README.md").read_text("utf-8")


def test_other_published_figures_are_complete_and_keep_their_promises():
    for row in result("autoattack")["rows"]:
        left = row["robust_accuracy"].values()
        assert max(left) - min(left) <= 1.5 / row["images"]
        assert row["ratio"] >= 0.9
    ratios = {row["part"]: row["ratio"] for row in result("parts")["rows"]}
    assert len(ratios) == 9
    assert ratios["FGSM over standard epoch"] <= 1.9
    assert ratios["import of advlib over torch"] < 1.3
    runs = {(run["recipe"], run["seed"]) for run in result("training")["runs"]}
    assert runs == {(name, seed) for name in ("source", "fast", "long") for seed in (0, 1, 2)}


def test_a_clone_is_measured_with_its_own_package_and_an_empty_home(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "advlib").mkdir(parents=True)
    (root / "advlib" / "__init__.py").touch()
    monkeypatch.setattr(common, "ROOT", root)
    git = ["git", "-C", root, "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    clone, environment = build.cold(tmp_path / "cold")
    assert (clone / "advlib" / "__init__.py").exists()
    assert not list(Path(environment["HOME"]).iterdir())
    for command in (["rm", "-rq", "advlib"], ["commit", "-qm", "second"]):
        subprocess.run([*git, *command], check=True)
    with pytest.raises(SystemExit, match="another advlib"):
        build.cold(tmp_path / "second")


def test_minutes_hold_on_the_fastest_and_the_slowest_machine():
    words = {0.8: "under a minute", 1.71: "under 3 minutes", 1.72: "1 to 3 minutes"}
    assert {yardsticks: readme_table.minutes(yardsticks) for yardsticks in words} == words


# benchmarks/build.py leaves the tests out that are called test_published_build...


def test_published_build_has_every_page_and_target_and_is_what_readme_says():
    found = result("build")
    chapters = [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md") if is_chapter(path)]
    targets = ["make book", "make test", "make test again"]
    assert found["yardstick_s"] == median(found["yardsticks_s"])
    assert {name for name in found["rows"] if ":" not in name} == {*chapters, *targets}
    for row in found["rows"].values():
        assert row["yardsticks"] == pytest.approx(row["seconds"] / found["yardstick_s"], abs=0.01)
    assert build.above(found) == ["make test again"]  # nearly all of it unit tests
    assert readme_table.build_sentence(found) in (ROOT / "README.md").read_text("utf-8")
