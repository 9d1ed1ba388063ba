"""Bounds against closed forms and samples, and proofs against attacks and against rounding."""

from functools import partial

import pytest
import torch
from conftest import cuda, images, labels, linear, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from advlib import Normalize, bim, output_bounds, pgd, predict, verify
from advlib.verification import METHODS, interval_logits, layers, margin_bounds

DOUBLE = torch.float64
both_methods = pytest.mark.parametrize("method", METHODS)


def trained_like(*parts, channels=1, dtype=torch.float32, seed=0):
    """A network for 8x8 images in evaluation mode, whose BatchNorms have seen some."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(*(part() for part in parts))
        net(torch.rand(30, channels, 8, 8, generator=seeded()))
        for layer in net:
            if "Norm" in type(layer).__name__ and getattr(layer, "weight", None) is not None:
                nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    return net.to(dtype).eval()


def relu_net(dtype=torch.float32, seed=0):
    parts = [partial(Normalize, [0.4], [0.3]), partial(nn.Conv2d, 1, 6, 3, padding=1), nn.ReLU]
    parts += [partial(nn.Conv2d, 6, 6, 3), nn.ReLU, partial(nn.MaxPool2d, 2), nn.Flatten]
    parts += [partial(nn.LazyLinear, 12), nn.ReLU, partial(nn.Linear, 12, 3)]
    return trained_like(*parts, dtype=dtype, seed=seed)


def pictures(n=8, channels=1, dtype=torch.float32, seed=0):
    return torch.rand(n, channels, 8, 8, generator=seeded(seed), dtype=DOUBLE).to(dtype)


def sampled(model, lower, upper, draws=40):
    """Logits (draws, n, classes) of corners and inner points of the box."""
    seen = []
    for i in range(draws):
        part = torch.rand(lower.shape, generator=seeded(i), dtype=lower.dtype)
        part = part.round() if i % 2 else part
        seen.append(model(torch.lerp(lower, upper, part).clamp(lower, upper)).detach())
    return torch.stack(seen)


FIRST = [partial(nn.Conv2d, 3, 4, 3, padding="same"), partial(nn.Conv2d, 3, 6, 3, groups=3)]
FIRST += [partial(nn.Conv2d, 3, 4, 3, stride=2, padding=2), partial(nn.Conv2d, 3, 4, 2, dilation=2)]
FIRST += [partial(nn.Conv2d, 3, 5, 3, bias=False), nn.Identity]
NORMS = [nn.LazyBatchNorm2d, partial(nn.LazyBatchNorm2d, affine=False), nn.Dropout2d]
POOLS = [partial(nn.MaxPool2d, 2), partial(nn.AvgPool2d, 2), partial(nn.MaxPool2d, 3, stride=1)]
POOLS += [partial(nn.MaxPool2d, (2, 4), (1, 3)), partial(nn.AvgPool2d, (1, 2), (2, 1))]
POOLS += [partial(nn.AvgPool2d, 3, 2, 1, count_include_pad=pads) for pads in (True, False)]


@given(
    parts=st.tuples(st.sampled_from(FIRST), st.sampled_from(NORMS), st.sampled_from(POOLS)),
    last=st.sampled_from([nn.LazyBatchNorm1d, nn.Dropout]),
    seed=st.integers(0, 5),
    width=st.sampled_from([0.0, 1e-7, 1e-3, 0.05, 0.5]),
)
def test_bounds_contain_every_sampled_output(parts, last, seed, width):
    first, norm, pool = parts
    parts = [partial(Normalize, [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]), first, norm, nn.ReLU, pool]
    parts += [nn.Flatten, partial(nn.LazyLinear, 9), last, nn.ReLU, partial(nn.Linear, 9, 3)]
    net, lower = trained_like(*parts, seed=seed), pictures(3, seed=seed)  # grey before three means
    upper = lower + width * pictures(3, seed=seed + 1)
    wide, tight = (output_bounds(net, lower, upper, method=method) for method in METHODS)
    logits = sampled(net, lower, upper)
    for low, high in (wide, tight):
        assert ((low <= logits) & (logits <= high)).all()
    assert ((tight[0] >= wide[0] - 1e-6) & (tight[1] <= wide[1] + 1e-6)).all()
    if width < 1e-6:  # and next to nothing is left but rounding
        assert (wide[1] - wide[0]).max() < 1e-3 * (1 + logits.abs().max())


AFFINE = [part for part in FIRST + NORMS + POOLS if "MaxPool" not in str(part)]


@both_methods
@pytest.mark.parametrize("part", [*AFFINE, partial(Normalize, [1, 2, 3], [4, 5, 6])])
def test_bounds_of_one_affine_layer_are_those_of_its_matrix(part, method):
    """Of W a + b over a box: W times its ends, each the one that makes it small."""
    net = trained_like(part, nn.Flatten, channels=3, dtype=DOUBLE)
    shift = net(torch.zeros(1, 3, 8, 8, dtype=DOUBLE))
    w = (net(torch.eye(192, dtype=DOUBLE).view(-1, 3, 8, 8)) - shift).detach()
    x, width = pictures(8, 3, DOUBLE), pictures(8, 3, DOUBLE, seed=1)
    low, high = output_bounds(net, x, x + width, method=method)
    torch.testing.assert_close(low, net(x).detach() + width.flatten(1) @ w.clamp(max=0))
    torch.testing.assert_close(high, net(x).detach() + width.flatten(1) @ w.clamp(min=0))


def test_relu_is_bounded_by_its_two_lines():
    # logit = relu(x) on [-1, 2]: at most the chord at either end, at least x or 0
    net = nn.Sequential(nn.ReLU(), *linear([[1.0], [-1.0]], DOUBLE))
    lower, upper = torch.tensor([[-1.0]], dtype=DOUBLE), torch.tensor([[2.0]], dtype=DOUBLE)
    low, high = output_bounds(net, lower, upper)
    torch.testing.assert_close(low, torch.tensor([[0.0, -2.0]], dtype=DOUBLE))
    torch.testing.assert_close(high, torch.tensor([[2.0, 0.0]], dtype=DOUBLE))


def test_linear_relaxation_sees_that_two_paths_cancel():
    # x - x through two ReLUs that are always on: intervals forget that both are the same x
    first = nn.Linear(1, 2, dtype=DOUBLE)
    first.load_state_dict({"weight": torch.ones(2, 1), "bias": torch.full((2,), 5.0)})
    net = nn.Sequential(first, nn.ReLU(), *linear([[1.0, -1.0], [1.0, 1.0]], DOUBLE))
    x = torch.ones(1, 1, dtype=DOUBLE)
    for method, most in (("crown", 0.0), ("interval", 2.0)):
        ends = torch.cat(output_bounds(net, -x, x, method=method))[:, 0].tolist()
        assert ends == pytest.approx([-most, most], abs=1e-9)


def test_a_linear_model_is_verified_exactly_where_the_closed_form_says():
    w, eps = torch.randn(4, 16, generator=seeded(), dtype=DOUBLE), 0.05
    x = 0.2 + 0.6 * images(64, dtype=DOUBLE)
    scores = x.flatten(1) @ w.T
    y = scores.argmax(1)
    worst = scores.gather(1, y[:, None]) - scores - eps * (w[y][:, None] - w).abs().sum(2)
    margins = worst.scatter(1, y[:, None], torch.inf).amin(1)
    robust = margins > 1e-5
    assert 10 < robust.sum() < 54
    for method in METHODS:
        found = verify(linear(w, DOUBLE), x, y, eps, method=method)
        assert torch.equal(found.verified, robust)
        assert found.violated.sum() > 10
        torch.testing.assert_close(found.margins[robust], margins[robust], atol=1e-4, rtol=0)


def test_verdicts_say_what_they_mean():
    net, x = relu_net(seed=3), pictures(60, seed=3)
    y = predict(net, x)
    y[:3] = (y[:3] + 1) % 3
    found = verify(net, x, y, 0.005)
    assert all(found.verdicts.count(v) >= 3 for v in ("verified", "violated", "unproven"))
    assert found.verdicts[:3] == ["violated"] * 3
    assert torch.equal(found.counterexamples[:3], x[:3])  # wrong as it is
    broken = found.violated
    assert (predict(net, found.counterexamples[broken]) != y[broken]).all()
    assert ((found.counterexamples - x).abs() <= 0.005 + 1e-6).all()
    assert found.counterexamples.min() >= 0
    assert torch.equal(found.counterexamples[~broken], x[~broken])
    assert (found.margins[found.verified] > 0).all()
    assert found.margins[broken].isnan().all()
    assert found.certified_accuracy == found.verified.float().mean().item()
    assert str(found).startswith("60 images: ")
    far = partial(bim, eps=0.5, alpha=0.1, steps=10)  # it finds many, outside the ball
    assert verify(net, x, y, 1e-4, attack=far).violated.sum() == 3


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_no_attack_breaks_a_verified_image(white):
    net = nn.Sequential(Normalize([0.0], [white]), *relu_net(seed=3))
    x, eps, bounds = white * pictures(100, seed=3), white * 0.005, (0.0, white)
    y = predict(net, x)
    found = verify(net, x, y, eps, bounds=bounds)
    search = partial(pgd, eps=eps, alpha=eps / 5, steps=20, restarts=3, bounds=bounds)
    broken = predict(net, search(net, x, y, generator=seeded())) != y
    assert not (broken & found.verified).any()
    assert found.verified.sum() > 3
    assert found.violated.sum() >= max(broken.sum() - 1, 1)


def test_interval_logits_are_the_interval_margins_and_reach_the_weights():
    net, x = relu_net().train(), pictures(10)
    y = predict(net, x)
    worst = interval_logits(net, x, y, eps=0.01)
    leads = (-worst).scatter(1, y[:, None], torch.inf).amin(1)
    expected = margin_bounds(net, x, y, 0.01, method="interval")
    torch.testing.assert_close(leads.double(), expected, atol=1e-3, rtol=0)
    worst.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p is not net[-1].bias)


def test_a_relu_in_place_overwrites_no_bounds():
    dark = pictures(6) - 0.5
    output_bounds(nn.Sequential(nn.ReLU(inplace=True), *relu_net()), dark, dark)
    assert torch.equal(dark, pictures(6) - 0.5)


# What runs is not the formula: a proof must not hold where the network as it runs is wrong.


def batch_norm(mean, var, weight, bias):
    norm = nn.BatchNorm2d(1, eps=0.0)
    for tensor, value in zip(norm.state_dict().values(), (weight, bias, mean, var), strict=False):
        tensor.fill_(value)
    return norm


BIG = 2.0**24
CANCELLING = {  # one output, of terms that cancel, and the largest of them
    "linear": (linear([[1.0, BIG, -BIG]])[1], [1.0] * 3, BIG),
    "convolution": (nn.Conv2d(1, 1, (1, 3), bias=False), [1.0] * 3, BIG),
    "average": (nn.AvgPool2d((1, 3)), [1.0, BIG, -BIG], BIG / 3),
    "normalisation": (Normalize([1.0], [2.0**-30]), [1.0], 2.0**30),
    "batch mean": (batch_norm(1.0, 2.0**-60, 1.0, 0.0), [1.0], 2.0**30),
    "batch bias": (batch_norm(0.0, 1.0, 1.0, -BIG), [BIG], BIG),
    "batch both": (batch_norm(BIG, 1.0, 1.0, BIG), [0.0], BIG),
}
CANCELLING["convolution"][0].weight.data.copy_(torch.tensor([1.0, BIG, -BIG]))


@both_methods
@pytest.mark.parametrize("kind", CANCELLING)
def test_slack_covers_what_float32_rounds(kind, method):
    layer, pixels, largest = CANCELLING[kind]
    flat = [nn.Flatten()] if kind == "linear" else []
    net = nn.Sequential(*flat, layer, nn.Flatten(), *linear([[1.0], [1.0]])).eval()
    x = torch.tensor(pixels).view(1, 1, 1, -1)
    low, high = output_bounds(net, x, x, method=method)
    # a float32 sum of such terms may err by at least one rounding of the largest of them
    assert ((high - low) >= 2 * 2.0**-24 * largest).all()
    assert ((high - low) <= 200 * 2.0**-24 * largest).all()


def test_rounding_overflow_and_underflow_prove_nothing():
    """Nor does a lead of 1e-3 after terms of 1e5 have cancelled, which float32 can't resolve."""
    big = torch.full((64,), 1e5) * (1 - 2 * (torch.arange(64) % 2))
    over = nn.Sequential(*linear([[2.0**100]]), nn.ReLU(), *linear([[2.0**20], [2.0**21]]))
    cancelling, tiny = linear(torch.stack([big, big.flip(0)])), linear([[0.0], [1.4e-45]])
    for net, pixels in ((over, 1), (tiny, 1), (cancelling, 64)):
        net[-1].bias = nn.Parameter(torch.tensor([0.0, 1e-3 if pixels > 1 else 0.0]))
        found = verify(net, torch.full((1, pixels), 0.7), torch.tensor([1]), 0.0)
        assert not found.verified.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["0.std", "1.weight", "3.bias", "9.bias"])
def test_nan_and_infinity_are_errors_that_name_the_model(value, where):
    net = relu_net()
    net.state_dict()[where].view(-1)[0] = value
    for call in (partial(verify, y=labels(), eps=0.1), partial(output_bounds, upper=pictures())):
        with pytest.raises(FloatingPointError, match="model returned NaN"):
            call(net, pictures())


def replaced(net):
    inner = net.forward
    net.forward = lambda x: -inner((x - 0.5) / 0.25)


CHANGES = [
    ("hooks: 2", lambda net: net[2].register_forward_hook(lambda layer, inputs, out: -out)),
    ("hooks: 1", lambda net: net[1].register_forward_pre_hook(lambda layer, inputs: None)),
    ("hooks: itself", lambda net: net.register_full_backward_hook(lambda *gradients: None)),
    ("forward", replaced),
    ("_call_impl", lambda net: setattr(net[2], "_call_impl", net[2].forward)),
    ("_conv_forward", lambda net: setattr(net[1], "_conv_forward", net[1]._conv_forward)),
    ("Conv2d", lambda net: weight_norm(net[1])),
    ("_compiled_call_impl", lambda net: net[5].compile(backend="eager")),
    ("weights outside", lambda net: net.register_parameter("shift", net[1].bias)),
    ("others inside: 9", lambda net: net[9].add_module("more", nn.ReLU())),
    ("Tanh", lambda net: net.insert(3, nn.Tanh())),
    ("batch: 1", lambda net: net.insert(1, nn.BatchNorm2d(1, track_running_stats=False))),
    ("reflect", lambda net: net.insert(0, nn.Conv2d(1, 1, 1, padding_mode="reflect"))),
    ("padding=1", lambda net: net.insert(5, nn.MaxPool2d(3, 1, padding=1))),
    ("ceil_mode=True", lambda net: net.insert(5, nn.MaxPool2d(1, ceil_mode=True))),
    ("AvgPool2d", lambda net: net.insert(5, nn.AvgPool2d(1, ceil_mode=True))),
    ("dilation=2", lambda net: net.insert(5, nn.MaxPool2d(1, dilation=2))),
]


def refused(net, match, x=None):
    x = pictures() if x is None else x
    for call in (partial(verify, y=labels(len(x)), eps=0.1), partial(output_bounds, upper=x)):
        with pytest.raises(ValueError, match=match):
            call(net, x)


@pytest.mark.parametrize(("reason", "change"), CHANGES, ids=[reason for reason, _ in CHANGES])
def test_a_model_that_may_compute_something_else_is_refused(reason, change):
    net = relu_net()
    change(net)
    refused(net, rf"model has .*{reason}")


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_global_hooks_are_refused(kind):
    with getattr(nn.modules.module, f"register_module_{kind}")(lambda *parts: None):
        refused(relu_net(), "hooks")


def test_a_class_that_computes_something_else_is_noticed(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: -x.relu())
    refused(relu_net(), "model does not compute what its layers say")


def test_less_than_full_precision_is_refused():
    net, x = linear([[1.0], [2.0]]), torch.ones(1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        refused(net, "autocast", x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        refused(net, "float32", x)
    finally:
        torch.set_float32_matmul_precision(before)
    refused(net.bfloat16(), "x must .*bfloat16", x.bfloat16())


def test_a_layer_too_wide_for_its_rounding_is_refused(monkeypatch):
    coarse = layers.Rounding(0.0, 2.0**-11, torch.finfo(torch.float32))
    monkeypatch.setattr(layers, "_rounding", lambda x: coarse)
    refused(linear(torch.ones(2, 3072)), "too wide", torch.rand(1, 3072))


@cuda
def test_on_cuda_bounds_are_those_of_the_cpu_and_a_little_wider():
    net, x, y = relu_net(), pictures(), labels()
    here = margin_bounds(net, x, y, 0.01)
    there = margin_bounds(net.cuda(), x.cuda(), y.cuda(), 0.01)
    assert there.is_cuda
    assert (there.cpu() <= here + 1e-9).all()
    torch.testing.assert_close(there.cpu(), here, atol=0.1, rtol=0)
