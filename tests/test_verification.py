"""Bounds against closed forms and samples, and proofs against attacks and against rounding."""

from functools import partial

import pytest
import torch
from conftest import Breakdown, cuda, images, labels, linear, untouched
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advlib import Normalize, bim, output_bounds, pgd, predict, verify
from advlib.verification import interval_logits, layers, margin_bounds

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def relu_net(channels=1, classes=3, dtype=torch.float32, seed=0, **conv):
    """Every kind of layer that bounds are known for, on 8x8 images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            Normalize([0.4] * channels, [0.3] * channels),
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, **conv),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.LazyLinear(12),
            nn.ReLU(),
            nn.Linear(12, classes),
        )
        net(torch.zeros(1, channels, 8, 8))
    return net.to(dtype).eval()


def pictures(n=8, channels=1, dtype=torch.float32, seed=0):
    return torch.rand(n, channels, 8, 8, generator=seeded(seed), dtype=DOUBLE).to(dtype)


def sampled(model, lower, upper, draws=200):
    """Smallest and largest logits over corners and inner points of the box."""
    seen = []
    for i in range(draws):
        part = torch.rand(lower.shape, generator=seeded(i), dtype=lower.dtype)
        part = part.round() if i % 2 else part
        seen.append(model(torch.lerp(lower, upper, part).clamp(lower, upper)).detach())
    return torch.stack(seen).amin(0), torch.stack(seen).amax(0)


# Output bounds


@pytest.mark.parametrize("method", ["interval", "crown"])
def test_bounds_of_one_layer_are_exact(method):
    w = torch.randn(3, 16, generator=seeded(), dtype=DOUBLE)
    x, width = images(dtype=DOUBLE).flatten(1), torch.rand(8, 16, generator=seeded(1), dtype=DOUBLE)
    low, high = output_bounds(linear(w, DOUBLE), x, x + width, method=method)
    torch.testing.assert_close(low, x @ w.T + width @ w.clamp(max=0).T)
    torch.testing.assert_close(high, x @ w.T + width @ w.clamp(min=0).T)


@pytest.mark.parametrize("method", ["interval", "crown"])
def test_bounds_of_a_point_are_its_logits(method):
    net, x = relu_net(), pictures()
    low, high = output_bounds(net, x, x, method=method)
    assert (low <= net(x)).all()
    assert (net(x) <= high).all()
    assert (high - low).max() < 1e-4


@given(
    seed=st.integers(0, 5),
    width=st.floats(0, 0.5),
    method=st.sampled_from(["interval", "crown"]),
    conv=st.sampled_from(
        [{}, {"stride": 2}, {"padding": 2}, {"dilation": 2}, {"groups": 3}, {"bias": False}]
    ),
)
def test_bounds_contain_every_sampled_output(seed, width, method, conv):
    net, lower = relu_net(seed=seed, **conv), pictures(3, seed=seed)
    upper = lower + width
    low, high = output_bounds(net, lower, upper, method=method)
    least, most = sampled(net, lower, upper, draws=40)
    assert (low <= least).all()
    assert (most <= high).all()


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=1), nn.MaxPool2d((2, 4), stride=(1, 3))]
)
@pytest.mark.parametrize("method", ["interval", "crown"])
def test_bounds_of_pooling_contain_samples_and_touch_them(pool, method):
    net = nn.Sequential(pool, nn.Flatten(), nn.LazyLinear(2, dtype=DOUBLE))
    net(torch.zeros(1, 2, 8, 8, dtype=DOUBLE))
    lower = pictures(4, channels=2, dtype=DOUBLE)
    upper = lower + 0.3 * pictures(4, channels=2, dtype=DOUBLE, seed=1)
    low, high = output_bounds(net, lower, upper, method=method)
    least, most = sampled(net, lower, upper)
    assert (low <= least).all()
    assert (most <= high).all()
    wide = output_bounds(net, lower, upper, method="interval")
    assert (low >= wide[0] - 1e-9).all()
    net[2].weight.data.abs_()  # now both ends of the box give both ends of the output
    low, high = output_bounds(net, lower, upper, method=method)
    torch.testing.assert_close(low, net(lower), atol=1e-9, rtol=0)
    if method == "interval":
        torch.testing.assert_close(high, net(upper), atol=1e-9, rtol=0)


def test_pooling_lies_under_its_chord():
    # max(u, v) = u + relu(v - u), u in [0, 2], v in [1, 2]: v - u in [-1, 2], chord (v - u + 1) 2/3
    net = nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    net[2].weight.data = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    lower = torch.tensor([0.0, 1.0], dtype=DOUBLE).view(1, 1, 1, 2)
    upper = torch.tensor([2.0, 2.0], dtype=DOUBLE).view(1, 1, 1, 2)
    rows = torch.tensor([[[-1.0]]], dtype=DOUBLE)
    pooling = layers.layers_of(net, lower)[0]
    box = layers.Box(lower, upper)
    slopes, constant = pooling.back(rows.view(1, 1, 1, 1, 1), box, pooling.forward(box))
    torch.testing.assert_close(slopes.flatten(), torch.tensor([-1 / 3, -2 / 3], dtype=DOUBLE))
    torch.testing.assert_close(constant.item(), -2 / 3)


def test_crown_is_never_looser_than_intervals_and_mostly_tighter():
    net, x = relu_net(dtype=DOUBLE), pictures(dtype=DOUBLE)
    for width in (0.01, 0.1, 0.5):
        low, high = output_bounds(net, x, x + width, method="crown")
        wide_low, wide_high = output_bounds(net, x, x + width, method="interval")
        assert (low >= wide_low).all()
        assert (high <= wide_high).all()
        assert ((high - low) < 0.9 * (wide_high - wide_low)).float().mean() > 0.5


def test_relu_is_bounded_by_its_two_lines():
    # logit = relu(x) on [-1, 2]: at most the chord at either end, at least x or 0
    net = nn.Sequential(nn.ReLU(), nn.Linear(1, 2, bias=False, dtype=DOUBLE))
    net[1].weight.data = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    lower, upper = torch.tensor([[-1.0]], dtype=DOUBLE), torch.tensor([[2.0]], dtype=DOUBLE)
    low, high = output_bounds(net, lower, upper)
    torch.testing.assert_close(low, torch.tensor([[0.0, -2.0]], dtype=DOUBLE))
    torch.testing.assert_close(high, torch.tensor([[2.0, 0.0]], dtype=DOUBLE))


def test_linear_relaxation_sees_that_two_paths_cancel():
    # x - x through two ReLUs that are always on: intervals forget that both are the same x
    net = nn.Sequential(nn.Linear(1, 2, dtype=DOUBLE), nn.ReLU(), nn.Linear(2, 2, dtype=DOUBLE))
    net[0].weight.data.fill_(1.0)
    net[0].bias.data.fill_(5.0)
    net[2].weight.data = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=DOUBLE)
    net[2].bias.data.zero_()
    lower, upper = torch.tensor([[-1.0]], dtype=DOUBLE), torch.tensor([[1.0]], dtype=DOUBLE)
    low, high = output_bounds(net, lower, upper)
    torch.testing.assert_close(low[0, 0].item(), 0.0, atol=1e-9, rtol=0)
    torch.testing.assert_close(high[0, 0].item(), 0.0, atol=1e-9, rtol=0)
    wide = output_bounds(net, lower, upper, method="interval")
    torch.testing.assert_close(wide[1][0, 0].item(), 2.0)


# Proofs


def test_a_linear_model_is_verified_exactly_where_the_closed_form_says():
    w, eps = torch.randn(4, 16, generator=seeded(), dtype=DOUBLE), 0.05
    x = 0.2 + 0.6 * images(64, dtype=DOUBLE)
    y = (x.flatten(1) @ w.T).argmax(1)
    gaps = (x.flatten(1) @ w.T).gather(1, y[:, None]) - x.flatten(1) @ w.T
    worst = gaps - eps * (w[y][:, None] - w).abs().sum(2)
    robust = (worst.scatter(1, y[:, None], 1.0) > 1e-5).all(1)
    assert 10 < robust.sum() < 54
    for method in ("interval", "crown"):
        found = verify(linear(w, DOUBLE), x, y, eps, method=method)
        assert torch.equal(found.verified, robust)
        assert found.violated.sum() > 10
        assert not (found.violated & robust).any()
        margins = worst.scatter(1, y[:, None], torch.inf).amin(1)
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


def test_no_attack_breaks_a_verified_image():
    proved = 0
    for seed in range(2):
        net, x = relu_net(seed=seed), pictures(300, seed=seed)
        y = predict(net, x)
        for eps in (0.002, 0.005):
            found = verify(net, x, y, eps).verified
            strong = pgd(
                *(net, x[found], y[found]),
                eps=eps,
                alpha=eps / 5,
                steps=20,
                restarts=5,
                generator=seeded(),
            )
            assert (predict(net, strong) == y[found]).all()
            proved += int(found.sum())
    assert proved > 600


def test_rounding_of_float32_is_part_of_the_proof():
    """Two logits that differ by less than float32 can resolve: no image may be verified.

    Their difference is 1e-3 in exact arithmetic, after terms of 1e5 have cancelled.
    """
    pixels = 64
    big = torch.full((pixels,), 1e5) * (1 - 2 * (torch.arange(pixels) % 2))
    net = nn.Sequential(nn.Linear(pixels, 2))
    net[0].weight.data = torch.stack([big, big.flip(0)])
    net[0].bias.data = torch.tensor([1e-3, 0.0])
    x = torch.full((1, pixels), 0.7)
    exact = net.double()(x.double())[0]
    assert exact[0] > exact[1]
    net.float()
    assert verify(net, x, torch.tensor([0]), 0.0).verdicts != ["verified"]
    low, high = output_bounds(net, x, x)
    shuffled = [torch.randperm(pixels, generator=seeded(i)) for i in range(50)]
    for order in shuffled:
        for j in range(2):
            total = torch.tensor(0.0)
            for i in order.tolist():
                total = total + net[0].weight[j, i] * x[0, i]
            total = total + net[0].bias[j]
            assert low[0, j] <= total <= high[0, j]


def test_a_counterexample_outside_the_ball_does_not_count():
    net, x = relu_net(), pictures(20)
    y = predict(net, x)
    far = partial(bim, eps=0.5, alpha=0.1, steps=10)
    assert (predict(net, far(net, x, y)) != y).any()
    assert not verify(net, x, y, 0.001, attack=far).violated.any()


def test_methods_agree_with_their_margins():
    net, x = relu_net(), pictures(40)
    y = predict(net, x)
    by_interval, by_crown = (
        margin_bounds(net, x, y, 0.01, method=method) for method in ("interval", "crown")
    )
    assert (by_crown >= by_interval).all()
    assert (by_crown > by_interval + 0.01).any()
    found = verify(net, x, y, 0.01, method="interval")
    assert torch.equal(found.verified, by_interval > 0)
    for i in range(3):  # an image alone gets what it gets among others
        alone = margin_bounds(net, x[i : i + 1], y[i : i + 1], 0.01)
        torch.testing.assert_close(alone[0], by_crown[i], rtol=1e-9, atol=1e-9)


def test_interval_logits_are_the_interval_margins_and_reach_the_weights():
    net, x = relu_net(), pictures(10)
    y = predict(net, x)
    worst = interval_logits(net, x, y, eps=0.01)
    leads = (-worst).scatter(1, y[:, None], torch.inf).amin(1)
    expected = margin_bounds(net, x, y, 0.01, method="interval")
    torch.testing.assert_close(leads.double(), expected, atol=1e-3, rtol=0)
    worst.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p is not net[-1].bias)


# What a call leaves alone, and bad input


def test_flags_gradients_and_global_rng_stay():
    net, x, y = relu_net().train(), pictures(6), labels(6)
    with untouched(net):
        verify(net, x, y, 0.01)
        output_bounds(net, x, x)

    def breaks(model, x, y):
        raise Breakdown

    net = relu_net()
    with untouched(net), pytest.raises(Breakdown):
        verify(net, x, predict(net, x), 0.2, attack=breaks)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Tanh(),
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
    ],
)
def test_an_unknown_layer_is_named(layer):
    net = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).eval()
    net(pictures())
    for call in (
        lambda: verify(net, pictures(), labels(), 0.1),
        lambda: output_bounds(net, pictures(), pictures()),
    ):
        with pytest.raises(ValueError, match=rf"model.*{type(layer).__name__}"):
            call()


X, Y = pictures(), labels()


# What runs is not the formula: a proof must not hold where the network as it runs is wrong.


def two_logits(weights, dtype=torch.float32):
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weights[0]), 2, bias=False, dtype=dtype))
    net[1].weight.data = torch.tensor(weights, dtype=dtype)
    return net


def verdict(net, x, eps=0.01):
    """Of class 1, which the network never predicts here."""
    assert predict(net, x).item() == 0
    found = verify(net, x, torch.tensor([1]), eps)
    assert found.certified_accuracy == 0
    return found


def test_nan_and_overflow_prove_nothing():
    assert verdict(two_logits([[float("nan")] * 2] * 2), torch.full((1, 2), 0.5))
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    net[0].weight.data.fill_(1e25)
    net[1].weight.data = torch.tensor([[1e25], [2e25]])
    verdict(net, torch.full((1, 1), 0.5))


def test_underflow_proves_nothing():
    verdict(two_logits([[0.0], [1.4e-45]]), torch.full((1, 1), 0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=rf"x must .*{dtype}"):
        verify(two_logits([[1.0], [2.0]], dtype), torch.ones(1, 1, dtype=dtype), Y[:1], 0.1)


def test_autocast_and_lower_precision_of_float32_are_refused():
    net, x = two_logits([[1.0] * 64, [1.001] * 64]), torch.full((1, 64), 0.5)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        verify(net, x, torch.tensor([1]), 0.001)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="float32"):
            verify(net, x, torch.tensor([1]), 0.001)
    finally:
        torch.set_float32_matmul_precision(before)


def test_hooks_are_refused():
    net = two_logits([[1.0], [2.0]])
    net[1].register_forward_hook(lambda module, inputs, out: -out)
    with pytest.raises(ValueError, match="hooks"):
        verify(net, torch.full((1, 1), 0.5), torch.tensor([1]), 0.01)


def test_a_layer_too_wide_for_its_rounding_is_refused(monkeypatch):
    coarse = layers.Rounding(0.0, 2.0**-11, torch.finfo(torch.float32))
    monkeypatch.setattr(layers, "_rounding", lambda x: coarse)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    with pytest.raises(ValueError, match="too wide"):
        verify(net, torch.rand(1, 3072), torch.tensor([1]), 0.01)


@pytest.mark.parametrize("kind", ["linear", "bias", "convolution", "normalisation"])
def test_slack_covers_what_float32_rounds(kind):
    """Sums of terms that cancel, in the order in which float32 is furthest from the formula."""
    big = 2.0**24
    if kind == "linear":  # 1 + big - big in float32 is 0 from the left
        net, x = two_logits([[1.0, big, -big]] * 2), torch.ones(1, 3)
    elif kind == "bias":  # big + 1 is big
        net, x = two_logits([[1.0]] * 2), torch.ones(1, 1)
        net[1].bias = nn.Parameter(torch.full((2,), big))
    elif kind == "convolution":
        net = nn.Sequential(nn.Conv2d(1, 1, (1, 3), bias=False), nn.Flatten(), nn.Linear(1, 2))
        net[0].weight.data = torch.tensor([1.0, big, -big]).view(1, 1, 1, 3)
        net[2].weight.data.fill_(1.0)
        net[2].bias.data.zero_()
        x = torch.ones(1, 1, 1, 3)
    else:  # 1 + 2**-25 - (1 + 2**-23), over 2**-30: 0 or a step of float32
        net = nn.Sequential(Normalize([1.0], [2.0**-30]), nn.Flatten(), nn.Linear(1, 2))
        net[2].weight.data.fill_(1.0)
        net[2].bias.data.zero_()
        x = torch.ones(1, 1, 1, 1)
    for method in ("interval", "crown"):
        low, high = output_bounds(net, x, x, method=method)
        unit = 2.0**-24
        terms = {"linear": 2 * big, "bias": big, "convolution": 2 * big, "normalisation": 2.0**31}
        # a float32 sum of these terms may err by at least one rounding of the largest of them
        assert ((high - low) >= 2 * unit * terms[kind]).all()
        assert ((high - low) <= 100 * unit * terms[kind]).all()


def test_counterexamples_count_in_other_pixel_ranges():
    net, x = relu_net(), pictures(50)
    y = predict(net, x)
    net = nn.Sequential(Normalize([0.0], [255.0]), *net)
    found = verify(net, 255 * x, y, 8.3, bounds=(0, 255))
    broken = predict(net, pgd(net, 255 * x, y, eps=8.3, alpha=1.0, steps=20, bounds=(0, 255))) != y
    assert broken.any()
    assert found.violated.sum() >= broken.sum() - 1


@cuda
def test_on_cuda_bounds_are_those_of_the_cpu_and_a_little_wider():
    net, x, y = relu_net(), pictures(), labels()
    here = margin_bounds(net, x, y, 0.01)
    there = margin_bounds(net.cuda(), x.cuda(), y.cuda(), 0.01)
    assert there.is_cuda
    assert (there.cpu() <= here + 1e-9).all()
    torch.testing.assert_close(there.cpu(), here, atol=0.1, rtol=0)
