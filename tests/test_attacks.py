"""Attacks against closed forms, plain rewrites, and the mistakes that real projects made."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Breakdown, FailsAfter, cuda, images, labels, linear, small_net, untouched
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advlib import (
    Normalize,
    apgd,
    autoattack,
    bim,
    digit_net,
    evaluation_mode,
    fgsm,
    input_gradient,
    n_fgsm,
    pgd,
    square,
)

EPS = 0.1
FGSM = partial(fgsm, eps=EPS)
FGSM_RANDOM = partial(fgsm, eps=EPS, alpha=1.25 * EPS, random_start=True)
BIM = partial(bim, eps=EPS, alpha=0.03, steps=5)
PGD = partial(pgd, eps=EPS, alpha=0.03, steps=3, restarts=2)
EARLY = partial(bim, eps=EPS, alpha=0.03, steps=5, early_exit=True)
L2 = partial(PGD, norm="l2")
N_FGSM = partial(n_fgsm, eps=EPS)
APGD = partial(apgd, eps=EPS, steps=6)
SQUARE = partial(square, eps=EPS, queries=12)
AUTO = partial(autoattack, eps=EPS, steps=4, queries=6)
ATTACKS = {
    "fgsm": FGSM,
    "fgsm-random": FGSM_RANDOM,
    "n-fgsm": N_FGSM,
    "bim": BIM,
    "early-exit": EARLY,
    "pgd": PGD,
    "pgd-l2": L2,
    "apgd": APGD,
    "apgd-l2": partial(APGD, norm="l2"),
    "apgd-dlr": partial(APGD, loss="dlr"),
    "square": SQUARE,
    "autoattack": AUTO,
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def losses(model, x, y):
    with evaluation_mode(model), torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


def weights(classes, pixels, seed=0):
    return torch.randn(classes, pixels, generator=seeded(seed), dtype=torch.float64)


class Window(nn.Module):
    """Mistakes an image for class 1 exactly where low < its one pixel < high; gradient zero.

    The loss is *lower* on the mistake than elsewhere, so a choice by largest loss misses it.
    """

    right, wrong = torch.tensor([0.34, 0.33, 0.33]).log(), torch.tensor([0.48, 0.52, 1e-9]).log()

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        inside = (x.flatten(1) > self.low) & (x.flatten(1) < self.high)
        return torch.where(inside, self.wrong, self.right) + 0 * x.flatten(1)


class Spy(nn.Module):
    """Keeps every batch that the model was asked about."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.model(x)


# Closed forms


@pytest.mark.parametrize("attack", [FGSM, BIM, partial(PGD, steps=7)])
def test_margin_of_a_linear_model_falls_by_eps_times_sum_of_abs_w(attack):
    w = weights(2, 6)
    difference = w[0] - w[1]
    x = 0.2 + 0.6 * torch.rand(9, 6, generator=seeded(), dtype=torch.float64)
    y = torch.zeros(9, dtype=torch.int64)
    fall = (x - attack(linear(w, torch.float64), x, y)) @ difference
    torch.testing.assert_close(fall, (EPS * difference.abs().sum()).expand(9))


def test_multi_class_linear_model_breaks_exactly_where_the_closed_form_says():
    w = weights(4, 5)
    x = 0.15 + 0.7 * torch.rand(200, 5, generator=seeded(), dtype=torch.float64)
    logits = x @ w.T
    y = logits.argmax(1)
    gaps = logits.gather(1, y[:, None]) - logits
    worst = gaps - EPS * (w[y][:, None] - w).abs().sum(2)
    breakable = (worst.scatter(1, y[:, None], 1.0) < 0).any(1)
    assert 20 < breakable.sum() < 180
    options = {"eps": EPS, "alpha": 0.04, "steps": 10, "restarts": 40, "generator": seeded()}
    x_adv = pgd(linear(w, torch.float64), x, y, **options)
    torch.testing.assert_close((x_adv @ w.T).argmax(1) != y, breakable)


def test_input_gradient_of_a_linear_model_is_softmax_minus_one_hot_times_weights():
    w, x, y = weights(3, 16), images(dtype=torch.float64), labels()
    expected = ((x.flatten(1) @ w.T).softmax(1) - F.one_hot(y, 3)) @ w
    found = input_gradient(linear(w, torch.float64), x, y)
    torch.testing.assert_close(found, expected.view_as(x))


def test_input_gradient_equals_finite_differences():
    model, x, y = small_net(dtype=torch.float64).eval(), images(3, dtype=torch.float64), labels(3)
    found = input_gradient(model, x, y).flatten()
    h = 1e-6
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype).index_fill_(0, torch.tensor(i), h).view_as(x)
        slope = (losses(model, x + step, y) - losses(model, x - step, y)).sum() / (2 * h)
        assert found[i].item() == pytest.approx(slope.item(), abs=1e-7)


def test_input_gradient_equals_that_of_loss_backward():
    model, y = digit_net(generator=seeded()).double(), labels(5)
    x = torch.rand(5, 1, 28, 28, generator=seeded(), dtype=torch.float64).requires_grad_()
    F.cross_entropy(model(x), y, reduction="sum").backward()
    torch.testing.assert_close(input_gradient(model, x, y), x.grad, rtol=1e-12, atol=1e-15)


def test_fgsm_takes_one_signed_step_and_targeted_the_opposite_one():
    w, y = weights(3, 16), labels()
    x = 0.2 + 0.6 * images(dtype=torch.float64)
    model = linear(w, torch.float64)
    sign = input_gradient(model, x, y).sign()
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS), x + EPS * sign)
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS, targeted=True), x - EPS * sign)
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS, alpha=0.04), x + 0.04 * sign)


@pytest.mark.parametrize("attack", [FGSM, FGSM_RANDOM, BIM, PGD])
@pytest.mark.parametrize("targeted", [False, True])
def test_loss_rises_on_every_image_and_towards_a_target_it_falls(attack, targeted):
    model, x, y = linear(weights(3, 16), torch.float64), images(dtype=torch.float64), labels()
    change = losses(model, attack(model, x, y, targeted=targeted), y) - losses(model, x, y)
    assert (change < 0 if targeted else change > 0).all()


def test_more_steps_make_a_nonlinear_model_lose_more():
    model, x, y = small_net(), images(), labels()
    one, many = (bim(model, x, y, eps=0.3, alpha=0.3 / n, steps=n) for n in (1, 10))
    assert losses(model, x, y).sum() < losses(model, one, y).sum() < losses(model, many, y).sum()


# Rewrites


def test_bim_equals_its_plain_rewrite_bit_for_bit():
    model, y = digit_net(generator=seeded()), labels(6)
    x = images(6).repeat(1, 1, 7, 7)
    x_adv = x.clone()
    for _ in range(5):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        moved = x_adv.detach() + 0.03 * gradient.sign()
        x_adv = torch.clip(x + torch.clip(moved - x, -EPS, EPS), 0, 1)
    assert torch.equal(BIM(model, x, y), x_adv)


@pytest.mark.parametrize("random_start", [False, True])
def test_bim_of_one_step_equals_fgsm_and_pgd_of_one_restart_equals_bim(random_start):
    model, x, y = small_net(), images(), labels()
    options = {"eps": EPS, "alpha": 0.125, "random_start": random_start}
    found = [
        attack(model, x, y, **options, generator=seeded())
        for attack in (fgsm, partial(bim, steps=1), partial(pgd, steps=1))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("attack", [input_gradient, FGSM, BIM])
def test_an_image_alone_gets_the_result_it_gets_in_a_batch(attack):
    model, x, y = small_net(dtype=torch.float64), images(dtype=torch.float64), labels()
    together = attack(model, x, y)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_one_eps_and_alpha_per_image_equal_separate_calls():
    model, x, y = small_net(dtype=torch.float64), images(3, dtype=torch.float64), labels(3)
    eps, alpha = torch.tensor([0.0, 0.1, 0.3]), torch.tensor([0.1, 0.02, 0.2])
    for attack in (partial(bim, steps=4), partial(pgd, steps=4, restarts=3, random_start=False)):
        together = attack(model, x, y, eps=eps, alpha=alpha)
        for i in range(3):
            row = slice(i, i + 1)
            alone = attack(model, x[row], y[row], eps=eps[row], alpha=alpha[row])
            torch.testing.assert_close(together[row], alone)


# Ball and box


@given(
    attack=st.sampled_from([fgsm, partial(bim, steps=3), partial(pgd, steps=2, restarts=2)]),
    eps=st.floats(0, 0.6),
    alpha=st.floats(0, 1.5),
    bounds=st.sampled_from([None, (0.0, 1.0), (-1.0, 1.0), (-0.25, 2.0), (0, 1)]),
    random_start=st.booleans(),
    targeted=st.booleans(),
    per_image=st.booleans(),
)
def test_every_pixel_the_model_sees_or_gets_back_is_in_ball_and_box(
    attack, eps, alpha, bounds, random_start, targeted, per_image
):
    model, x, y = Spy(small_net()), images(4), labels(4)
    if per_image:
        eps, alpha = eps * torch.tensor([0.0, 0.3, 0.7, 1.0]), torch.full((4,), alpha)
    limit = torch.as_tensor(eps).expand(4).view(-1, 1, 1, 1) + 1e-6
    options = {"bounds": bounds, "random_start": random_start, "targeted": targeted}
    original = x.clone()
    found = attack(model, x, y, eps=eps, alpha=alpha, generator=seeded(), **options)
    assert torch.equal(x, original)
    assert ((found - x).abs() <= limit).all()
    if bounds is not None:
        for seen in [found, *model.seen]:
            assert seen.min() >= bounds[0]
            assert seen.max() <= bounds[1]
    for seen in model.seen:
        if len(seen) == 4:
            assert ((seen - x).abs() <= limit).all()


@every_attack
def test_eps_zero_is_the_identity_but_never_the_same_memory(attack):
    model, x, y = small_net(), images(), labels()
    found = attack(model, x, y, eps=0.0)
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()


def test_bounds_none_lets_pixels_leave_the_range_and_bounds_hold_them():
    model, x, y = linear(weights(2, 16)), images().round(), labels(classes=2)
    torch.testing.assert_close(
        (FGSM(model, x, y, bounds=None) - x).abs(), torch.full_like(x, EPS), atol=1e-6, rtol=0
    )
    free, held = FGSM(model, x, y, bounds=None), FGSM(model, x, y)
    assert torch.equal(free.clamp(0, 1), held)
    assert not torch.equal(free, held)


def test_random_start_is_uniform_over_the_whole_ball():
    x = torch.full((1, 100_000), 0.5)
    model = linear(torch.zeros(2, 100_000))  # no gradient, so the start is what comes back
    found = fgsm(model, x, torch.tensor([0]), eps=EPS, random_start=True, generator=seeded())
    change = (found - x) / EPS
    assert change.min() < -0.999
    assert change.max() > 0.999
    histogram = change.histc(10, -1, 1) / change.numel()
    assert (histogram - 0.1).abs().max() < 0.01


# Restarts


def one_pixel_images(n=50):
    return torch.full((n, 1), 0.5), torch.zeros(n, dtype=torch.int64)


def test_restarts_any_success_counts_not_the_largest_loss_nor_the_last():
    model, (x, y) = Window(0.6, 0.9), one_pixel_images()
    attack = partial(pgd, model, x, y, eps=0.5, alpha=0.0, steps=1, generator=seeded())
    broken = {n: (model(attack(restarts=n)).argmax(1) != y).sum().item() for n in (1, 40)}
    assert 5 < broken[1] < 25  # three restarts in ten succeed
    assert broken[40] == 50


def test_restarts_keep_what_an_early_success_found_and_attack_only_the_rest():
    model, (x, y) = Spy(Window(0.6, 0.9)), one_pixel_images()
    options = {"eps": 0.5, "alpha": 0.0, "steps": 1}
    first = pgd(model, x, y, **options, generator=seeded())
    broken = model(first).argmax(1) != y
    model.seen.clear()
    found = pgd(model, x, y, **options, restarts=40, generator=seeded())
    assert torch.equal(found[broken], first[broken])
    sizes = [len(seen) for seen in model.seen if len(seen) > 1]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 3
    assert len(model.seen) < 40 * 3  # nobody left standing: no more restarts


def test_images_that_no_restart_breaks_are_not_zeros_but_lie_in_the_ball():
    model, (x, y) = Window(2, 3), one_pixel_images()
    found = pgd(model, x, y, eps=EPS, alpha=0.01, steps=2, restarts=3, generator=seeded())
    assert ((found - x).abs() <= EPS).all()
    assert (found != x).all()


def test_targeted_restarts_go_on_until_the_target_is_reached():
    model, (x, _) = Window(0.6, 0.9), one_pixel_images()
    target = torch.ones(50, dtype=torch.int64)
    options = {"eps": 0.5, "alpha": 0.0, "steps": 1, "generator": seeded()}
    found = pgd(model, x, target, **options, restarts=40, targeted=True)
    assert (model(found).argmax(1) == target).all()


# Early exit


def first_break(model, x, y, targeted, **options):
    """Each image after the fewest steps that break it, or after all; found by many fixed runs."""
    runs = [x] + [bim(model, x, y, targeted=targeted, **options, steps=k) for k in range(1, 9)]
    found = []
    for i in range(len(x)):
        for run in runs:
            hit = model(run[i : i + 1]).argmax(1).item() == y[i].item()
            if hit == targeted:
                break
        found.append(run[i])
    return torch.stack(found)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_early_exit_keeps_each_image_as_its_first_success_left_it(targeted, per_image):
    model, x = small_net(dtype=torch.float64).eval(), images(24, dtype=torch.float64)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 3  # broken (or on target) from the start
    eps = torch.linspace(0, 0.6, 24) if per_image else 0.3
    options = {"eps": eps, "alpha": 0.05}
    expected = first_break(model, x, y, targeted, **options)
    found = bim(model, x, y, targeted=targeted, early_exit=True, steps=8, **options)
    assert torch.equal(found, expected)
    moved = (found != x).flatten(1).any(1)
    assert 0 < moved.sum() < 24


def test_early_exit_asks_nothing_more_about_a_broken_image():
    model = Spy(small_net().eval())
    x = images(24)
    y = model.model(x).argmax(1)
    y[:5] = (y[:5] + 1) % 3
    found = bim(model, x, y, eps=0.3, alpha=0.05, steps=8, early_exit=True)
    sizes = [len(seen) for seen in model.seen][1:]  # the first is the check of the input
    assert sizes[0] == 24
    assert sizes[1] <= 19
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= 8
    assert (model.model(found).argmax(1) != y).sum() >= 24 - sizes[-1]


# What a call leaves alone, and what it gives back


@every_attack
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("generator", [None, 0])
def test_flags_frozen_batchnorm_statistics_grads_and_global_rng_stay(
    attack, training, filled, generator
):
    model = small_net() if training else small_net().eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if filled else None
    with untouched(model):
        attack(model, images(), labels(), generator=None if generator is None else seeded())
        input_gradient(model, images(), labels())


@pytest.mark.parametrize(
    ("attack", "calls"),
    [
        *((FGSM, 1), (FGSM_RANDOM, 1), (BIM, 1), (BIM, 4), (PGD, 3), (PGD, 5), (N_FGSM, 1)),
        *((APGD, 2), (APGD, 4), (SQUARE, 2), (SQUARE, 5), (AUTO, 2), (AUTO, 5)),
    ],
)
def test_flags_come_back_after_an_error_in_the_middle_of_an_attack(attack, calls):
    y = small_net().eval()(images()).argmax(1)  # all right, so that no attack ends at once
    model = FailsAfter(small_net(), calls)
    with untouched(model), pytest.raises(Breakdown):
        attack(model, images(), y)


@every_attack
def test_attack_runs_in_evaluation_mode(attack):
    model, x, y = small_net(), images(), labels()
    found = attack(model, x, y, generator=seeded())
    assert torch.equal(found, attack(model.eval(), x, y, generator=seeded()))


def test_gradient_entries_at_the_pixel_bounds_are_not_lost_to_a_clamp():
    w, y = weights(2, 16).float(), labels(classes=2)
    model, x = linear(w), images().round()
    assert (input_gradient(model, x, y) != 0).all()
    towards = (w[1] - w[0]).sign() * (1 - 2 * y[:, None])
    torch.testing.assert_close(BIM(model, x, y), (x + EPS * towards.view_as(x)).clamp(0, 1))


def test_true_labels_are_used_also_where_the_prediction_differs():
    w = weights(2, 16)
    model, x = linear(w, torch.float64), images(dtype=torch.float64)
    for y in (model(x).argmax(1), 1 - model(x).argmax(1)):  # all right, then all wrong
        assert (losses(model, BIM(model, x, y), y) > losses(model, x, y)).all()


def test_eps_is_in_pixel_units_also_in_front_of_a_normalised_model():
    model = nn.Sequential(Normalize([0.5], [0.1]), small_net())
    x, y = 0.2 + 0.6 * images(), labels()
    change = FGSM(model, x, y, alpha=3 * EPS) - x
    torch.testing.assert_close(change.abs(), torch.full_like(x, EPS))


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtype_device_and_memory_format_stay_and_nothing_is_attached(attack, dtype, memory_format):
    model = small_net(3, dtype).to(memory_format=memory_format)
    x = images(channels=3, dtype=dtype).contiguous(memory_format=memory_format)
    found = attack(model, x, labels())
    assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, x.device)
    assert found.stride() == x.stride()
    assert not found.requires_grad
    assert found.grad_fn is None


@every_attack
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_gradient_mode_does_not_matter(attack, context):
    model, x, y = small_net(), images(), labels()
    expected = attack(model, x, y, generator=seeded())
    with context():
        assert torch.equal(attack(model, x.clone(), y.clone(), generator=seeded()), expected)
    leaf = x.clone().requires_grad_()
    found = attack(model, leaf, y, generator=seeded())
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert leaf.grad is None


@pytest.mark.parametrize("attack", [FGSM_RANDOM, PGD, L2, N_FGSM, APGD, SQUARE, AUTO])
def test_a_generators_seed_decides_the_random_start(attack):
    model, x = small_net(), images()
    y = small_net().eval()(x).argmax(1)  # all right, so that every attack sets out
    a, b, c = (attack(model, x, y, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(attack(model, x, y), attack(model, x, y))  # advlib's own goes on


# The signature


def test_threat_model_has_no_defaults_and_is_keyword_only():
    model, x, y = small_net(), images(), labels()
    three = ("eps", "alpha", "steps")
    only_eps = [(attack, ("eps",)) for attack in (fgsm, n_fgsm, apgd, square, autoattack)]
    for attack, names in [*only_eps, (bim, three), (pgd, three)]:
        for name in names:
            given_names = {n: 1 for n in names if n != name}
            with pytest.raises(TypeError, match=name):
                attack(model, x, y, **given_names)
        with pytest.raises(TypeError, match="positional"):
            attack(model, x, y, 0.1)


@cuda
@every_attack
def test_on_cuda_the_result_is_that_of_the_cpu(attack):
    model, x, y = small_net(dtype=torch.float64), images(dtype=torch.float64), labels()
    eps = torch.full((8,), 0.1)  # stays on the CPU
    expected = attack(model, x, y, eps=eps, generator=seeded())
    found = attack(model.cuda(), x.cuda(), y.cuda(), eps=eps, generator=seeded())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected)
