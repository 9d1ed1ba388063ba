"""A training that is killed, stopped or out of disk goes on as if nothing had happened."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import equal, global_rng, images, labels, set_unlikely_rng, small_net

from advlib import Batches, checkpoint, fgsm, fit, load_checkpoint, recipes, runtime
from advlib.data import shifted
from advlib.losses import trades_loss
from advlib.training.state import described

EPOCHS, PER_EPOCH = 4, 5


def train(path=None, *, monitor=None, **changes):
    """Train a network with dropout and BatchNorm on images attacked from random starts."""
    torch.manual_seed(5)  # dropout draws from torch's global state
    model, generator = small_net(), torch.Generator().manual_seed(6)
    batches = Batches(images(36), labels(36), batch_size=8, shuffle=True, generator=generator)
    attack = partial(fgsm, eps=0.1, random_start=True, generator=generator)
    options = {"schedule": falling, "attack": attack, "save_steps": 1}
    options |= {"evaluate": last_weight, "checkpoint": path, "monitor": monitor}
    history = fit(model, batches, epochs=EPOCHS, lr=0.05, **options | changes)
    return model, history, global_rng()


def falling(progress):
    return 1 - progress / 2


def last_weight(model):
    return {"weight": model[8].weight[0, 0].item()}


def assert_same(found, expected):
    (a, history, rng), (b, expected_history, expected_rng) = found, expected
    assert history == expected_history
    assert rng == expected_rng
    assert equal(a, b)


class StopAfter:
    """A monitor that stops training after some iterations more, and counts what it is told."""

    def __init__(self, iterations=-1):
        self.stop_requested, self.left, self.told = False, iterations, 0

    def start(self, epochs, iterations):
        self.stop_requested = self.left == 0

    def step(self, loss):
        self.told += 1
        self.stop_requested = self.told == self.left

    def finish(self, history):
        pass


# Killed

MOMENTS = ("mkstemp", "half", "fsync", "replace", "replaced")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(moment, saves):
    """Make this process kill itself at one moment of the save after so many others."""
    left = [saves]
    real = {"mkstemp": tempfile.mkstemp, "fsync": os.fsync, "replace": os.replace}
    fdopen = os.fdopen

    def hook(name):
        def call(*arguments):
            if moment == name and left[0] == 0:
                die()
            result = real[name](*arguments)
            if name == "replace":
                if moment == "replaced" and left[0] == 0:
                    die()
                left[0] -= 1
            return result

        return call

    def half(handle, mode):
        if moment == "half" and left[0] == 0:
            os.write(handle, b"x" * 1000)
            die()
        return fdopen(handle, mode)

    tempfile.mkstemp = hook("mkstemp")
    os.fsync, os.replace, os.fdopen = hook("fsync"), hook("replace"), half


def killed(path, began, moment, saves):
    torch.set_num_threads(1)
    if moment is not None:
        die_while_writing(moment, saves)
    began.set()
    train(path)


@pytest.fixture(scope="module")
def whole():
    """A training that nothing interrupts."""
    set_unlikely_rng()
    return train()


def test_kills_are_survived(whole, tmp_path, processes, capsys):
    chance = random.Random(0)
    path, kills, completed = tmp_path / "run.pt", 0, 0
    plan = [None] * 15 + [*MOMENTS]  # at any moment, then at the worst ones
    while kills < len(plan) or path.exists():
        began = processes.Event()
        moment = plan[kills] if kills < len(plan) else None
        child = processes.Process(target=killed, args=(path, began, moment, chance.randrange(4)))
        child.start()
        began.wait()
        if moment is None and kills < len(plan):
            time.sleep(chance.random() * 0.3)
            child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        assert child.exitcode in (0, -signal.SIGKILL)
        if path.exists():
            assert checkpoint.read(path)["epoch"] <= EPOCHS
        if child.exitcode == 0:
            assert_same(train(path), whole)
            path.unlink()
            completed += 1
    assert completed
    with capsys.disabled():
        print(f"\nkills survived: {kills} of {kills}, in {completed} trainings")


# Stopped, and called again


def test_a_checkpoint_changes_nothing_about_a_training(whole, tmp_path):
    assert_same(train(tmp_path / "a.pt"), whole)
    assert_same(train(tmp_path / "b.pt", save_steps=None, save_seconds=0), whole)
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "b.pt"]


@pytest.mark.parametrize("iterations", [0, 1, 4, 5, 6, 12, 19, 20])
def test_a_training_stopped_anywhere_goes_on_to_the_same_end(iterations, whole, tmp_path):
    path, monitor = tmp_path / "run.pt", StopAfter()
    _, history, _ = train(path, monitor=StopAfter(iterations), save_steps=1000)
    assert history.stopped  # after the last one, too: its epoch has not been evaluated
    assert len(history.loss) == iterations
    assert_same(train(path, monitor=monitor), whole)
    assert monitor.told == EPOCHS * PER_EPOCH  # the old iterations too, for the picture


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_best": "weight"},
        {"stop_when": lambda metrics: len(metrics["weight"]) == 3},
        {"augment": partial(shifted, most=1, generator=torch.Generator())},
        {"precision": torch.bfloat16},
        {"weight_decay": 0.1, "momentum": 0.0},
        {"attack": None, "loss": partial(trades_loss, eps=0.1, alpha=0.05, steps=2)},
        {"attack": partial(fgsm, eps=0.1, random_start=True)},  # advlib's own generator
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_kind_of_training_can_go_on(changes, tmp_path):
    def run(path=None, monitor=None):
        for generator in (*spread(changes), runtime.default_generator):
            generator.manual_seed(3)
        return train(path, monitor=monitor, **changes)

    expected = run()
    assert run(tmp_path / "run.pt", StopAfter(7))[1].stopped
    assert_same(run(tmp_path / "run.pt"), expected)


def spread(changes):
    """The generators in the partials of some arguments."""
    found = (value.keywords.get("generator") for value in changes.values() if is_partial(value))
    return [generator for generator in found if generator is not None]


def is_partial(value):
    return isinstance(value, partial)


def test_a_training_that_has_ended_returns_at_once(tmp_path):
    expected = train(tmp_path / "run.pt", keep_best="weight")

    def unused(*arguments):
        raise AssertionError("a step was taken")

    assert_same(train(tmp_path / "run.pt", keep_best="weight", evaluate=unused), expected)


def test_the_callers_generators_stay_if_training_draws_nothing_from_them(tmp_path):
    model = small_net().eval()
    model[6] = torch.nn.Identity()  # no dropout
    batches = Batches(images(), labels(), batch_size=4)
    settings = {"epochs": 2, "lr": 0.1, "checkpoint": tmp_path / "run.pt"}
    fit(model, batches, monitor=StopAfter(1), **settings)
    torch.manual_seed(77)
    before = global_rng()
    assert not fit(model, batches, **settings).stopped
    assert global_rng() == before


def test_the_network_can_be_taken_out_of_a_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    model, history, _ = train(path, keep_best="weight")
    fresh = small_net()
    assert load_checkpoint(path, fresh) == history
    assert all(
        torch.equal(p, q) for p, q in zip(fresh.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lr", {"lr": 0.1}),
        ("epochs", {"epochs": EPOCHS + 1}),
        ("attack", {"attack": partial(fgsm, eps=0.2, random_start=True)}),
        ("attack", {"attack": None}),
        ("loss", {"loss": lambda model, x, y, progress: F.cross_entropy(model(x), y)}),
        ("batch_size", {"batches": Batches(images(36), labels(36), batch_size=9, shuffle=True)}),
        ("data", {"batches": Batches(images(36), labels(36).flip(0), batch_size=8, shuffle=True)}),
        ("data", {"batches": Batches(1 - images(36), labels(36), batch_size=8, shuffle=True)}),
        ("precision", {"precision": torch.bfloat16}),
    ],
)
def test_another_trainings_checkpoint_is_refused(name, change, tmp_path):
    path = tmp_path / "run.pt"
    train(path, monitor=StopAfter(2))
    model, generator = small_net(), torch.Generator().manual_seed(6)
    arguments = {
        "batches": Batches(images(36), labels(36), batch_size=8, shuffle=True, generator=generator),
        "schedule": falling,
        "attack": partial(fgsm, eps=0.1, random_start=True, generator=generator),
        "evaluate": last_weight,
        "epochs": EPOCHS,
        "lr": 0.05,
    }
    before, content = global_rng(), path.read_bytes()
    with pytest.raises(ValueError, match=rf"^checkpoint: .*run\.pt is of a training with {name}="):
        fit(model, checkpoint=path, **arguments | change)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), small_net().parameters(), strict=True)
    )
    assert (global_rng(), path.read_bytes()) == (before, content)


def test_recipes_pass_their_checkpoint_on(tmp_path):
    recipe = recipes.Recipe(images=100, epochs=2, batch_size=50)
    run = partial(recipes.train, recipe, device="cpu")
    expected, history = run()
    path = tmp_path / "run.pt"
    assert run(checkpoint=path, monitor=StopAfter(3))[1].stopped
    net, found = run(checkpoint=path)
    assert found == history
    assert equal(net, expected)


# Out of disk


class FillAfter(StopAfter):
    """Fills the disk that `folder` is on after some iterations."""

    def __init__(self, folder, iterations):
        super().__init__()
        self.folder, self.iterations = folder, iterations

    def step(self, loss):
        super().step(loss)
        if self.told == self.iterations:
            fill(self.folder / "full")


def fill(path):
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
def tiny_disk(tmp_path):
    """A folder on a disk of its own, with room for a few checkpoints."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk; the next test limits files instead")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_costs_nothing_but_the_saves(whole, tiny_disk):
    path = tiny_disk / "run.pt"
    with pytest.warns(UserWarning, match=r"not saved: .*No space left"):
        assert_same(train(path, monitor=FillAfter(tiny_disk, 7)), whole)
    assert sorted(os.listdir(tiny_disk)) == ["full", "run.pt"]
    assert len(checkpoint.read(path)["history"]["loss"]) == 6  # the last good one
    (tiny_disk / "full").unlink()
    assert_same(train(path), whole)


def limited(path):
    """Train in a process whose files may not become as large as a checkpoint."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    train(path, monitor=StopAfter(4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2,) * 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, history, _ = train(path)
    assert "was not saved" in str(caught[-1].message)
    assert len(history.loss) == EPOCHS * PER_EPOCH


def test_a_file_that_may_not_grow_costs_nothing_but_the_saves(whole, tmp_path, processes):
    path = tmp_path / "run.pt"
    child = processes.Process(target=limited, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert os.listdir(tmp_path) == ["run.pt"]
    assert len(checkpoint.read(path)["history"]["loss"]) == 4
    assert_same(train(path), whole)


# Which training a checkpoint is of

FACTOR = 1.0


def scaled(progress):
    return helped(progress)


def helped(progress):
    return FACTOR * (1 - progress / 2)


def made(factor):
    def inner(progress):
        return (lambda: factor)() * (1 - progress / 2)

    return inner


def countdown(progress):
    return countdown(progress - 1) if progress > 1 else 1.0


MADE = [
    lambda: made(0.5),
    lambda: partial(max, 0.5),
    lambda: lambda progress: scaled(1 - progress),
    lambda: countdown,  # which refers to itself
]
OTHERS = [
    (made(0.5), made(0.25)),
    (lambda progress: 1 - progress, lambda progress: 1 - progress / 2),
    (lambda progress, least=0.1: least, lambda progress, least=0.2: least),
    (lambda progress, *, least=0.1: least, lambda progress, *, least=0.2: least),
    (lambda progress: min(progress, 1.0), lambda progress: max(progress, 1.0)),
    (partial(max, 0.5), partial(max, 0.25)),
    (partial(made, (1.0, made(1.0))), partial(made, (1.0, made(2.0)))),
]


@pytest.mark.parametrize("make", MADE)
def test_a_function_that_is_made_again_is_the_same(make):
    batches = Batches(images(4), labels(4))
    one, again = make(), make()
    assert described(batches, {"s": one}) == described(batches, {"s": again})


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_functions_that_differ_are_told_apart(one, other):
    for function in (one, other):
        if hasattr(function, "__qualname__"):
            function.__qualname__ = "same"
    batches = Batches(images(4), labels(4))
    assert described(batches, {"s": one}) != described(batches, {"s": other})


def test_a_function_is_another_if_what_it_refers_to_is(monkeypatch):
    batches = Batches(images(4), labels(4))
    before = described(batches, {"s": scaled})
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert described(batches, {"s": scaled}) != before


def test_a_new_process_describes_a_function_alike(tmp_path):
    code = (
        "import torch; from advlib import Batches; from advlib.training.state import described\n"
        "eps, data = 0.1, Batches(torch.zeros(2, 1, 2, 2), torch.zeros(2).long())\n"
        "def f(p): return eps if p in {'a', 'b', 'c'} else torch.tensor(p)\n"
        "print(described(data, {'f': f}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert "'f " in found.pop()


@pytest.mark.parametrize("setting", [torch.zeros(2, dtype=torch.bfloat16), torch.tensor(1.0)])
def test_tensors_of_any_kind_are_settings(setting):
    batches = Batches(images(4), labels(4))
    given, other = (described(batches, {"s": partial(max, t)}) for t in (setting, setting + 1))
    assert given != other
    assert given == described(batches, {"s": partial(max, setting.clone())})


def test_a_checkpoint_without_a_step_gives_way(whole, tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(path, loss=lambda model, x, y, progress: model(x).sum() * torch.inf)
    assert_same(train(path), whole)


def test_numbers_that_are_equal_are_one_setting(whole, tmp_path):
    path = tmp_path / "run.pt"
    train(path, weight_decay=0, monitor=StopAfter(3))
    assert_same(train(path, weight_decay=0.0), whole)


def test_another_evaluation_with_a_generator_of_its_own_is_named(tmp_path):
    path = tmp_path / "run.pt"
    train(path, monitor=StopAfter(3))
    evaluate = partial(lambda model, generator: {}, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"checkpoint: .* generators, .*evaluate among them"):
        train(path, evaluate=evaluate)


class Memory(torch.nn.Identity):
    """A layer with a state of its own."""

    state = None

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_a_layers_own_state_is_kept_or_refused_before_training(tmp_path):
    layer = Memory()
    model = torch.nn.Sequential(torch.nn.Flatten(), layer, torch.nn.Linear(16, 3))
    run = partial(fit, model, Batches(images(8), labels(8)), epochs=1, lr=0.1)
    layer.state = ["kept"]
    run(checkpoint=tmp_path / "a.pt", evaluate=lambda net: {"a": 1.0}, keep_best="a")
    layer.state = None
    load_checkpoint(tmp_path / "a.pt", model)
    assert layer.state == ["kept"]
    layer.state, before = np.zeros(2), model[2].weight.clone()
    with pytest.raises(ValueError, match=r"b\.pt was not loaded"):
        run(checkpoint=tmp_path / "b.pt")
    assert torch.equal(model[2].weight, before)
