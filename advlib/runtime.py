"""Device choice, seeding, evaluation mode, and the argument checks every module shares."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Bounds = tuple[float, float] | None
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
LARGEST_NUMBER = torch.finfo(torch.float32).max

# Draws made without a generator come from here, so that torch's global state stays the caller's.
default_generator = torch.Generator().manual_seed(0)


def pick_device(name: str | None = None) -> torch.device:
    """Return the named device, or the best one present: CUDA, then Apple's MPS, then the CPU.

    Raises:
        TypeError: `name` is neither a str nor None.
        ValueError: torch does not know the name, or this machine has no such device.
    """
    return check_device("name", name)


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
    found = [default_generator, torch.default_generator]
    if torch.cuda.is_initialized():
        found.append(torch.cuda.default_generators[torch.cuda.current_device()])
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
    """Whether memory could not be allocated, on whatever device."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    )


def check_device(name: str, value: Any) -> torch.device:
    """Return the device of this name, or for None the best one; name the argument in the error."""
    if value is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: no device {value!r} on this machine ({error})") from error
    if device.type == "meta":
        raise ValueError(f"{name} must hold values, got {value!r}")
    return device


def check_path(name: str, value: Any) -> Path:
    """Return a str or a Path as a Path."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name} must be a str or a Path, got {type(value).__name__}")
    return Path(value)


def check_flag(name: str, value: Any) -> None:
    """Accept True or False only: any other word, "no" too, would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def check_text(name: str, value: Any) -> None:
    """Accept a str."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")


def check_function(name: str, value: Any) -> None:
    """Accept anything that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")


def check_mapping(name: str, value: Any) -> None:
    """Accept a dict, or what is like one."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, got {type(value).__name__}")


def check_list(name: str, value: Any, of: str) -> None:
    """Accept a list, or what is like one, but no text."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a list of {of}, got {type(value).__name__}")


def check_count(name: str, value: Any, minimum: int = 1, maximum: int = 2**63 - 1) -> int:
    """Return `value` if it is a whole number of this range; name it in the error if not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}")
    return value


def check_number(
    name: str, value: Any, minimum: float = 0.0, maximum: float = LARGEST_NUMBER
) -> float:
    """Return `value` as a float if it is a number of this range, and finite as a float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    minimum = max(minimum, -LARGEST_NUMBER)
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} must be finite, from {minimum:g} to {maximum:g}, got {value}")
    return float(value)


def check_numbers(name: str, values: Any, *, finite: bool = True) -> list[float]:
    """Return a list, an array or a tensor of numbers as a list."""
    if isinstance(values, Tensor):
        check_tensor(name, values)
    if isinstance(values, (np.ndarray, Tensor)):
        values = values.tolist()
    check_list(name, values, "numbers")
    for i, value in enumerate(values):
        if finite or not isinstance(value, float):
            check_number(f"{name}[{i}]", value, -math.inf)
    return list(values)


def check_names(name: str, values: Any, count: int | None = None) -> None:
    """Accept one text for each of `count` things; or none at all, by None or an empty list."""
    if values is None:
        return
    check_list(name, values, "str")
    for i, value in enumerate(values):
        check_text(f"{name}[{i}]", value)
    if values and count is not None and len(values) != count:
        raise ValueError(f"{name} must hold {count} names, got {len(values)}")


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Accept one of a few words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_pair(name: str, pair: Any) -> None:
    """Accept a pair (low, high) of finite numbers with low < high."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name} must be a pair (low, high), got {pair!r}")
    low, high = (check_number(name, value, -math.inf) for value in pair)
    if low >= high:
        raise ValueError(f"{name} must satisfy low < high, got {pair!r}")


def check_bounds(bounds: Any) -> None:
    """Accept None, or a pair as `check_pair` does."""
    if bounds is not None:
        check_pair("bounds", bounds)


def check_model(model: Any) -> None:
    """Accept a torch module only: attacks need its layers' training flags."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_tensor(name: str, value: Any) -> None:
    """Accept a tensor whose entries are all there: dense, and not on the meta device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.is_meta or value.layout != torch.strided:
        given = f"{value.layout} on {value.device}"
        raise ValueError(f"{name} must be dense and hold values, got {given}")


def check_images(x: Any, bounds: Bounds = None, name: str = "x") -> None:
    """Accept a floating tensor with a batch dimension, finite, and inside `bounds` if given."""
    check_tensor(name, x)
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise TypeError(
            f"{name} must be floating point, in [0, 1] rather than 0 to 255, got {x.dtype}"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (n, ...) with n at least 1, got {tuple(x.shape)}")
    low, high = x.detach().aminmax()
    if not torch.isfinite(low + high):  # aminmax passes NaN on
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if bounds is None:
        return
    if low < bounds[0] or high > bounds[1]:
        raise ValueError(
            f"{name} must lie inside bounds {tuple(bounds)}, "
            f"got values from {low:.4g} to {high:.4g}"
        )
    if max(-bounds[0], bounds[1]) > torch.finfo(x.dtype).max:
        raise ValueError(f"bounds must be finite in {x.dtype}, got {tuple(bounds)}")


def check_labels(y: Any, x: Tensor) -> None:
    """Accept an int64 tensor of shape (n,) for the n images of `x`, no label negative."""
    check_tensor("y", y)
    if y.dtype != torch.int64:
        raise TypeError(f"y must be int64 class numbers, got {y.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},) as x has, got {tuple(y.shape)}")
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x ({x.device}), got {y.device}")
    if y.min() < 0:
        raise ValueError(f"y must not be negative, got {int(y.min())}")


def check_logits(model: nn.Module, x: Tensor, y: Tensor | None = None, name: str = "x") -> int:
    """Run one image through `model`: logits of shape (1, classes), and every label a class.

    Call it in evaluation mode. Returns the number of classes.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # weights cast here would carry no gradient later
    try:
        with torch.no_grad():
            logits = model(x[:1])
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        given = f"{tuple(x.shape)}, {x.dtype}, on {x.device}"
        raise ValueError(f"{name} must be images the model takes, got {given}: {error}") from error
    finally:
        torch.set_autocast_cache_enabled(cached)
    check_tensor("model's logits", logits)
    if logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise ValueError(
            "model must map (n, ...) to logits (n, classes) of two classes or more, "
            f"got {tuple(logits.shape)} for n = 1"
        )
    if not logits.is_floating_point():
        raise TypeError(f"model's logits must be floating point, got {logits.dtype}")
    if y is not None and y.max() >= logits.shape[1]:
        raise ValueError(
            f"y must be below the model's {logits.shape[1]} classes, got {int(y.max())}"
        )
    return logits.shape[1]


def check_attacked(name: str, x_adv: Any, x: Tensor) -> None:
    """Accept what an attack may make of `x`: finite images of its shape, type and device."""
    if not isinstance(x_adv, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(x_adv).__name__}")
    wanted, given = ((tuple(t.shape), t.dtype, t.layout, t.device) for t in (x, x_adv))
    if given != wanted:
        raise ValueError(f"{name} must return images {wanted}, got {given}")
    if not x_adv.isfinite().all():
        raise ValueError(f"{name} must return finite images, got NaN or infinity")
