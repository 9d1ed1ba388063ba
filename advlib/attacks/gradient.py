"""Attacks that climb the cross-entropy along its gradient: FGSM, BIM, PGD."""

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.attacks.common import (
    BALLS,
    Budget,
    budget,
    check_attack_input,
    is_broken,
    project,
    rows,
)
from advlib.runtime import Bounds, check_count, check_number, evaluation_mode, uniform


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy with respect to its pixels, in the shape of `x`.

    The losses are summed, not averaged, so a row does not depend on the batch it came in.
    """
    check_attack_input(model, x, y)
    with evaluation_mode(model):
        return engine.gradient(model, x, y)


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

    With `random_start=True` and `alpha=1.25 * eps` it is the attack of "fast" adversarial training.

    References: Goodfellow et al., ICLR 2015, arXiv:1412.6572; Wong et al., ICLR 2020,
    arXiv:2001.03994.
    """
    return bim(
        model,
        x,
        y,
        eps=eps,
        alpha=eps if alpha is None else alpha,
        steps=1,
        random_start=random_start,
        targeted=targeted,
        bounds=bounds,
        generator=generator,
    )


def n_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor | None = None,
    noise: float = 2.0,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise of size `noise` times eps, then one signed step of `alpha` (default eps): N-FGSM.

    It is made for training, not for testing: nothing is clipped to the eps-ball, so that the
    change may reach `noise * eps + alpha`. With `bounds` pixels stay in their range.

    Reference: de Jorge et al., NeurIPS 2022, arXiv:2202.01181.
    """
    check_attack_input(model, x, y, bounds, generator=generator)
    check_number("noise", noise)
    eps = budget("eps", eps, x)
    alpha = eps if alpha is None else budget("alpha", alpha, x)

    def inside(image: Tensor) -> Tensor:
        return image if bounds is None else image.clamp(*bounds)

    noisy = inside(x.detach() + noise * eps * uniform(x, generator))
    with evaluation_mode(model):
        return inside(noisy + alpha * engine.gradient(model, noisy, y).sign())


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
    on target), which saves its further steps. That is all an accuracy needs to know, and it is
    the stronger test: without it an image may be broken on the way and right again at the end.

    Reference: Kurakin et al., 2017, arXiv:1607.02533.
    """
    flags = {"random_start": random_start, "targeted": targeted, "early_exit": early_exit}
    check_attack_input(model, x, y, bounds, norm, generator, **flags)
    check_count("steps", steps)
    eps, alpha = budget("eps", eps, x), budget("alpha", alpha, x)
    ball = BALLS[norm]
    x = x_adv = x.detach()

    def moved(x_adv: Tensor, slopes: Tensor, x: Tensor, eps: Budget, alpha: Budget) -> Tensor:
        step = alpha * ball.steepest(slopes)
        return project(x_adv - step if targeted else x_adv + step, x, eps, bounds, norm)

    with evaluation_mode(model):
        if random_start:
            x_adv = project(x + eps * ball.random(x, generator), x, eps, bounds, norm)
        if not early_exit:
            for _ in range(steps):
                x_adv = moved(x_adv, engine.gradient(model, x_adv, y), x, eps, alpha)
            return x_adv
        x_adv, standing = x_adv.clone(), torch.arange(len(x), device=x.device)
        for _ in range(steps):
            scores, slopes = engine.logits_and_gradient(model, x_adv[standing], y[standing])
            still = ~is_broken(scores, y[standing], targeted)
            standing, slopes = standing[still], slopes[still]
            if len(standing) == 0:
                break
            budgets = rows(eps, standing), rows(alpha, standing)
            x_adv[standing] = moved(x_adv[standing], slopes, x[standing], *budgets)
    return x_adv


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

    An image that some restart broke is returned as that restart left it; an image that none
    broke, as the last restart left it. Only images still standing are attacked again.
    `norm` and `early_exit` are those of `bim`.

    Reference: Madry et al., ICLR 2018, arXiv:1706.06083.
    """
    check_attack_input(model, x, y, bounds, norm)
    check_count("restarts", restarts)
    for name, value in (("eps", eps), ("alpha", alpha)):
        budget(name, value, x)
    x_adv = x.detach().clone()
    standing = torch.arange(len(x), device=x.device)
    for _ in range(restarts):
        x_adv[standing] = bim(
            model,
            x[standing],
            y[standing],
            eps=rows(eps, standing),
            alpha=rows(alpha, standing),
            steps=steps,
            norm=norm,
            random_start=random_start,
            targeted=targeted,
            early_exit=early_exit,
            bounds=bounds,
            generator=generator,
        )
        with evaluation_mode(model):
            scores = engine.logits(model, x_adv[standing])
        standing = standing[~is_broken(scores, y[standing], targeted)]
        if len(standing) == 0:
            break
    return x_adv
