"""The book's network and the normalisation layer."""

import math

import pytest
import torch
from conftest import global_rng
from torch import nn

from advlib import Normalize, digit_net


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


def test_weights_are_glorot_uniform_and_biases_zero():
    for layer in (net().conv1, net().conv2, net().linear):
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


@pytest.mark.parametrize("name", ["channels", "size", "classes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_digit_net_names_a_bad_size(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        digit_net(**{name: value})


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    x = torch.rand(2, 3, 4, 4)
    layer = Normalize([0.1, 0.2, 0.3], [1, 2, 4])
    for c, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)]):
        torch.testing.assert_close(layer(x)[:, c], (x[:, c] - mean) / std)
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())


@pytest.mark.parametrize(
    ("mean", "std", "name"),
    [
        ([0.5], [0.0], "std"),
        ([0.5], [-1.0], "std"),
        ([0.5], [float("nan")], "std"),
        ([0.5], [1.0, 1.0], "std"),
        ([0.5], 1.0, "std"),
        (0.5, [1.0], "mean"),
        ([], [], "mean"),
        (["0.5"], [1.0], "mean"),
        ([float("inf")], [1.0], "mean"),
    ],
)
def test_normalize_names_bad_input(mean, std, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        Normalize(mean, std)
