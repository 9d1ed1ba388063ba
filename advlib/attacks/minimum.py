"""Minimum-norm attacks: not whether a budget is enough, but the smallest change that is.

Both walk along the border between two answers. After a step that broke an image they shrink its
budget, after one that did not they enlarge it, and they keep the smallest success.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib import fast
from advlib.attacks.common import BALLS, check_attack_input, is_broken, leads
from advlib.checks import Bounds, check_choice, check_classes, check_count, check_number
from advlib.runtime import evaluation_mode

Change = Callable[[Tensor, Tensor], Tensor]


class Walk(NamedTuple):
    """Where each of n walks stands, after the network was asked."""

    eps: Tensor
    size: Tensor
    broken: Tensor
    least: Tensor  # size of the smallest success, or infinity
    loss: Tensor
    slopes: Tensor
    left: float  # from 1 at the first step, along a cosine, to 0 after the last


def _largest(change: Tensor, count: Tensor) -> Tensor:
    """Keep the `count` largest entries of each row."""
    order = change.flatten(1).abs().argsort(1, descending=True)
    first = torch.arange(order.shape[1], device=order.device) < count.view(-1, 1)
    return change * torch.zeros_like(first).scatter(1, order, first).view_as(change)


NEAREST: dict[str, Change] = {"l0": _largest, "l2": BALLS["l2"].nearest}
NEAREST |= {"linf": BALLS["linf"].nearest}
ORDER = {"l0": 0.0, "l2": 2.0, "linf": math.inf}
DUAL = {"l2": 2.0, "linf": 1.0}


def fmn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    steps: int = 100,
    alpha: float = 1.0,
    gamma: float = 0.05,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """Fast minimum-norm attack: return the smallest change that it finds to break each image.

    `norm` is "linf", "l2", or "l0": how many values change, which are the pixels of a grey image.
    Each step goes `alpha` along the gradient of the margin between two logits, then to the nearest
    point of the ball of size eps. That changes by a part `gamma`, and grows faster until the first
    success: to where a linear model with this margin and this gradient would break. `alpha` and
    `gamma` fall along a cosine, to 1/100 and 1/50.

    An image that is wrong already, or that is never broken, is returned as it is.
    Reference: Pintor et al., NeurIPS 2021, arXiv:2102.12827.
    """
    check_choice("norm", norm, list(NEAREST))
    gamma = check_number("gamma", gamma, maximum=1)

    def resized(walk: Walk) -> Tensor:
        part = gamma * (0.02 + 0.98 * walk.left)
        fewer, more = walk.eps * (1 - part), walk.eps * (1 + part)
        if norm == "l0":
            fewer, more = (fewer.floor().minimum(walk.eps - 1), more.floor().maximum(walk.eps + 1))
        else:
            slope = walk.slopes.flatten(1).norm(DUAL[norm], dim=1)
            far = walk.size + walk.loss.abs() / slope.clamp_min(torch.finfo(slope.dtype).tiny)
            more = torch.where(walk.least.isinf(), far.maximum(more), more)
        return torch.where(walk.broken, fewer.minimum(walk.least), more)

    walk = partial(_walk, model, x, y, steps=steps, targeted=targeted, bounds=bounds, norm=norm)
    first = 1.0 if norm == "l0" else 0.0
    alpha = check_number("alpha", alpha)
    return walk(alpha=alpha, first=first, loss=leads, resized=resized, to=NEAREST[norm])


def ddn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 100,
    gamma: float = 0.05,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """Decoupled direction and norm: return the smallest l2 change that it finds for each image.

    The gradient of the cross-entropy turns the change, by steps that fall along a cosine from 1 to
    1/100; its length eps is set apart from that, from 1 on, and changes by a part `gamma`.

    An image that is wrong already, or that is never broken, is returned as it is.
    Reference: Rony et al., CVPR 2019, arXiv:1811.09600.
    """
    gamma = check_number("gamma", gamma, maximum=1)

    def resized(walk: Walk) -> Tensor:
        return walk.eps * torch.where(walk.broken, 1 - gamma, 1 + gamma)

    def to_length(change: Tensor, eps: Tensor) -> Tensor:
        return eps * BALLS["l2"].steepest(change)

    walk = partial(_walk, model, x, y, steps=steps, targeted=targeted, bounds=bounds, norm="l2")
    return walk(alpha=1.0, first=1.0, loss=_likelihood, resized=resized, to=to_length)


def _likelihood(scores: Tensor, y: Tensor) -> Tensor:
    return -F.cross_entropy(scores, y, reduction="none")


def _walk(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    steps: int,
    alpha: float,
    first: float,
    targeted: bool,
    bounds: Bounds,
    loss: fast.Loss,
    resized: Callable[[Walk], Tensor],
    to: Change,
) -> Tensor:
    """Descend `loss`, or with `targeted` climb it, and resize the budgets, `first`, at each step.

    `to` brings a change, in the shape of `x`, to a budget that broadcasts over it.
    """
    x, y = check_attack_input(model, x, y, bounds, targeted=targeted)
    steps = check_count("steps", steps)
    shape = (-1, *[1] * (x.ndim - 1))
    here, best = x, x.clone()
    eps, least = (torch.full((len(x),), value).to(x) for value in (first, math.inf))

    def checked(scores: Tensor, y: Tensor) -> Tensor:
        check_classes(scores, y)
        return loss(scores, y)

    with evaluation_mode(model):
        for k in range(steps):
            left = (1 + math.cos(math.pi * k / steps)) / 2
            ask = partial(fast.gradient, model, here, y, check=k in (0, steps - 1))
            scores, slopes = ask(loss if k else checked)
            size, broken = (
                (here - x).flatten(1).norm(ORDER[norm], dim=1),
                is_broken(scores, y, targeted),
            )
            better = broken & (size < least)
            best, least = (
                torch.where(better.view(shape), here, best),
                torch.where(better, size, least),
            )
            walk = Walk(eps, size, broken, least, loss(scores, y), slopes, left)
            eps = resized(walk).to(x.dtype).clamp(max=torch.finfo(x.dtype).max / 4)
            step = alpha * (0.01 + 0.99 * left) * BALLS["l2"].steepest(slopes).to(x.dtype)
            change = to(here + (step if targeted else -step) - x, eps.view(shape))
            here = x + change if bounds is None else (x + change).clamp(*bounds)
    return best
