"""The networks that ship: whole, of their recipes, as good as index.json says, and safe to load."""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import equal
from test_checkpoint import HOSTILE, sign

from advlib import Batches, accuracy, checkpoint, load_data, recipes, trained
from advlib import __main__ as command

CENTRAL = ("standard", "robust", "provable")
LIMIT = 10_000_000
WITH_WEIGHTS = [name for name in recipes.SHIPPED if name not in recipes.HISTORIES]


def gradients(name):
    """How many gradients of images the training takes, if it attacks by one step."""
    recipe = recipes.SHIPPED[name]
    return recipe.images * recipe.epochs * (1 + (recipe.eps > 0))


CHEAPEST = min(WITH_WEIGHTS, key=gradients)


@pytest.fixture(scope="module")
def digits():
    return load_data(device="cpu")


def right(net, digits, n, attack=None):
    x, y = digits[1][:2]
    return accuracy(net, Batches(x[:n], y[:n]), attack=attack)


# What ships


def test_the_folder_holds_what_the_recipes_name_and_no_more():
    sizes = {path.name: path.stat().st_size for path in trained.FOLDER.iterdir() if path.is_file()}
    assert set(sizes) == {"__init__.py", "index.json", *(f"{name}.pt" for name in recipes.SHIPPED)}
    assert list(trained.index()) == list(recipes.SHIPPED)
    assert sum(sizes.values()) <= LIMIT


@pytest.mark.parametrize("name", recipes.SHIPPED)
def test_a_history_is_whole(name):
    recipe, found = recipes.SHIPPED[name], trained.load(name)
    assert trained.history(name) == found.history
    assert not found.history.stopped
    assert len(found.history.loss) == recipe.epochs * -(-recipe.images // recipe.batch_size)
    assert set(found.history.metrics) == ({"fgsm", "pgd"} if recipe.eps else set())
    assert all(len(values) == recipe.epochs for values in found.history.metrics.values())
    assert found.seconds > 0
    assert found.machine
    assert found.torch
    assert (found.net is None) == (name in recipes.HISTORIES)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_a_network_is_as_good_as_the_index_says(name, digits):
    """On the first images, within four standard errors of what it gets right of all 5,000."""
    told, net = trained.index()[name], trained.network(name, device="cpu")
    for kind, n, attack in (("clean", 500, None), ("bim", 50, recipes.BIM)):
        margin = 4 * (max(told[kind] * (1 - told[kind]), 0.01) / n) ** 0.5
        assert right(net, digits, n, attack) == pytest.approx(told[kind], abs=margin)


def test_weights_are_whole_where_the_book_needs_them_and_half_elsewhere():
    assert not {*CENTRAL} & {*recipes.HALF, *recipes.HISTORIES}
    for name in WITH_WEIGHTS:
        weights = checkpoint.read(trained.FOLDER / f"{name}.pt")["net"]
        kept = torch.float16 if name in recipes.HALF else torch.float32
        assert {weight.dtype for weight in weights.values()} == {kept}
        assert {p.dtype for p in trained.network(name).parameters()} == {torch.float32}


def test_the_cheapest_network_trained_again_is_as_good(digits):
    """On all test images, and under both attacks on those that the training was watched by."""
    net, history = recipes.train(recipes.SHIPPED[CHEAPEST], device="cpu")
    clean = right(net, digits, 5000)
    assert clean == pytest.approx(trained.index()[CHEAPEST]["clean"], abs=trained.MARGIN)
    known = trained.history(CHEAPEST).metrics
    assert history.metrics.keys() == known.keys()
    for kind, values in history.metrics.items():
        assert values[-1] == pytest.approx(known[kind][-1], abs=trained.MARGIN)


# What is refused


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of what ships, to damage."""
    shutil.copytree(trained.FOLDER, tmp_path / "trained")
    monkeypatch.setattr(trained, "FOLDER", tmp_path / "trained")
    return tmp_path / "trained"


def digest_again(folder, name):
    """Have the index take the file for the right one."""
    known = trained.index()
    known[name]["sha256"] = hashlib.sha256((folder / f"{name}.pt").read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(known))


@pytest.mark.parametrize("file", ["standard.pt", "index.json"])
def test_a_missing_file_says_to_install_again(file, folder):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing: install advlib again"):
        trained.network("standard")


def test_a_damaged_file_says_to_install_again(folder):
    shutil.copy(folder / "robust.pt", folder / "standard.pt")  # whole, but not the right one
    with pytest.raises(OSError, match=r"standard\.pt is damaged .*: install advlib again"):
        trained.history("standard")


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("from other digits", {"data": "0" * 64}),
        ("by another recipe", {"recipe": {"seed": 1}}),
    ],
)
def test_a_network_of_something_else_says_what_to_run(what, change, folder):
    content = checkpoint.read(folder / "standard.pt")
    checkpoint.write(folder / "standard.pt", content | change)
    digest_again(folder, "standard")
    with pytest.raises(ValueError, match=f"'standard' was made {what}: run `make networks`"):
        trained.network("standard")


def test_a_recipe_that_changed_says_what_to_run(monkeypatch):
    changed = {"standard": replace(recipes.STANDARD, lr=0.02), "new": recipes.STANDARD}
    monkeypatch.setattr(recipes, "SHIPPED", recipes.SHIPPED | changed)
    with pytest.raises(ValueError, match="'standard' was made by another recipe: run `make netw"):
        trained.network("standard")
    with pytest.raises(ValueError, match="'new' has not been trained: run `make networks`"):
        trained.network("new")


def test_nothing_in_a_file_is_executed(folder, tmp_path):
    sign(folder / "standard.pt", HOSTILE["a module"](str(tmp_path / "ran")))
    digest_again(folder, "standard")
    with pytest.raises(ValueError, match=r"standard\.pt was not loaded, as it could run code"):
        trained.network("standard")
    assert not (tmp_path / "ran").exists()


# Making them


@pytest.fixture
def tiny(digits, tmp_path, monkeypatch):
    """Three networks that train in no time, the first of them there already."""
    few = [part._replace(x=part.x[:20], y=part.y[:20]) for part in digits]
    for module in (recipes, trained):
        monkeypatch.setattr(module, "load_data", lambda *rest, **options: few)
    recipe = recipes.Recipe(images=20, epochs=1, batch_size=10, eps=0.1, alpha=0.1)
    shipped = {name: replace(recipe, seed=i) for i, name in enumerate(("one", "half", "past"))}
    monkeypatch.setattr(recipes, "SHIPPED", shipped)
    monkeypatch.setattr(recipes, "BIM", partial(recipes.BIM, steps=1))
    monkeypatch.setattr(recipes, "HALF", ("half",))
    monkeypatch.setattr(recipes, "HISTORIES", ("past",))
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    assert trained.make(["one"], device="cpu") == ["one"]
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_made_is_what_its_recipe_trains(tiny, capsys):
    assert trained.make(["half", "past"], device="cpu") == ["half", "past"]
    assert set(contents(tiny)) == {"one.pt", "half.pt", "past.pt", "index.json"}
    for name, recipe in recipes.SHIPPED.items():
        net, history = recipes.train(recipe, device="cpu")
        found = trained.load(name)
        assert found.history == history
        if name == "past":
            with pytest.raises(ValueError, match=r"^name must .* of 'past' the history is kept"):
                trained.network(name)
        else:
            assert equal(found.net, net if name == "one" else net.half().float())
    assert list(trained.index()["past"]) == ["sha256", "fgsm", "pgd"]
    assert capsys.readouterr().out.count("new -> ") == 4


def test_a_check_reports_a_difference_and_writes_nothing(tiny):
    before = contents(tiny)
    assert trained.make(["one"], device="cpu", check=True) == []
    assert contents(tiny) == before
    known = trained.index()
    known["one"]["clean"] += 2 * trained.MARGIN
    (tiny / "index.json").write_text(json.dumps(known))
    before = contents(tiny)
    assert trained.make(["one", "half"], device="cpu", check=True) == ["one", "half"]
    assert contents(tiny) == before


def test_the_command_fails_where_a_check_finds_a_difference(tiny, monkeypatch, capsys):
    for name, status in (("one", 0), ("half", 1)):
        options = ["networks", "--check", "--device", "cpu", "--only", name]
        monkeypatch.setattr(sys, "argv", ["advlib", *options])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == status
    assert "more than 0.05 from what ships: half" in capsys.readouterr().out


@pytest.mark.parametrize("files", [0, 1])
def test_a_disk_that_is_full_costs_no_more_than_the_file_under_way(files, tiny, monkeypatch):
    before, calls, replaced = contents(tiny), iter(range(9)), os.replace

    def fail(*paths):
        if next(calls) == files:
            raise OSError("disk full")
        replaced(*paths)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        trained.make(["one"], device="cpu")
    after = contents(tiny)
    assert after["index.json"] == before["index.json"]
    if after["one.pt"] != before["one.pt"]:  # the new network is not taken for the old one
        assert files == 1
        with pytest.raises(OSError, match=r"one\.pt is damaged"):
            trained.load("one")
    assert trained.make(["one"], device="cpu") == []
    assert set(contents(tiny)) == set(before)
    assert trained.network("one")


def test_a_training_that_was_stopped_is_not_written(tiny, monkeypatch):
    before, stopped = contents(tiny), trained.History(stopped=True)
    monkeypatch.setattr(recipes, "train", lambda recipe, device: (recipe.net(), stopped))
    with pytest.raises(KeyboardInterrupt):
        trained.make(["one"], device="cpu")
    assert contents(tiny) == before
