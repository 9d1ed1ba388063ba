"""The book's network, and normalisation as a layer, so that attacks see [0, 1] pixels."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from advlib.runtime import check_count, check_numbers, source_of

MOST = 10_000  # channels, pixels across, or classes of a network


class Normalize(nn.Module):
    """Subtract a mean and divide by a deviation, one of each per channel.

    As the first layer of a model it keeps eps in pixel units: the attack never sees it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take one mean and one positive deviation per channel."""
        super().__init__()
        mean, std = check_numbers("mean", mean), check_numbers("std", std)
        if not mean:
            raise ValueError("mean must hold one number per channel, got none")
        if len(mean) != len(std):
            raise ValueError(f"std must have one value per mean, got {len(std)} for {len(mean)}")
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.get_default_dtype())
            self.register_buffer(name, numbers.reshape(-1, 1, 1))
        if self.std.min() <= 0:  # also where a tiny number became 0
            raise ValueError(f"std must be positive, got {std}")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to normalised images of the same shape."""
        return (x - self.mean) / self.std


class _Block(nn.Module):
    """Two convolutions beside a shortcut, each after a normalisation and a ReLU."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = skip_init(nn.Conv2d, before, after, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = skip_init(nn.Conv2d, after, after, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or before != after:
            self.shortcut = skip_init(nn.Conv2d, before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.norm2(self.conv1(out)))) + beside


def preact_resnet18(
    *,
    classes: int = 10,
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
    std: Sequence[float] = (0.2471, 0.2435, 0.2616),
    width: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the pre-activation ResNet-18 of the CIFAR-10 literature, 11 million weights.

    Maps images (n, c, h, w) in [0, 1], usually 3 x 32 x 32, to logits (n, classes); it has as many
    input channels as `mean` has values, which normalise them. The defaults are CIFAR-10's. `width`
    is the number of channels of the first quarter. Weights are drawn as He et al. do, from
    `generator` (by default advlib's own).

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range.

    References: He et al., ECCV 2016, arXiv:1603.05027, and ICCV 2015, arXiv:1502.01852.
    """
    check_count("classes", classes, minimum=2, maximum=MOST)
    check_count("width", width, maximum=MOST)
    source = source_of(generator)
    normalize = Normalize(mean, std)
    layers: list[nn.Module] = [skip_init(nn.Conv2d, len(mean), width, 3, padding=1, bias=False)]
    before = width
    for after, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [_Block(before, after, stride), _Block(after, after, 1)]
        before = after
    layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(normalize, *layers, skip_init(nn.Linear, before, classes))
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, generator=source)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net.to(memory_format=torch.channels_last)


def digit_net(
    *,
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the chapter network: two 3x3 convolutions, one max-pool, one linear layer.

    Maps images (n, channels, size, size) in [0, 1] to logits (n, classes). Weights are drawn
    Glorot-uniform from `generator` (by default advlib's own), biases are zero.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range.

    Reference: Glorot and Bengio, AISTATS 2010.
    """
    check_count("channels", channels, maximum=MOST)
    check_count("size", size, minimum=2, maximum=MOST)
    check_count("classes", classes, minimum=2, maximum=MOST)
    source = source_of(generator)
    # skip_init: torch's own initialisation would draw from the caller's global generator
    net = nn.Sequential(
        OrderedDict(
            conv1=skip_init(nn.Conv2d, channels, 32, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=skip_init(nn.Conv2d, 32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear=skip_init(nn.Linear, 64 * (size // 2) ** 2, classes),
        )
    )
    return _glorot(net, source)


def deep_net(*, generator: torch.Generator | None = None) -> nn.Sequential:
    """Build a deeper network for the digits: four convolutions and two linear layers.

    Maps images (n, 1, 28, 28) in [0, 1] to logits (n, 10). Weights are drawn as in `digit_net`.
    """
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [skip_init(nn.Conv2d, before, after, 3, padding=1), nn.ReLU()]
        layers += [skip_init(nn.Conv2d, after, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), skip_init(nn.Linear, 32 * 7 * 7, 128), nn.ReLU()]
    return _glorot(nn.Sequential(*layers, skip_init(nn.Linear, 128, 10)), source_of(generator))


def _glorot(net: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Draw the weights of `net` Glorot-uniform, and set its biases to zero."""
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)
    # channels-last convolutions are the faster ones on current CPUs and GPUs
    return net.to(memory_format=torch.channels_last)
