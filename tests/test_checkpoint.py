"""Files of networks and trainings: whole or not there, safe to load, and of the right kind."""

import builtins
import hashlib
import io
import os
import pickle
import time
import warnings
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from unittest import mock

import pytest
import torch
from conftest import images, labels, small_net, untouched
from torch import nn

from advlib import Batches, History, checkpoint, fgsm, fit, load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Validating sparse tensor")
CONTENT = {"weights": torch.arange(3.0), "words": ["a", None, 1.5, {"b": True}]}


def sign(path, payload, line=b"advlib 1"):
    """Write a file as `checkpoint.write` does, but with any payload."""
    signed = line + b"\n" + payload
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hashlib.sha256(signed).digest() + signed)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class StopAt3:
    """A monitor that stops training in the midst of its second epoch."""

    stop_requested = False

    def start(self, epochs, iterations):
        self.told = 0

    def step(self, loss):
        self.told += 1
        self.stop_requested = self.told == 3

    def finish(self, history):
        pass


def train(model, path, generator=None, **options):
    """Two epochs of two iterations, with all that a training may have to be saved."""
    generator = generator or torch.Generator().manual_seed(6)
    return fit(
        model,
        Batches(images(), labels(), batch_size=4, shuffle=True, generator=generator),
        epochs=2,
        lr=0.1,
        attack=partial(fgsm, eps=0.1, random_start=True, generator=torch.Generator()),
        evaluate=lambda model: {"one": 1.0},
        keep_best="one",
        checkpoint=path,
        **options,
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The checkpoint of a training that was stopped in its second epoch, as bytes."""
    path = tmp_path_factory.mktemp("stopped") / "run.pt"
    train(small_net(), path, monitor=StopAt3())
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, stopped):
    (tmp_path / "run.pt").write_bytes(stopped)
    return tmp_path / "run.pt"


# Writing


def test_what_was_written_is_read_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "net.pt"
    for _ in range(2):
        checkpoint.write(path, CONTENT)
        found = checkpoint.read(path)
        assert torch.equal(found["weights"], CONTENT["weights"])
        assert found["words"] == CONTENT["words"]
        assert os.listdir(path.parent) == ["net.pt"]


@pytest.mark.parametrize("step", ["fdopen", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    path = tmp_path / "net.pt"
    checkpoint.write(path, CONTENT)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(path, {})
    monkeypatch.undo()
    assert checkpoint.read(path)["words"] == CONTENT["words"]
    assert os.listdir(tmp_path) == ["net.pt"]


@pytest.mark.parametrize("name", ["net.pt", "run[1].pt", "run*.pt"])
def test_what_a_killed_process_left_is_ignored_and_swept_away_after_an_hour(name, tmp_path):
    path, now = tmp_path / name, time.time()
    half, fresh, other = (
        tmp_path / f"{stem}.partial" for stem in (f"{name}.a", f"{name}.b", "runner.pt.c")
    )
    for left, age in ((half, 3660), (fresh, 3540), (other, 9999)):
        left.write_bytes(b"half")
        os.utime(left, (now - age, now - age))
    with pytest.raises(FileNotFoundError):
        checkpoint.read(path)
    assert len(os.listdir(tmp_path)) == 3
    checkpoint.write(path, CONTENT)
    assert sorted(tmp_path.iterdir()) == sorted([path, fresh, other])
    assert checkpoint.read(path)["words"] == CONTENT["words"]


def test_sweeping_what_is_gone_or_can_not_go_is_no_failure(tmp_path):
    (tmp_path / "net.pt.gone.partial").symlink_to("nowhere")  # as if another process were faster
    folder = tmp_path / "net.pt.folder.partial"
    folder.mkdir()
    os.utime(folder, (0, 0))
    checkpoint.write(tmp_path / "net.pt", CONTENT)
    assert checkpoint.read(tmp_path / "net.pt")["words"] == CONTENT["words"]


# Code in a file


class Evil:
    """Unpickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Trap(nn.Module):
    """A network that runs code when it is unpickled."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def __setstate__(self, state):
        os.mkdir(state["place"])


def old_style(value):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


HOSTILE = {
    "os.mkdir": lambda place: saved(Evil(os.mkdir, place)),
    "os.system": lambda place: saved(Evil(os.system, f"mkdir '{place}'")),
    "eval": lambda place: saved(Evil(builtins.eval, f"__import__('os').mkdir({place!r})")),
    "exec": lambda place: saved(Evil(builtins.exec, f"import os; os.mkdir({place!r})")),
    "deep inside": lambda place: saved({"net": {"a": [torch.zeros(1), Evil(os.mkdir, place)]}}),
    "a module": lambda place: saved(Trap(place)),
    "old style": lambda place: old_style(Evil(os.mkdir, place)),
    "an old module": lambda place: old_style({"net": Trap(place)}),
    "bare pickle": lambda place: pickle.dumps(Evil(os.mkdir, place), protocol=2),
    "text pickle": lambda place: f"cos\nmkdir\n(S{place!r}\ntR.".encode(),
}


@pytest.fixture(params=HOSTILE)
def hostile(request, tmp_path):
    """A payload that makes a folder when it is unpickled, as is seen first."""
    place = tmp_path / "ran"
    payload = HOSTILE[request.param](str(place))
    with suppress(Exception):
        torch.load(io.BytesIO(payload), weights_only=False)
    assert place.exists()
    place.rmdir()
    yield payload
    assert not place.exists()


def test_a_checkpoint_with_code_is_refused_and_nothing_of_it_runs(hostile, tmp_path):
    path, model = tmp_path / "run.pt", small_net()
    sign(path, hostile)
    with untouched(model):
        for load in (checkpoint.read, partial(load_checkpoint, model=model), partial(train, model)):
            with pytest.raises(ValueError, match=r"run\.pt was not loaded.*run code: delete it"):
                load(path)


@pytest.mark.parametrize("payload", [b"", b"\x80", b"PK\x03\x04", b".", b"0" * 99, b"(lp0\nI1\na."])
def test_a_file_that_torch_can_not_read_is_a_clear_error(payload, tmp_path):
    sign(tmp_path / "net.pt", payload)
    with pytest.raises(ValueError, match=r"net\.pt .*delete it"):
        checkpoint.read(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_nobody_is_told_to_delete_a_file_that_memory_is_too_small_for(
    failure, tmp_path, monkeypatch
):
    checkpoint.write(tmp_path / "net.pt", {})
    monkeypatch.setattr(torch, "load", mock.Mock(side_effect=failure))
    with pytest.raises(type(failure)) as raised:
        checkpoint.read(tmp_path / "net.pt")
    assert raised.value is failure


# Other versions and architectures


@pytest.mark.parametrize("number", [2, 10, 999_999_999])
def test_a_file_of_a_newer_version_says_so(number, tmp_path):
    path, model, line = tmp_path / "run.pt", small_net(), b"advlib %d" % number
    sign(path, b"whatever comes", line)
    newer = rf"\.pt was written by a newer advlib, in format {number}; .*update advlib"
    with untouched(model):
        for load in (checkpoint.read, partial(load_checkpoint, model=model), partial(train, model)):
            with pytest.raises(ValueError, match=r"run" + newer):
                load(path)


@pytest.mark.parametrize(
    "line", [b"", b"advlib 0", b"advlib -1", b"advlib", b"advlib " + b"9" * 5000]
)
def test_a_file_with_a_right_digest_that_is_none_of_ours_is_refused(line, tmp_path):
    sign(tmp_path / "run.pt", saved(CONTENT), line)
    with pytest.raises(ValueError, match=r"run\.pt is no file of advlib's: delete it"):
        checkpoint.read(tmp_path / "run.pt")


OTHERS = {
    "fewer layers": lambda: nn.Sequential(*list(small_net())[:6]),
    "more layers": lambda: small_net().append(nn.Linear(3, 3)),
    "other shapes": lambda: small_net(channels=3),
    "another type": lambda: small_net(dtype=torch.float64),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_network_of_another_architecture_is_refused_and_the_model_left_alone(other, path):
    model = OTHERS[other]()
    with untouched(model), pytest.raises(ValueError, match=r"another architecture .*run\.pt"):
        load_checkpoint(path, model)
    if other == "more layers":  # the others can't classify these images
        with untouched(model), pytest.raises(ValueError, match=r"another architecture .*run\.pt"):
            train(model, path)


def test_the_message_names_the_layers_that_differ(path):
    with pytest.raises(ValueError, match=r"differ in 0\.weight$"):
        load_checkpoint(path, small_net(channels=3))
    with pytest.raises(ValueError, match=r"differ in 0\.bias, 0\.weight, .*, \.\.\.$"):
        load_checkpoint(path, nn.Sequential(nn.Linear(1, 1)))


class Counts(nn.Linear):
    """A layer with more state than tensors."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        self.found = state


def test_a_layers_extra_state_is_loaded_too(tmp_path):
    model = nn.Sequential(nn.Flatten(), Counts(16, 3))
    weights = model.state_dict()
    checkpoint.fill(model, weights, tmp_path)
    assert model[1].found == {"calls": 3}
    del weights["1._extra_state"]
    with pytest.raises(ValueError, match=r"differ in 1\._extra_state$"):
        checkpoint.fill(model, weights, tmp_path)


# Right digest, wrong structure


def put(*keys):
    """A change of a content: `put("a", "b", value)` puts `value` into content["a"]["b"]."""
    *keys, last, value = keys

    def change(content):
        inner = content
        for key in keys:
            inner = inner[key]
        inner[last] = value(inner.get(last)) if callable(value) else value

    return change


def drop(*keys):
    *keys, last = keys

    def change(content):
        inner = content
        for key in keys:
            inner = inner[key]
        del inner[last]

    return change


def nested(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a prototype
        return torch.nested.nested_tensor([tensor, tensor])


PARTS = (
    "model",
    "optimizer",
    "scaler",
    "history",
    "best",
    "epoch",
    "ended",
    "order_state",
    "states",
)
BAD_WEIGHTS = {
    "text": "weights",
    "a number": 1.0,
    "None": None,
    "another shape": torch.zeros(2, 2),
    "NaN": lambda tensor: tensor * float("nan"),
    "integers": lambda tensor: tensor.long(),
    "complex": lambda tensor: tensor + 0j,
    "sparse": lambda tensor: tensor.to_sparse(),
    "without values": lambda tensor: tensor.to("meta"),
    "nested": nested,
}
WRONG = {  # whoever reads it
    **{f"{name} missing": drop(name) for name in (*PARTS, "settings")},
    **{
        f"{name} is a {type(bad).__name__}": put(name, lambda good, bad=bad: bad)
        for name in (*PARTS, "settings")
        for bad in (None, "text", 2.5, (), torch.zeros(3, 3))
        if (name, type(bad)) != ("order_state", torch.Tensor)
    },
    "unknown field": put("history", "accuracy", [0.5]),
    "known field missing": drop("history", "metrics"),
    "loss of words": put("history", "loss", ["a", "b", "c"]),
    "loss is a tensor": put("history", "loss", torch.zeros(3)),
    "metrics is a list": put("history", "metrics", []),
    "a metric is a number": put("history", "metrics", {"one": 1.0}),
    "stopped is a number": put("history", "stopped", 1),
    "kept_epoch is text": put("history", "kept_epoch", "1"),
    "a layer too many in best": put("best", "9.weight", torch.zeros(1)),
    "a layer without a name in best": put("best", 9, torch.zeros(1)),
    "a layer missing in best": drop("best", "0.weight"),
    **{f"{what} in best": put("best", "0.weight", bad) for what, bad in BAD_WEIGHTS.items()},
}
WRONG_TRAINING = {  # by what only `fit` needs
    **{f"{what} in model": put("model", "0.weight", bad) for what, bad in BAD_WEIGHTS.items()},
    "model of no layers": put("model", lambda good: {}),
    "no state of the optimizer": drop("optimizer", "state"),
    "a list for a state": put("optimizer", "state", []),
    "momentum of another shape": put("optimizer", "state", 0, "momentum_buffer", torch.zeros(5)),
    "momentum is text": put("optimizer", "state", 0, "momentum_buffer", "fast"),
    "momentum of no parameter": put("optimizer", "state", 99, lambda good: {}),
    "momentum of no number": put("optimizer", "state", "a", lambda good: {}),
    "momentum is no dict": put("optimizer", "state", 0, torch.zeros(1)),
    "a scaler not asked for": put("scaler", "scale", 2.0),
    "states missing": put("states", lambda good: []),
    "states too many": put("states", lambda good: [*good, None]),
    "a state too short": put("states", lambda good: [*good[:-1], torch.zeros(3).byte()]),
    "a state of floats": put("states", lambda good: [*good[:-1], good[-1].float()]),
    "a state of words": put("states", lambda good: [*good[:-1], "random"]),
    "a first state of words": put("states", lambda good: ["random", *good[1:]]),
    "an order too short": put("order_state", torch.zeros(3).byte()),
    "an order without values": put("order_state", lambda good: good.to("meta")),
    "epoch before the first": lambda good: good | {"epoch": -1, "history": asdict(History())},
    "more epochs than iterations": put("epoch", 2),
    "more iterations than epochs": put("epoch", 0),
    "no settings": put("settings", lambda good: {}),
    "settings of numbers": put("settings", "lr", 0.1),
}


def change_file(path, change):
    content = checkpoint.read(path)
    changed = change(content)
    checkpoint.write(path, content if changed is None else changed)


def refused_by_fit(path):
    """`fit` refuses the file at `path` and leaves everything as it was."""
    model, generator = small_net(), torch.Generator().manual_seed(6)
    before = path.read_bytes(), generator.get_state().tolist()
    with untouched(model), pytest.raises(ValueError, match=r"run\.pt"):
        train(model, path, generator)
    assert before == (path.read_bytes(), generator.get_state().tolist())


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_structure_is_a_clear_error(wrong, path):
    change_file(path, WRONG[wrong])
    refused_by_fit(path)
    model = small_net()
    with untouched(model), pytest.raises(ValueError, match=r"run\.pt"):
        load_checkpoint(path, model)


@pytest.mark.parametrize("wrong", WRONG_TRAINING)
def test_a_training_that_can_not_be_gone_on_from_is_a_clear_error(wrong, path):
    change_file(path, WRONG_TRAINING[wrong])
    refused_by_fit(path)


@pytest.mark.parametrize("content", [[1, 2], "text", None, torch.zeros(2), {}, {"net": {}}])
def test_a_file_of_something_else_is_no_training(content, path):
    sign(path, saved(content))
    refused_by_fit(path)
    with pytest.raises(ValueError, match=r"run\.pt holds no (network|training).*: delete it"):
        load_checkpoint(path, small_net())


def test_what_is_right_goes_on(path):
    """As the file was, all of the above would have been accepted."""
    model = small_net()
    assert len(load_checkpoint(path, model).loss) == 3
    change_file(path, lambda content: None)
    assert len(train(model, path).loss) == 4
