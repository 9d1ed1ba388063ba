"""AutoAttack: several strong attacks in a row, with no setting to get wrong."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.attacks.apgd import LOSSES, apgd
from advlib.attacks.common import budget, check_attack_input, indices, is_broken, rows
from advlib.attacks.square import square
from advlib.runtime import Bounds, check_count, evaluation_mode

Parts = dict[str, Callable[..., Tensor]]


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 50,
    queries: int = 5000,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """APGD on cross-entropy, APGD on the targeted DLR loss, then Square.

    Each attacks only the images that the ones before it left standing. An image that is wrong
    already is returned as it is.

    Three things differ from the paper. APGD takes 50 steps instead of 100: on the book's networks
    that leaves the same images standing, in half the time. FAB is left out: it minimises the size
    of the change instead of using the whole budget, costs as much as the rest together, and finds
    hardly an image that targeted APGD has not found. And `square` knows the linf ball only, so that
    with `norm="l2"` it takes no part. With fewer than four classes APGD uses the plain DLR loss,
    with two only cross-entropy.

    Reference: Croce and Hein, ICML 2020, arXiv:2003.01690.
    """
    classes = check_attack_input(model, x, y, bounds, norm, generator)
    check_count("steps", steps)
    check_count("queries", queries)
    budget("eps", eps, x)
    x_adv = x.detach().clone()
    with evaluation_mode(model):
        scores = engine.logits(model, x_adv)
        standing = indices(~is_broken(scores, y))
        for attack in parts(classes, norm, steps, queries, x.ndim == 4).values():
            if len(standing) == 0:
                break
            x_adv[standing] = attack(
                model,
                x[standing],
                y[standing],
                eps=rows(eps, standing),
                bounds=bounds,
                generator=generator,
            )
            scores = engine.logits(model, x_adv[standing])
            standing = standing[~is_broken(scores, y[standing])]
    return x_adv


def parts(classes: int, norm: str, steps: int, queries: int, images: bool) -> Parts:
    """The attacks that `autoattack` consists of, by name, still without their eps."""
    names = ["ce", "targeted-dlr" if classes >= LOSSES["targeted-dlr"][1] else "dlr"]
    found: Parts = {
        f"apgd-{name}": partial(apgd, loss=name, steps=steps, norm=norm)
        for name in names
        if classes >= LOSSES[name][1]
    }
    if norm == "linf" and images:
        found["square"] = partial(square, queries=queries)
    return found
