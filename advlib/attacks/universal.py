"""One change for all images: a universal perturbation, and a patch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from advlib import fast
from advlib.attacks.common import check_attack_input, check_pictures
from advlib.attacks.square import _corner
from advlib.checks import check_count, check_images, check_model, check_number, check_type
from advlib.data import Pairs, checked_pairs
from advlib.runtime import draw, evaluation_mode, source_of

Part = Callable[[Tensor], Tensor]


def universal(
    model: nn.Module,
    batches: Pairs,
    *,
    eps: float,
    alpha: float,
    epochs: int,
    target: int | None = None,
) -> Tensor:
    """One change (1, ...), of at most `eps` per pixel, that raises the loss of all images.

    Each batch gives a step of `alpha` along the sign of its images' summed gradient, the first one
    from no change. With `target` steps lower the loss of that class. `added` puts it on images.
    References: Moosavi-Dezfooli et al., CVPR 2017, arXiv:1610.08401; by gradients Shafahi et al.,
    AAAI 2020, arXiv:1811.11304, who also cap each image's loss.
    """
    eps = check_number("eps", eps)

    def put(x: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor, Part]:
        change = torch.zeros_like(x[:1]) if change is None else change
        return change, x.add(change.to(x)).clamp(0, 1), lambda slopes: slopes

    return _trained(model, batches, put, (-eps, eps), alpha, epochs, target)


def patch(
    model: nn.Module,
    batches: Pairs,
    *,
    size: int,
    alpha: float,
    epochs: int,
    corner: tuple[int, int] | None = None,
    target: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A square (1, c, size, size) of values in [0, 1] that misleads wherever it is `pasted`.

    It is trained as `universal` is, from grey, on images (n, c, h, w), at the same `corner`.
    Reference: Brown et al., 2017, arXiv:1712.09665.
    """
    size = check_count("size", size)
    _check_place(corner, generator)

    def put(x: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor, Part]:
        at = _corners(x, size, corner, generator)
        change = x.new_full((1, x.shape[1], size, size), 0.5) if change is None else change
        return change, _covered(x, change, at), lambda slopes: torch.stack(_parts(slopes, at, size))

    return _trained(model, batches, put, (0.0, 1.0), alpha, epochs, target)


def added(model: nn.Module, x: Tensor, y: Tensor, *, change: Tensor) -> Tensor:
    """Images in [0, 1] plus one `change` (1, ...), clipped: an attack that asks `model` nothing."""
    x, y = check_attack_input(model, x, y, (0.0, 1.0), pixels=True)
    change = check_images(change, name="change").to(x)
    if change.shape != x[:1].shape:
        raise ValueError(f"change must have shape {(1, *x.shape[1:])}, got {tuple(change.shape)}")
    return x.add(change).clamp(0, 1)


def pasted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    patch: Tensor,
    corner: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images (n, c, h, w) in [0, 1] with a `patch` (1, c, size, size) on each, over what was there.

    Its upper left pixel lies at `corner`, (row, column) from 0, or by default at a random place,
    another one on each image. Like `added` it asks `model` nothing.
    """
    x, y = check_attack_input(model, x, y, (0.0, 1.0), generator=generator, pixels=True)
    _check_place(corner, generator)
    patch = check_images(patch, (0.0, 1.0), "patch").to(x)
    size = patch.shape[-1]
    if patch.shape != (1, x.shape[1], size, size):
        given = tuple(patch.shape)
        raise ValueError(f"patch must have shape (1, {x.shape[1]}, size, size), got {given}")
    return _covered(x, patch, _corners(x, size, corner, generator))


def _trained(
    model: nn.Module,
    batches: Pairs,
    put: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor, Part]],
    ball: tuple[float, float],
    alpha: float,
    epochs: int,
    target: int | None,
) -> Tensor:
    """Train a change with values in `ball`.

    `put` puts it on images, or the first one for None. It returns the change, the images, and what
    finds the change's place in their gradients.
    """
    check_model(model)
    alpha, epochs = check_number("alpha", alpha), check_count("epochs", epochs)
    if target is not None:
        alpha, target = -alpha, check_count("target", target, minimum=0)
    change: Any = None
    shape = None
    with evaluation_mode(model):
        for _ in range(epochs):
            for x, y in checked_pairs(batches, None):
                shape = shape or x.shape[1:]
                if x.shape[1:] != shape:
                    raise ValueError(f"x must have shape {('n', *shape)}, got {tuple(x.shape)}")
                change, x_adv, part = put(check_images(x, (0.0, 1.0)), change)
                wanted = y if target is None else torch.full_like(y, target)
                slopes = part(fast.gradient(model, x_adv, wanted)[1])
                step = alpha * slopes.sum(0, keepdim=True).sign()
                change = (change + step.to(x.dtype)).clamp(*ball)
    return change


def _check_place(corner: Any, generator: Any) -> None:
    source_of(generator)
    if corner is not None:
        check_type("corner", corner, (tuple, list), "a pair (row, column)")
        if len(corner) != 2:
            raise ValueError(f"corner must be a pair (row, column), got {corner!r}")
        for part in corner:
            check_count("corner", part, minimum=0)


def _corners(x: Tensor, size: int, corner: Any, generator: Any) -> list[list[int]]:
    """First row and column of a square in each image: `corner`, or a random one."""
    height, width = check_pictures(x).shape[2:]
    check_count("size", size, maximum=min(height, width))
    if corner is None:
        numbers = draw(torch.rand, x.new_empty(len(x), 2), generator)
        return _corner(numbers, size, height, width).tolist()
    if corner[0] + size > height or corner[1] + size > width:
        raise ValueError(f"corner must leave room for {size}x{size} pixels, got {corner}")
    return [list(corner)] * len(x)


def _parts(images: Tensor, at: list[list[int]], size: int) -> list[Tensor]:
    """Views of the square at these corners."""
    pairs = zip(images, at, strict=True)
    return [image[:, row : row + size, column : column + size] for image, (row, column) in pairs]


def _covered(x: Tensor, patch: Tensor, at: list[list[int]]) -> Tensor:
    x = x.clone()
    for part in _parts(x, at, patch.shape[-1]):
        part.copy_(patch[0])
    return x
