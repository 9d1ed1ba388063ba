"""Device choice, seeding, evaluation mode, and the argument checks every module shares."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Bounds = tuple[float, float] | None
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

# Draws made without a generator come from here, so that torch's global state stays the caller's.
default_generator = torch.Generator().manual_seed(0)


def pick_device(name: str | None = None) -> torch.device:
    """Return the named device, or the best one present: CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: torch does not know the name, or this machine has no such device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"name: no device {name!r} on this machine ({error})") from error
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch (all devices) and advlib's own default generator."""
    check_count("seed", seed, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global state is what the caller asks to seed
    torch.manual_seed(seed)
    default_generator.manual_seed(seed)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch `model` to evaluation mode, and put every module's own flag back on the way out.

    The flags come back module by module, also after an error: a BatchNorm layer that its owner
    froze stays frozen in a model that trains.
    """
    check_model(model)
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


_part: tuple[int, int, int] | None = None


@contextmanager
def part_of_batch(first: int, count: int, total: int) -> Iterator[None]:
    """Draw within this context what images `first` and after get in a batch of `total`.

    Each image then has random numbers of its own, which do not depend on how a batch is shared
    among processes.
    """
    global _part
    before, _part = _part, (first, count, total)
    try:
        yield
    finally:
        _part = before


def draw(numbers: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw by torch.rand or torch.randn, in the shape, type and device of `like`.

    The numbers are drawn on the generator's device: a CPU generator gives the same noise on
    every machine.
    """
    source = source_of(generator)
    device = source.device
    if _part is None:
        noise = numbers(like.shape, generator=source, dtype=like.dtype, device=device)
        return noise.to(like.device)
    first, count, total = _part
    if len(like) != count:
        raise ValueError("attack must draw for all images of a batch at once: give it one restart")
    seeds = torch.randint(2**63 - 1, (total,), generator=source, device=device)
    own, rows = torch.Generator(device), torch.empty_like(like, device=device)
    for row, seed in zip(rows, seeds[first:].tolist(), strict=False):
        row.copy_(
            numbers(row.shape, generator=own.manual_seed(seed), dtype=like.dtype, device=device)
        )
    return rows.to(like.device)


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from [-1, 1), as `draw` does."""
    return draw(torch.rand, like, generator).mul_(2).sub_(1)


def generators_in(*functions: Any) -> list[torch.Generator]:
    """The generators that functions draw from: those in `functools.partial`s, and the shared ones.

    Shared are advlib's own and torch's global ones.
    """
    found = [default_generator, torch.default_generator, *torch.cuda.default_generators]
    todo = list(functions)
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Generator):
            found.append(value)
        elif isinstance(value, partial):
            todo += [value.func, *value.args, *value.keywords.values()]
    return list({id(generator): generator for generator in found}.values())


def source_of(generator: Any) -> torch.Generator:
    """Return `generator`, or advlib's own if it is None."""
    if generator is None:
        return default_generator
    if not isinstance(generator, torch.Generator):
        given = type(generator).__name__
        raise TypeError(f"generator must be a torch.Generator or None, got {given}")
    return generator


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not allocate memory, on whatever device."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    )


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` if it is a whole number of at least `minimum`; name it in the error if not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def check_number(name: str, value: Any, minimum: float = 0.0) -> float:
    """Return `value` as a float if it is a finite number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"{name} must be finite and at least {minimum:g}, got {value}")
    return float(value)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Accept one of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_bounds(bounds: Any) -> None:
    """Accept None, or a pair (low, high) of finite numbers with low < high."""
    if bounds is None:
        return
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(f"bounds must be None or a pair (low, high), got {bounds!r}")
    low, high = (check_number("bounds", value, -float("inf")) for value in bounds)
    if low >= high:
        raise ValueError(f"bounds must satisfy low < high, got {bounds!r}")


def check_model(model: Any) -> None:
    """Accept a torch module only: attacks need its layers' training flags."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_images(x: Any, bounds: Bounds = None) -> None:
    """Accept a floating tensor with a batch dimension, finite, and inside `bounds` if given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, in [0, 1] rather than 0 to 255, got {x.dtype}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must have shape (n, ...) with n at least 1, got {tuple(x.shape)}")
    low, high = x.detach().aminmax()
    if not torch.isfinite(low + high):  # aminmax passes NaN on
        raise ValueError("x must be finite, got NaN or infinity")
    if bounds is not None and (low < bounds[0] or high > bounds[1]):
        raise ValueError(
            f"x must lie inside bounds {tuple(bounds)}, got values from {low:.4g} to {high:.4g}"
        )


def check_labels(y: Any, x: Tensor) -> None:
    """Accept an int64 tensor of shape (n,) for the n images of `x`, no label negative."""
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor, got {type(y).__name__}")
    if y.dtype != torch.int64:
        raise TypeError(f"y must be int64 class numbers, got {y.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},) as x has, got {tuple(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x ({x.device}), got {y.device}")
    if y.min() < 0:
        raise ValueError(f"y must not be negative, got {int(y.min())}")


def check_logits(model: nn.Module, x: Tensor, y: Tensor | None = None) -> None:
    """Run one image through `model`: logits of shape (1, classes), and every label a class.

    Call it in evaluation mode.
    """
    try:
        with torch.no_grad():
            logits = model(x[:1])
    except (RuntimeError, ValueError) as error:  # another size, type or device than the weights'
        if is_out_of_memory(error):
            raise
        given = f"{tuple(x.shape)}, {x.dtype}, on {x.device}"
        raise ValueError(f"x must be images the model takes, got {given}: {error}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must map (n, ...) to logits (n, classes), got {shape} for n = 1")
    if y is not None and y.max() >= logits.shape[1]:
        raise ValueError(
            f"y must be below the model's {logits.shape[1]} classes, got {int(y.max())}"
        )
