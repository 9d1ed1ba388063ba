"""Three defences that fool a gradient attack and protect nothing: chapter 7 breaks them.

Each stands in front of a trained network and changes hardly any of its decisions.
"""

import math

import torch
from torch import Tensor, nn

from advlib.checks import check_model
from advlib.runtime import uniform


class _Masked(nn.Module):
    """What the three share: the network behind."""

    def __init__(self, model: nn.Module) -> None:
        """Stand in front of `model`, from images to logits."""
        super().__init__()
        check_model(model)
        self.model = model


class Rounded(_Masked):
    """A network that sees each pixel rounded to nine grey levels."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the rounded images."""
        return self.model((8 * x).round() / 8)


class Rippled(_Masked):
    """A network that sees a faint ripple on each pixel, of a new random phase in each call.

    The ripple moves a pixel by 0.02 at most, but is so steep that the sign of a gradient is little
    better than a coin. Its phases are drawn from a generator of its own, seeded with `seed`.
    """

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        """Stand in front of `model`, from images to logits."""
        super().__init__(model)
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the rippled images."""
        phase = math.pi * uniform(x, self.generator)
        return self.model(x + 0.02 * torch.sin(300 * x + phase))


class Saturated(_Masked):
    """A network that says everything a thousand times louder."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, times a thousand."""
        return 1000 * self.model(x)
