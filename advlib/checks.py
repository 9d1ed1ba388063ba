"""Checks of arguments, once at the public boundary, and of what a model returns."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Bounds = tuple[float, float] | None
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
LARGEST_NUMBER = torch.finfo(torch.float32).max


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be allocated, on whatever device."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    )


def check_type(name: str, value: Any, kind: Any, what: str) -> None:
    """Accept an instance of `kind`, a class or several; `what` says it in the error."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}")


def check_flag(name: str, value: Any) -> None:
    """Accept True or False only: any other word, "no" too, would count as true."""
    check_type(name, value, (bool, np.bool_), "True or False")


def check_list(name: str, value: Any, of: str) -> None:
    """Accept a list, or what is like one, but no text."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a list of {of}, got {type(value).__name__}")


def check_device(name: str, value: Any) -> torch.device:
    """Return the device of this name, or for None the best one; name the argument in the error."""
    if value is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    check_type(name, value, (str, torch.device), "a str")
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
    check_type(name, value, (str, Path), "a str or a Path")
    return Path(value)


def check_function(name: str, value: Any, *given: str, hint: str = "", **named: Any) -> None:
    """Accept what can be called with the arguments `given`, by place, and `named`."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    try:
        parameters = inspect.signature(value)
    except ValueError:  # a function of C's that does not tell
        return
    try:
        parameters.bind(*given, **named)
        if not isinstance(getattr(value, "model", None), nn.Module) or "model" in str(parameters):
            return
        problem = "it has a model of its own, as torchattacks' have"
    except TypeError as error:
        problem = str(error)
    raise TypeError(f"{name} must be called with ({', '.join(given)}): {problem}{hint}")


def check_attack(name: str, value: Any) -> None:
    """Accept what can be called as `attack(model, x, y)`."""
    short = name.rpartition(".")[2]
    hint = f"; fix the rest by functools.partial, or wrap it: lambda model, x, y: {short}(x, y)"
    check_function(name, value, "model", "x", "y", hint=hint)


def check_count(name: str, value: Any, minimum: int = 1, maximum: int = 2**63 - 1) -> int:
    """Return a whole number of this range, numpy's too, as an int; name it in the error if not."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    value = int(value)
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}")
    return value


def check_number(
    name: str, value: Any, minimum: float = 0.0, maximum: float = LARGEST_NUMBER
) -> float:
    """Return a number of this range, numpy's too, as a float that is finite as a float32."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    least: Any = max(minimum, -LARGEST_NUMBER)
    if not least <= value <= maximum:  # before it becomes a float: an int may be too large
        raise ValueError(f"{name} must be finite, from {least:g} to {maximum:g}, got {value}")
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


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Accept one of a few words."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_bounds(bounds: Any, name: str = "bounds") -> None:
    """Accept None, or a pair (low, high) of finite numbers with low < high."""
    if bounds is None:
        return
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(f"{name} must be a pair (low, high), got {bounds!r}")
    low, high = (check_number(name, value, -math.inf) for value in bounds)
    if low >= high:
        raise ValueError(f"{name} must satisfy low < high, got {bounds!r}")


def check_model(model: Any) -> None:
    """Accept a torch module only: attacks need its layers' training flags."""
    check_type("model", model, nn.Module, "a torch.nn.Module")


def check_tensor(name: str, value: Any) -> None:
    """Accept a tensor whose entries are all there: dense, and not on the meta device."""
    check_type(name, value, Tensor, "a tensor")
    if value.is_meta or value.layout != torch.strided:
        given = f"{value.layout} on {value.device}"
        raise ValueError(f"{name} must be dense and hold values, got {given}")


def check_images(x: Any, bounds: Bounds = None, name: str = "x") -> Tensor:
    """Return floating, finite images (n, ...) inside `bounds`, detached, from a tensor or array."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        x = torch.tensor(x, dtype=torch.get_default_dtype() if x.dtype.kind == "f" else None)
    check_tensor(name, x)
    x = _detached(x)
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise TypeError(
            f"{name} must be floating point, in [0, 1] rather than 0 to 255, got {x.dtype}"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (n, ...) with n at least 1, got {tuple(x.shape)}")
    low, high = torch.stack(x.aminmax()).tolist()
    if not math.isfinite(low + high):  # aminmax passes NaN on
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if bounds is None:
        return x
    if max(-bounds[0], bounds[1]) > torch.finfo(x.dtype).max:
        raise ValueError(f"bounds must be finite in {x.dtype}, got {tuple(bounds)}")
    allowed = torch.tensor(bounds, dtype=x.dtype).tolist()  # as x rounds them
    if low < min(bounds[0], allowed[0]) or high > max(bounds[1], allowed[1]):
        raise ValueError(
            f"{name} must lie inside bounds {tuple(bounds)}, "
            f"got values from {low:.4g} to {high:.4g}"
        )
    return x


def check_labels(y: Any, x: Tensor, *, pixels: bool = False) -> Tensor:
    """Return labels, int64 (n,), none negative; any integers will do, one alone for all of `x`.

    With `pixels` they may also be int64 (n, h, w), one for each pixel of images (n, c, h, w).
    """
    if isinstance(y, Integral) and not isinstance(y, bool):
        y = torch.tensor(check_count("y", y, minimum=0), device=x.device)
    elif isinstance(y, np.ndarray) and y.dtype.kind in "iu":
        y = torch.tensor(y.astype(np.int64), device=x.device)
    check_tensor("y", y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y must be int64 class numbers, got {y.dtype}")
    if y.ndim == 0:
        y = y.expand(len(x))
    if y.shape != x.shape[:1] and not (pixels and y.shape == x.shape[:1] + x.shape[2:]):
        hint = "; one image alone is x[None]" if x.ndim == 3 else ""
        raise ValueError(f"y must have shape ({len(x)},) as x has, got {tuple(y.shape)}{hint}")
    if y.device != x.device:
        raise ValueError(f"y must be on the device of x ({x.device}), got {y.device}")
    y = _detached(y).long()
    if y.min() < 0:
        raise ValueError(f"y must not be negative, got {int(y.min())}")
    return y


def _detached(values: Tensor) -> Tensor:
    """`values` off their graph; a copy if made in inference mode, which would bar gradients."""
    return values.clone() if values.is_inference() else values.detach()


def check_attacked(name: str, x_adv: Any, x: Tensor, *, finite: bool = True) -> Tensor:
    """Return what an attack may make of `x`: finite images of its shape, type and device."""
    if not isinstance(x_adv, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(x_adv).__name__}")
    wanted, given = ((tuple(t.shape), t.dtype, t.layout, t.device) for t in (x, x_adv))
    if given != wanted:
        raise ValueError(f"{name} must return images {wanted}, got {given}")
    if finite and not x_adv.isfinite().all():
        raise ValueError(f"{name} must return finite images, got NaN or infinity")
    return _detached(x_adv)


def check_mapping(name: str, value: Any) -> None:
    """Accept a dict, or what is like one."""
    check_type(name, value, Mapping, "a dict")


def called(model: nn.Module, x: Tensor) -> Tensor:
    """What calling the model gives, once it is known to be logits."""
    try:
        scores = model(x)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        hint = "; one image alone is x[None]" if x.ndim == 3 else ""
        given = f"{tuple(x.shape)}, {x.dtype}, on {x.device}{hint}"
        raise ValueError(f"x must be images the model takes, got {given}: {error}") from error
    check_logits(scores, x)
    return scores


def check_logits(scores: Any, x: Tensor) -> None:
    """Accept logits (n, classes) of two classes or more, or (n, classes, h, w), for images `x`."""
    kind = "model must map (n, ...) to floating logits (n, classes) of two classes or more"
    if not isinstance(scores, Tensor):
        raise TypeError(f"{kind}, got {type(scores).__name__}")
    shape = tuple(scores.shape)
    fits = shape[:1] == x.shape[:1] and shape[2:] in ((), x.shape[2:])
    if not fits or shape[1:2] < (2,) or not scores.is_floating_point():
        raise ValueError(f"{kind}, got {shape}, {scores.dtype}, for n = {len(x)}")


def check_classes(scores: Tensor, y: Tensor) -> None:
    """Accept labels that are classes of the logits, one for each image or for each pixel."""
    if scores.shape[2:] != y.shape[1:]:
        shape, wanted = tuple(y.shape), ("n", *scores.shape[2:])
        raise ValueError(f"y must have shape {wanted} for this model's logits, got {shape}")
    if int(y.max()) >= scores.shape[1]:
        given = int(y.max())
        raise ValueError(f"y must be below the model's {scores.shape[1]} classes, got {given}")


def pulled_back(
    scores: Tensor, x: Tensor, slope: Tensor | None = None, *, create_graph: bool = False
) -> Tensor:
    """`slope`, a gradient for `scores`, turned into one for the images `x`."""
    problem: Exception | None = None
    try:
        # grad, not backward: parameter gradients are neither computed nor touched
        [found] = torch.autograd.grad(
            scores, x, slope, create_graph=create_graph, allow_unused=True
        )
        if found is not None:
            return found
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        problem = error
    raise ValueError(
        "model must pass gradients on to its images: does it detach them, run under torch.no_grad, "
        "or is it frozen or quantised?"
    ) from problem


def refuse_nan(values: Tensor) -> None:
    """Raise FloatingPointError if a logit or gradient is NaN; infinite ones pass."""
    if values.isnan().any():
        raise FloatingPointError(
            "model returned NaN: its weights are NaN or too large; was its learning rate too high?"
        )
