"""The recipes, the published numbers, and the commands that make them."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Notes, equal, global_rng, seeded

from advlib import Images, bim, fgsm, load_data, pgd, predict
from advlib.book import commands, parts, recipes, trained
from advlib.book.recipes import Recipe, reports_table, results, results_table, train

ROOT = Path(__file__).parent.parent
TINY = Recipe(images=60, epochs=1, batch_size=30)
cpu = partial(train, device="cpu")


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """The shipped digits, but no more of them than tiny recipes need."""
    few = [Images(part.x[:60], part.y[:60], part.classes) for part in load_data(device="cpu")]
    monkeypatch.setattr(recipes, "load_data", lambda name, device="cpu": few)
    return few


def test_recipes_are_the_sources_and_the_papers():
    for recipe in (recipes.STANDARD, recipes.ROBUST):
        assert (recipe.images, recipe.epochs, recipe.batch_size) == (5000, 30, 100)
        assert (recipe.lr, recipe.momentum, recipe.bounds) == (0.01, 0.9, (0.0, 1.0))
    assert recipes.STANDARD.attack(None) is None
    attack = recipes.ROBUST.attack(None)
    assert attack.func is fgsm
    assert {"eps": 0.1, "alpha": 0.125, "random_start": True}.items() <= attack.keywords.items()
    paper = {"eps": 8 / 255, "alpha": 10 / 255, "random_start": True, "images": 50_000}
    paper |= {"epochs": 15, "batch_size": 128, "lr": 0.2, "cyclic": True, "momentum": 0.9}
    paper |= {"weight_decay": 5e-4, "augment": True, "precision": "mixed", "method": "fgsm"}
    assert paper.items() <= vars(recipes.CIFAR10).items()


def test_both_protocols_attack_as_they_say():
    """The printed one has the source's slips; the corrected one treats both networks alike."""
    found = {(protocol, kind): rest for protocol, kind, *rest in recipes.protocols()}
    for kind, alpha in (("standard", 0.01), ("robust", 0.125)):
        recipe, tests = found["printed", kind]
        assert list(tests) == ["clean", "bim"]
        assert tests["bim"].func is bim
        assert tests["bim"].keywords == {"eps": 0.1, "alpha": alpha, "steps": 20, "bounds": None}
        assert recipe.eps == 0 or recipe.bounds is None
    (recipe, tests), (_, others) = found["corrected", "robust"], found["corrected", "standard"]
    assert (recipe, tests) == (recipes.ROBUST, others)
    assert (tests["clean"], tests["bim"].func, tests["pgd"].func) == (None, bim, pgd)
    assert tests["bim"].keywords == {"eps": 0.1, "alpha": 0.01, "steps": 20}
    assert {"eps": 0.1, "restarts": 5}.items() <= tests["pgd"].keywords.items()


@pytest.mark.parametrize("recipe", [TINY, replace(TINY, epochs=2, eps=0.1, alpha=0.125)])
def test_training_again_gives_the_same_bits_and_draws_nothing_from_outside(recipe):
    before = global_rng()
    (net, history), (again, same_history) = cpu(recipe), cpu(recipe)
    assert global_rng() == before
    assert equal(net, again)
    assert same_history == history
    watched = ("fgsm", "pgd") if recipe.eps else ()  # by two attacks after every epoch
    sizes = {name: len(values) for name, values in history.metrics.items()}
    assert sizes == dict.fromkeys(watched, recipe.epochs)


def test_each_method_trains_another_network(few_images):
    tiny = replace(TINY, images=30, alpha=0.1)
    nets = [tiny.net()]
    tiny.fit(nets[0], few_images[0])
    for method in recipes.METHODS:
        recipe = replace(tiny, eps=0.1, method=method)
        net, _ = cpu(recipe)
        assert not any(equal(net, other) for other in nets), method
        nets.append(net)
    with pytest.raises(ValueError, match=r"^method must be one of"):
        replace(tiny, method="fgms")


def test_relabelled_images_are_close_and_their_labels_say_nothing_of_what_they_show(few_images):
    x, y = few_images[0].x, few_images[0].y
    net = trained.network("standard", device="cpu")
    found, labels = parts.relabelled(net, x, y, eps=0.1, generator=seeded())
    assert torch.equal(labels, torch.randint(0, 10, y.shape, generator=seeded()))
    assert ((found - x).abs().amax((1, 2, 3)) - 0.1).abs().max() < 1e-5
    before, after = ((predict(net, images) == labels).sum() for images in (x, found))
    assert after > 20 > before


def test_noise_is_gaussian_of_its_size_and_not_clipped():
    x = torch.zeros(40, 1, 28, 28)
    noise = parts.with_noise(None, x, None, sigma=0.25, generator=seeded())
    assert noise.std().item() == pytest.approx(0.25, rel=0.02)
    assert noise.mean().abs() < 0.01
    assert (noise.abs() > 0.5).float().mean().item() == pytest.approx(0.0455, abs=0.005)


@pytest.fixture
def tiny_protocols(monkeypatch):
    """All the steps of `results`, with little training and weak attacks."""
    weak = partial(bim, eps=0.1, alpha=0.05, steps=2)
    printed = {"clean": None, "bim": weak}
    corrected = printed | {"pgd": partial(pgd, eps=0.1, alpha=0.05, steps=2, restarts=2)}
    rows = [
        (protocol, kind, replace(TINY, momentum=momentum), tests)
        for protocol, tests in (("printed", printed), ("corrected", corrected))
        for kind, momentum in (("standard", 0.9), ("robust", 0.0))
    ]
    monkeypatch.setattr(recipes, "protocols", lambda: rows)


def check_schema(found):
    for protocol, names in (("printed", ["clean", "bim"]), ("corrected", ["clean", "bim", "pgd"])):
        assert set(found[protocol]) == {"standard", "robust"}
        for row in found[protocol].values():
            assert list(row) == names
            assert {len(values) for values in row.values()} == {len(found["seeds"])}
            assert all(0 <= value <= 1 for values in row.values() for value in values)


def test_the_command_writes_and_prints_each_seed(tiny_protocols, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    options = ["results", "--seeds", "3", "4", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["advlib", *options])
    commands.main()
    found = json.loads(out.read_text())
    check_schema(found)
    assert found["seeds"] == [3, 4]
    assert results_table(found) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]
    alone = results([4], device="cpu")  # a seed's numbers do not depend on the seeds before it
    for kind, row in found["corrected"].items():
        assert {name: values[1:] for name, values in row.items()} == alone["corrected"][kind]


def test_results_are_given_up_when_training_is_interrupted(tiny_protocols, monkeypatch):
    _, history = cpu(TINY, monitor=Notes(1))
    assert (history.stopped, len(history.loss)) == (True, 1)
    monkeypatch.setattr(recipes, "train", lambda recipe, **rest: cpu(recipe, monitor=Notes(1)))
    with pytest.raises(KeyboardInterrupt):
        results([0], device="cpu")


def test_tables_show_mean_and_range_of_every_cell():
    row = {"clean": [0.9, 1.0], "bim": [0.25, 0.75]}
    other = {"clean": [0.5, 0.5], "bim": [0.0, 0.1], "pgd": [0.0, 0.0]}
    found = {"printed": {"standard": row, "robust": row}}
    found["corrected"] = {"standard": other, "robust": other}
    _, _, printed, _, _, corrected = results_table(found).splitlines()
    cells = "0.9500 (0.9000-1.0000) | 0.5000 (0.2500-0.7500) | -"
    assert printed == f"| printed | standard | {cells} |"
    cells = "0.5000 (0.5000-0.5000) | 0.0500 (0.0000-0.1000) | 0.0000 (0.0000-0.0000)"
    assert corrected == f"| corrected | robust | {cells} |"
    row = {"attack": "none", "accuracy": 0.75, "interval": [0.5, 0.875]}
    weaker = row | {"accuracy": 0.5, "interval": [0.25, 0.75]}
    found = {"a": {"images": 4, "rows": [row]}, "b": {"images": 4, "rows": [weaker]}}
    head, last = "| attack, 4 images | a | b |", "0.750 (0.500-0.875) | 0.500 (0.250-0.750)"
    assert reports_table(found) == f"{head}\n|---|---|---|\n| none | {last} |\n"


def test_published_results_are_consistent_and_in_the_readme():
    """What must hold whatever the numbers: more attack never helps the network by much."""
    files = (ROOT / "book" / f"{name}.json" for name in ("results", "reports"))
    found, reports = (json.loads(file.read_text("utf8")) for file in files)
    check_schema(found)
    assert found["seeds"] == [0, 1, 2]
    for row in (row for protocol in ("printed", "corrected") for row in found[protocol].values()):
        for i in range(3):
            assert row["bim"][i] <= row["clean"][i]
            assert row.get("pgd", row["bim"])[i] <= row["bim"][i] + 0.01
    assert found["printed"]["standard"]["clean"] == found["corrected"]["standard"]["clean"]
    readme = (ROOT / "README.md").read_text("utf8")
    assert results_table(found) in readme
    assert reports_table(reports) in readme
