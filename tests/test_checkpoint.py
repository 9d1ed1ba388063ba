"""Files of networks and trainings: whole or not there, safe to load, and of the right kind."""

import hashlib
import io
import os
import pickle
import time
from contextlib import suppress
from functools import partial
from unittest import mock

import pytest
import torch
from conftest import Notes, equal, images, labels, seeded, small_net, untouched
from torch import nn

from advlib import Batches, checkpoint, fgsm, fit, load_checkpoint

CONTENT = {"weights": torch.arange(3.0), "words": ["a", None, 1.5, {"b": True}]}


def sign(path, payload, line=b"advlib 1"):
    """Write a file as `checkpoint.write` does, but with any payload."""
    signed = line + b"\n" + payload
    path.write_bytes(hashlib.sha256(signed).digest() + signed)


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def train(model, path, generator=None, **options):
    """Two epochs of two iterations, with all that a training may have to be saved."""
    cut = {"shuffle": True, "generator": generator or seeded(6)}
    batches = Batches(images(), labels(), batch_size=4, **cut)
    options |= {"evaluate": lambda model: {"one": 1.0}, "keep_best": "one", "checkpoint": path}
    attack = partial(fgsm, eps=0.1, random_start=True, generator=torch.Generator())
    return fit(model, batches, epochs=2, lr=0.1, attack=attack, **options)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The checkpoint of a training that was stopped in its second epoch, as bytes."""
    path = tmp_path_factory.mktemp("stopped") / "run.pt"
    train(small_net(), path, monitor=Notes(3))
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, stopped):
    (tmp_path / "run.pt").write_bytes(stopped)
    return tmp_path / "run.pt"


def refused(path, message, read=True):
    """All that read the file at `path` say so, and leave it and everything else as it was."""
    model, generator, before = small_net(), seeded(6), path.read_bytes()
    training = partial(train, model, generator=generator)
    for load in [training, partial(load_checkpoint, model=model)][: 1 + read]:
        with untouched(model), pytest.raises(ValueError, match=message) as raised:
            load(path=path)
        assert "delete" not in str(raised.value)
    assert path.read_bytes() == before
    assert torch.equal(generator.get_state(), seeded(6).get_state())


@pytest.mark.parametrize("step", ["fdopen", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "net.pt"
    checkpoint.write(path, CONTENT)
    monkeypatch.setattr(os, step, mock.Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(path, {})
    monkeypatch.undo()
    found = checkpoint.read(path)
    assert torch.equal(found["weights"], CONTENT["weights"])
    assert found["words"] == CONTENT["words"]
    assert os.listdir(path.parent) == ["net.pt"]


@pytest.mark.parametrize("name", ["net.pt", "run[1].pt", "run*.pt"])
def test_what_a_killed_process_left_is_ignored_and_swept_away_after_an_hour(name, tmp_path):
    path, now = tmp_path / name, time.time()
    stems = (f"{name}.a", f"{name}.b", "runner.pt.c", f"{name}.gone")
    half, fresh, other, gone = (tmp_path / f"{stem}.partial" for stem in stems)
    for left, age in ((half, 3660), (fresh, 3540), (other, 9999)):
        left.write_bytes(b"half")
        os.utime(left, (now - age, now - age))
    gone.symlink_to("nowhere")  # as if another process were faster
    with pytest.raises(FileNotFoundError):
        checkpoint.read(path)
    checkpoint.write(path, CONTENT)
    assert sorted(tmp_path.iterdir()) == sorted([path, fresh, other, gone])
    assert checkpoint.read(path)["words"] == CONTENT["words"]


class Evil:
    """Unpickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


old_style = partial(saved, _use_new_zipfile_serialization=False)
HOSTILE = {
    "os.system": lambda place: saved(Evil(os.system, f"mkdir '{place}'")),
    "deep inside": lambda place: saved({"net": {"a": [torch.zeros(1), Evil(os.mkdir, place)]}}),
    "old style": lambda place: old_style(Evil(os.mkdir, place)),
    "bare pickle": lambda place: pickle.dumps(Evil(os.mkdir, place), protocol=2),
    "text pickle": lambda place: f"cos\nmkdir\n(S{place!r}\ntR.".encode(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_checkpoint_with_code_is_refused_and_nothing_of_it_runs(kind, path, tmp_path):
    place = tmp_path / "ran"
    payload = HOSTILE[kind](str(place))
    with suppress(Exception):
        torch.load(io.BytesIO(payload), weights_only=False)
    place.rmdir()  # it does harm
    sign(path, payload)
    refused(path, r"run\.pt was not loaded.*run code")
    assert not place.exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_a_file_that_memory_is_too_small_for_is_not_called_bad(error, path, monkeypatch):
    monkeypatch.setattr(torch, "load", mock.Mock(side_effect=error))
    with pytest.raises(type(error)) as raised:
        checkpoint.read(path)
    assert raised.value is error


@pytest.mark.parametrize("line", [b"", b"advlib 0", b"advlib -1", b"advlib " + b"9" * 5000])
def test_a_file_that_is_none_of_ours_is_refused_and_kept(line, path):
    sign(path, saved(CONTENT), line)
    refused(path, r"run\.pt is no file of advlib's")
    for foreign in (b"", b"my thesis", saved(small_net().state_dict())):
        path.write_bytes(foreign)
        refused(path, r"run\.pt is no file of advlib's")


@pytest.mark.parametrize("number", [2, 999_999_999])
def test_a_file_of_a_newer_version_says_so(number, path):
    sign(path, b"whatever comes", b"advlib %d" % number)
    refused(path, rf"run\.pt was written by a newer advlib, in format {number}; .*update advlib")


OTHERS = {
    r"differ in 8\.bias, 8\.weight$": lambda: small_net()[:8],
    r"differ in 9\.bias, 9\.weight$": lambda: small_net().append(nn.Linear(3, 3)),
    r"differ in 0\.weight$": lambda: small_net(channels=3),
    r"differ in 0\.bias, 0\.weight, .*, \.\.\.$": lambda: small_net(dtype=torch.float64),
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_network_of_another_architecture_is_refused_and_the_model_left_alone(message, path):
    model = OTHERS[message]()
    for use in [load_checkpoint, lambda path, model: train(model, path)][: 1 + ("9" in message)]:
        with untouched(model), pytest.raises(ValueError, match=rf"architecture .*; .*{message}"):
            use(path, model)


def put(*keys):
    """A change: `put("a", "b", value)` puts `value` into content["a"]["b"]."""
    *keys, last, value = keys

    def change(inner):
        for key in keys:
            inner = inner[key]
        inner[last] = value(inner[last]) if callable(value) else value

    return change


WRONG = {  # whoever reads it
    "a part missing": lambda content: content.pop("history"),
    "unknown field": put("history", "accuracy", [0.5]),
    "a layer missing": lambda content: content["best"].pop("0.weight"),
    "text for weights": put("best", "0.weight", "weights"),
    "another shape": put("best", "0.weight", torch.zeros(2, 2)),
    "NaN": put("best", "0.weight", lambda tensor: tensor * float("nan")),
    "without values": put("best", "0.weight", lambda tensor: tensor.to("meta")),
}
WRONG_TRAINING = {  # by what only `fit` needs
    "NaN in model": put("model", "0.weight", lambda tensor: tensor * float("nan")),
    "no state of the optimizer": lambda content: content["optimizer"].pop("state"),
    "momentum of no parameter": put("optimizer", "state", []),
    "a state of floats": put("states", "torch", lambda state: state.float()),
    "a state of words": put("states", "attack.generator", "random".ljust(5056)),
    "epoch before the first": put("epoch", -1),
    "more epochs than iterations": put("epoch", 2),
    "no settings": put("settings", {}),
}


@pytest.mark.parametrize("wrong", [*WRONG, *WRONG_TRAINING])
def test_a_wrong_structure_is_a_clear_error(wrong, path):
    content = checkpoint.read(path)
    (WRONG | WRONG_TRAINING)[wrong](content)
    checkpoint.write(path, content)
    refused(path, r"run\.pt", read=wrong in WRONG)


@pytest.mark.parametrize("content", [None, torch.zeros(2), {"net": {}}])
def test_a_file_of_something_else_is_no_training(content, path):
    sign(path, saved(content))
    refused(path, r"run\.pt holds no (network|training)")


def test_what_is_right_goes_on(path):
    """As the file was, all of the above would have been accepted; and as one of a GPU's, too."""
    model, expected = small_net(), small_net()
    assert len(load_checkpoint(path, model).loss) == 3
    content = checkpoint.read(path)
    assert len(train(expected, path).loss) == 4
    content["states"]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    checkpoint.write(path, content)
    assert len(train(model, path).loss) == 4
    assert equal(model, expected)
    content["states"]["attack.generator"] = content["order_state"] = content["states"]["cuda"]
    checkpoint.write(path, content)  # generators of a GPU's begin anew
    assert len(train(model, path).loss) == 4
