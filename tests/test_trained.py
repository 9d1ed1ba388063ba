"""The networks that ship: whole, of their recipes, and as good as index.json says."""

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

from advlib import Batches, accuracy, checkpoint, load_data, mean_iou
from advlib.book import commands, recipes, trained

DIGITS = load_data(device="cpu")


def right(net, n, attack=None, data="digits"):
    x, y = load_data(data, device="cpu")[1][:2]
    return accuracy(net, Batches(x[:n], y[:n]), attack=attack)


def test_the_folder_holds_what_the_recipes_name_and_no_more():
    sizes = {path.name: path.stat().st_size for path in trained.FOLDER.iterdir() if path.is_file()}
    assert set(sizes) == {"__init__.py", "index.json", *(f"{name}.pt" for name in recipes.SHIPPED)}
    assert list(trained.index()) == list(recipes.SHIPPED)
    assert sum(sizes.values()) <= 10_000_000


@pytest.mark.parametrize("name", recipes.SHIPPED)
def test_a_file_is_whole_and_as_good_as_the_index_says(name):
    """On the first images, within four standard errors of what it gets right of all 5,000."""
    recipe, found, told = recipes.SHIPPED[name], trained.load(name), trained.index()[name]
    assert trained.history(name) == found.history
    assert len(found.history.loss) == recipe.epochs * -(-recipe.images // recipe.batch_size)
    watched = recipe.watch(DIGITS[1]) is not None
    maps = recipe.data == "scenes"
    assert watched == (maps or (recipe.eps > 0 and recipe.method != "noise"))
    assert set(found.history.metrics) == (
        {"clean" if maps else "fgsm", "pgd"} if watched else set()
    )
    assert all(len(values) == recipe.epochs for values in found.history.metrics.values())
    assert min(found.seconds, len(found.machine), len(found.torch)) > 0
    assert (found.net is None) == (name in recipes.HISTORIES)
    if found.net is None:
        return
    kept = {value.dtype for value in checkpoint.read(trained.FOLDER / f"{name}.pt")["net"].values()}
    assert kept == {torch.float16 if name in recipes.HALF else torch.float32}
    net = trained.network(name, device="cpu")
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    if maps:
        some = Batches(*(part[:80] for part in load_data("scenes", device="cpu")[1][:2]))
        for kind, attack in (("clean", None), ("bim", recipes.MAPS_BIM)):
            found = mean_iou(net, some, attack=attack)
            assert found == pytest.approx(told[kind], abs=0.06)
        return
    for kind, n, attack in (("clean", 500, None), ("bim", 50, recipes.BIM)):
        margin = 4 * (max(told[kind] * (1 - told[kind]), 0.01) / n) ** 0.5
        assert right(net, n, attack, recipe.data) == pytest.approx(told[kind], abs=margin)


def test_a_network_trained_again_is_as_good():
    """On all test images, and under both attacks on those that the training was watched by."""
    net, history = recipes.train(recipes.SHIPPED["fast"], device="cpu")
    clean = right(net, 5000)
    assert clean == pytest.approx(trained.index()["fast"]["clean"], abs=trained.MARGIN)
    for kind, known in trained.history("fast").metrics.items():
        assert history.metrics[kind][-1] == pytest.approx(known[-1], abs=trained.MARGIN)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of what ships, to damage."""
    shutil.copytree(trained.FOLDER, tmp_path / "trained")
    monkeypatch.setattr(trained, "FOLDER", tmp_path / "trained")
    return tmp_path / "trained"


def digest_again(file):
    """Have the index take the file for the right one."""
    known = trained.index()
    known[file.stem]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (file.parent / "index.json").write_text(json.dumps(known))


def test_a_missing_or_damaged_file_says_to_install_again(folder):
    shutil.copy(folder / "robust.pt", folder / "standard.pt")  # whole, but not the right one
    with pytest.raises(OSError, match=r"standard\.pt is damaged .*: install advlib again"):
        trained.history("standard")
    for file in ("standard.pt", "index.json"):
        (folder / file).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{file} is missing: install advlib again"):
            trained.network("standard")


def test_a_network_of_something_else_says_what_to_run(folder, monkeypatch):
    file = folder / "standard.pt"
    content = checkpoint.read(file)
    changes = {"from other digits": {"data": ""}, "by another recipe": {"recipe": {"seed": 1}}}
    for what, change in changes.items():
        checkpoint.write(file, content | change)
        digest_again(file)
        with pytest.raises(ValueError, match=f"'standard' was made {what}: run `make networks`"):
            trained.network("standard")
    monkeypatch.setitem(recipes.SHIPPED, "new", recipes.STANDARD)
    with pytest.raises(ValueError, match="'new' has not been trained: run `make networks`"):
        trained.network("new")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Three networks that train in no time, the first of them there already."""
    few = [part._replace(x=part.x[:20], y=part.y[:20]) for part in DIGITS]
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
        assert name == "past" or equal(found.net, net if name == "one" else net.half().float())
    with pytest.raises(ValueError, match=r"^name must .* of 'past' the history is kept"):
        trained.network("past")
    assert list(trained.index()["past"]) == ["sha256", "clean", "bim", "fgsm", "pgd"]
    assert capsys.readouterr().out.count("new -> ") == 6


def test_a_check_reports_a_difference_fails_and_writes_nothing(tiny, monkeypatch, capsys):
    def check(*names):
        options = ["networks", "--check", "--device", "cpu", "--only", *names]
        monkeypatch.setattr(sys, "argv", ["advlib", *options])
        before = contents(tiny)
        with pytest.raises(SystemExit) as ended:
            commands.main()
        assert contents(tiny) == before
        return ended.value.code, capsys.readouterr().out.splitlines()[-1]

    assert check("one")[0] == 0
    text = (tiny / "index.json").read_text()
    (tiny / "index.json").write_text(text.replace('"clean": ', '"clean": 9'))
    assert check("one", "half") == (1, "more than 0.05 from what ships: one, half")


@pytest.mark.parametrize("files", [0, 1])
def test_a_full_disk_or_a_stop_costs_no_more_than_the_file_under_way(files, tiny, monkeypatch):
    before, calls, replaced = contents(tiny), iter(range(9)), os.replace

    def fail(*paths):
        if next(calls) == files:
            raise OSError("disk full")
        replaced(*paths)

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(trained.time, "process_time", iter(range(0, 99, 9)).__next__)
    with pytest.raises(OSError, match="disk full"):
        trained.make(["one"], device="cpu")
    after = contents(tiny)
    assert after["index.json"] == before["index.json"]
    if files:  # the new network is not taken for the old one
        assert after["one.pt"] != before["one.pt"]
        with pytest.raises(OSError, match=r"one\.pt is damaged"):
            trained.load("one")
    assert trained.make(["one"], device="cpu") == []
    assert trained.network("one")
    before, stopped = contents(tiny), trained.History(stopped=True)
    monkeypatch.setattr(recipes, "train", lambda recipe, device: (recipe.net(), stopped))
    with pytest.raises(KeyboardInterrupt):
        trained.make(["one"], device="cpu")
    assert contents(tiny) == before
