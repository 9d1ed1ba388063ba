"""The recipes, and the published numbers."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import equal, global_rng

from advlib import Images, bim, fgsm, load_data, pgd, recipes
from advlib import __main__ as command
from advlib.recipes import Recipe, reports_table, results, results_table, train

ROOT = Path(__file__).parent.parent
TINY = Recipe(images=60, epochs=1, batch_size=30)
TINIER = Recipe(images=30, epochs=1, batch_size=30)
TINY_ROBUST = Recipe(images=60, epochs=2, batch_size=30, eps=0.1, alpha=0.125)
cpu = partial(train, device="cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data(device="cpu")


@pytest.fixture(autouse=True)
def few_images(digits, monkeypatch):
    """The shipped digits, but no more of them than tiny recipes need."""

    def load(name, *, device="cpu"):
        assert (name, str(device)) == ("digits", "cpu")
        return [Images(p.x[:n], p.y[:n], p.classes) for p, n in zip(digits, (60, 20), strict=True)]

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


# Training


@pytest.mark.parametrize("recipe", [TINY, TINY_ROBUST])
def test_training_again_gives_the_same_bits_and_draws_nothing_from_outside(recipe):
    before, monitor = global_rng(), StopAt()
    net, history = cpu(recipe)
    again, same_history = cpu(recipe, monitor=monitor)
    assert global_rng() == before
    assert monitor.told == [(recipe.epochs, 2), 2 * recipe.epochs]
    assert equal(net, again)
    assert same_history == history
    watched = {"fgsm", "pgd"} if recipe.eps else set()  # by two attacks after every epoch
    assert {name: len(values) for name, values in history.metrics.items()} == dict.fromkeys(
        watched, recipe.epochs
    )


@pytest.mark.parametrize("method", ["fgsm", "n-fgsm", "pgd", "trades", "grad-align", "interval"])
def test_each_method_trains_another_network(method, trained_nets):
    recipe = dataclasses.replace(TINIER, eps=0.1, alpha=0.1, method=method)
    generator = torch.Generator()
    assert (recipe.attack(generator) is None) == (recipe.loss(generator) is not None)
    net, _ = cpu(recipe)
    assert not any(equal(net, other) for other in trained_nets)
    trained_nets.append(net)


@pytest.fixture(scope="module")
def trained_nets(digits):
    """What was trained so far, the first by no attack."""
    net = TINIER.net()
    TINIER.fit(net, digits[0])
    return [net]


def test_an_interrupted_network_is_returned():
    _, history = cpu(TINY, monitor=StopAt(1))
    assert history.stopped
    assert len(history.loss) == 1


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
