"""The book's network, and normalisation as a layer, so that attacks see [0, 1] pixels."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from advlib.runtime import check_count, check_number, default_generator


class Normalize(nn.Module):
    """Subtract a mean and divide by a deviation, one of each per channel.

    As the first layer of a model it keeps eps in pixel units: the attack never sees it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take one mean and one positive deviation per channel."""
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if not isinstance(values, Sequence) or not values:
                raise TypeError(f"{name} must hold one number per channel, got {values!r}")
            for value in values:
                check_number(name, value, minimum=-float("inf"))
        if len(mean) != len(std):
            raise ValueError(f"std must have one value per mean, got {len(std)} for {len(mean)}")
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {list(std)}")
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) to normalised images of the same shape."""
        return (x - self.mean) / self.std


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
        TypeError, ValueError: `channels`, `size` or `classes` is not a whole number, or too small.

    Reference: Glorot and Bengio, AISTATS 2010.
    """
    check_count("channels", channels)
    check_count("size", size, minimum=2)
    check_count("classes", classes, minimum=2)
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
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_uniform_(parameter, generator=generator or default_generator)
        else:
            nn.init.zeros_(parameter)
    # channels-last convolutions are the faster ones on current CPUs and GPUs
    return net.to(memory_format=torch.channels_last)
