"""Accuracy with and without an attack, per image and over a whole set, and its uncertainty."""

import math
from collections.abc import Sequence
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
    check_flag,
    check_images,
    check_labels,
    check_list,
    check_model,
    check_number,
)
from advlib.data import Pairs, checked_pairs
from advlib.runtime import evaluation_mode


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Return the class of largest logit, in evaluation mode, int64 (n,), or (n, h, w)."""
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

    With a label for each pixel it tells so of each pixel, bool (n, h, w), of images of one size.

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
        for x, y in checked_pairs(batches, device):
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
    """Fraction of all images, or pixels, that `model` gets right, under `attack` if one is given.

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
    is gone through once. Labels are (n,); else arguments and errors as in `correct`.
    """
    check_model(model)
    check_list("attacks", attacks, "attacks")
    for i, attack in enumerate(attacks):
        check_attack(f"attacks[{i}]", attack)
    survives = []
    with evaluation_mode(model):
        for x, y in checked_pairs(batches, device):
            y = check_labels(y, x)  # an image is lost or not
            right, _ = _right(model, x, y)
            for i, attack in enumerate(attacks):
                if right.any():
                    still, _ = _right(model, x[right], y[right], attack, f"attacks[{i}]")
                    right[right.clone()] = still
            survives.append(right)
    return _mean(torch.cat(survives))


def mean_iou(
    model: nn.Module,
    batches: Pairs,
    *,
    attack: Attack | None = None,
    device: str | torch.device | None = None,
) -> float:
    """Mean over the classes of intersection over union, under `attack` if one is given.

    For labels (n, h, w): the pixels that are of a class and answered so, over those that are either
    of the two. Both are counted over the whole set; a class counts that occurs in labels or
    answers, and no label means "ignore". It is the mean Jaccard index (1901). Arguments and errors
    as in `correct`.
    """
    check_model(model)
    if attack is not None:
        check_attack("attack", attack)
    pairs: Any = 0
    with evaluation_mode(model):
        for x, y in checked_pairs(batches, device):
            scores, _ = _scores(model, x, y, attack)
            k = scores.shape[1]
            pairs += (k * y + scores.argmax(1)).flatten().bincount(minlength=k * k)
    table = pairs.view(k, k).cpu().double()
    both, either = table.diag(), table.sum(0) + table.sum(1) - table.diag()
    return float((both / either)[either > 0].mean())


def _scores(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None = None, name: str = "attack"
) -> tuple[Tensor, Tensor]:
    """The logits of images once they are attacked, and these images."""
    if attack is not None:
        x = check_attacked(name, attack(model, x.clone(), y), x)  # it may work in place
    scores = fast.logits(model, x)
    check_classes(scores, y)
    return scores, x


def _right(model: nn.Module, x: Tensor, y: Tensor, *attack: Any) -> tuple[Tensor, Tensor]:
    """Which images `model` gets right once they are attacked, and these images."""
    scores, x = _scores(model, x, y, *attack)
    return scores.argmax(1) == y, x


def _mean(right: Tensor) -> float:
    return int(right.sum()) / right.numel()


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
