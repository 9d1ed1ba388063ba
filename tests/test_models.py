"""The book's networks and the normalisation layer."""

import math

import pytest
import torch
from conftest import global_rng, seeded
from torch import nn

from advlib import Normalize, digit_net
from advlib.book.parts import preact_resnet18


def test_digit_net_is_the_sources_network_and_gives_logits():
    net, x = digit_net(generator=seeded()), torch.rand(20, 1, 28, 28)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert shapes == [(32, 1, 3, 3), (64, 32, 3, 3), (10, 64 * 14 * 14)]
    layers = [net.conv1, nn.ReLU(), net.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), net.linear]
    torch.testing.assert_close(net(x), nn.Sequential(*layers)(x))
    assert net(x).min() < 0  # no probabilities


@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 29, 2), (2, 2, 5)])
def test_digit_net_fits_other_images(channels, size, classes):
    model = digit_net(channels=channels, size=size, classes=classes)
    assert model(torch.rand(2, channels, size, size)).shape == (2, classes)


def test_weights_are_glorot_uniform_and_biases_zero():
    for layer in (layer for layer in digit_net(generator=seeded()) if hasattr(layer, "weight")):
        fans = layer.weight[0].numel() + len(layer.weight) * layer.weight[0, 0].numel()
        bound = math.sqrt(6 / fans)
        assert 0.97 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert not layer.bias.any()


@pytest.mark.parametrize("build", [digit_net, preact_resnet18])
def test_weights_come_from_the_generator_and_the_global_rng_stays(build):
    before = global_rng()
    nets = [build(generator=seeded(seed)) for seed in (1, 1, 2)] + [build(), build()]
    one, same, other, default, next_default = (next(n.parameters()) for n in nets)
    assert global_rng() == before
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(default, next_default)


def test_preact_resnet18_is_the_usual_one():
    net = preact_resnet18(generator=seeded())
    assert sum(p.numel() for p in net.parameters()) == 11_172_170
    assert net[1].weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.1)  # He et al.
    grey = preact_resnet18(classes=7, mean=[0.5], std=[0.5], width=4)
    assert grey(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_preact_resnet18_adds_two_convolutions_to_each_shortcut():
    """One block against the formula of the paper, and the whole against its blocks."""
    net = preact_resnet18(width=4, generator=seeded(1)).eval()
    x = torch.rand(2, 3, 8, 8)
    normalize, conv, *blocks, norm, relu, _, _, linear = net
    out = conv(normalize(x))
    for block in blocks:
        active = block.norm1(out).clamp(min=0)
        within = block.conv2(block.norm2(block.conv1(active)).clamp(min=0))
        out = within + (out if block.shortcut is None else block.shortcut(active))
    torch.testing.assert_close(linear(relu(norm(out)).mean((2, 3))), net(x))
    assert [b.shortcut is None for b in blocks] == [True, True, False, True] + [False, True] * 2
    assert out.shape == (2, 32, 1, 1)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    x = torch.rand(2, 3, 4, 4)
    layer = Normalize([0.1, 0.2, 0.3], [1, 2, 4])
    for c, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)]):
        torch.testing.assert_close(layer(x)[:, c], (x[:, c] - mean) / std)
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())
