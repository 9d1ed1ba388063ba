"""The book's network and the normalisation layer."""

import math

import pytest
import torch
from conftest import global_rng
from torch import nn

from advlib import Normalize, digit_net, preact_resnet18
from advlib.models import deep_net


def net(seed=0, **options):
    return digit_net(generator=torch.Generator().manual_seed(seed), **options)


def test_digit_net_is_the_sources_network_layer_by_layer():
    layers = list(net())
    kinds = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    shapes = [tuple(p.shape) for p in net().parameters()]
    assert shapes == [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 64 * 14 * 14), (10,)]
    assert net()(torch.rand(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 29, 2), (2, 2, 5)])
def test_digit_net_fits_other_images(channels, size, classes):
    model = net(channels=channels, size=size, classes=classes)
    assert model(torch.rand(2, channels, size, size)).shape == (2, classes)


def deep():
    return deep_net(generator=torch.Generator().manual_seed(0))


def test_deep_net_has_four_convolutions_and_two_linear_layers():
    shapes = [tuple(p.shape) for p in deep().parameters() if p.ndim > 1]
    convolutions = [(16, 1, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3)]
    assert shapes == [*convolutions, (128, 32 * 7 * 7), (10, 128)]
    assert deep()(torch.rand(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("model", [net(), deep()])
def test_weights_are_glorot_uniform_and_biases_zero(model):
    for layer in (layer for layer in model if hasattr(layer, "weight")):
        fans = layer.weight[0].numel() + len(layer.weight) * layer.weight[0, 0].numel()
        bound = math.sqrt(6 / fans)
        assert 0.97 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert not layer.bias.any()


def test_outputs_are_logits_not_probabilities():
    logits = net()(torch.rand(20, 1, 28, 28))
    assert logits.min() < 0
    assert (logits.sum(1) - 1).abs().min() > 1e-3


def test_weights_come_from_the_generator_and_the_global_rng_stays():
    before = global_rng()
    same, again, other = net(1), net(1), net(2)
    default, next_default = digit_net(), digit_net()
    assert global_rng() == before
    assert torch.equal(same.linear.weight, again.linear.weight)
    assert not torch.equal(same.linear.weight, other.linear.weight)
    assert not torch.equal(default.linear.weight, next_default.linear.weight)


def test_preact_resnet18_is_the_usual_one():
    net = preact_resnet18()
    assert sum(p.numel() for p in net.parameters()) == 11_172_170
    x = torch.rand(2, 3, 32, 32)
    assert net(x).shape == (2, 10)
    assert preact_resnet18(classes=7, mean=[0.5], std=[0.5], width=4)(x[:, :1]).shape == (2, 7)


def test_preact_resnet18_adds_two_convolutions_to_each_shortcut():
    """One block against the formula of the paper, and the whole against its blocks."""
    net = preact_resnet18(width=4, generator=torch.Generator().manual_seed(1)).eval()
    x = torch.rand(2, 3, 8, 8)
    normalize, conv, *blocks, norm, relu, _, _, linear = net
    assert [type(b).__name__ for b in blocks] == ["_Block"] * 8
    out = conv(normalize(x))
    for block in blocks:
        active = block.norm1(out).clamp(min=0)
        within = block.conv2(block.norm2(block.conv1(active)).clamp(min=0))
        out = within + (out if block.shortcut is None else block.shortcut(active))
    torch.testing.assert_close(linear(relu(norm(out)).mean((2, 3))), net(x))
    assert [b.shortcut is None for b in blocks] == [True, True, False, True] + [False, True] * 2
    assert out.shape == (2, 32, 1, 1)


def test_preact_resnet18_draws_from_its_generator_only():
    before = global_rng()
    one, same, other = (
        preact_resnet18(width=2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert global_rng() == before
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one[1].weight, other[1].weight)
    assert one[1].weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.3)  # He et al.


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    x = torch.rand(2, 3, 4, 4)
    layer = Normalize([0.1, 0.2, 0.3], [1, 2, 4])
    for c, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)]):
        torch.testing.assert_close(layer(x)[:, c], (x[:, c] - mean) / std)
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())
