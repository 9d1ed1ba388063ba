"""The book's network, and normalisation as a layer, so that attacks see [0, 1] pixels."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from advlib.checks import check_count, check_numbers
from advlib.runtime import source_of

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


def digit_net(
    *,
    channels: int = 1,
    size: int = 28,
    classes: int = 10,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the chapter network: two 3x3 convolutions, one max-pool, one linear layer.

    Maps images (n, channels, size, size) in [0, 1] to logits (n, classes). Weights are drawn
    Glorot-uniform (Glorot and Bengio, AISTATS 2010) from `generator`, by default advlib's own;
    biases are zero. Raises TypeError or ValueError for a number of the wrong type or range.
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
            pool=nn.MaxPool2d(2),  # before its ReLU: the same function, for a quarter of the work
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            linear=skip_init(nn.Linear, 64 * (size // 2) ** 2, classes),
        )
    )
    return glorot(net, source)


def glorot(net: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """Draw the weights of `net` Glorot-uniform from `generator`; biases become zero."""
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_uniform_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)
    # channels-last convolutions are the faster ones on current CPUs and GPUs
    return net.to(memory_format=torch.channels_last)
