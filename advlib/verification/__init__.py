"""Bounds that hold for every image of a box, and proofs of robustness from them.

Attacks bound robust accuracy from above: they may have missed something. These bounds are from
below: what they prove, no attack can break. They know `nn.Sequential` networks of `nn.Conv2d`,
`nn.Linear`, `nn.ReLU`, `nn.MaxPool2d`, `nn.Flatten` and `advlib.Normalize`.

The bounds hold for the network as it runs, in float32 and with its rounding, not only for its
formula: see `advlib.verification.layers`, also for what is not covered. Half precision, autocast
and hooks are refused.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.attacks import pgd
from advlib.attacks.common import check_attack_input, indices, is_broken
from advlib.runtime import (
    Attack,
    Bounds,
    check_attacked,
    check_choice,
    check_function,
    check_images,
    check_logits,
    check_model,
    check_number,
    evaluation_mode,
)
from advlib.verification.layers import Box, layers_of, least, propagate

METHODS = ("interval", "crown")
_BLOCK = 8  # images bounded at a time: a row of coefficients for each class takes memory


@dataclass(frozen=True)
class Verification:
    """What `verify` found, one entry per image.

    Attributes:
        verdicts: "verified" if no image of the ball is misclassified, "violated" if one was found,
            "unproven" if neither is known.
        counterexamples: for a violated image one of its ball that the model gets wrong; for the
            others the image itself. Shape of `x`.
        margins: lower bound, over the ball, of the lead of the true class's logit over the next
            one; float64 (n,). Above zero is a proof. NaN for violated images.
    """

    verdicts: list[str]
    counterexamples: Tensor
    margins: Tensor

    @property
    def verified(self) -> Tensor:
        """Which images are verified, bool (n,)."""
        return torch.tensor([verdict == "verified" for verdict in self.verdicts])

    @property
    def violated(self) -> Tensor:
        """Which images are violated, bool (n,)."""
        return torch.tensor([verdict == "violated" for verdict in self.verdicts])

    @property
    def certified_accuracy(self) -> float:
        """Fraction of all images that are verified; robust accuracy is at least this."""
        return self.verdicts.count("verified") / len(self.verdicts)

    def __str__(self) -> str:
        """The counts."""
        counts = [f"{self.verdicts.count(v)} {v}" for v in ("verified", "violated", "unproven")]
        return f"{len(self.verdicts)} images: {', '.join(counts)}"


def output_bounds(
    model: nn.Module, lower: Tensor, upper: Tensor, *, method: str = "crown"
) -> tuple[Tensor, Tensor]:
    """Bound the logits over all images between `lower` and `upper`, pixel by pixel.

    Args:
        model: a network of the layers named above.
        lower: images (n, ...), the smallest value of each pixel.
        upper: the largest values, in the same shape.
        method: "interval" passes intervals through the layers; "crown" bounds the network by
            linear functions of the pixels, which is tighter and takes longer. The lines around a
            ReLU rest on intervals, as in CROWN-IBP (Zhang et al., ICLR 2020, arXiv:1906.06316).

    Returns:
        Lower and upper bounds, float64 (n, classes).

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range, or the model has
            a layer that bounds are not known for.

    References: Gowal et al., ICCV 2019, arXiv:1810.12715; Zhang et al., NeurIPS 2018,
    arXiv:1811.00866.
    """
    check_model(model)
    check_choice("method", method, METHODS)
    check_images(lower, name="lower")
    check_images(upper, name="upper")
    if lower.shape != upper.shape or lower.dtype != upper.dtype or lower.device != upper.device:
        raise ValueError(
            f"upper must have shape, dtype and device of lower, got {tuple(upper.shape)}, "
            f"{upper.dtype}, {upper.device}"
        )
    if (lower > upper).any():
        raise ValueError("lower must not be above upper at any pixel")
    with evaluation_mode(model), torch.no_grad():
        classes = check_logits(model, lower, name="lower")
        layers = layers_of(model, lower)
        found = []
        for low, high in zip(lower.split(_BLOCK), upper.split(_BLOCK), strict=True):
            boxes = propagate(layers, Box(low.double(), high.double()))
            if method == "interval":
                found.append((boxes[-1].lower, boxes[-1].upper))
                continue
            rows = torch.eye(classes, dtype=torch.float64, device=low.device)
            rows = rows.expand(len(low), -1, -1)
            found.append((least(layers, boxes, rows), -least(layers, boxes, -rows)))
        lows, highs = zip(*found, strict=True)
        return torch.cat(lows), torch.cat(highs)


def verify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    method: str = "crown",
    attack: Attack | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Verification:
    """Prove for each image that no change up to `eps` per pixel breaks it, or find one that does.

    Args:
        model: a network of the layers named above.
        x: images (n, ...), inside `bounds`.
        y: true labels, int64 (n,).
        eps: size of the linf ball, in pixel units.
        method: see `output_bounds`.
        attack: searches for counterexamples; by default PGD, 20 steps from 3 random starts. What
            it returns is checked, also for its distance from `x`.
        bounds: pixel range; None leaves it open.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range, or the model has
            a layer that bounds are not known for.
    """
    check_attack_input(model, x, y, bounds)
    check_number("eps", eps)
    check_choice("method", method, METHODS)
    if attack is None:
        attack = partial(
            pgd,
            eps=eps,
            alpha=eps / 8,
            steps=20,
            restarts=3,
            early_exit=True,
            bounds=bounds,
            generator=torch.Generator().manual_seed(0),
        )
    check_function("attack", attack)
    x, y = x.detach(), y.detach()
    with evaluation_mode(model):
        examples, verdicts = x.clone(), ["verified"] * len(x)
        margins = margin_bounds(model, x, y, eps, method="interval", bounds=bounds)
        # intervals cost less than an attack, and that less than CROWN; NaN is no proof
        left = indices(~(margins > 0))
        if len(left):
            tried = _counterexamples(model, x[left], y[left], eps, attack, bounds)
            broken = is_broken(engine.logits(model, tried), y[left])
            examples[left[broken]] = tried[broken]
            margins[left[broken]] = torch.nan
            for i in left[broken].tolist():
                verdicts[i] = "violated"
            left = left[~broken]
        if len(left) and method != "interval":
            margins[left] = margin_bounds(
                model, x[left], y[left], eps, method=method, bounds=bounds
            )
        for i in left[~(margins[left] > 0)].tolist():
            verdicts[i] = "unproven"
    return Verification(verdicts, examples, margins)


def margin_bounds(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    method: str = "crown",
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """Lower bound, over each image's ball, of the lead of its true class; float64 (n,).

    Arguments and errors as in `verify`, of which this is the part that proves.
    """
    check_attack_input(model, x, y, bounds)
    check_number("eps", eps)
    check_choice("method", method, METHODS)
    with evaluation_mode(model), torch.no_grad():
        layers = layers_of(model, x)
        found = []
        for images, labels in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
            boxes = propagate(layers, _ball(images.double(), eps, bounds, x.dtype))
            classes = boxes[-1].lower.shape[1]
            rows = _leads(labels, classes, torch.float64)
            if method == "interval":
                leads = least(layers[-1:], boxes[-2:], rows)
            else:
                leads = least(layers, boxes, rows)
            found.append(leads.scatter(1, labels.unsqueeze(1), torch.inf).min(1).values)
        return torch.cat(found)


def interval_logits(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, bounds: Bounds = (0.0, 1.0)
) -> Tensor:
    """Worst logits that intervals allow over each image's ball, up to a common constant.

    The true class has zero, every other class as much as it may lead by. Differentiable in the
    weights: for training (`advlib.losses.interval_loss`). Shape (n, classes). Arguments and errors
    as in `verify`.
    """
    check_attack_input(model, x, y, bounds)
    check_number("eps", eps)
    layers = layers_of(model, x, x.dtype)
    boxes = propagate(layers, _ball(x, eps, bounds, x.dtype))
    return -least(layers[-1:], boxes[-2:], _leads(y, boxes[-1].lower.shape[1], x.dtype))


def _ball(x: Tensor, eps: float, bounds: Bounds, dtype: torch.dtype) -> Box:
    """The linf ball and the pixel range, wider by what rounding to `dtype` may add to a change."""
    reach = eps + 2 * torch.finfo(dtype).eps * (x.abs() + eps)
    lower, upper = x - reach, x + reach
    if bounds is None:
        return Box(lower, upper)
    rounded = torch.tensor(bounds, dtype=dtype).tolist()
    low, high = min(bounds[0], rounded[0]), max(bounds[1], rounded[1])
    return Box(lower.clamp(low, high), upper.clamp(low, high))


def _leads(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Rows that turn logits into the leads of class `y` over each class, (n, classes, classes)."""
    unit = torch.eye(classes, dtype=dtype, device=y.device)
    return unit[y].unsqueeze(1) - unit


def _counterexamples(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, attack: Attack, bounds: Bounds
) -> Tensor:
    """What `attack` makes of each image; the image itself where that is too far, or not needed."""
    tried = attack(model, x, y)
    check_attacked("attack", tried, x)
    box = _ball(x.double(), eps, bounds, x.dtype)
    inside = ((tried >= box.lower) & (tried <= box.upper)).flatten(1).all(1)
    counts = inside & ~is_broken(engine.logits(model, x), y)
    return torch.where(counts.view(-1, *[1] * (x.ndim - 1)), tried, x)
