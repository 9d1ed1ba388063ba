"""Bounds that hold for every image of a box, and proofs of robustness from them.

What they prove, no attack can break. They know `nn.Sequential` networks, in evaluation mode, of
`Conv2d`, `Linear`, `BatchNorm1d` and `BatchNorm2d`, `ReLU`, `MaxPool2d` without padding,
`AvgPool2d`, `Flatten`, `Dropout`, `Dropout2d`, `Identity` and `advlib.Normalize`. They hold for the
network as it runs, in float32 with its rounding: `advlib.verification.layers` says how, and what is
not covered. Refused are half precision, autocast, and what may compute something else than the
layers say: hooks, parametrizations, a replaced `forward`, a compiled module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advlib import checks, fast
from advlib.attacks import pgd
from advlib.attacks.common import check_attack_input, indices, is_broken
from advlib.checks import Attack, Bounds
from advlib.runtime import evaluation_mode
from advlib.verification.layers import Box, layers_of, least, propagate

METHODS = ("interval", "crown")
_BLOCK = 8  # images bounded at a time: a row of coefficients for each class takes memory


@dataclass(frozen=True)
class Verification:
    """What `verify` found, one entry per image.

    Attributes:
        verdicts: "verified" if no image of the ball is misclassified, "violated" if one was found,
            "unproven" if neither is known.
        counterexamples: of a violated image, one of its ball that is misclassified; else itself.
        margins: lower bound, over the ball, of the lead of the true class's logit over the next;
            float64 (n,). Above zero is a proof. NaN for violated images.
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

    `lower` and `upper` are images (n, ...) of one shape. With `method="interval"` intervals pass
    through the layers; "crown" bounds the network by linear functions of the pixels, which is
    tighter and takes longer. The lines around a ReLU rest on intervals, as in CROWN-IBP (Zhang et
    al., ICLR 2020, arXiv:1906.06316). Returns lower and upper bounds, float64 (n, classes).

    Raises TypeError or ValueError for a wrong argument, or a model whose layers are not known or
    changed; FloatingPointError for NaN or infinity in its weights or output.
    References: Gowal et al., arXiv:1810.12715; Zhang et al., NeurIPS 2018, arXiv:1811.00866.
    """
    checks.check_model(model)
    checks.check_choice("method", method, METHODS)
    lower = checks.check_images(lower, name="lower")
    upper = checks.check_images(upper, name="upper")
    like, given = ((tuple(side.shape), side.dtype, side.device) for side in (lower, upper))
    if given != like:
        raise ValueError(f"upper must have shape, dtype and device of lower {like}, got {given}")
    if (lower > upper).any():
        raise ValueError("lower must not be above upper at any pixel")
    with evaluation_mode(model), torch.no_grad():
        found = _proven(model, lower, lambda i: Box(lower[i], upper[i]), method)
    lows, highs = found.chunk(2, 1)
    return lows, -highs


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

    `x` are images (n, ...) inside `bounds`, if given, `y` their true labels, int64 (n,); `eps` is
    the size of the linf ball in pixel units. `attack` searches for counterexamples; by default PGD,
    20 steps from 3 random starts. `method` and errors as in `output_bounds`.
    """
    x, y = _checked(model, x, y, eps, method, bounds)
    if attack is None:
        search = partial(pgd, alpha=eps / 8, steps=20, restarts=3, early_exit=True)
        source = torch.Generator().manual_seed(0)
        attack = partial(search, eps=eps, bounds=bounds, generator=source)
    checks.check_attack("attack", attack)
    with evaluation_mode(model):
        prove = partial(margin_bounds, model, eps=eps, bounds=bounds)
        margins = prove(x, y, method="interval")
        # intervals cost less than an attack, and that less than CROWN
        left = indices(margins <= 0)
        examples, broken = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        if len(left):
            images, labels = x[left], y[left]
            tried = attack(model, images.clone(), labels)
            checks.check_attacked("attack", tried, images)
            ball = _ball(images.double(), eps, bounds, x.dtype)
            inside = ((tried >= ball.lower) & (tried <= ball.upper)).flatten(1).all(1)
            wrong = is_broken(fast.logits(model, images.clone()), labels)
            hit = inside & ~wrong & is_broken(fast.logits(model, tried.clone()), labels)
            examples[left[hit]] = tried[hit].detach()
            broken[left] = hit | wrong
            left = left[~broken[left]]
        if len(left) and method != "interval":
            margins[left] = prove(x[left], y[left], method=method)
    margins[broken] = torch.nan
    pairs = zip(broken.tolist(), (margins > 0).tolist(), strict=True)
    verdicts = ["violated" if b else "verified" if safe else "unproven" for b, safe in pairs]
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
    """Lower bound, over each image's ball, of its true class's lead, float64 (n,); see `verify`."""
    x, y = _checked(model, x, y, eps, method, bounds)
    with evaluation_mode(model), torch.no_grad():
        leads = _proven(model, x, lambda i: _ball(x[i].double(), eps, bounds, x.dtype), method, y)
    return leads.scatter(1, y.unsqueeze(1), torch.inf).amin(1)


def interval_logits(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, bounds: Bounds = (0.0, 1.0)
) -> Tensor:
    """Worst logits (n, classes) that intervals allow over each ball, up to a common constant.

    The true class has zero, every other one as much as it may lead by in evaluation mode. They are
    differentiable in the weights, for training. Arguments and errors as in `verify`.
    """
    x, y = _checked(model, x, y, eps, "interval", bounds)
    layers = layers_of(model, x, x.dtype)
    try:
        boxes = propagate(layers, _ball(x, eps, bounds, x.dtype))
    except RuntimeError as error:
        if checks.is_out_of_memory(error):
            raise
        raise ValueError(f"x must be images the model takes, got {tuple(x.shape)}") from error
    worst = -least(layers[-1:], boxes[-2:], _rows(boxes[-1].lower, y))
    checks.refuse_nan(worst)
    return worst


def _checked(model: Any, x: Any, y: Any, eps: Any, method: Any, bounds: Any) -> list[Tensor]:
    checks.check_number("eps", eps)
    checks.check_choice("method", method, METHODS)
    return list(check_attack_input(model, x, y, bounds))


def _proven(
    model: nn.Module, x: Tensor, box: Callable[[slice], Box], method: str, y: Any = None
) -> Tensor:
    """Lower bounds, or minus infinity, of the functions in `_rows` over a box at each of `x`."""
    layers, logits = layers_of(model, x), fast.logits(model, x.clone()).double()
    if not all(t.isfinite().all() for t in (logits, *model.parameters(), *model.buffers())):
        raise FloatingPointError("model returned NaN or infinity, or has such weights")
    other, image = ValueError("model does not compute what its layers say"), x[:1].double()
    low, high, _ = propagate(layers, Box(image, image))[-1]  # the closest look, at one image
    if low.shape != logits[:1].shape or ((logits[:1] < low) | (logits[:1] > high)).any():
        raise other
    found = []
    for part in (slice(i, i + _BLOCK) for i in range(0, len(x), _BLOCK)):
        boxes = propagate(layers, Box(*(side.double() for side in box(part)[:2])))
        rows = _rows(boxes[-1].lower, None if y is None else y[part])
        # by intervals too, the last layer takes the rows back: equal terms of its logits cancel
        first = len(layers) - 1 if method == "interval" else 0
        bound = least(layers[first:], boxes[first:], rows)
        found.append(torch.where(bound.isnan(), -torch.inf, bound))
        if (found[-1] > (rows @ logits[part].unsqueeze(2)).squeeze(2)).any():
            raise other
    return torch.cat(found)


def _rows(logits: Tensor, y: Tensor | None) -> Tensor:
    """Rows (n, m, classes) that give each logit and its negative; with `y` that class's leads."""
    if logits.ndim != 2:
        raise ValueError(f"model must return logits (n, classes), got {tuple(logits.shape)}")
    classes = logits.shape[1]
    unit = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    if y is None:
        return torch.cat([unit, -unit]).expand(len(logits), -1, -1)
    if y.max() >= classes:
        raise ValueError(f"y must be below the model's {classes} classes, got {int(y.max())}")
    return unit[y].unsqueeze(1) - unit


def _ball(x: Tensor, eps: float, bounds: Bounds, dtype: torch.dtype) -> Box:
    """The linf ball and the pixel range, wider by what rounding to `dtype` may add to a change."""
    reach = eps + 2 * torch.finfo(dtype).eps * (x.abs() + eps)
    lower, upper = x - reach, x + reach
    if bounds is None:
        return Box(lower, upper)
    rounded = torch.tensor(bounds, dtype=dtype).tolist()
    low, high = min(bounds[0], rounded[0]), max(bounds[1], rounded[1])
    return Box(lower.clamp(low, high), upper.clamp(low, high))
