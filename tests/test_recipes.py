"""The cache of trained networks, and the published numbers."""

import dataclasses
import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import global_rng

from advlib import Images, bim, fgsm, load_data, pgd, recipes
from advlib import __main__ as command
from advlib.recipes import Recipe, reports_table, results, results_table, train

ROOT = Path(__file__).parent.parent
TINY = Recipe(images=100, epochs=1, batch_size=50)
TINY_ROBUST = Recipe(images=100, epochs=2, batch_size=50, eps=0.1, alpha=0.125)
cpu = partial(train, device="cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data(device="cpu")


@pytest.fixture(autouse=True)
def few_images(digits, monkeypatch):
    """The shipped digits, but no more of them than tiny recipes need."""

    def load(name, *, device="cpu"):
        assert (name, str(device)) == ("digits", "cpu")
        return [Images(p.x[:n], p.y[:n], p.classes) for p, n in zip(digits, (100, 40), strict=True)]

    monkeypatch.setattr(recipes, "load_data", load)


class StopAt:
    """A monitor that asks to stop after some iterations, and notes what it was told."""

    def __init__(self, iteration=0):
        self.stop_requested, self.iteration, self.told = False, iteration, []

    def start(self, epochs, iterations):
        self.told.append((epochs, iterations))

    def step(self, loss):
        self.iteration -= 1
        self.stop_requested = self.iteration == 0

    def finish(self, history):
        self.told.append(len(history.loss))


def equal(a, b):
    return all(torch.equal(p, b.state_dict()[name]) for name, p in a.state_dict().items())


# The recipes


def test_recipes_are_the_sources_protocol():
    for recipe in (recipes.STANDARD, recipes.ROBUST):
        assert (recipe.images, recipe.epochs, recipe.batch_size) == (5000, 30, 100)
        assert (recipe.lr, recipe.momentum, recipe.bounds) == (0.01, 0.9, (0.0, 1.0))
    assert recipes.STANDARD.attack(None) is None
    attack = recipes.ROBUST.attack(None)
    assert attack.func is fgsm
    assert attack.keywords["eps"] == 0.1
    assert attack.keywords["alpha"] == 0.125
    assert attack.keywords["random_start"]
    assert recipes.BIM.func is bim
    assert recipes.BIM.keywords == {"eps": 0.1, "alpha": 0.01, "steps": 20}
    assert recipes.PGD.func is pgd


def protocol(name):
    """Recipe and attack settings of each network; generators differ and do not count."""

    def settings(attack):
        options = {k: v for k, v in attack.keywords.items() if k != "generator"}
        return attack.func, options

    return {
        kind: (recipe, {test: attack and settings(attack) for test, attack in tests.items()})
        for wanted, kind, recipe, tests in recipes.protocols()
        if wanted == name
    }


def test_corrected_protocol_attacks_both_networks_alike_and_not_by_fgsm_alone():
    (_, standard), (recipe, robust) = protocol("corrected").values()
    assert standard == robust
    assert standard["clean"] is None
    assert standard["bim"] == (bim, {"eps": 0.1, "alpha": 0.01, "steps": 20})
    function, options = standard["pgd"]
    assert function is pgd
    assert options["eps"] == 0.1
    assert options["restarts"] >= 5
    assert recipe == recipes.ROBUST


def test_printed_protocol_has_the_sources_slips():
    for kind, alpha in (("standard", 0.01), ("robust", 0.125)):
        recipe, tests = protocol("printed")[kind]
        options = {"eps": 0.1, "alpha": alpha, "steps": 20, "bounds": None}
        assert tests == {"clean": None, "bim": (bim, options)}
        assert recipe.eps == 0 or recipe.bounds is None


# The cache


@pytest.mark.parametrize("recipe", [TINY, TINY_ROBUST])
def test_a_cached_network_is_bit_identical_and_so_is_its_history(recipe, cache):
    before = global_rng()
    net, history = cpu(recipe)
    assert len(list(cache.iterdir())) == 1
    if recipe.eps:  # watched by another attack after every epoch
        assert len(history.metrics["pgd"]) == recipe.epochs
    monitor = StopAt()
    again, cached_history = cpu(recipe, monitor=monitor)
    assert global_rng() == before
    assert monitor.told == [(recipe.epochs, 2), 2 * recipe.epochs]
    assert equal(net, again)
    assert cached_history == history
    assert again.training == net.training
    assert again.conv1.weight.stride() == net.conv1.weight.stride()
    (file,) = cache.iterdir()
    file.unlink()
    assert equal(cpu(recipe)[0], net)  # trained anew


@pytest.mark.parametrize("method", ["fgsm", "n-fgsm", "pgd", "trades", "grad-align", "interval"])
def test_each_method_trains_another_network_and_is_watched(method):
    recipe = dataclasses.replace(TINY, eps=0.1, alpha=0.1, epochs=1, method=method)
    generator = torch.Generator()
    assert (recipe.attack(generator) is None) == (recipe.loss(generator) is not None)
    net, history = cpu(recipe)
    assert not equal(net, cpu(dataclasses.replace(TINY, epochs=1))[0])
    assert set(history.metrics) == {"fgsm", "pgd"}
    assert equal(net, cpu(recipe)[0])


def test_every_field_the_data_and_the_version_change_the_key(monkeypatch):
    changed = {
        "seed": 1,
        "images": 99,
        "epochs": 2,
        "batch_size": 25,
        "lr": 0.02,
        "momentum": 0.8,
        "eps": 0.2,
        "alpha": 0.1,
        "random_start": False,
        "bounds": None,
        "cyclic": True,
        "method": "pgd",
        "data": "mnist",
        "network": "preact-resnet18",
        "weight_decay": 0.1,
        "augment": True,
        "precision": "mixed",
    }
    assert set(changed) == {field.name for field in dataclasses.fields(Recipe)}
    cpu_device = torch.device("cpu")
    recipe_list = [TINY, *(dataclasses.replace(TINY, **{k: v}) for k, v in changed.items())]
    keys = [recipes._digest(recipe, cpu_device) for recipe in recipe_list]
    keys.append(recipes._digest(TINY, torch.device("cuda")))
    monkeypatch.setattr(recipes, "DIGITS_SHA256", "other digits")
    keys.append(recipes._digest(TINY, cpu_device))
    monkeypatch.setattr(recipes, "version", lambda package: "0.0.0")
    keys.append(recipes._digest(TINY, cpu_device))
    monkeypatch.setattr(recipes, "_code", lambda: "other code")
    keys.append(recipes._digest(TINY, cpu_device))
    assert len(set(keys)) == len(keys) == 22


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_damaged_cache_file_is_noticed_and_made_anew(damage, cache):
    net, _ = cpu(TINY)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    file.write_bytes({"flipped": flipped, "cut": whole[:-1], "emptied": b""}[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        again, _ = cpu(TINY)
    assert equal(net, again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(net, cpu(TINY)[0])


def test_a_write_that_fails_leaves_nothing_behind_and_loses_no_network(cache, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(UserWarning, match="not cached: disk full"):
        _, history = cpu(TINY)
    assert history.loss
    assert list(cache.iterdir()) == []


def test_an_interrupted_network_is_returned_but_not_cached(cache):
    net, history = cpu(TINY, monitor=StopAt(1))
    assert history.stopped
    assert len(history.loss) == 1
    assert not cache.exists()
    complete, _ = cpu(TINY)
    assert not equal(net, complete)


def test_cache_folder_is_the_environments_or_the_users(cache, monkeypatch):
    assert recipes.cache_folder() == cache
    monkeypatch.delenv("ADVLIB_CACHE")
    monkeypatch.setenv("HOME", "/home/reader")
    assert recipes.cache_folder() == Path("/home/reader/.cache/advlib")


# The results


@pytest.fixture
def tiny_protocols(monkeypatch):
    """All the steps of `results`, with little training and weak attacks."""
    attacks = {"clean": None, "bim": partial(bim, eps=0.1, alpha=0.05, steps=2)}
    attacks["pgd"] = partial(pgd, eps=0.1, alpha=0.05, steps=2, restarts=2)
    printed = {name: attacks[name] for name in ("clean", "bim")}
    rows = [
        (protocol, kind, dataclasses.replace(TINY, momentum=momentum), tests)
        for protocol, tests in (("printed", printed), ("corrected", attacks))
        for kind, momentum in (("standard", 0.9), ("robust", 0.0))
    ]
    monkeypatch.setattr(recipes, "protocols", lambda: rows)


def check_schema(found):
    assert {"seeds", "printed", "corrected"} <= set(found)
    for protocol, names in (("printed", ["clean", "bim"]), ("corrected", ["clean", "bim", "pgd"])):
        assert set(found[protocol]) == {"standard", "robust"}
        for row in found[protocol].values():
            assert list(row) == names
            for values in row.values():
                assert len(values) == len(found["seeds"])
                assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)


def test_results_hold_one_accuracy_per_seed(tiny_protocols):
    found = results([3, 4], device="cpu")
    check_schema(found)
    assert found["seeds"] == [3, 4]
    assert found == json.loads(json.dumps(found))
    alone = results([4], device="cpu")  # a seed's numbers do not depend on the seeds before it
    for kind, row in found["corrected"].items():
        assert {name: values[1:] for name, values in row.items()} == alone["corrected"][kind]
    assert found["printed"]["standard"] == {
        name: found["corrected"]["standard"][name] for name in ("clean", "bim")
    }


def test_results_are_given_up_when_training_is_interrupted(tiny_protocols, monkeypatch):
    def interrupted(recipe, **options):
        return train(recipe, monitor=StopAt(1), **options)

    monkeypatch.setattr(recipes, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results([0], device="cpu")


def test_the_command_writes_the_results_and_prints_their_table(
    tiny_protocols, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "results.json"
    options = ["results", "--seeds", "5", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["advlib", *options])
    command.main()
    found = json.loads(out.read_text())
    check_schema(found)
    assert results_table(found) in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("results*")] == ["results.json"]
    monkeypatch.setattr(sys, "argv", ["advlib", "results", "--out", str(tmp_path / "no/r.json")])
    with pytest.raises(SystemExit):
        command.main()


def test_table_shows_mean_and_range_of_every_cell():
    row = {"clean": [0.9, 1.0], "bim": [0.25, 0.75]}
    other = {"clean": [0.5, 0.5], "bim": [0.0, 0.1], "pgd": [0.0, 0.0]}
    found = {"printed": {"standard": row, "robust": row}}
    found["corrected"] = {"standard": other, "robust": other}
    lines = results_table(found).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        [f"| {protocol}", kind]
        for protocol in ("printed", "corrected")
        for kind in ("standard", "robust")
    ]
    assert lines[2].endswith("| 0.9500 (0.9000-1.0000) | 0.5000 (0.2500-0.7500) | - |")
    assert lines[5].endswith("| 0.0500 (0.0000-0.1000) | 0.0000 (0.0000-0.0000) |")
    assert len({line.count("|") for line in lines}) == 1


@pytest.fixture
def published():
    return json.loads((ROOT / "book" / "results.json").read_text(encoding="utf-8"))


def test_published_results_have_the_promised_schema(published):
    check_schema(published)
    assert published["seeds"] == [0, 1, 2]


def test_published_results_are_consistent(published):
    """What must hold whatever the numbers: more attack never helps the network by much."""
    for protocol in ("printed", "corrected"):
        for row in published[protocol].values():
            for i in range(3):
                assert row["bim"][i] <= row["clean"][i]
                assert row.get("pgd", row["bim"])[i] <= row["bim"][i] + 0.01
    assert published["printed"]["standard"]["clean"] == published["corrected"]["standard"]["clean"]


def test_reports_table_has_a_row_per_attack_and_a_column_per_network():
    row = {"attack": "none", "accuracy": 0.75, "interval": [0.5, 0.875]}
    weaker = row | {"accuracy": 0.5, "interval": [0.25, 0.75]}
    found = {"a": {"images": 4, "rows": [row]}, "b": {"images": 4, "rows": [weaker]}}
    assert reports_table(found).splitlines() == [
        "| attack, 4 images | a | b |",
        "|---|---|---|",
        "| none | 0.750 (0.500-0.875) | 0.500 (0.250-0.750) |",
    ]


def test_readme_has_the_table_of_the_published_reports():
    found = json.loads((ROOT / "book" / "reports.json").read_text(encoding="utf-8"))
    assert reports_table(found) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_has_the_table_of_the_published_results(published):
    assert results_table(published) in (ROOT / "README.md").read_text(encoding="utf-8")
