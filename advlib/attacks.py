"""Gradient attacks. Each is a function `attack(model, x, y) -> x_adv` once its rest is fixed.

Shapes and units, the same for all: `x` is a floating tensor (n, c, h, w), or (n, features), with
pixels inside `bounds`; `y` is int64 (n,) and holds true labels, or target labels when
`targeted=True`; `eps` and `alpha` are in pixel units and take a number or a tensor (n,), one value
per image. The result is detached and has the shape, dtype, device and memory format of `x`. The
model's training flags, its parameters' gradients and torch's global random state stay as they were.
Without a `generator`, random numbers come from a generator of advlib's own, seeded at import.

All raise TypeError or ValueError naming the argument before any work is done.
"""

from typing import Any

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.runtime import (
    Bounds,
    check_bounds,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_model,
    check_number,
    evaluation_mode,
    uniform,
)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy with respect to its pixels, in the shape of `x`.

    The losses are summed, not averaged, so a row does not depend on the batch it came in.
    """
    _check(model, x, y)
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


def bim(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int,
    random_start: bool = False,
    targeted: bool = False,
    early_exit: bool = False,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Basic iterative method: `steps` sign steps of size `alpha`, each projected back.

    After every step the image is projected onto the eps-ball around `x` and onto `bounds`;
    the random start lies inside both. `bounds=None` leaves the pixel range open.

    With `early_exit=True` an image stays as it is from the moment it is broken (misclassified, or
    on target), which saves its further steps. That is all an accuracy needs to know, and it is
    the stronger test: without it an image may be broken on the way and right again at the end.

    Reference: Kurakin et al., 2017, arXiv:1607.02533.
    """
    _check(model, x, y, bounds)
    check_count("steps", steps)
    eps, alpha = _budget("eps", eps, x), _budget("alpha", alpha, x)
    x = x_adv = x.detach()
    uphill = -1 if targeted else 1
    with evaluation_mode(model):
        if random_start:
            x_adv = _project(x + eps * uniform(x, generator), x, eps, bounds)
        if early_exit:
            return _until_broken(model, x, x_adv, y, eps, alpha, steps, targeted, bounds)
        for _ in range(steps):
            step = alpha * engine.gradient(model, x_adv, y).sign()
            x_adv = _project(x_adv + uphill * step, x, eps, bounds)
    return x_adv


def _until_broken(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    eps: float | Tensor,
    alpha: float | Tensor,
    steps: int,
    targeted: bool,
    bounds: Bounds,
) -> Tensor:
    """The loop of `bim` from `x_adv` on, for the images that are still standing at each step."""
    x_adv = x_adv.clone()
    uphill = -1 if targeted else 1
    standing = torch.arange(len(x), device=x.device)
    for _ in range(steps):
        scores, gradient = engine.logits_and_gradient(model, x_adv[standing], y[standing])
        still = ~_is_broken(scores, y[standing], targeted)
        standing, gradient = standing[still], gradient[still]
        if len(standing) == 0:
            break
        here, step = x_adv[standing], _rows(alpha, standing) * gradient.sign()
        x_adv[standing] = _project(here + uphill * step, x[standing], _rows(eps, standing), bounds)
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
    random_start: bool = True,
    targeted: bool = False,
    early_exit: bool = False,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent: BIM from `restarts` random starts; any one's success counts.

    An image that some restart broke is returned as that restart left it; an image that none
    broke, as the last restart left it. Only images still standing are attacked again.
    `early_exit` is that of `bim`.

    Reference: Madry et al., ICLR 2018, arXiv:1706.06083.
    """
    _check(model, x, y, bounds)
    check_count("restarts", restarts)
    for name, value in (("eps", eps), ("alpha", alpha)):
        _budget(name, value, x)
    x_adv = x.detach().clone()
    standing = torch.arange(len(x), device=x.device)
    for _ in range(restarts):
        x_adv[standing] = bim(
            model,
            x[standing],
            y[standing],
            eps=_rows(eps, standing),
            alpha=_rows(alpha, standing),
            steps=steps,
            random_start=random_start,
            targeted=targeted,
            early_exit=early_exit,
            bounds=bounds,
            generator=generator,
        )
        with evaluation_mode(model):
            scores = engine.logits(model, x_adv[standing])
        standing = standing[~_is_broken(scores, y[standing], targeted)]
        if len(standing) == 0:
            break
    return x_adv


def _is_broken(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Whether the attack has what it wants of each image, bool (n,)."""
    hit = logits.argmax(1) == y
    return hit if targeted else ~hit


def _project(x_adv: Tensor, x: Tensor, eps: float | Tensor, bounds: Bounds) -> Tensor:
    """Nearest point to `x_adv` inside both the eps-ball around `x` and the pixel range."""
    x_adv = x + (x_adv - x).clamp(-eps, eps)  # type: ignore[arg-type]
    return x_adv if bounds is None else x_adv.clamp(*bounds)


def _check(model: Any, x: Any, y: Any, bounds: Any = None) -> None:
    check_model(model)
    check_bounds(bounds)
    check_images(x, bounds)
    check_labels(y, x)
    with evaluation_mode(model):
        check_logits(model, x, y)


def _budget(name: str, value: Any, x: Tensor) -> float | Tensor:
    """A number as it is; one value per image shaped to broadcast over that image's pixels."""
    if not isinstance(value, Tensor):
        return check_number(name, value)
    if value.shape != x.shape[:1]:
        raise ValueError(f"{name} must be a number or have shape ({len(x)},), got {value.shape}")
    value = value.detach().to(x)
    if not torch.isfinite(value).all() or value.min() < 0:
        raise ValueError(f"{name} must be finite and not negative for every image")
    return value.reshape(-1, *[1] * (x.ndim - 1))


def _rows(value: float | Tensor, rows: Tensor) -> float | Tensor:
    return value[rows.to(value.device)] if isinstance(value, Tensor) else value
