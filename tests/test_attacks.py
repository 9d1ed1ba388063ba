"""Attacks against closed forms, plain rewrites, and the mistakes that real projects made."""

import inspect
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Spy, cuda, images, labels, linear, seeded, small_net, untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import advlib
from advlib import apgd, autoattack, bim, ddn, fgsm, fmn, input_gradient, pgd, predict, square

EPS = 0.1
DOUBLE = torch.float64
FGSM = partial(fgsm, eps=EPS)
FGSM_RANDOM = partial(fgsm, eps=EPS, alpha=1.25 * EPS, random_start=True)
BIM = partial(bim, eps=EPS, alpha=0.03, steps=5)
EARLY = partial(BIM, early_exit=True)
PGD = partial(pgd, eps=EPS, alpha=0.03, steps=3, restarts=2)
APGD = partial(apgd, eps=EPS, steps=6)
SQUARE = partial(square, eps=EPS, queries=12)
AUTO = partial(autoattack, eps=EPS, steps=4, queries=6)
ATTACKS = {"fgsm": FGSM, "fgsm-random": FGSM_RANDOM}
ATTACKS |= {"bim": BIM, "early-exit": EARLY, "pgd": PGD, "pgd-l2": partial(PGD, norm="l2")}
ATTACKS |= {"apgd": APGD, "apgd-l2": partial(APGD, norm="l2")}
ATTACKS |= {"apgd-dlr": partial(APGD, loss="dlr"), "square": SQUARE, "autoattack": AUTO}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def without_draws(attack):
    return lambda model, x, y, generator=None: attack(model, x, y)


MINIMUM = {f"fmn-{n}": without_draws(partial(fmn, norm=n, steps=8)) for n in ("l0", "l2", "linf")}
MINIMUM |= {"ddn": without_draws(partial(ddn, steps=8))}
ALL = ATTACKS | MINIMUM
and_minimum = pytest.mark.parametrize("attack", ALL.values(), ids=ALL)
DRAWING = {name: a for name, a in ATTACKS.items() if name not in ("fgsm", "bim", "early-exit")}


def weights(classes, pixels):
    return torch.randn(classes, pixels, generator=seeded(), dtype=DOUBLE)


def inner_images(n, pixels):
    """Images far enough from 0 and 1 for every ball of the closed forms."""
    return 0.3 + 0.4 * torch.rand(n, pixels, generator=seeded(1), dtype=DOUBLE)


@pytest.mark.parametrize("attack", [partial(pgd, alpha=0.05, steps=60), partial(apgd, steps=10)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_worst_margin_of_a_linear_model_is_reached_in_either_norm(attack, norm):
    w = weights(2, 12)
    difference = w[0] - w[1]
    dual = difference.abs().sum() if norm == "linf" else difference.norm()
    y = torch.zeros(20, dtype=torch.int64)
    x = inner_images(20, 12)
    x = x + ((3 - x @ difference) / (difference @ difference))[:, None] * difference  # margin 3
    x_adv = attack(linear(w, DOUBLE), x, y, eps=0.1, norm=norm, bounds=None)
    assert (x @ difference > 0.1 * dual).all()  # none breaks, so no attack stops early
    torch.testing.assert_close((x - x_adv) @ difference, (0.1 * dual).expand(20), rtol=1e-6, atol=0)


MISSES = [(partial(pgd, alpha=0.02, steps=10, restarts=40), 5), (apgd, 10)]
MISSES += [(partial(apgd, loss="dlr"), 10), (partial(apgd, loss="targeted-dlr"), 0)]


@pytest.mark.parametrize(("attack", "may_miss"), MISSES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_breaks_where_the_closed_form_says(attack, may_miss, norm):
    w, eps = weights(5, 8), 0.05 if norm == "linf" else 0.1
    x = inner_images(200, 8)
    y = (x @ w.T).argmax(1)
    gaps = (x @ w.T).gather(1, y[:, None]) - x @ w.T
    apart = w[y][:, None] - w
    reach = eps * (apart.abs().sum(2) if norm == "linf" else apart.norm(dim=2))
    breakable = ((gaps - reach).scatter(1, y[:, None], 1.0) < 0).any(1)
    assert 20 < breakable.sum() < 180
    x_adv = attack(linear(w, DOUBLE), x, y, eps=eps, norm=norm, generator=seeded())
    broken = (x_adv @ w.T).argmax(1) != y
    assert not (broken & ~breakable).any()
    assert (breakable & ~broken).sum() <= may_miss


def test_fgsm_takes_one_signed_step_and_targeted_the_opposite_one():
    model, x, y = linear(weights(3, 16), DOUBLE), 0.2 + 0.6 * images(dtype=DOUBLE), labels()
    sign = input_gradient(model, x, y).sign()
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS), x + EPS * sign)
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS, targeted=True), x - EPS * sign)
    torch.testing.assert_close(fgsm(model, x, y, eps=EPS, alpha=0.04), x + 0.04 * sign)


@pytest.mark.parametrize("attack", [FGSM, FGSM_RANDOM, BIM, PGD])
@pytest.mark.parametrize("targeted", [False, True])
def test_loss_of_the_given_label_rises_also_where_the_prediction_differs(attack, targeted):
    model, x, y = linear(weights(3, 16), DOUBLE), images(dtype=DOUBLE), labels()
    assert 0 < (predict(model, x) == y).sum() < 8
    x_adv = attack(model, x, y, targeted=targeted)
    before, after = (F.cross_entropy(model(z), y, reduction="none") for z in (x, x_adv))
    assert (after < before if targeted else after > before).all()


def test_bim_equals_its_plain_rewrite():
    model, y = advlib.digit_net(generator=seeded()).double(), labels(6)
    x = images(6, dtype=DOUBLE).repeat(1, 1, 7, 7)
    x_adv = x.clone()
    for _ in range(5):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        moved = x_adv.detach() + 0.03 * gradient.sign()
        x_adv = torch.clip(x + torch.clip(moved - x, -EPS, EPS), 0, 1)
    assert torch.equal(BIM(model, x, y), x_adv)


@pytest.mark.parametrize("random_start", [False, True])
def test_bim_of_one_step_equals_fgsm_and_pgd_of_one_restart_equals_bim(random_start):
    options = {"eps": EPS, "alpha": 0.125, "random_start": random_start}
    fast, basic, projected = (
        attack(small_net(), images(), labels(), **options, generator=seeded())
        for attack in (fgsm, partial(bim, steps=1), partial(pgd, steps=1))
    )
    assert torch.equal(fast, basic)
    assert torch.equal(fast, projected)


@pytest.mark.parametrize("attack", [input_gradient, FGSM, BIM])
def test_an_image_alone_gets_the_result_it_gets_in_a_batch(attack):
    model, x, y = small_net(dtype=DOUBLE), images(dtype=DOUBLE), labels()
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(attack(model, x, y), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attack", [bim, partial(pgd, restarts=3, random_start=False)])
def test_one_eps_and_alpha_per_image_equal_separate_calls(attack):
    model, x, y = small_net(dtype=DOUBLE), images(3, dtype=DOUBLE), labels(3)
    eps, alpha = torch.tensor([0.0, 0.1, 0.3]), torch.tensor([0.1, 0.02, 0.2])
    together = attack(model, x, y, eps=eps, alpha=alpha, steps=4)
    for i in range(3):
        one = [attack(model, x[[i]], y[[i]], eps=eps[[i]], alpha=alpha[[i]], steps=4)]
        torch.testing.assert_close(together[[i]], *one)


STEPS = {"alpha": st.floats(0, 1.5), "random_start": st.booleans(), "targeted": st.booleans()}
NORMS = {"norm": st.sampled_from(["linf", "l2"])}
CASES = [
    (fgsm, STEPS),
    (partial(bim, steps=3), STEPS | NORMS),
    (partial(pgd, steps=2, restarts=2), STEPS | NORMS),
    (partial(pgd, steps=2, early_exit=True), STEPS | NORMS),
    (partial(apgd, steps=5), NORMS | {"loss": st.sampled_from(["ce", "dlr"])}),
    (partial(square, queries=20), {"targeted": st.booleans()}),
    (partial(autoattack, steps=3, queries=5), NORMS),
]


@settings(max_examples=200)
@given(
    case=st.sampled_from(CASES),
    eps=st.floats(0, 2),
    bounds=st.sampled_from([None, (0, 1), (-1.0, 1.0), (-0.25, 2.0)]),
    per_image=st.booleans(),
    data=st.data(),
)
def test_every_image_seen_or_given_back_is_in_ball_and_box(case, eps, bounds, per_image, data):
    attack, options = case
    options = {name: data.draw(values, name) for name, values in options.items()}
    model, x, y = Spy(small_net()), images(4), labels(4)
    eps = eps * torch.tensor([0.0, 0.3, 0.7, 1.0]) if per_image else eps
    original, limit = x.clone(), torch.as_tensor(eps).expand(4) + 1e-5
    found = attack(model, x, y, eps=eps, bounds=bounds, generator=seeded(), **options)
    assert torch.equal(x, original)
    for seen in [found, *model.seen]:
        changes = (seen[:, None] - x).flatten(2)  # of each image seen from each it may come from
        norm = 2 if options.get("norm") == "l2" else torch.inf
        inside = torch.linalg.vector_norm(changes, norm, 2) <= limit
        assert (inside.diagonal() if seen is found else inside.any(1)).all()
        if bounds is not None:
            assert bounds[0] <= seen.min()
            assert seen.max() <= bounds[1]


@every_attack
def test_eps_zero_is_the_identity_but_never_the_same_memory(attack):
    model, x, y = small_net(), images(), labels()
    found = attack(model, x, y, eps=0.0)
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("bounds", [None, (0, 1)])
def test_gradient_entries_at_the_pixel_bounds_are_not_lost_to_a_clamp(bounds):
    w, y = weights(2, 16).float(), labels(classes=2)
    model, x = linear(w), images().round()
    assert (input_gradient(model, x, y) != 0).all()
    moved = x + EPS * ((w[1] - w[0]).sign() * (1 - 2 * y[:, None])).view_as(x)
    expected = moved if bounds is None else moved.clamp(0, 1)
    torch.testing.assert_close(BIM(model, x, y, bounds=bounds), expected)


def test_eps_is_in_pixel_units_also_in_front_of_a_normalised_model():
    model = nn.Sequential(advlib.Normalize([0.5], [0.1]), small_net())
    x, y = 0.2 + 0.6 * images(), labels()
    change = FGSM(model, x, y, alpha=3 * EPS) - x
    torch.testing.assert_close(change.abs(), torch.full_like(x, EPS))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_is_spread_evenly_over_the_ball(norm):
    x = torch.full((50_000, 3), 0.5, dtype=DOUBLE)
    model, y = linear(torch.zeros(2, 3), DOUBLE), torch.zeros(50_000, dtype=torch.int64)
    options = {"eps": EPS, "alpha": EPS, "steps": 1, "norm": norm, "random_start": True}
    start = (bim(model, x, y, **options, generator=seeded()) - x) / EPS  # no gradient: it stays
    radius = start.norm(dim=1)
    even = (start + 1) / 2 if norm == "linf" else radius**3  # volume grows with the radius cubed
    assert 0 <= even.min() < 0.001
    assert 0.999 < even.max() <= 1 + 1e-6
    assert (even.float().histc(10, 0, 1) / even.numel() - 0.1).abs().max() < 0.01
    assert start.mean(0).abs().max() < 0.02


@and_minimum
@pytest.mark.parametrize("training", [True, False])
def test_flags_frozen_batchnorm_statistics_grads_and_global_rng_stay(attack, training):
    model = small_net().train(training)
    model[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if training else None
    with untouched(model):
        attack(model, images(), labels(), generator=seeded() if training else None)
        input_gradient(model, images(), labels())


@and_minimum
@pytest.mark.parametrize("mode", ["training", "no_grad", "inference_mode", "leaf"])
def test_modes_of_model_and_caller_do_not_show_in_the_result(attack, mode):
    model, x, y = small_net(), images(), labels()
    expected = attack(model.eval(), x, y, generator=seeded())
    if mode == "training":
        model = small_net()
    with getattr(torch, mode, nullcontext)():
        x = x.clone().requires_grad_(mode == "leaf")
        found = attack(model, x, y.clone(), generator=seeded())
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert x.grad is None


@and_minimum
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shape_dtype_device_and_memory_format_stay(attack, dtype, memory_format):
    model = small_net(3, dtype).to(memory_format=memory_format)
    x = images(channels=3, dtype=dtype).contiguous(memory_format=memory_format)
    found = attack(model, x, labels())
    assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, x.device)
    assert found.stride() == x.stride()


@pytest.mark.parametrize("attack", DRAWING.values(), ids=DRAWING)
def test_a_generators_seed_decides_what_is_drawn(attack):
    model, x = small_net(), images()
    y = predict(model, x)  # all right, so that every attack sets out
    a, b, c = (attack(model, x, y, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    advlib.runtime.default_generator.manual_seed(1)  # whatever ran before
    assert not torch.equal(attack(model, x, y), attack(model, x, y))  # advlib's own goes on


def test_threat_model_has_no_defaults_and_is_keyword_only():
    for attack in (fgsm, apgd, square, autoattack, bim, pgd):
        needed = ["eps", "alpha", "steps"] if attack in (bim, pgd) else ["eps"]
        first, *rest = list(inspect.signature(attack).parameters.values())[2:]
        assert first.name == "y"
        assert all(p.kind == p.KEYWORD_ONLY for p in rest)
        assert [p.name for p in rest if p.default is p.empty] == needed


@cuda
@every_attack
def test_on_cuda_the_result_is_that_of_the_cpu(attack):
    model, x, y = small_net(dtype=DOUBLE), images(dtype=DOUBLE), labels()
    eps = torch.full((8,), 0.1)  # stays on the CPU
    expected = attack(model, x, y, eps=eps, generator=seeded())
    found = attack(model.cuda(), x.cuda(), y.cuda(), eps=eps, generator=seeded())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected)
