"""Accuracy with and without an attack, per image and over a whole set, and its uncertainty."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.runtime import (
    Attack,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_model,
    check_number,
    evaluation_mode,
)


def predict(model: nn.Module, x: Tensor, *, batch_size: int = 100) -> Tensor:
    """Return the class with the largest logit for each image of `x`, int64 (n,).

    Runs in evaluation mode, without gradients, `batch_size` images at a time.
    """
    check_model(model)
    check_images(x)
    check_count("batch_size", batch_size)
    with evaluation_mode(model):
        check_logits(model, x)
        return torch.cat([engine.logits(model, part).argmax(1) for part in x.split(batch_size)])


def correct(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    attack: Attack | None = None,
) -> Tensor:
    """Tell for each image whether `model` gets its (attacked) version right, bool (n,).

    `batches` is a `Batches`, a DataLoader, or any iterable of images (n, ...) and labels (n,).
    The order is that of `batches`: do not shuffle what you want to compare image by image.

    Raises:
        TypeError, ValueError: a batch is of the wrong type, shape or range, or there is none.
    """
    check_model(model)
    _check_attack(attack)
    results = []
    with evaluation_mode(model):
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise TypeError("batches must yield pairs (x, y): wrap x and y in advlib.Batches")
            x, y = batch
            check_images(x)
            check_labels(y, x)
            check_logits(model, x, y)
            x_adv = x if attack is None else attack(model, x, y)
            if not isinstance(x_adv, Tensor):
                raise TypeError(f"attack must return a tensor, got {type(x_adv).__name__}")
            if x_adv.shape != x.shape:
                raise ValueError(f"attack must return shape {x.shape}, got {x_adv.shape}")
            if not x_adv.isfinite().all():
                raise ValueError("attack must return finite images, got NaN or infinity")
            results.append(engine.logits(model, x_adv).argmax(1) == y)
    if not results:
        raise ValueError("batches must hold at least one batch")
    return torch.cat(results)


def accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    attack: Attack | None = None,
) -> float:
    """Fraction of all images that `model` gets right, under `attack` if one is given.

    Correct images are counted over all batches and divided once, by the number of all images:
    those that were wrong before the attack are not left out. Arguments and errors as in `correct`.
    """
    return _mean(correct(model, batches, attack=attack))


def robust_accuracy(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    attacks: Sequence[Attack],
) -> float:
    """Fraction of images that `model` gets right unattacked and under every one of `attacks`.

    The worst case is taken image by image, so it is at most the lowest of the accuracies. An image
    that one attack broke is not attacked again: put the cheap attacks first, and let the others
    stop at success (`early_exit=True`). `batches` is gone through once. Arguments and errors as in
    `correct`.
    """
    if not isinstance(attacks, Sequence):
        raise TypeError(f"attacks must be a list of attacks, got {type(attacks).__name__}")
    for attack in attacks:
        _check_attack(attack)
    survives = []
    for batch in batches:
        right = correct(model, [batch])
        for attack in attacks:
            if right.any():
                x, y = (part[right] for part in batch)
                right[right.clone()] = correct(model, [(x, y)], attack=attack)
        survives.append(right)
    if not survives:
        raise ValueError("batches must hold at least one batch")
    return _mean(torch.cat(survives))


def _check_attack(attack: Any) -> None:
    if attack is not None and not callable(attack):
        raise TypeError(f"attack must be callable, got {type(attack).__name__}")


def _mean(right: Tensor) -> float:
    return int(right.sum()) / len(right)


def wilson_interval(successes: int, total: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion; `z=1.96` gives 95 % confidence.

    It covers what other images of the same kind would give, not what other seeds would.

    Reference: Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    check_count("total", total)
    check_count("successes", successes, minimum=0)
    check_number("z", z)
    if successes > total:
        raise ValueError(f"successes must be at most total ({total}), got {successes}")
    p = successes / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    margin = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)
