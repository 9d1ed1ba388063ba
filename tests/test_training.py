"""`fit` against a plain loop, and what it does when it is interrupted or fails."""

import os
import signal
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Breakdown, cuda, global_rng, images, labels, small_net
from torch import nn

from advlib import Batches, cyclic, digit_net, engine, evaluation_mode, fgsm, fit

EPS = 0.1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net():
    return digit_net(size=4, classes=3, generator=seeded())


def batches(generator=None, **options):
    options = {"batch_size": 8, "shuffle": True, "generator": generator or seeded()} | options
    return Batches(images(20), labels(20), **options)


def flags(model):
    return [module.training for module in model.modules()]


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def plain_loop(
    model, *, epochs, adversarial=False, iterations=None, lr=0.05, momentum=0.9, factors=()
):
    """SGD with momentum and the attack, all by hand. Returns the losses."""
    x, y, generator = images(20), labels(20), seeded()
    velocity, losses = None, []
    for _ in range(epochs):
        for rows in torch.randperm(20, generator=generator).split(8):
            if len(losses) == iterations:
                return losses
            batch = x[rows]
            if adversarial:
                noise = torch.rand(batch.shape, generator=generator) * 2 - 1
                start = (batch + EPS * noise).clamp(0, 1).requires_grad_()
                F.cross_entropy(model(start), y[rows], reduction="sum").backward()
                step = start.detach() + 1.25 * EPS * start.grad.sign()
                batch = (batch + (step - batch).clamp(-EPS, EPS)).clamp(0, 1)
            loss = F.cross_entropy(model(batch), y[rows])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            if velocity is None:
                velocity = [g.clone() for g in gradients]
            else:
                velocity = [momentum * v + g for v, g in zip(velocity, gradients, strict=True)]
            for parameter, v in zip(model.parameters(), velocity, strict=True):
                parameter.data.add_(v, alpha=-lr * (factors[len(losses)] if factors else 1))
            losses.append(loss.item())
    return losses


class Monitor:
    """Calls `act(monitor, iteration)` after each iteration; notes what it was told."""

    def __init__(self, act=lambda monitor, iteration: None):
        self.stop_requested = False
        self.act, self.told, self.losses = act, [], []

    def start(self, epochs, iterations):
        self.told.append(("start", epochs, iterations))

    def step(self, loss):
        assert not loss.requires_grad
        self.losses.append(loss.item())
        self.act(self, len(self.losses))

    def finish(self, history):
        self.told.append(("finish", history))


def interrupt(monitor, iteration, times=1):
    if iteration == 2:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def handler():
    """A SIGINT handler of the caller's own; it must be in force again after every `fit`."""

    def mine(signum, frame):
        raise AssertionError("fit did not take the interrupt")

    before = signal.signal(signal.SIGINT, mine)
    yield mine
    left = signal.signal(signal.SIGINT, before)
    assert left is mine


@pytest.fixture
def plain():
    """No engine, so that the plain loop is met to the bit (test_engine.py compares the two)."""
    with engine.off():
        yield


# What it computes


@pytest.mark.parametrize("adversarial", [False, True])
def test_fit_equals_the_plain_loop_bit_for_bit(adversarial, plain):
    generator = seeded()
    attack = partial(fgsm, eps=EPS, alpha=1.25 * EPS, random_start=True, generator=generator)
    model, by_hand = net(), net()
    history = fit(
        model,
        batches(generator),
        epochs=3,
        lr=0.05,
        attack=attack if adversarial else None,
    )
    assert history.loss == plain_loop(by_hand, epochs=3, adversarial=adversarial)
    assert same_weights(model, by_hand)
    assert not history.stopped
    assert history.metrics == {}


def test_a_schedule_scales_the_learning_rate_of_each_iteration(plain):
    model, by_hand = net(), net()
    history = fit(model, batches(), epochs=2, lr=0.05, schedule=lambda progress: 2 * progress)
    factors = [2 * (i + 0.5) / 6 for i in range(6)]
    assert history.loss == pytest.approx(plain_loop(by_hand, epochs=2, factors=factors), rel=1e-5)
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_loss_is_told_the_progress_that_a_schedule_is_told():
    told = {"schedule": [], "loss": []}

    def schedule(progress):
        told["schedule"].append(progress)
        return 1.0

    def loss(model, x, y, progress):
        told["loss"].append(progress)
        return nn.functional.cross_entropy(model(x), y)

    fit(net(), batches(), epochs=2, lr=0.05, schedule=schedule, loss=loss)
    assert told["loss"] == told["schedule"] == [(i + 0.5) / 6 for i in range(6)]


def test_cyclic_rises_straight_to_one_and_falls_straight_to_zero():
    found = [cyclic(progress) for progress in (0, 0.1, 0.2, 0.4, 0.7, 0.85, 1)]
    assert found == pytest.approx([0, 0.25, 0.5, 1, 0.5, 0.25, 0])


def test_attacked_images_and_true_labels_are_what_is_trained_on():
    seen = []

    def attack(model, x, y):
        seen.append(x)
        return torch.zeros_like(x)

    model, blank = net(), net()
    fit(model, batches(), epochs=1, lr=0.1, attack=attack)
    fit(
        blank,
        Batches(images(20) * 0, labels(20), batch_size=8, shuffle=True, generator=seeded()),
        epochs=1,
        lr=0.1,
    )
    assert same_weights(model, blank)
    assert sum(len(x) for x in seen) == 20


def test_training_lowers_the_loss():
    history = fit(net(), batches(), epochs=30, lr=0.1)
    assert sum(history.loss[-3:]) < 0.5 * sum(history.loss[:3])


def test_learning_rate_zero_changes_nothing():
    model = net()
    fit(model, batches(), epochs=1, lr=0.0)
    assert same_weights(model, net())


def test_history_and_monitor_hold_every_iteration_and_each_epochs_metrics():
    model, monitor, seen = small_net(), Monitor(), []
    before = flags(model)

    def evaluate(evaluated):
        assert evaluated is model
        assert not any(flags(evaluated))
        seen.append(len(monitor.losses))
        return {"epoch": float(len(seen)), "constant": 1.0}

    history = fit(model, batches(), epochs=4, lr=0.01, evaluate=evaluate, monitor=monitor)
    assert len(history.loss) == 4 * 3
    assert history.loss == pytest.approx(monitor.losses)
    assert history.metrics == {"epoch": [1.0, 2.0, 3.0, 4.0], "constant": [1.0] * 4}
    assert seen == [3, 6, 9, 12]
    assert monitor.told == [("start", 4, 3), ("finish", history)]
    assert flags(model) == before


@pytest.mark.parametrize("adversarial", [False, True])
def test_batchnorm_trains_while_a_frozen_one_stays_frozen(adversarial):
    model = small_net()
    frozen, trained = model[1], model[4]
    before = frozen.running_mean.clone()
    attack = partial(fgsm, eps=EPS) if adversarial else None
    fit(model, batches(), epochs=2, lr=0.01, attack=attack)
    assert torch.equal(frozen.running_mean, before)
    assert frozen.num_batches_tracked == 0
    assert trained.num_batches_tracked == 2 * 3  # training passes only, none from the attack
    assert trained.running_mean.any()


def test_a_model_in_evaluation_mode_is_trained_in_training_mode_and_comes_back_as_it_was():
    model = small_net().eval()
    seen = []
    attack = lambda model, x, y: seen.append(model.training) or x  # noqa: E731
    fit(model, batches(), epochs=1, lr=0.01, attack=attack)
    assert seen == [True] * 3
    assert not any(flags(model))
    assert model[4].num_batches_tracked == 3


def test_no_gradients_are_left_and_the_global_rng_stays():
    model, before = net(), global_rng()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    attack = partial(fgsm, eps=EPS, random_start=True)
    fit(model, batches(), epochs=1, lr=0.05, attack=attack)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert global_rng() == before
    clean = net()
    fit(clean, batches(), epochs=1, lr=0.05)
    again = net()
    for parameter in again.parameters():
        parameter.grad = torch.ones_like(parameter)
    fit(again, batches(), epochs=1, lr=0.05)
    assert same_weights(again, clean)  # old gradients take no part


# Interrupts and failures


def test_first_interrupt_stops_after_the_iteration_with_the_network_so_far(handler, plain):
    model, by_hand, monitor = net(), net(), Monitor(interrupt)
    history = fit(model, batches(), epochs=3, lr=0.05, monitor=monitor)
    assert history.stopped
    assert history.loss == plain_loop(by_hand, epochs=3, iterations=2)
    assert same_weights(model, by_hand)
    assert monitor.told[-1] == ("finish", history)
    assert signal.getsignal(signal.SIGINT) is handler


def test_interrupt_works_without_a_monitor_and_during_evaluate(handler):
    def evaluate(model):
        os.kill(os.getpid(), signal.SIGINT)
        return {"reached": 1.0}

    history = fit(net(), batches(), epochs=3, lr=0.05, evaluate=evaluate)
    assert history.stopped
    assert len(history.loss) == 3
    assert history.metrics == {"reached": [1.0]}


def test_second_interrupt_raises_keyboard_interrupt(handler):
    monitor = Monitor(partial(interrupt, times=2))
    with pytest.raises(KeyboardInterrupt):
        fit(net(), batches(), epochs=3, lr=0.05, monitor=monitor)
    assert len(monitor.losses) == 2
    assert monitor.told[-1][0] == "finish"


def test_a_monitor_can_ask_to_stop(handler, plain):
    def act(monitor, iteration):
        monitor.stop_requested = iteration == 4

    model, by_hand = net(), net()
    history = fit(model, batches(), epochs=3, lr=0.05, monitor=Monitor(act))
    assert history.stopped
    assert history.loss == plain_loop(by_hand, epochs=3, iterations=4)
    assert same_weights(model, by_hand)


def test_fit_works_outside_the_main_thread(plain):
    model, by_hand, found = net(), net(), []
    train = partial(fit, model, batches(), epochs=2, lr=0.05)
    thread = threading.Thread(target=lambda: found.append(train()))
    thread.start()
    thread.join()
    assert found[0].loss == plain_loop(by_hand, epochs=2)
    assert same_weights(model, by_hand)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("where", ["attack", "evaluate", "monitor"])
def test_flags_grads_and_handler_are_in_order_after_an_error(where, training, handler):
    def fail(*arguments):
        if where != "attack" or len(monitor.losses) == 2:
            raise Breakdown
        return arguments[1]

    monitor = Monitor(fail if where == "monitor" else lambda monitor, iteration: None)
    model = small_net() if training else small_net().eval()
    before, extra = flags(model), {} if where == "monitor" else {where: fail}
    with pytest.raises(Breakdown):
        fit(model, batches(), epochs=2, lr=0.01, monitor=monitor, **extra)
    assert flags(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    last, history = monitor.told[-1]
    assert last == "finish"
    assert history.loss == monitor.losses
    assert len(history.loss) == {"attack": 2, "evaluate": 3, "monitor": 1}[where]


def test_divergence_is_an_error_that_says_what_to_do(handler):
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit(net(), batches(), epochs=5, lr=1e30)


# More than the plain loop


def test_weight_decay_and_augmentation_are_torchs_and_come_first(plain):
    model, by_hand = net(), net()
    fit(
        model,
        batches(),
        epochs=2,
        lr=0.05,
        weight_decay=0.1,
        augment=lambda x: 1 - x,
        attack=lambda model, x, y: x / 2,
    )
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for _, (x, y) in zip(range(6), [*(loader := batches()), *loader], strict=True):
        optimizer.zero_grad()
        F.cross_entropy(by_hand((1 - x) / 2), y).backward()
        optimizer.step()
    assert same_weights(model, by_hand)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_autocast_and_still_learns(precision):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            scores = self.net(x)
            seen.append((scores.dtype, self.net.linear.weight.dtype))
            return scores

    model = Watched()
    attack = partial(fgsm, eps=0.01)
    history = fit(model, batches(), epochs=30, lr=0.1, precision=precision, attack=attack)
    assert set(seen[1:]) == {(precision, torch.float32)}  # the first call checks the arguments
    assert sum(history.loss[-3:]) < 0.5 * sum(history.loss[:3])


class Narrow(nn.Module):
    """A network that runs out of memory with more than `most` images that need gradients."""

    def __init__(self, most):
        super().__init__()
        self.net, self.most = net(), most
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        if len(x) > self.most and self.training:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.net(self.norm(x))


@pytest.mark.parametrize(("most", "advice"), [(7, "4 would"), (2, "2 would"), (0, "not even one")])
def test_a_batch_too_large_is_an_error_that_says_which_would_fit(most, advice):
    model, generator = Narrow(most), seeded()
    attack = partial(fgsm, eps=EPS, random_start=True, generator=generator)
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, global_rng()
    loader = Batches(images(20), labels(20), batch_size=8)
    with pytest.raises(MemoryError, match=f"a batch of 8 images does not fit: .*{advice}"):
        fit(model, loader, epochs=1, lr=0.1, attack=attack)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert global_rng() == rng


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attack", lambda model, x, y: None),
        ("attack", lambda model, x, y: x[:1]),
        ("attack", lambda model, x, y: x.double()),
        ("augment", lambda x: x.flatten(1)),
        ("augment", lambda x: 1),
        ("loss", lambda model, x, y, progress: 1.0),
        ("loss", lambda model, x, y, progress: model(x)),
        ("schedule", lambda progress: None),
        ("schedule", lambda progress: float("nan")),
        ("schedule", lambda progress: -1.0),
        ("evaluate", lambda model: 0.5),
        ("evaluate", lambda model: {"clean": "high"}),
        ("evaluate", lambda model: {"clean": torch.ones(2)}),
    ],
)
def test_what_a_function_should_not_return_is_an_error_that_names_it(name, value):
    model = net()
    before = flags(model)
    with pytest.raises((TypeError, ValueError), match=rf"^{name}('s value)? must"):
        fit(model, batches(), epochs=1, lr=0.1, **{name: value})
    assert flags(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


@cuda
def test_fit_on_cuda_follows_the_cpu():
    history = []
    for device in ("cpu", "cuda"):
        model, generator = net().double().to(device), seeded()
        attack = partial(fgsm, eps=EPS, random_start=True, generator=generator)
        x, y = images(20, dtype=torch.float64).to(device), labels(20).to(device)
        loader = Batches(x, y, batch_size=8, shuffle=True, generator=generator)
        history.append(fit(model, loader, epochs=3, lr=0.05, attack=attack))
        with evaluation_mode(model):
            assert model(x).device.type == device
    assert history[0].loss == pytest.approx(history[1].loss, rel=1e-6)
