"""Signs that an attack was fooled: masked gradients, and other mistakes of an evaluation."""

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advlib import fast
from advlib.attacks import bim, input_gradient, pgd
from advlib.attacks.common import BALLS, check_attack_input, leads, project
from advlib.checks import Bounds, check_attacked, check_classes, check_function, check_number
from advlib.evaluation import _mean, correct
from advlib.runtime import evaluation_mode, uniform

FOR_CHECKS = 100  # images that are looked at


@dataclass(frozen=True)
class Check:
    """One sign of a mistake: `found`, the number behind it, and `meaning`, what a find means."""

    name: str
    suspicious: bool
    found: str
    meaning: str

    def __str__(self) -> str:
        """Say what was found, and what that means if it is a sign of a mistake."""
        wrap = partial(textwrap.wrap, width=78, subsequent_indent=" " * 8)
        lines = wrap(f"{'LOOK' if self.suspicious else 'ok  '}  {self.name}: {self.found}")
        more = wrap(self.meaning, initial_indent=" " * 6) if self.suspicious else []
        return "\n".join(lines + more)


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
            aside = _noisy(x, small, norm, bounds, seed)
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
        far = _any_image(x, norm, bounds)
        anything = partial(climb, eps=far, alpha=far / 10, steps=40)
        right = _mean(correct(model, [(x, y)], attack=anything))
        look(
            "an attack that may do anything fails",
            right > 0.05,
            f"accuracy {right:.3f} when every pixel may take any value",
            "with the whole picture free anything can be broken: the attack does not work here",
        )
    return checks


def self_test(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    attack: Callable[..., Tensor] | None = None,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> list[Check]:
    """Look whether an attack, or one on a defence, does what must hold before its numbers count.

    `attack(model, x, y, eps=...)`, by default PGD, changes nothing with no budget; within `eps` it
    stays inside ball and `bounds` and lowers the true class's lead, further than noise does; if
    anything is allowed it breaks all. Where a good attack fails, `model` masks its gradient.
    Arguments and errors otherwise as in `robustness_report`; each check can be printed.
    Reference: Carlini et al., 2019, arXiv:1902.06705.
    """
    x, y = check_attack_input(model, x, y, bounds, norm)
    eps = check_number("eps", eps)
    ball: dict[str, Any] = {"norm": norm, "bounds": bounds}
    if attack is not None:
        check_function("attack", attack, "model", "x", "y", eps=eps)

    def attacked(size: float) -> Tensor:
        source = torch.Generator().manual_seed(0)
        own = partial(pgd, **ball, alpha=size / 10, steps=40, generator=source)
        return check_attacked("attack", (attack or own)(model, x.clone(), y, eps=size), x)

    with evaluation_mode(model):
        same, near, far = attacked(0.0), attacked(eps), attacked(_any_image(x, norm, bounds))
        scores = [fast.logits(model, of) for of in (x, near, _noisy(x, eps, norm, bounds, 0), far)]
    check_classes(scores[0], y)
    clean, attack_leads, noise_leads, last = (leads(logits, y) for logits in scores)
    moved, outside = (same - x).abs().max().item(), overstep(near, x, eps, **ball)
    down, right = _mean(attack_leads < clean), _mean(last > 0)
    under, beside = attack_leads.mean().item(), noise_leads.mean().item()
    told = f"true class leads by {under:.3g} under attack, {beside:.3g} under noise, on average"
    blind = "the attack goes astray, or the model hides its gradient"
    return [
        Check("eps 0 changes nothing", moved > 1e-4, f"pixels move by {moved:.2g}", "eps is lost"),
        Check("images stay in ball and range", bool(outside), outside or "they do", "project them"),
        Check("the loss rises", down < 0.9, f"true class leads by less on {down:.1%}", blind),
        Check("noise of the same size does less", under >= beside, told, blind),
        Check("with a huge eps nothing stands", right > 0.05, f"accuracy {right:.3f}", blind),
    ]


def overstep(x_adv: Tensor, x: Tensor, eps: float, norm: str, bounds: Bounds) -> str:
    """Say how an attack took more than it may; nothing if it did not."""
    change = (x_adv - x).flatten(1)
    size = (change.norm(dim=1) if norm == "l2" else change.abs().amax(1)).max()
    rounding = torch.finfo(x.dtype).eps * x.abs().max() * change.shape[1] ** 0.5
    if size > 1.0001 * eps + 4 * rounding:
        return f"changed an image by {size:.4g}, more than eps={eps:g}"
    if bounds is not None and ((x_adv < bounds[0]) | (x_adv > bounds[1])).any():
        return f"left the pixel range {bounds}"
    return ""


def _noisy(x: Tensor, eps: float, norm: str, bounds: Bounds, seed: int) -> Tensor:
    noise = BALLS[norm].steepest(uniform(x, torch.Generator().manual_seed(seed)))
    return project(x + eps * noise, x, eps, bounds, norm)


def _any_image(x: Tensor, norm: str, bounds: Bounds) -> float:
    """The budget that allows any image."""
    low, high = bounds or (x.min().item(), x.max().item())
    return (high - low) * (1.0 if norm == "linf" else math.sqrt(x[0].numel()))
