"""What all attacks share: the two balls, the projection, success, and the checks of arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advlib.checks import (
    Bounds,
    check_bounds,
    check_choice,
    check_flag,
    check_images,
    check_labels,
    check_model,
    check_number,
    check_tensor,
)
from advlib.runtime import draw, source_of, uniform

Budget = float | Tensor


class Ball(NamedTuple):
    """All changes up to a size eps, in one norm."""

    steepest: Callable[[Tensor], Tensor]
    """The change of size 1 along which a loss with this gradient rises fastest."""
    nearest: Callable[[Tensor, Any], Tensor]
    """The point of the ball of size eps that lies nearest to a change."""
    random: Callable[[Tensor, torch.Generator | None], Tensor]
    """A change drawn evenly from the ball of size 1, for each image."""


def lengths(change: Tensor) -> Tensor:
    """Euclidean length of each row, shaped to broadcast over it, and never zero."""
    flat = change.flatten(1).norm(dim=1).clamp_min(torch.finfo(change.dtype).tiny)
    return flat.view(-1, *[1] * (change.ndim - 1))


def scaled(gradient: Tensor) -> Tensor:
    """Each row by its own largest entry: the square of a tiny one would underflow."""
    most = gradient.detach().flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / most.view(-1, *[1] * (gradient.ndim - 1))


def _unit(gradient: Tensor) -> Tensor:
    gradient = scaled(gradient)
    return gradient / lengths(gradient)


def _from_round_ball(like: Tensor, generator: torch.Generator | None) -> Tensor:
    direction = draw(torch.randn, like, generator)
    radius = uniform(like.flatten(1)[:, :1], generator).abs() ** (1 / like[0].numel())
    return direction / lengths(direction) * radius.view(-1, *[1] * (like.ndim - 1))


BALLS = {
    "linf": Ball(torch.sign, lambda change, eps: change.clamp(-eps, eps), uniform),
    "l2": Ball(
        _unit,
        lambda change, eps: change * (eps / lengths(change)).clamp(max=1),
        _from_round_ball,
    ),
}


def project(x_adv: Tensor, x: Tensor, eps: Budget, bounds: Bounds, norm: str) -> Tensor:
    """Bring `x_adv` into the eps-ball around `x` and into the pixel range."""
    x_adv = x + BALLS[norm].nearest(x_adv - x, eps)
    # the range comes second: it holds `x`, so that it only makes the change smaller
    return x_adv if bounds is None else x_adv.clamp(*bounds)


def is_broken(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Whether the attack has what it wants of each image, of all its labels, bool (n,)."""
    hit = (logits.argmax(1) == y).view(len(y), -1)
    return hit.all(1) if targeted else ~hit.any(1)


def leads(scores: Tensor, y: Tensor) -> Tensor:
    """By how much the logit of class `y` is above the largest other one, (n,)."""
    labels = y.unsqueeze(1)
    others = scores.scatter(1, labels, -torch.inf).amax(1)
    return scores.gather(1, labels).squeeze(1) - others


def check_attack_input(
    model: Any,
    x: Any,
    y: Any,
    bounds: Bounds = None,
    norm: Any = "linf",
    generator: Any = None,
    pixels: bool = False,
    **flags: Any,
) -> tuple[Tensor, Tensor]:
    """Check what every attack is given; return images and labels as detached tensors.

    `pixels` says that labels may be (n, h, w), too.
    """
    check_model(model)
    check_bounds(bounds)
    check_choice("norm", norm, list(BALLS))
    source_of(generator)
    for name, flag in flags.items():
        check_flag(name, flag)
    x = check_images(x, bounds)
    return x, check_labels(y, x, pixels=pixels)


def check_pictures(x: Tensor) -> Tensor:
    """Accept images with rows and columns, (n, c, h, w)."""
    if x.ndim != 4:
        raise ValueError(f"x must have shape (n, c, h, w), got {tuple(x.shape)}")
    return x


def budget(name: str, value: Any, x: Tensor, *, signed: bool = False) -> Budget:
    """A number as it is; one value per image shaped to broadcast over that image's pixels."""
    most = torch.finfo(x.dtype).max ** 0.5 / 4  # so that no length or step overflows
    least = -most if signed else 0.0
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        return check_number(name, value, least, most)
    check_tensor(name, value)
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold numbers, got {value.dtype}")
    if value.ndim and value.shape != x.shape[:1]:
        given = tuple(value.shape)
        raise ValueError(f"{name} must be a number or have shape ({len(x)},), got {given}")
    value = value.detach().to(x).expand(len(x))
    if not least <= value.min() <= value.max() <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g} for every image")
    return value.reshape(-1, *[1] * (x.ndim - 1))


def budget_per_image(name: str, value: Any, x: Tensor, *, signed: bool = False) -> Tensor:
    """A budget as a tensor of one value per image, shaped to broadcast over its pixels."""
    value = budget(name, value, x, signed=signed)
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value.expand(len(x), *[1] * (x.ndim - 1))


def rows(value: Budget, which: Tensor) -> Budget:
    """The budget of some of the images."""
    return value[which.to(value.device)] if isinstance(value, Tensor) else value


def indices(which: Tensor) -> Tensor:
    """Where `which`, bool (n,), is true; int64."""
    return which.nonzero().squeeze(1)
