"""The measuring itself, and the results that book and README show."""

import json
from pathlib import Path

import pytest
import torch

from advlib import bim, digit_net, load_data
from benchmarks import common, peers

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


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


def allocate(megabytes):
    return CPU, lambda: torch.ones(megabytes * 2**18).sum()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_what_the_call_takes_and_not_what_was_there():
    assert common.peak_megabytes(allocate, 300) == pytest.approx(300, rel=0.1)


def test_an_attack_that_does_something_else_is_not_compared():
    x, y = (part[:20] for part in load_data()[1][:2])
    net = digit_net(generator=torch.Generator().manual_seed(0))
    same = {name: bim(net, x, y, eps=0.1, alpha=0.01, steps=3) for name in (peers.OURS, "other")}
    checked = peers._check_same(net, x, y, same)
    assert checked["other"] == checked[peers.OURS]
    for other in (bim(net, x, y, eps=0.09, alpha=0.03, steps=3), x):
        with pytest.raises(SystemExit, match="other did something else"):
            peers._check_same(net, x, y, same | {"other": other})


def test_a_library_that_is_missing_is_reported(monkeypatch, capsys):
    def missing(*given):
        raise ModuleNotFoundError("no such library")

    monkeypatch.setattr(peers, "PEERS", {peers.OURS: peers.ours, "a": missing, "b": peers.ours})
    assert peers._available(digit_net()) == [peers.OURS, "b"]
    assert capsys.readouterr().out == ("not measured: a (ModuleNotFoundError: no such library)\n")
    monkeypatch.setattr(peers, "PEERS", {peers.OURS: peers.ours, "a": missing})
    with pytest.raises(SystemExit, match="no other library works here"):
        peers._available(digit_net())


def test_published_comparison_is_complete_and_fair():
    found = result("peers-cpu")
    assert found["rounds"] >= 7
    assert {row["peer"] for row in found["rows"]} == set(peers.PEERS)
    for size in (100, 500, 5000):
        rows = [row for row in found["rows"] if row["batch_size"] == size]
        assert len(rows) == len(peers.PEERS)
        robust = [row["robust_accuracy"] for row in rows]
        assert max(robust) - min(robust) <= 0.005
        assert max(row["linf"] for row in rows) - min(row["linf"] for row in rows) <= 1e-5
        fastest = max(rows, key=lambda row: row["images_per_s"] * (row["peer"] != peers.OURS))
        assert found["fastest"][str(size)]["fastest"] == fastest["peer"]
    for row in found["rows"]:
        assert row["images_per_s"] == pytest.approx(row["batch_size"] / row["median_s"])
        assert 0 < row["fraction_of_matmul_peak"] < 1


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


def test_readme_has_the_table_of_the_published_comparison():
    assert peers.speed_table(result("peers-cpu")) in (ROOT / "README.md").read_text("utf-8")
