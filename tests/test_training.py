"""`fit` against plain torch loops, with what users bring, and what it does when it fails."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Notes, equal, global_rng, images, labels, seeded, small_net, untouched
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from advlib import Batches, cyclic, digit_net, fast, fgsm, fit

EPS = 0.1


def net():
    return digit_net(size=4, classes=3, generator=seeded())


def batches(generator=None, **options):
    options = {"batch_size": 8, "shuffle": True, "generator": generator or seeded()} | options
    leaf = torch.ones((), requires_grad=True)  # images may hang on a graph
    return Batches(images(20) * leaf, labels(20), **options)


def loader(**options):
    return DataLoader(TensorDataset(images(20), labels(20)), batch_size=8, **options)


def sgd(lr=0.05, **options):
    return partial(torch.optim.SGD, lr=lr, momentum=0.9, **options)


def flags(model):
    return [module.training for module in model.modules()]


def plain_loop(pairs, *, epochs=2, optimizer=None, schedule=None, iterations=99, change=None):
    """A training loop as one writes it with torch. Returns the network and its losses."""
    model, losses = net(), []
    optimizer = (optimizer or sgd())(model.parameters())
    schedule = schedule and schedule(optimizer)
    for _ in range(epochs):
        for x, y in pairs:
            if len(losses) < iterations:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(change(model, x, y) if change else x), y)
                loss.backward()
                optimizer.step()
                if schedule:
                    schedule.step()
                losses.append(loss.item())
    return model, losses


@pytest.fixture
def handler():
    """A SIGINT handler of the caller's own; it must be in force again after every `fit`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


@pytest.fixture
def plain():
    """Images in the order they lie in, so that a plain loop is met to the bit."""
    with fast.off():
        yield


def by_hand(generator, model, x, y):
    x = 1 - x
    noise = torch.rand(x.shape, generator=generator) * 2 - 1
    start = (x + EPS * noise).clamp(0, 1).requires_grad_()
    F.cross_entropy(model(start), y, reduction="sum").backward()
    step = start.detach() + 1.25 * EPS * start.grad.sign()
    model.zero_grad()
    return (x + (step - x).clamp(-EPS, EPS)).clamp(0, 1)


@pytest.mark.parametrize("adversarial", [False, True])
def test_fit_equals_the_plain_loop_bit_for_bit(adversarial, plain):
    model, one, other, before = net(), seeded(), seeded(), global_rng()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # takes no part
    attack = partial(fgsm, eps=EPS, alpha=1.25 * EPS, random_start=True, generator=one)
    options = {"attack": attack if adversarial else None, "weight_decay": 0.1}
    history = fit(model, batches(one), epochs=3, lr=0.05, **options, augment=lambda x: 1 - x)
    change = partial(by_hand, other) if adversarial else lambda model, x, y: 1 - x
    decaying = sgd(weight_decay=0.1)
    wanted, losses = plain_loop(batches(other), epochs=3, optimizer=decaying, change=change)
    assert equal(model, wanted)
    assert (history.loss, history.metrics, history.stopped) == (losses, {}, False)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert global_rng() == before


def test_a_layers_own_parameter_beside_weight_and_bias_trains():
    model = net()
    model.linear.register_parameter("gain", nn.Parameter(torch.ones(3)))
    model.linear.register_forward_hook(lambda layer, given, out: out * layer.gain)
    fit(model, batches(), epochs=1, lr=0.1)
    assert (model.linear.gain != 1).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attack", [None, partial(fgsm, eps=EPS)])
def test_batchnorm_trains_while_a_frozen_one_stays_frozen(attack, training):
    model = small_net() if training else small_net().eval()
    frozen, trained, before = model[1], model[4], flags(model)
    mean = frozen.running_mean.clone()
    fit(model, batches(), epochs=2, lr=0.01, attack=attack)
    assert torch.equal(frozen.running_mean, mean) == training
    assert trained.num_batches_tracked == 2 * 3  # training passes only, none from the attack
    assert flags(model) == before


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_autocast_and_still_learns(precision):
    seen, model = set(), net()
    model.register_forward_hook(lambda net, given, out: seen.add((out.dtype, net[0].weight.dtype)))
    attack = partial(fgsm, eps=0.01)
    history = fit(model, batches(), epochs=30, lr=0.1, precision=precision, attack=attack)
    assert seen == {(precision, torch.float32)}
    assert sum(history.loss[-3:]) < 0.5 * sum(history.loss[:3])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_trains_as_in_a_plain_loop(workers, plain):
    model = net()
    options = {"shuffle": True, "num_workers": workers}
    fit(model, loader(generator=seeded(1), **options), epochs=2, lr=0.05)
    assert equal(model, plain_loop(loader(generator=seeded(1), **options))[0])
    sampler = DistributedSampler(labels(20), 1, 0)
    fit(net(), loader(sampler=sampler), epochs=3, lr=0.05)
    assert sampler.epoch == 2  # it was told, and shuffled anew


def test_a_generator_function_is_refused_where_it_has_run_dry():
    once = (pair for pair in batches())
    with pytest.raises(ValueError, match=r"^batches must yield .* in every epoch, none in 2"):
        fit(net(), once, epochs=2, lr=0.05)


def test_a_last_batch_of_one_image_is_refused_before_the_first_step_if_there_is_batchnorm():
    norm = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    x, y = images(17), labels(17)
    alone = DataLoader(TensorDataset(x, y), batch_size=8)
    for pairs in (Batches(x, y, batch_size=8), Batches(x, y, batch_size=1), alone):
        with untouched(norm), pytest.raises(ValueError, match=r"^batches must not .* of one image"):
            fit(norm, pairs, epochs=1, lr=0.1)
        fit(net(), pairs, epochs=1, lr=0.1)  # without BatchNorm it is as good as any other
    dropped = DataLoader(alone.dataset, batch_size=8, drop_last=True)
    for pairs in (dropped, Batches(x, y, batch_size=9)):
        assert len(fit(norm, pairs, epochs=1, lr=0.1).loss) == 2


@pytest.mark.parametrize("make", [partial(torch.optim.AdamW, lr=1e-2), sgd(nesterov=True)])
def test_any_optimizer_as_a_function_and_as_an_instance(make, plain):
    wanted, _ = plain_loop(batches(), optimizer=make)
    for once in (False, True):
        model = net()
        fit(model, batches(), epochs=2, optimizer=make(model.parameters()) if once else make)
        assert equal(model, wanted)


SHORT = partial(lr_scheduler.OneCycleLR, max_lr=1, total_steps=5)
REFUSED = {
    "optimizer must step without a closure.* LBFGS": {"optimizer": torch.optim.LBFGS},
    "optimizer must take dense .* SparseAdam": {"optimizer": torch.optim.SparseAdam},
    "optimizer must be one of torch's": {"optimizer": lambda parameters: 1},
    "optimizer must hold .* of model": {"optimizer": sgd()(small_net().parameters())},
    "lr must be left out": {"optimizer": sgd(), "lr": 0.1},
    "lr must be given, or an optimizer": {},
    "schedule .* ReduceLROnPlateau": {"lr": 1, "schedule": lr_scheduler.ReduceLROnPlateau},
    "You must define either": {"lr": 1, "schedule": partial(lr_scheduler.OneCycleLR, max_lr=1)},
    "schedule must last for 6 steps, got 5": {"lr": 1, "schedule": SHORT},
    "schedule .* of the optimizer": {"lr": 1, "schedule": SHORT(sgd()(net().parameters()))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_can_not_work_is_refused_by_name(message):
    model = net()
    with untouched(model), pytest.raises((TypeError, ValueError), match=rf"^{message}"):
        fit(model, batches(), epochs=2, **REFUSED[message])


def test_a_scheduler_as_factory_and_as_instance(plain):
    cycle = partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=6)
    wanted, _ = plain_loop(batches(), schedule=cycle)
    for make in (lambda optimizer: cycle, cycle):
        model = net()
        optimizer = sgd()(model.parameters())
        fit(model, batches(), epochs=2, optimizer=optimizer, schedule=make(optimizer))
        assert equal(model, wanted)


def test_a_schedule_and_a_loss_are_told_the_progress(plain):
    told, model = [], net()
    optimizer = sgd()(model.parameters())
    loss = lambda model, x, y, p: told.append(p) or F.cross_entropy(model(x), y)  # noqa: E731
    double = lambda progress: 2 * progress  # noqa: E731
    fit(model, batches(), epochs=2, optimizer=optimizer, schedule=double, loss=loss)
    assert told == pytest.approx([(i + 0.5) / 6 for i in range(6)])
    by_torch = partial(lr_scheduler.LambdaLR, lr_lambda=lambda i: 2 * (i + 0.5) / 6)
    wanted, _ = plain_loop(batches(), schedule=by_torch)
    torch.testing.assert_close(list(model.parameters()), list(wanted.parameters()))
    assert optimizer.param_groups[0]["lr"] == 0.05
    found = [cyclic(progress) for progress in (0, 0.1, 0.2, 0.4, 0.7, 0.85, 1)]
    assert found == pytest.approx([0, 0.25, 0.5, 1, 0.5, 0.25, 0])  # straight up and down


def test_monitors_functions_and_evaluate_see_every_iteration_and_epoch():
    model, monitors, seen, plainly = small_net(), [Notes(), Notes()], [], []

    def evaluate(evaluated):
        assert evaluated is model
        assert not any(flags(evaluated))
        seen.append(len(plainly))
        return {"epoch": len(seen), "constant": 1.0}

    watching = [*monitors, lambda iteration, loss: plainly.append((iteration, loss.item()))]
    history = fit(model, batches(), epochs=3, lr=0.01, evaluate=evaluate, monitor=watching)
    assert plainly == list(enumerate(history.loss, 1))
    assert history.metrics == {"epoch": [1.0, 2.0, 3.0], "constant": [1.0] * 3}
    assert seen == [3, 6, 9]
    for monitor in monitors:
        assert (monitor.given, monitor.losses, monitor.history) == ((3, 3), history.loss, history)


def interrupt(iteration, times):
    for _ in range(times * (iteration == 2)):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_stops_after_the_iteration_with_the_network_so_far(handler, plain):
    model = net()
    history = fit(model, batches(), epochs=3, lr=0.05, monitor=lambda i, loss: interrupt(i, 1))
    wanted, losses = plain_loop(batches(), iterations=2)
    assert equal(model, wanted)
    assert (history.stopped, history.loss) == (True, losses)


def test_the_second_interrupt_and_one_during_evaluate(handler):
    with pytest.raises(KeyboardInterrupt):
        fit(net(), batches(), epochs=3, lr=0.05, monitor=lambda i, loss: interrupt(i, 2))
    evaluate = lambda model: interrupt(2, 1) or {"reached": 1.0}  # noqa: E731
    history = fit(net(), batches(), epochs=3, lr=0.05, evaluate=evaluate)
    assert (history.stopped, len(history.loss), history.metrics) == (True, 3, {"reached": [1.0]})


def test_outside_the_main_thread_a_monitor_can_ask_to_stop():
    with ThreadPoolExecutor() as pool:
        arguments = {"epochs": 3, "lr": 0.05, "monitor": Notes(4)}
        history = pool.submit(fit, net(), batches(), **arguments).result()
    assert (history.stopped, len(history.loss)) == (True, 4)


@pytest.mark.parametrize(("where", "steps"), [("attack", 2), ("evaluate", 3), ("monitor", 1)])
def test_flags_grads_and_handler_are_in_order_after_an_error(where, steps, handler):
    def fail(*arguments):
        if where != "attack" or len(monitor.losses) == 2:
            return 1 / 0
        return arguments[1]

    model, monitor = small_net(), Notes()
    options = {"monitor": monitor} | {where: [monitor, fail] if where == "monitor" else fail}
    before = flags(model)
    with pytest.raises(ZeroDivisionError):
        fit(model, batches(), epochs=2, lr=0.01, **options)
    assert flags(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert monitor.history.loss == monitor.losses
    assert len(monitor.losses) == steps


WRONG = [
    ("attack", lambda model, x, y: x[:1]),
    ("loss", lambda model, x, y, progress: model(x).sum().detach()),
    ("schedule", lambda progress: float("nan")),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_an_error_before_the_first_step_names_it_and_leaves_all_as_it_was(name, value):
    model, one, other = small_net(), seeded(), seeded()  # with BatchNorm, and dropout that draws
    attack = partial(fgsm, eps=EPS, random_start=True, generator=one)
    options = {"attack": attack, name: value}
    with untouched(model), pytest.raises((TypeError, ValueError), match=rf"^{name}('s .*)? must"):
        fit(model, batches(other), epochs=1, lr=0.1, **options)
    assert torch.equal(one.get_state(), seeded().get_state())
    assert torch.equal(other.get_state(), seeded().get_state())


def test_a_training_that_diverges_says_what_to_do():
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit(net(), batches(), epochs=5, lr=1e30)
