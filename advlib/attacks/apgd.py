"""APGD: projected gradient ascent that sets its own step size, on three losses."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib import fast
from advlib.attacks.common import (
    BALLS,
    budget_per_image,
    check_attack_input,
    indices,
    is_broken,
    project,
)
from advlib.checks import Bounds, check_choice, check_classes, check_count
from advlib.runtime import evaluation_mode

MOMENTUM = 0.75
OFTEN = 0.75  # the part of the steps that must raise the loss for the step size to stay


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the true class, which is the first column of `labels`."""
    return F.cross_entropy(scores, labels[:, 0], reduction="none")


def to_target(scores: Tensor, labels: Tensor) -> Tensor:
    """What rises as the logits approach the class in the first column of `labels`."""
    return -cross_entropy(scores, labels)


def dlr(scores: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: margin lost, over the gap between the 1st and 3rd logit."""
    scores = _finite(scores)
    right = labels[:, :1]
    wrong = scores.scatter(1, right, -torch.inf).max(1).values
    ordered = scores.sort(1, descending=True).values
    return (wrong - scores.gather(1, right)[:, 0]) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(scores: Tensor, labels: Tensor) -> Tensor:
    """The same towards one class, the second column of `labels`."""
    scores = _finite(scores)
    right, wrong = scores.gather(1, labels).unbind(1)
    ordered = scores.sort(1, descending=True).values
    return (wrong - right) / (ordered[:, 0] - ordered[:, 2:4].mean(1) + 1e-12)


def _finite(scores: Tensor) -> Tensor:
    """Masked classes, whose logits are minus infinity, far below the others instead."""
    return scores.clamp_min(torch.finfo(scores.dtype).min / 8)


# each with the smallest number of classes it is defined for
LOSSES = {"ce": (cross_entropy, 2), "dlr": (dlr, 3), "targeted-dlr": (targeted_dlr, 4)}


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    targets: int = 9,
    norm: str = "linf",
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD: ascent with momentum, whose step is halved where it no longer pays.

    It starts from a random point of the ball with a step of 2 eps. At checkpoints, which come more
    and more often, the step is halved if too few steps raised the loss, and the ascent goes on
    from the best point so far. An image stays as it is once it is broken. `loss` is one of three:

    - "ce", cross-entropy, which a model can flatten by scaling its logits;
    - "dlr", the difference of logits ratio, which does not change when logits are scaled;
    - "targeted-dlr", the same towards each of the `targets` classes with the largest logits next
      to `y`, all at once. Any wrong class counts as a success.

    With `targeted=True` `loss` must be "ce". Each of the `restarts` attacks what the ones before it
    left standing. Raises ValueError, too, if the model has too few classes for the loss.
    Reference: Croce and Hein, ICML 2020, arXiv:2003.01690.
    """
    x, y = check_attack_input(model, x, y, bounds, norm, generator, targeted=targeted)
    steps, restarts = check_count("steps", steps), check_count("restarts", restarts)
    targets = check_count("targets", targets)
    check_choice("loss", loss, list(LOSSES))
    if targeted and loss != "ce":
        raise ValueError(f"loss must be 'ce' with targeted=True, got {loss!r}")
    objective, least = (to_target, 2) if targeted else LOSSES[loss]
    eps = budget_per_image("eps", eps, x)
    climb = partial(_climb, model, objective=objective, steps=steps, norm=norm)
    climb = partial(climb, targeted=targeted, bounds=bounds, generator=generator)
    x_adv = x.clone()
    with evaluation_mode(model):
        scores = fast.logits(model, x)
        check_classes(scores, y)
        classes = scores.shape[1]
        if classes < least:
            raise ValueError(f"loss {loss!r} needs at least {least} classes, got {classes}")
        others = scores.scatter(1, y.unsqueeze(1), -torch.inf).argsort(1, descending=True)
        standing = indices(~is_broken(scores, y, targeted))
        targets = min(targets, classes - 1) if loss == "targeted-dlr" else 1
        for _ in range(restarts):
            if len(standing) == 0:
                break
            wanted = others[standing, :targets]
            x_adv[standing], broken = climb(x[standing], y[standing], wanted, eps[standing])
            standing = standing[~broken]
    return x_adv


@dataclass
class _State:
    """Where each ascent stands; the rows of an image, one for each of its targets, follow."""

    image: Tensor  # its number in the batch
    x: Tensor
    labels: Tensor
    eps: Tensor
    here: Tensor
    before: Tensor
    slope: Tensor
    value: Tensor
    best: Tensor
    best_slope: Tensor
    best_value: Tensor
    step: Tensor
    rises: Tensor  # steps that raised the loss since the last checkpoint
    best_at_check: Tensor
    halved: Tensor  # whether the last checkpoint halved the step

    def only(self, which: Tensor) -> "_State":
        return _State(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def _climb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    targets: Tensor,
    eps: Tensor,
    *,
    objective: Any,
    steps: int,
    norm: str,
    targeted: bool,
    bounds: Bounds,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Climb towards each of `targets` (n, k); return images, broken or at best, and which broke."""
    ball = BALLS[norm]
    found, broken = x.clone(), torch.zeros_like(y, dtype=torch.bool)
    count = targets.shape[1]
    image = torch.arange(len(x), device=x.device).repeat_interleave(count)
    x, y, eps = x[image], y[image], eps[image]
    labels = torch.stack([y, targets.flatten()], 1)
    here = project(x + eps * ball.random(x, generator), x, eps, bounds, norm)
    scores, slope = fast.gradient(model, here, labels, objective)
    value = objective(scores, labels)
    s = _State(
        image=image,
        x=x,
        labels=labels,
        eps=eps,
        here=here,
        before=here,
        slope=slope,
        value=value,
        best=here,
        best_slope=slope,
        best_value=value,
        step=2 * eps,
        rises=torch.zeros_like(y),
        best_at_check=value,
        halved=torch.ones_like(y, dtype=torch.bool),
    )

    def retire(s: _State, scores: Tensor) -> _State:
        lost = is_broken(scores, s.labels[:, 0], targeted).view(-1, count)
        done = lost.any(1)
        if not done.any():
            return s
        first = indices(done) * count + lost[done].int().argmax(1)
        found[s.image[first]], broken[s.image[first]] = s.here[first], True
        return s.only(~done.repeat_interleave(count))

    gaps = dict(_checkpoints(steps))
    s = retire(s, scores)
    for i in range(1, steps + 1):
        if len(s.image) == 0:
            break
        ahead = project(
            s.here + s.step * ball.steepest(s.slope).to(x.dtype), s.x, s.eps, bounds, norm
        )
        if i > 1:
            drift = MOMENTUM * (ahead - s.here) + (1 - MOMENTUM) * (s.here - s.before)
            ahead = project(s.here + drift, s.x, s.eps, bounds, norm)
        s.before, s.here = s.here, ahead
        scores, s.slope = fast.gradient(model, s.here, s.labels, objective)
        value = objective(scores, s.labels)
        s.rises, s.value = s.rises + (value > s.value), value
        s = retire(s, scores)
        better = s.value > s.best_value
        s.best = _choose(better, s.here, s.best)
        s.best_slope = _choose(better, s.slope, s.best_slope)
        s.best_value = torch.where(better, s.value, s.best_value)
        if i in gaps:
            _judge(s, gaps[i])
    best = s.best_value.view(-1, count).argmax(1)
    rows = best + count * torch.arange(len(best), device=best.device)
    found[s.image[rows]] = s.best[rows]
    return found, broken


def _judge(s: _State, gap: int) -> None:
    """Halve the step where it no longer pays, and go on from the best point there."""
    seldom = s.rises <= OFTEN * gap
    stuck = ~s.halved & (s.best_at_check >= s.best_value)
    s.halved = seldom | stuck
    s.step = _choose(s.halved, s.step / 2, s.step)
    s.here = _choose(s.halved, s.best, s.here)
    s.slope = _choose(s.halved, s.best_slope, s.slope)
    s.best_at_check = s.best_value
    s.rises = torch.zeros_like(s.rises)


def _checkpoints(steps: int) -> Iterator[tuple[int, int]]:
    """Yield each step after which the step size is judged, and the steps since the last one."""
    gap, least, shrink = (max(1, int(part * steps)) for part in (0.22, 0.06, 0.03))
    at = gap
    while at <= steps:
        yield at, gap
        gap = max(gap - shrink, least)
        at += gap


def _choose(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(which.view(-1, *[1] * (yes.ndim - 1)), yes, no)
