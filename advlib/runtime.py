"""Device choice, seeding, evaluation mode, and random numbers."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advlib.checks import check_count, check_device, check_model, check_type

# Draws made without a generator come from here, so that torch's global state stays the caller's.
default_generator = torch.Generator().manual_seed(0)


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Return the named device, or the best one present: CUDA, then Apple's MPS, then the CPU.

    Raises TypeError for another type, ValueError for a device this machine does not have.
    """
    return check_device("name", name)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch (all devices) and advlib's own default generator."""
    seed = check_count("seed", seed, minimum=0, maximum=2**32 - 1)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global state is what the caller asks to seed
    torch.manual_seed(seed)
    default_generator.manual_seed(seed)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch `model` to evaluation mode; put every module's own flag back, also after an error."""
    check_model(model)
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def draw(numbers: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw by torch.rand or torch.randn, in the shape, type and device of `like`."""
    source = source_of(generator)
    # on the generator's device: a CPU generator gives the same noise on every machine
    noise = numbers(like.shape, generator=source, dtype=like.dtype, device=source.device)
    return noise.to(like.device)


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from [-1, 1), as `draw` does."""
    return draw(torch.rand, like, generator).mul_(2).sub_(1)


def source_of(generator: Any) -> torch.Generator:
    """Return `generator`, or advlib's own if it is None."""
    if generator is None:
        return default_generator
    check_type("generator", generator, torch.Generator, "a torch.Generator or None")
    return generator
