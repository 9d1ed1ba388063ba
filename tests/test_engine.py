"""The engine against plain computation: same numbers, same attacks, any network."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import cuda, images, labels, small_net, untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advlib import Batches, Normalize, accuracy, bim, digit_net, engine, fgsm, fit, pgd, square
from advlib.engine import graphs, local, passes
from advlib.runtime import is_out_of_memory

DOUBLE = torch.float64
exact = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-14)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def digits(n=20, dtype=DOUBLE):
    x = torch.rand(n, 1, 28, 28, generator=seeded(), dtype=dtype)
    x[:, :, :9] = 0  # a flat background: ties in every pooling window
    return x, labels(n, 10)


def net(dtype=DOUBLE):
    return digit_net(generator=seeded()).to(dtype)


def is_written_out(model, x):
    return passes.written_out(model, x, x.dtype) is not None


# Networks that the passes are written out for: everything they know, in each order it may have.

conv = partial(nn.Conv2d, padding=1)
shared = nn.Conv2d(2, 2, 3, padding=1)
NETWORKS = {
    "digit_net": lambda: digit_net(channels=2, size=8),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4)),
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 9), nn.ReLU(), nn.Linear(9, 4, bias=False)
    ),
    "normalised": lambda: nn.Sequential(
        Normalize([0.4, 0.5], [0.2, 0.3]), conv(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4)
    ),
    "normalised linear": lambda: nn.Sequential(
        Normalize([0.4, 0.5], [0.2, 0.3]), nn.Flatten(), nn.Linear(128, 4)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(conv(2, 9, 3), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(144, 4),
    ),
    "pool, then ReLU": lambda: nn.Sequential(
        conv(2, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    ),
    "pool first": lambda: nn.Sequential(
        nn.MaxPool2d(2),
        conv(2, 3, 3),
        nn.MaxPool2d(2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3, 4),
    ),
    "pools in a row": lambda: nn.Sequential(
        conv(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    ),
    "overlapping pool": lambda: nn.Sequential(
        conv(2, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(48, 4)
    ),
    "odd pool": lambda: nn.Sequential(
        conv(2, 3, 3), nn.ReLU(), nn.MaxPool2d((3, 2)), nn.Flatten(), nn.Linear(24, 4)
    ),
    "no padding, wide": lambda: nn.Sequential(
        nn.Conv2d(2, 60, (5, 3), bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1440, 4)
    ),
    "uneven padding": lambda: nn.Sequential(
        nn.Conv2d(2, 20, 3, padding=(0, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(1200, 4)
    ),
    "strides, dilation, groups": lambda: nn.Sequential(
        nn.Conv2d(2, 20, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(20, 4, 2, dilation=2, groups=2),
        nn.Flatten(),
        nn.Linear(16, 4),
    ),
    "a layer twice": lambda: nn.Sequential(
        shared, nn.ReLU(), shared, nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    ),
}


def build(name):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return NETWORKS[name]().to(DOUBLE)


def pictures(n=7):
    return torch.rand(n, 2, 8, 8, generator=seeded(), dtype=DOUBLE), labels(n, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_written_out_passes_equal_autograd(name):
    model, (x, y) = build(name), pictures()
    assert is_written_out(model, x)
    before = x.clone()
    leaf = x.clone().requires_grad_()
    scores = model(leaf)
    F.cross_entropy(scores, y, reduction="sum").backward()
    model.zero_grad()
    with untouched(model):
        exact(engine.logits(model, x), scores.detach())
        found, gradient = engine.logits_and_gradient(model, x, y)
        exact(found, scores.detach())
        exact(gradient, leaf.grad)
    assert torch.equal(x, before)


def test_grey_images_in_front_of_three_means_get_a_grey_gradient():
    model = nn.Sequential(
        Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.1]), conv(3, 2, 3), nn.Flatten(), nn.Linear(128, 4)
    ).to(DOUBLE)
    x, y = pictures()
    x = x[:, :1].clone().requires_grad_()
    assert is_written_out(model, x)
    F.cross_entropy(model(x), y, reduction="sum").backward()
    exact(engine.gradient(model, x.detach(), y), x.grad)


@pytest.mark.parametrize("name", NETWORKS)
def test_mean_loss_adds_its_gradients_to_those_of_the_weights(name):
    model, (x, y) = build(name), pictures()
    fast = []
    for _ in range(2):  # the second is added to the first
        fast.append(engine.mean_loss(model, x, y))
        fast[-1].backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    exact(torch.stack(fast).detach(), loss.detach().expand(2))
    for grad, parameter in zip(found, model.parameters(), strict=True):
        exact(grad, 2 * parameter.grad)


def test_gradients_are_the_same_where_a_whole_window_ties_or_is_cut_by_relu():
    model, (x, y) = net(), digits(6)
    x[:2] = 0  # every window of a black image ties
    with engine.off():
        expected = engine.logits_and_gradient(model, x, y)
    for found, wanted in zip(engine.logits_and_gradient(model, x, y), expected, strict=True):
        exact(found, wanted)


def test_frozen_parameters_get_no_gradient():
    model, (x, y) = net(), digits(3)
    model.conv1.weight.requires_grad_(False)
    engine.mean_loss(model, x, y).backward()
    assert [p.grad is None for p in model.parameters()] == [True] + [False] * 5


# Blocks


def test_large_batches_are_worked_through_in_blocks_of_equal_size():
    model = net()
    sizes = [engine._blocks(model, torch.zeros(n, 1, 28, 28)) for n in (1, 51, 52, 100, 5000)]
    assert sizes == [1, 1, 2, 2, 99]
    assert engine._blocks(model, torch.zeros(40, 3, 224, 224)) == 3
    with engine.off():
        assert engine._blocks(model, torch.zeros(5000, 1, 28, 28)) == 1


@pytest.mark.parametrize("n", [1, 16, 17, 50])
def test_blocks_do_not_show_in_what_is_computed(n):
    model = digit_net(channels=3, size=32, generator=seeded()).double()  # blocks of 16
    x = torch.rand(n, 3, 32, 32, generator=seeded(), dtype=DOUBLE)
    y = labels(n, 10)
    rows = torch.arange(n - 1, -1, -7)
    scores, gradient = engine.logits_and_gradient(model, x, y)
    assert scores.shape == (n, 10)
    exact(gradient[rows], engine.gradient(model, x[rows], y[rows]))
    exact(scores[rows], engine.logits(model, x[rows]))


def test_a_network_that_only_autograd_knows_is_cut_into_blocks_too():
    seen = []

    class Wide(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.flatten(1)[:, :3] ** 2

    x = torch.rand(40, 3, 60, 60, generator=seeded())
    found = engine.gradient(Wide(), x, labels(40))
    assert seen == [14, 13, 13]
    assert found.shape == x.shape


def test_training_never_cuts_a_batch_that_autograd_differentiates():
    seen = []

    class Wide(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x.flatten(1))

    engine.mean_loss(Wide(10800, 3), torch.rand(40, 3, 60, 60), labels(40)).backward()
    assert seen == [40]


# Out of memory


class Narrow(nn.Module):
    """Works like `model` for up to `most` images; for more it runs out of memory."""

    def __init__(self, model, most, error=None):
        super().__init__()
        self.model, self.most, self.seen = model, most, []
        self.error = error or torch.cuda.OutOfMemoryError("CUDA out of memory")

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise self.error
        return self.model(x)


@pytest.mark.parametrize("most", [1, 5, 30])
def test_a_block_that_does_not_fit_is_halved_and_that_is_said_once(most):
    model, (x, y) = net(), digits(40)
    narrow = Narrow(model, most)
    with pytest.warns(UserWarning, match="out of memory: went on with") as said:
        found = engine.logits_and_gradient(narrow, x, y)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = engine.logits(narrow, x)
    assert max(narrow.seen[-40 // most :]) <= most  # what did not fit is not tried again
    for part, wanted in zip(found, engine.logits_and_gradient(model, x, y), strict=True):
        exact(part, wanted)
    exact(again, found[0])


def test_attack_and_accuracy_go_on_when_memory_runs_out():
    model, (x, y) = net(), digits(40)
    attack = partial(bim, eps=0.1, alpha=0.05, steps=3)
    expected = attack(model, x, y)
    with pytest.warns(UserWarning, match="out of memory"):
        exact(attack(Narrow(model, 7), x, y), expected)
    with pytest.warns(UserWarning, match="out of memory"):
        found = accuracy(Narrow(model, 7), Batches(x, y, batch_size=40), attack=attack)
    assert found == accuracy(model, Batches(x, y, batch_size=40), attack=attack)


def test_a_single_image_that_does_not_fit_is_an_error():
    x, y = digits(4)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        engine.gradient(Narrow(net(), 0), x, y)


def test_other_errors_of_a_model_are_raised_at_once():
    x, _ = digits(40)
    model = Narrow(net(), 1, RuntimeError("no such layer"))
    with pytest.raises(RuntimeError, match="no such layer"):
        engine.logits(model, x)
    assert len(model.seen) == 1


def test_what_the_cpu_can_not_allocate_is_out_of_memory_too():
    """The allocator's own error, so that a change of its words is noticed."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


# Attacks, evaluation and training through both

ATTACKS = {
    "fgsm": partial(fgsm, eps=0.1),
    "fgsm, random start": partial(fgsm, eps=0.1, alpha=0.125, random_start=True),
    "bim": partial(bim, eps=0.1, alpha=0.04, steps=3),
    "bim, early exit": partial(bim, eps=0.1, alpha=0.04, steps=3, early_exit=True),
    "bim, targeted": partial(bim, eps=0.1, alpha=0.04, steps=3, targeted=True),
    "pgd": partial(pgd, eps=0.1, alpha=0.05, steps=2, restarts=2),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_are_equal_to_the_bit_with_and_without(attack):
    # in double precision, where rounding cannot turn a sign; 52 images are two blocks
    model, (x, y) = net(), digits(52)
    fast = attack(model, x, y, generator=seeded())
    with engine.off():
        assert torch.equal(fast, attack(model, x, y, generator=seeded()))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_in_single_precision_accuracy_and_budget_are_the_same(attack):
    model, x = net(torch.float32), digits(52, torch.float32)[0]
    y = engine.logits(model, x).argmax(1)
    fast = attack(model, x, y, generator=seeded())
    with engine.off():
        plainly = attack(model, x, y, generator=seeded())
    right = [(engine.logits(model, found).argmax(1) == y).sum() for found in (fast, plainly)]
    assert right[0] == right[1]
    moved = [(found - x).abs().amax((1, 2, 3)) for found in (fast, plainly)]
    torch.testing.assert_close(*moved, rtol=0, atol=1e-6)


def test_training_ends_in_the_same_network():
    ends = []
    for context in (engine.off, lambda: engine.gradients_in(DOUBLE)):
        model, generator = net(), seeded()
        batches = Batches(*digits(104), batch_size=52, shuffle=True, generator=generator)
        attack = partial(fgsm, eps=0.1, alpha=0.125, random_start=True, generator=generator)
        with context():
            history = fit(model, batches, epochs=1, lr=0.05, attack=attack)
        ends.append((history.loss, list(model.parameters())))
    (plain_loss, plain), (fast_loss, fast) = ends
    assert fast_loss == pytest.approx(plain_loss, rel=1e-9)
    for p, q in zip(plain, fast, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


# Networks that must not be written out


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def ending(*layers, pixels=32):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(pixels, 3))


OTHERS = {
    "a subclass": ending(Doubled(1, 2, 3, padding=1)),
    "another padding": ending(conv(1, 2, 3, padding_mode="reflect")),
    "padding by name": ending(nn.Conv2d(1, 2, 3, padding="same")),
    "ceil mode": ending(nn.MaxPool2d(3, ceil_mode=True), pixels=4),
    "dilated pool": ending(nn.MaxPool2d(2, stride=1, dilation=2), pixels=4),
    "another activation": ending(conv(1, 2, 3), nn.Tanh()),
    "ReLU first": ending(nn.ReLU(), pixels=16),
    "batch norm, dropout": small_net(),
    "rows as pixels": nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(16, 3)),
    "no linear layer": nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()),
    "not sequential": nn.ModuleList([nn.Linear(16, 3)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_network_is_left_to_autograd(name):
    model, x, y = OTHERS[name], images(6), labels(6)
    assert not is_written_out(model, x)
    if isinstance(model, nn.ModuleList):
        return
    model.eval()
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), y, reduction="sum").backward()
    assert torch.equal(engine.gradient(model, x, y), leaf.grad)


def test_hooks_are_called():
    model, (x, y) = net(), digits(2)
    seen = []
    for register in (
        model.conv2.register_forward_hook,
        model.register_forward_pre_hook,
        model.relu1.register_full_backward_hook,
        model.linear.weight.register_hook,
        model.linear.weight.register_post_accumulate_grad_hook,
    ):
        assert is_written_out(model, x)
        handle = register(lambda *given: seen.append(1))
        assert not is_written_out(model, x)
        engine.mean_loss(model, x, y).backward()
        assert seen.pop() == 1
        handle.remove()


def test_autocast_is_left_to_autograd():
    model, (x, _) = net(torch.float32), digits(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_written_out(model, x)
    assert is_written_out(model, x)


def test_weights_are_taken_as_they_are_at_each_call():
    model, (x, y) = net(), digits(4)
    engine.gradient(model, x, y)
    with torch.no_grad():
        model.conv2.weight *= -1
        model.linear.bias += 1
    with engine.off():
        expected = engine.logits_and_gradient(model, x, y)
    for found, wanted in zip(engine.logits_and_gradient(model, x, y), expected, strict=True):
        exact(found, wanted)


# Switches


def test_off_ends_with_its_block_also_after_an_error():
    model, x = net(), torch.zeros(5000, 1, 28, 28)
    with pytest.raises(KeyError), engine.off():
        raise KeyError
    assert engine._blocks(model, x) == 99
    with engine.off(), engine.off():
        pass
    assert engine._blocks(model, x) == 99


def test_lower_precision_changes_gradients_and_nothing_else():
    model, (x, y) = net(torch.float32), digits(8, torch.float32)
    scores, gradient = engine.logits_and_gradient(model, x, y)
    loss = engine.mean_loss(model, x, y)
    with engine.gradients_in(torch.bfloat16):
        found, rough = engine.logits_and_gradient(model, x, y)
        assert torch.equal(engine.mean_loss(model, x, y), loss)
    assert torch.equal(found, scores)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, gradient)
    agree = (rough.sign() == gradient.sign()).float().mean()
    assert agree > 0.9
    assert torch.equal(engine.gradient(model, x, y), gradient)


def test_attacks_in_lower_precision_keep_their_budget_and_strength():
    x, _ = digits(60, torch.float32)
    model = net(torch.float32)
    y = engine.logits(model, x).argmax(1)
    attack = partial(bim, eps=0.02, alpha=0.004, steps=8, early_exit=True)
    exactly = attack(model, x, y)
    with engine.gradients_in(torch.bfloat16):
        roughly = attack(model, x, y)
    assert (roughly - x).abs().max() <= 0.02 + 1e-6
    standing = [(engine.logits(model, found).argmax(1) == y).sum() for found in (exactly, roughly)]
    assert abs(standing[0] - standing[1]) <= 3


@pytest.mark.parametrize("dtype", [torch.int64, "bfloat16", None])
def test_only_floating_dtypes_are_taken(dtype):
    with pytest.raises(TypeError, match=r"^dtype "), engine.gradients_in(dtype):
        pass


# CUDA graphs


def test_a_graph_belongs_to_its_weights_and_to_what_is_done_with_them():
    def key(model, dtype=DOUBLE):
        x = digits(2)[0]
        return passes.written_out(model, x, dtype).key

    model = net()
    first = key(model)
    with torch.no_grad():
        model.conv2.weight *= 2
    assert key(model) == first  # changed in place: the same memory
    others = [key(model, torch.float32), key(net())]
    model.conv2.padding = (2, 2)
    others.append(key(model))
    model.conv2.padding = (1, 1)
    del model.relu1
    others.append(key(model))
    model.conv1.weight.requires_grad_(False)
    others.append(key(model))
    assert len({first, *others}) == 6


def test_sizes_of_graphs_are_few_and_little_larger():
    sizes = [graphs._rounded_up(n) for n in range(1, 5001)]
    assert all(n <= size <= max(n * 9 / 8, n + 7) for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 80


@cuda
@pytest.mark.parametrize("n", [5, 100, 3000])
def test_on_cuda_replayed_gradients_equal_autograd(n):
    model, (x, y) = net().cuda(), (t.cuda() for t in digits(n))
    with engine.off():
        expected = engine.logits_and_gradient(model, x, y)
    for _ in range(3):  # plainly, recorded, replayed
        for found, wanted in zip(engine.logits_and_gradient(model, x, y), expected, strict=True):
            exact(found, wanted, rtol=1e-9)


@cuda
def test_on_cuda_a_replay_sees_new_weights_and_smaller_batches():
    model, (x, y) = net().cuda(), (t.cuda() for t in digits(100))
    for _ in range(3):
        engine.gradient(model, x, y)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01)
    for part in (x, x[:99], x[:97]):
        with engine.off():
            expected = engine.gradient(model, part, y[: len(part)])
        exact(engine.gradient(model, part, y[: len(part)]), expected, rtol=1e-9)
    model.conv1 = nn.Conv2d(1, 32, 3, padding=1).cuda().double()  # a new layer is a new graph
    with engine.off():
        expected = engine.gradient(model, x, y)
    exact(engine.gradient(model, x, y), expected, rtol=1e-9)


@cuda
def test_on_cuda_training_is_the_same_through_graphs():
    ends = []
    for context in (engine.off, lambda: engine.gradients_in(DOUBLE)):
        model, (x, y) = net().cuda(), (t.cuda() for t in digits(120))
        with context():
            history = fit(model, Batches(x, y, batch_size=60), epochs=4, lr=0.05)
        ends.append(history.loss)
    assert ends[1] == pytest.approx(ends[0], rel=1e-7)


@cuda
def test_on_cuda_recording_leaves_the_random_state_alone():
    model, (x, y) = net().cuda(), (t.cuda() for t in digits(16))
    with untouched(model):
        for _ in range(3):
            engine.gradient(model, x, y)


# Images that differ from known ones in a window.


@pytest.mark.parametrize("name", [*NETWORKS, "two 3x3 on 28x28"])
@settings(max_examples=10)
@given(data=st.data())
def test_logits_of_nearby_images_are_those_of_the_whole_network(name, data):
    if name in NETWORKS:
        model, x = build(name), pictures(5)[0]
    else:
        model, x = net(), digits(5)[0]
    height, width = x.shape[2:]
    known = engine.nearby(model, x)
    for _ in range(3):
        side = data.draw(st.integers(1, height // 2))
        corners = st.tuples(st.integers(0, height - side), st.integers(0, width - side))
        first = torch.tensor([data.draw(corners) for _ in x])
        tried = x.clone()
        for image, (top, left) in zip(tried, first.tolist(), strict=True):
            window = image[:, top : top + side, left : left + side]
            window.copy_(torch.rand(window.shape, generator=seeded(side), dtype=DOUBLE))
        exact(known.try_(tried, first, side), model(tried).detach(), atol=1e-10)
        better = torch.tensor([data.draw(st.booleans()) for _ in x])
        known.keep(better)
        x = torch.where(better.view(-1, 1, 1, 1), tried, x)
        stay = torch.tensor([True, *(data.draw(st.booleans()) for _ in x[1:])])
        known.only(stay)
        x = x[stay]
        assert torch.equal(known.x, x)


def test_a_try_that_is_not_kept_leaves_no_trace():
    model, (x, _) = net(), digits(5)
    known, first = engine.nearby(model, x), torch.full((5, 2), 13)
    for value in (0.25, 0.5, 1.0):
        tried = x.clone()
        tried[:, :, 13, 13] = value
        exact(known.try_(tried, first, 1), model(tried).detach())
    known.only(torch.tensor([True, False, True, True, False]))
    exact(known.try_(known.x, torch.zeros(3, 2, dtype=torch.int64), 1), model(known.x).detach())


def test_maps_that_would_take_too_much_memory_are_not_made(monkeypatch):
    monkeypatch.setattr(local, "_MOST_VALUES", 4 * 64 * 14 * 14)
    model, (x, _) = net(), digits(5)
    for n, whole in ((4, False), (5, True)):
        known = engine.nearby(model, x[:n])
        known.try_(x[:n], torch.zeros(n, 2, dtype=torch.int64), 1)
        assert (known._maps is None) == whole


def test_a_small_window_is_not_computed_as_a_whole(monkeypatch):
    model, (x, _) = net(), digits(5)
    known = engine.nearby(model, x)
    monkeypatch.setattr(known, "_logits", None)
    first = torch.tensor([[0, 0], [27, 27], [13, 5], [0, 27], [26, 1]])
    tried = x.clone()
    tried[range(5), 0, first[:, 0], first[:, 1]] = 0.5
    exact(known.try_(tried, first, 1), model(tried).detach())
    with pytest.raises(TypeError, match="callable"):  # a wide one is
        known.try_(torch.rand_like(x), torch.zeros(5, 2, dtype=torch.int64), 28)


def test_square_is_the_same_with_and_without_windows(monkeypatch):
    model, (x, y) = net(torch.float32), digits(6, torch.float32)
    attack = partial(square, model, x, y, eps=0.1, queries=60)
    plainly = engine.Nearby
    expected = attack(generator=seeded())
    monkeypatch.setattr(engine, "Nearby", lambda x, logits, _: plainly(x, logits, None))
    assert torch.equal(attack(generator=seeded()), expected)
