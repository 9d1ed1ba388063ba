"""Attacks that climb the cross-entropy along its gradient: FGSM, BIM, PGD, and SegPGD for maps."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib import fast
from advlib.attacks.common import BALLS, budget, check_attack_input, is_broken, project, rows
from advlib.checks import Bounds, check_classes, check_count
from advlib.runtime import evaluation_mode, uniform


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy with respect to its pixels, in the shape of `x`.

    A row does not depend on the batch it came in. For images in half precision it is float32.
    """
    x, y = check_attack_input(model, x, y, pixels=True)
    with evaluation_mode(model):
        return fast.gradient(model, x, y)[1]


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor | None = None,
    random_start: bool = False,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fast gradient sign method: one step of size `alpha` (default `eps`) inside the eps-ball.

    With `random_start=True` and `alpha=1.25 * eps` it is the attack of "fast" adversarial training
    (Wong et al., ICLR 2020, arXiv:2001.03994).
    Reference: Goodfellow et al., ICLR 2015, arXiv:1412.6572.
    """
    step = partial(bim, model, x, y, eps=eps, alpha=eps if alpha is None else alpha, steps=1)
    return step(random_start=random_start, targeted=targeted, bounds=bounds, generator=generator)


def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int,
    norm: str = "linf",
    random_start: bool = False,
    targeted: bool = False,
    early_exit: bool = False,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Basic iterative method: `steps` steps of size `alpha`, each projected back.

    A step follows the gradient's sign, or with `norm="l2"` the gradient itself, brought to length
    `alpha`. After it the image is projected onto the eps-ball around `x` and onto `bounds`; the
    random start lies inside both. `bounds=None` leaves the pixel range open.

    With `early_exit=True` an image stays as it is from the moment it is broken (misclassified, or
    on target). That saves steps, and it is the stronger test: without it an image may be broken on
    the way and right again at the end. With "linf" an image is also done once it is pixel for pixel
    where it was before: from there its steps repeat, and broke nothing (arXiv:2503.19347).
    Reference: Kurakin et al., 2017, arXiv:1607.02533.
    """
    once = partial(pgd, model, x, y, eps=eps, alpha=alpha, steps=steps, norm=norm, bounds=bounds)
    once = partial(once, targeted=targeted, early_exit=early_exit, generator=generator)
    return once(random_start=random_start)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int,
    restarts: int = 1,
    norm: str = "linf",
    random_start: bool = True,
    targeted: bool = False,
    early_exit: bool = False,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent: BIM from `restarts` random starts; any one's success counts.

    Only images still standing are attacked again: each is returned as the restart that broke it
    left it, or else the last one, as of most maps. `norm` and `early_exit` are those of `bim`.
    Reference: Madry et al., ICLR 2018, arXiv:1706.06083.
    """
    flags = {"random_start": random_start, "targeted": targeted, "early_exit": early_exit}
    x, y = check_attack_input(model, x, y, bounds, norm, generator, pixels=True, **flags)
    steps, restarts = check_count("steps", steps), check_count("restarts", restarts)
    eps, alpha = budget("eps", eps, x), budget("alpha", alpha, x)
    ball = BALLS[norm]

    def moved(here: Tensor, slopes: Tensor, which: Tensor) -> Tensor:
        step = rows(alpha, which) * ball.steepest(slopes).to(x.dtype)
        ahead = here - step if targeted else here + step
        return project(ahead, x[which], rows(eps, which), bounds, norm)

    def all_steps(here: Tensor, which: Tensor) -> Tensor:
        for k in range(steps):
            slopes = fast.gradient(model, here, y[which], check=k in (0, steps - 1))[1]
            here = moved(here, slopes, which)
        return here

    def until_broken(here: Tensor, which: Tensor) -> Tensor:
        left = torch.arange(len(here), device=x.device)
        here, seen = here.clone(), here
        for k in range(1, steps + 1):
            if len(left) == 0:  # all are broken, or repeat themselves
                break
            scores, slopes = fast.gradient(model, here[left], y[which[left]])
            still = ~is_broken(scores, y[which[left]], targeted)
            left, slopes = left[still], slopes[still]
            here[left] = moved(here[left], slopes, which[left])
            if norm == "linf":  # Brent's search for a cycle: where was it at a power of two?
                repeats = (here[left] == seen[left]).flatten(1).all(1)
                if k.bit_count() == 1:
                    seen = here.clone()
                left = left[~repeats]
        return here

    x_adv, standing = x.clone(), torch.arange(len(x), device=x.device)
    with evaluation_mode(model):
        for restart in range(restarts):
            here = x[standing]
            if random_start:
                start = here + rows(eps, standing) * ball.random(here, generator)
                here = project(start, here, rows(eps, standing), bounds, norm)
            here = until_broken(here, standing) if early_exit else all_steps(here, standing)
            x_adv[standing] = here
            if restart < restarts - 1:  # who knows after the last one has no use for it
                standing = standing[~is_broken(fast.logits(model, here), y[standing], targeted)]
            if len(standing) == 0:
                break
    return x_adv


def segpgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int,
    random_start: bool = True,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """PGD whose loss weighs pixels that are wrong already less than those that are still right.

    `y` are labels (n, h, w). In step t of T the loss of a wrong pixel weighs (t - 1) / 2T, that of
    a right one the rest of 1: at first only right ones count, at last nearly both alike.
    Reference: Gu et al., ECCV 2022, arXiv:2207.12391.
    """
    flags = {"pixels": True, "random_start": random_start}
    x, y = check_attack_input(model, x, y, bounds, generator=generator, **flags)
    steps = check_count("steps", steps)
    eps, alpha = budget("eps", eps, x), budget("alpha", alpha, x)
    start = x + eps * uniform(x, generator) if random_start else x
    here = project(start, x, eps, bounds, "linf")
    with evaluation_mode(model):
        for k in range(steps):
            loss = partial(_weighted, part=k / (2 * steps), check=k == 0)
            slopes = fast.gradient(model, here, y, loss, check=k in (0, steps - 1))[1]
            here = project(here + alpha * slopes.sign().to(x.dtype), x, eps, bounds, "linf")
    return here


def _weighted(scores: Tensor, y: Tensor, part: float, check: bool) -> Tensor:
    """Cross-entropy of each pixel, (n, h, w): times `part` where it is wrong, else the rest."""
    if check:
        check_classes(scores, y)
    losses = F.cross_entropy(scores, y, reduction="none")
    return torch.where(scores.argmax(1) != y, part * losses, (1 - part) * losses)
