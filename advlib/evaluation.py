"""Accuracy with and without an attack, per image and over a whole set, and its uncertainty."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.runtime import (
    Attack,
    check_attacked,
    check_count,
    check_function,
    check_images,
    check_labels,
    check_list,
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
        return torch.cat([_answers(model, part) for part in x.split(batch_size)])


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
    if attack is not None:
        check_function("attack", attack)
    with evaluation_mode(model):
        return torch.cat([_right(model, x, y, attack) for x, y in _checked(model, batches)])


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
    check_model(model)
    check_list("attacks", attacks, "attacks")
    for i, attack in enumerate(attacks):
        check_function(f"attacks[{i}]", attack)
    survives = []
    with evaluation_mode(model):
        for x, y in _checked(model, batches):
            right = _right(model, x, y)
            for i, attack in enumerate(attacks):
                if right.any():
                    still = _right(model, x[right], y[right], attack, f"attacks[{i}]")
                    right[right.clone()] = still
            survives.append(right)
    return _mean(torch.cat(survives))


def _checked(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each batch once it is checked."""
    try:
        pairs = iter(batches)
    except TypeError as error:
        given = type(batches).__name__
        raise TypeError(f"batches must be an iterable of pairs (x, y), got {given}") from error
    batch = None
    for batch in pairs:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError("batches must yield pairs (x, y): wrap x and y in advlib.Batches")
        x, y = batch
        check_images(x)
        check_labels(y, x)
        check_logits(model, x, y)
        yield x, y
    if batch is None:
        raise ValueError("batches must hold at least one batch")


def _right(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None = None, name: str = "attack"
) -> Tensor:
    """Which images `model` gets right once they are attacked."""
    if attack is not None:
        x_adv = attack(model, x, y)
        check_attacked(name, x_adv, x)
        x = x_adv
    return _answers(model, x) == y


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """The class that `model` takes each image for."""
    scores = engine.logits(model, x)
    if len(scores) != len(x):  # one answer for a whole batch would pass for that of each image
        raise ValueError(f"model must return {len(x)} rows for {len(x)} images, got {len(scores)}")
    return scores.argmax(1)


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
