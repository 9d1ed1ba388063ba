"""Signs that an attack was fooled: masked gradients, and other mistakes of an evaluation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from advlib import fast
from advlib.attacks import bim, input_gradient, pgd
from advlib.attacks.common import BALLS, leads, project
from advlib.checks import Bounds
from advlib.evaluation import correct
from advlib.runtime import evaluation_mode, uniform

FOR_CHECKS = 100  # images that are looked at


@dataclass(frozen=True)
class Check:
    """One sign of a mistake: `found`, the number behind it, and `meaning`, what a find means."""

    name: str
    suspicious: bool
    found: str
    meaning: str


def signs(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str,
    bounds: Bounds,
    seed: int,
    stands: Mapping[str, Tensor],
) -> list[Check]:
    """Look for signs on the first images that are right. Arguments as in `robustness_report`.

    `stands` says which images are right under "none" and each attack that ran, bool (n,).
    """
    checks: list[Check] = []

    def look(name: str, suspicious: bool, found: str, meaning: str) -> None:
        checks.append(Check(name, bool(suspicious), found, meaning))

    with evaluation_mode(model):
        logits, again = (fast.logits(model, x[:FOR_CHECKS]) for _ in range(2))
        sums, change = logits.sum(1), (logits - again).abs().max().item()
        look(
            "outputs are probabilities",
            bool((logits >= 0).all()) and (sums - 1).abs().max().item() < 1e-3,
            f"rows sum to {sums.min():.3g} to {sums.max():.3g}",
            "a softmax inside the model saturates the gradients: let it return logits",
        )
        look(
            "the network answers differently twice",
            change > 1e-3,
            f"logits change by up to {change:.2g}",
            "it is random: attack the mean of many answers instead",
        )
        chosen = stands["none"].nonzero()[:FOR_CHECKS, 0]
        if len(chosen) == 0:
            return checks
        x, y, stands = x[chosen], y[chosen], {name: ok[chosen] for name, ok in stands.items()}
        gone = _mean((input_gradient(model, x, y).flatten(1) == 0).all(1))
        look(
            "zero gradients",
            gone > 0.01,
            f"{gone:.1%} of images have no gradient at all",
            "gradient attacks stand still there, and their accuracy means nothing",
        )
        if eps > 0:  # a tenth of it along the gradient, and in a random direction
            small = eps / 10
            along = bim(model, x, y, eps=small, alpha=small, steps=1, norm=norm, bounds=bounds)
            noise = BALLS[norm].steepest(uniform(x, torch.Generator().manual_seed(seed)))
            aside = project(x + small * noise, x, small, bounds, norm)
            flat = _mean(leads(fast.logits(model, along), y) >= leads(fast.logits(model, aside), y))
            look(
                "the loss surface is flat or torn",
                flat > 0.1,
                f"on {flat:.1%} of images a small step along the gradient is no better than a "
                "random one",
                "the gradient does not say where the loss rises: attack without it, or a smooth "
                "stand-in",
            )
        if {"one step", "pgd"} <= stands.keys():
            missed = _mean(~stands["one step"] & stands["pgd"])
            look(
                "one step beats many",
                missed > 0.01,
                f"{missed:.1%} of images fall to one step and not to PGD",
                "more steps can do all that one can: the surface leads them astray",
            )
        generator = torch.Generator().manual_seed(seed)
        climb = partial(pgd, norm=norm, bounds=bounds, early_exit=True, generator=generator)
        if "pgd" in stands:
            found, lost, left = "PGD left nothing standing", 0.0, stands["pgd"]
            if left.any():
                longer = partial(climb, eps=eps, alpha=eps / 20, steps=160)
                lost = 1 - _mean(correct(model, [(x[left], y[left])], attack=longer))
                found = f"four times the steps break {lost:.1%} of what PGD left standing"
            meaning = "the attack had not finished: use more"
            look("more steps or restarts still help", lost > 0.05, found, meaning)
        if "square" in stands and len(stands) > 2:
            others = [ok for name, ok in stands.items() if name not in ("none", "square")]
            missed = _mean(~stands["square"] & torch.stack(others).all(0))
            look(
                "a black box beats gradients",
                missed > 0.01,
                f"{missed:.1%} of images fall to Square alone",
                "whoever sees gradients knows more, and should not lose: they are masked",
            )
        low, high = bounds or (x.min().item(), x.max().item())
        far = (high - low) * (1.0 if norm == "linf" else math.sqrt(x[0].numel()))
        anything = partial(climb, eps=far, alpha=far / 10, steps=40)
        right = _mean(correct(model, [(x, y)], attack=anything))
        look(
            "an attack that may do anything fails",
            right > 0.05,
            f"accuracy {right:.3f} when every pixel may take any value",
            "with the whole picture free anything can be broken: the attack does not work here",
        )
    return checks


def _mean(which: Tensor) -> float:
    return which.float().mean().item()
