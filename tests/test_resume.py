"""A training that is killed, stopped or out of disk goes on as if nothing had happened."""

import os
import random
import signal
import tempfile
import time
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Notes, equal, global_rng, images, labels, seeded, set_unlikely_rng, small_net
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from advlib import Batches, checkpoint, fgsm, fit, load_checkpoint, runtime
from advlib.book.parts import shifted
from advlib.losses import trades_loss
from advlib.training import state
from advlib.training.state import described

EPOCHS, PER_EPOCH = 4, 5
X, Y, CUT = images(36), labels(36), {"batch_size": 8, "shuffle": True}


def train(path=None, *, monitor=None, epochs=EPOCHS, batches=None, **changes):
    """Train a network with dropout and BatchNorm on images attacked from random starts."""
    torch.manual_seed(5)  # dropout draws from torch's global state
    model, generator = small_net(), seeded(6)
    batches = batches or Batches(X, Y, **CUT, generator=generator)
    attack = partial(fgsm, eps=0.1, random_start=True, generator=generator)
    options = {"schedule": falling, "attack": attack, "save_steps": 1, "evaluate": last_weight}
    options |= {"checkpoint": path, "monitor": monitor} | changes
    options |= {} if "optimizer" in options else {"lr": options.get("lr", 0.05)}
    return model, fit(model, batches, epochs=epochs, **options), global_rng()


def falling(progress):
    return 1 - progress / 2


def last_weight(model):
    return {"weight": model[8].weight[0, 0].item()}


def assert_same(found, expected):
    (a, history, rng), (b, expected_history, expected_rng) = found, expected
    assert history == expected_history
    assert rng == expected_rng
    assert equal(a, b)


@pytest.fixture(scope="module")
def whole():
    set_unlikely_rng()
    return train()


MOMENTS = ("mkstemp", "fdopen", "fsync", "replace")


def die_while_writing(moment, saves):
    module, left = tempfile if moment == "mkstemp" else os, [saves]
    real = getattr(module, moment)

    def call(*arguments):
        left[0] -= 1
        if left[0] < 0:
            if moment == "fdopen":  # with half of the file written
                os.write(arguments[0], b"x" * 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(module, moment, call)


def killed(path, began, moment, saves):
    torch.set_num_threads(1)
    if moment is not None:
        die_while_writing(moment, saves)
    began.set()
    train(path)


@pytest.mark.parametrize("kills", [4, pytest.param(46, marks=pytest.mark.slow)])
def test_kills_are_survived(kills, whole, tmp_path, processes, capsys):
    chance = random.Random(kills)
    path, done, completed = tmp_path / "run.pt", 0, 0
    plan = [None] * kills + [*MOMENTS]  # at any moment, then at the worst ones
    while plan or path.exists():
        began, last = processes.Event(), not plan
        moment = None if last else plan[0]
        child = processes.Process(target=killed, args=(path, began, moment, chance.randrange(4)))
        child.start()
        began.wait()
        if moment is None and not last:
            time.sleep(chance.random() * 0.5)
            child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode:
            done, plan = done + 1, plan[1:]
        else:
            assert_same(train(path), whole)
            path.unlink()
            completed += 1
    with capsys.disabled():
        print(f"\nkills survived: {done} of {done}, in {completed} trainings")


@pytest.mark.parametrize("iterations", [0, 1, 4, 5, 6, 12, 19, 20])
def test_a_training_stopped_anywhere_goes_on_to_the_same_end(iterations, whole, tmp_path):
    path, monitor, plainly = tmp_path / "run.pt", Notes(), []
    _, history, _ = train(path, monitor=Notes(iterations), save_steps=1000)
    assert (history.stopped, len(history.loss)) == (True, iterations)  # not evaluated at 20
    watching = [monitor, lambda iteration, loss: plainly.append(iteration)]
    assert_same(train(path, monitor=watching), whole)
    assert len(monitor.losses) == EPOCHS * PER_EPOCH  # the old iterations too, for the picture
    assert plainly == list(range(iterations + 1, EPOCHS * PER_EPOCH + 1))


KINDS = [
    {"keep_best": "weight"},
    {"stop_when": lambda metrics: len(metrics["weight"]) == 3},
    {"augment": partial(shifted, most=1, generator=torch.Generator())},
    {"precision": torch.bfloat16},
    {"optimizer": partial(torch.optim.AdamW, lr=0.01)},
    {"schedule": partial(OneCycleLR, max_lr=0.1, total_steps=EPOCHS * PER_EPOCH)},
    {"attack": None, "loss": partial(trades_loss, eps=0.1, alpha=0.05, steps=2)},
    {"attack": partial(fgsm, eps=0.1, random_start=True)},  # advlib's own generator
]


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: next(iter(changes)))
def test_every_kind_of_training_can_go_on(changes, tmp_path):
    def run(path=None, monitor=None):
        runtime.default_generator.manual_seed(3)
        if "augment" in changes:
            changes["augment"].keywords["generator"].manual_seed(3)
        return train(path, monitor=monitor, **changes)

    expected = run()
    assert run(tmp_path / "run.pt", Notes(7))[1].stopped
    assert_same(run(tmp_path / "run.pt"), expected)


@pytest.mark.parametrize(("iterations", "workers"), [(3, 0), (10, 0), (14, 2)])
def test_with_a_dataloader_it_goes_on_after_the_last_finished_epoch(iterations, workers, tmp_path):
    path, seen = tmp_path / "run.pt", []
    loader = DataLoader(TensorDataset(X, Y), **CUT, num_workers=workers)
    run = partial(train, batches=loader)
    expected = run()
    assert len(run(path, monitor=Notes(iterations))[1].loss) == iterations
    assert_same(run(path, monitor=lambda i, loss: seen.append(i)), expected)
    assert seen[0] == (iterations - 1) // PER_EPOCH * PER_EPOCH + 1


def test_a_finished_training_returns_at_once_or_goes_on_for_more_epochs(tmp_path):
    path = tmp_path / "run.pt"
    options = {"keep_best": "weight", "schedule": None}
    expected = train(path, **options)
    assert_same(train(path, **options, monitor=pytest.fail), expected)  # it takes no step
    fresh = small_net()
    assert load_checkpoint(path, fresh) == expected[1]
    assert equal(fresh, expected[0])  # the best one
    longer = train(epochs=7, **options)
    assert_same(train(path, epochs=7, **options, save_steps=None, save_seconds=0), longer)


CALLS = 0


def counting(model, x, y, progress):
    global CALLS
    CALLS += 1
    return F.cross_entropy(model(x), y)


def test_a_function_that_counts_in_a_global_is_still_itself(tmp_path):
    expected = train(loss=counting)
    train(tmp_path / "run.pt", loss=counting, monitor=Notes(7))
    assert_same(train(tmp_path / "run.pt", loss=counting), expected)


def test_the_callers_generators_stay_if_training_draws_nothing_from_them(tmp_path):
    settings = {"epochs": 2, "lr": 0.1, "checkpoint": tmp_path / "run.pt"}
    model, batches = small_net()[:3], Batches(images(), labels() * 0, batch_size=4)
    model.append(torch.nn.Flatten())  # no dropout
    fit(model, batches, monitor=Notes(1), **settings)
    torch.manual_seed(77)
    before = global_rng()
    assert not fit(model, batches, **settings).stopped
    assert global_rng() == before


def test_a_full_disk_costs_nothing_but_the_saves(whole, tmp_path, monkeypatch):
    path, file = tmp_path / "run.pt", tmp_path / "file"
    file.touch()
    with pytest.warns(UserWarning, match="the training was not saved"):
        assert_same(train(file / "run.pt"), whole)
    file.unlink()
    train(path, monitor=Notes(4))
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError("No space left")))
    with pytest.warns(UserWarning, match="not saved: No space left"):
        assert_same(train(path), whole)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["run.pt"]
    assert len(checkpoint.read(path)["history"]["loss"]) == 4
    assert_same(train(path), whole)


OTHERS = [
    ("optimizer", {"lr": 0.1}),
    ("optimizer", {"momentum": 0.5}),
    ("optimizer", {"optimizer": partial(torch.optim.Adam, lr=0.05)}),
    ("attack", {"attack": partial(fgsm, eps=0.2, random_start=True)}),
    ("loss", {"loss": counting}),
    ("batch_size", {"batches": Batches(X, Y, batch_size=9, shuffle=True)}),
    ("shuffle", {"batches": Batches(X, Y, batch_size=8)}),
    ("data", {"batches": Batches(X, Y.flip(0), **CUT)}),
    ("data", {"batches": DataLoader(TensorDataset(X, Y), **CUT)}),
    ("precision", {"precision": torch.bfloat16}),
]


@pytest.mark.parametrize(("name", "change"), OTHERS)
def test_another_trainings_checkpoint_is_refused(name, change, tmp_path):
    path = tmp_path / "run.pt"
    train(path, monitor=Notes(2))
    content = path.read_bytes()
    with pytest.raises(ValueError, match=rf"^checkpoint: .*run\.pt is of a training with {name}="):
        train(path, **change)
    assert path.read_bytes() == content


def test_another_process_has_its_own_data_and_leaves_the_file_alone(tmp_path, monkeypatch):
    path, seen = tmp_path / "run.pt", []
    train(path, monitor=Notes(2))
    content = path.read_bytes()
    monkeypatch.setattr(state, "_rank", lambda: 1)
    train(path, batches=Batches(1 - X, Y, **CUT), monitor=lambda i, loss: seen.append(i))
    assert seen[0] == 3
    assert path.read_bytes() == content


def test_data_are_the_same_however_they_lie_in_memory():
    x, y = images(6, 3), labels(6)
    padded = torch.stack([x, 1 - x], dim=-1)
    lies = [x.contiguous(memory_format=torch.channels_last), padded[..., 0], x.clone()]
    found = {described(Batches(moved, y.int()), {})["data"] for moved in lies}
    assert found == {described(Batches(x, y), {})["data"]}
    for other in (x + 1e-7, x.double(), x.flatten(2)):
        assert described(Batches(other, y), {})["data"] not in found
    for t in (torch.zeros(2, dtype=torch.bfloat16), torch.tensor(1.0)):  # as settings, too
        given, same, other = (described([], {"s": partial(max, u)}) for u in (t, t.clone(), t + 1))
        assert given == same != other


def test_a_checkpoint_without_a_step_gives_way(whole, tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(path, loss=lambda model, x, y, progress: model(x).sum() * torch.inf)
    assert_same(train(path, weight_decay=0), whole)


class Memory(torch.nn.Identity):
    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_a_layers_own_state_is_kept_or_refused_before_training(tmp_path):
    layer = Memory()
    model = small_net().append(layer)
    run = partial(fit, model, Batches(images(8), labels(8)), epochs=1, lr=0.1)
    layer.state = ["kept"]
    run(checkpoint=tmp_path / "a.pt")
    layer.state = None
    load_checkpoint(tmp_path / "a.pt", model)
    assert layer.state == ["kept"]
    layer.state, before = np.zeros(2), model[0].weight.clone()
    with pytest.raises(ValueError, match=r"b\.pt was not loaded"):
        run(checkpoint=tmp_path / "b.pt")
    assert torch.equal(model[0].weight, before)
    assert os.listdir(tmp_path) == ["a.pt"]
