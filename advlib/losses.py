"""Training losses that are more than cross-entropy on attacked images: for `fit(loss=...)`.

A loss is a function `loss(model, x, y, progress) -> scalar` once its rest is fixed; `progress` runs
from 0 at the first iteration to 1 after the last. Each one here brings its own attack, so leave
`fit`'s `attack` out. They call `model` in the mode it is in, except within their attacks, and raise
TypeError or ValueError for an argument of the wrong type or range.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib import fast
from advlib.attacks.common import check_attack_input, project
from advlib.checks import Bounds, called, check_classes, check_count, check_number
from advlib.runtime import evaluation_mode, uniform
from advlib.verification import interval_logits

# between these parts of training the budget of `interval_loss` grows from nothing to its full size
WARM_UP, FULL_SIZE = 0.1, 0.6


def trades_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    progress: float = 0.0,
    *,
    eps: float,
    alpha: float,
    steps: int = 10,
    beta: float = 6.0,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy of the clean images, plus `beta` times how far an attack moves the output.

    That distance is the Kullback-Leibler divergence KL(p(x) || p(x_adv)), and the attack, `steps`
    sign steps of `alpha` from close to `x`, makes it large. A larger `beta` costs clean accuracy.
    Reference: Zhang et al., ICML 2019, arXiv:1901.08573.
    """
    check_number("progress", progress, maximum=1)
    for name, value in (("eps", eps), ("alpha", alpha), ("beta", beta)):
        check_number(name, value)
    x, y = check_attack_input(model, x, y, bounds, generator=generator, pixels=True)
    steps = check_count("steps", steps)
    with evaluation_mode(model):
        scores = fast.logits(model, x)
        check_classes(scores, y)
        clean = scores.log_softmax(1)
        # at x itself the divergence is smallest and has no slope
        x_adv = project(x + eps / 100 * uniform(x, generator), x, eps, bounds, "linf")
        for _ in range(steps):
            _, slopes = fast.gradient(model, x_adv, clean, _divergence)
            x_adv = project(x_adv + alpha * slopes.sign().to(x.dtype), x, eps, bounds, "linf")
    scores = model(x)
    moved = _divergence(model(x_adv), scores.log_softmax(1)).mean()
    return F.cross_entropy(scores, y) + beta * moved


def _divergence(scores: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || softmax(scores)) of each row; of log p, as p itself may underflow."""
    return F.kl_div(scores.log_softmax(1), log_p, reduction="none", log_target=True).sum(1)


def interval_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    progress: float = 0.0,
    *,
    eps: float,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """Half cross-entropy of the clean images, half of the worst logits that intervals allow.

    Both the budget and the share of the second half grow with `progress`, over the middle part of
    training, as an untrained network's bounds are too wide to learn from. The result is a network
    whose robustness `advlib.verify` can prove. Raises ValueError for a layer without known bounds.
    Reference: Gowal et al., ICCV 2019, arXiv:1810.12715.
    """
    eps, progress = check_number("eps", eps), check_number("progress", progress, maximum=1)
    x, y = check_attack_input(model, x, y, bounds)
    grown = min(max((progress - WARM_UP) / (FULL_SIZE - WARM_UP), 0.0), 1.0)
    worst = interval_logits(model, x, y, eps=grown * eps, bounds=bounds)
    share = grown / 2
    return (1 - share) * F.cross_entropy(called(model, x), y) + share * F.cross_entropy(worst, y)
