"""Accuracy with and without an attack, per image and over a whole set, and its uncertainty."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advlib import fast
from advlib.checks import (
    Attack,
    check_attack,
    check_attacked,
    check_classes,
    check_count,
    check_device,
    check_flag,
    check_images,
    check_labels,
    check_list,
    check_model,
    check_number,
    check_tensor,
)
from advlib.runtime import evaluation_mode

Pairs = Iterable[tuple[Tensor, Tensor]]


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Return each image's class of largest logit, in evaluation mode, int64 (n,)."""
    check_model(model)
    x = check_images(x)
    with evaluation_mode(model):
        return fast.logits(model, x).argmax(1)


def correct(
    model: nn.Module,
    batches: Pairs,
    *,
    attack: Attack | None = None,
    device: str | torch.device | None = None,
    with_images: bool = False,
) -> Any:
    """Tell for each image whether `model` gets its (attacked) version right, bool (n,).

    `batches` is a `Batches`, a DataLoader, or any iterable of images (n, ...) and labels (n,); they
    are moved to `device` if it is given. Their order is kept: do not shuffle what you want to
    compare. With `with_images` the result is a pair: this, and the images that the model was shown.
    Raises TypeError or ValueError if there is no batch, a wrong one, or one the model does not
    take; FloatingPointError if the model returns NaN.
    """
    check_model(model)
    check_flag("with_images", with_images)
    if attack is not None:
        check_attack("attack", attack)
    rights, images = [], []
    with evaluation_mode(model):
        for x, y in _checked(batches, device):
            right, x = _right(model, x, y, attack)
            rights.append(right)
            if with_images:
                images.append(x)
    return (torch.cat(rights), torch.cat(images)) if with_images else torch.cat(rights)


def accuracy(
    model: nn.Module,
    batches: Pairs,
    *,
    attack: Attack | None = None,
    device: str | torch.device | None = None,
) -> float:
    """Fraction of all images that `model` gets right, under `attack` if one is given.

    Images that were wrong before the attack count as wrong. Arguments and errors as in `correct`.
    """
    return _mean(correct(model, batches, attack=attack, device=device))


def robust_accuracy(
    model: nn.Module,
    batches: Pairs,
    *,
    attacks: Sequence[Attack],
    device: str | torch.device | None = None,
) -> float:
    """Fraction of images that `model` gets right unattacked and under every one of `attacks`.

    The worst case is taken image by image. An image that one attack broke is not attacked again:
    put the cheap attacks first, and let the others stop at success (`early_exit=True`). `batches`
    is gone through once. Arguments and errors as in `correct`.
    """
    check_model(model)
    check_list("attacks", attacks, "attacks")
    for i, attack in enumerate(attacks):
        check_attack(f"attacks[{i}]", attack)
    survives = []
    with evaluation_mode(model):
        for x, y in _checked(batches, device):
            right, _ = _right(model, x, y)
            for i, attack in enumerate(attacks):
                if right.any():
                    still, _ = _right(model, x[right], y[right], attack, f"attacks[{i}]")
                    right[right.clone()] = still
            survives.append(right)
    return _mean(torch.cat(survives))


def checked_pair(batch: Any, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """A batch as images and labels on `device`, or where they are."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError("batches must yield pairs (x, y): wrap x and y in advlib.Batches")
    x, y = check_images(batch[0]), batch[1]
    if device is not None:
        x = x.to(device)
        if isinstance(y, Tensor):
            check_tensor("y", y)
            y = y.to(device)
    return x, check_labels(y, x)


def _checked(batches: Any, device: Any) -> Iterator[tuple[Tensor, Tensor]]:
    place = None if device is None else check_device("device", device)
    if not isinstance(batches, Iterable):
        given = type(batches).__name__
        raise TypeError(f"batches must be an iterable of pairs (x, y), got {given}")
    batch = None
    for batch in batches:
        yield checked_pair(batch, place)
    if batch is None:
        raise ValueError("batches must hold at least one batch")


def _right(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None = None, name: str = "attack"
) -> tuple[Tensor, Tensor]:
    """Which images `model` gets right once they are attacked, and these images."""
    if attack is not None:
        x = check_attacked(name, attack(model, x.clone(), y), x)  # it may work in place
    scores = fast.logits(model, x)
    check_classes(scores, y)
    return scores.argmax(1) == y, x


def _mean(right: Tensor) -> float:
    return int(right.sum()) / len(right)


def wilson_interval(successes: int, total: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion; `z=1.96` gives 95 % confidence.

    It covers what other images of the same kind would give, not what other seeds would.
    Reference: Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    total = check_count("total", total)
    successes = check_count("successes", successes, minimum=0)
    z = check_number("z", z, maximum=1e6)
    if successes > total:
        raise ValueError(f"successes must be at most total ({total}), got {successes}")
    p = successes / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    margin = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)
