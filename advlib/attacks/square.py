"""Square attack: random search that sees the logits only, never a gradient."""

import torch
from torch import Tensor, nn

from advlib import fast
from advlib.attacks.common import (
    budget_per_image,
    check_attack_input,
    check_pictures,
    indices,
    is_broken,
    leads,
)
from advlib.checks import Bounds, check_classes, check_count, check_number
from advlib.runtime import evaluation_mode, source_of

# the area of a square halves after each of these queries of 10,000; of fewer, in proportion
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    queries: int = 5000,
    area: float = 0.8,
    targeted: bool = False,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Square attack inside the linf ball, for images (n, c, h, w).

    It starts from vertical stripes of plus and minus eps. Each query proposes one square, at a
    random place, with plus or minus eps in each channel, and keeps it if the margin between the
    logit of `y` and the largest other one shrinks. A square covers `area` of the image at first
    and less later. An image is left alone once it is broken. It needs no gradient, and so also
    finds what a model hides from gradient attacks.
    Reference: Andriushchenko et al., ECCV 2020, arXiv:1912.00049.
    """
    x, y = check_attack_input(model, x, y, bounds, generator=generator, targeted=targeted)
    check_pictures(x)
    queries = check_count("queries", queries)
    if check_number("area", area, maximum=1) == 0:
        raise ValueError("area must be above 0")
    eps = budget_per_image("eps", eps, x)
    source = source_of(generator)
    height, width = x.shape[2:]
    x_adv = x.clone()

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=source, device=source.device).to(x)

    low, high = (image if bounds is None else image.clamp(*bounds) for image in (x - eps, x + eps))
    with evaluation_mode(model):
        scores = fast.logits(model, x)
        check_classes(scores, y)
        standing = indices(~is_broken(scores, y, targeted))
        goal, low, high = y[standing], low[standing], high[standing]
        here = torch.where(draw(len(standing), x.shape[1], 1, width) < 0.5, high, low)
        least, tried = torch.full_like(scores[standing, 0], torch.inf), here
        for query in range(1, queries + 1):
            if len(standing) == 0:
                break
            scores = fast.logits(model, tried)
            found = _margins(scores, goal, targeted)
            better = found < least
            here = torch.where(better.view(-1, 1, 1, 1), tried, here)
            least = torch.minimum(found, least)
            still = ~(better & is_broken(scores, goal, targeted))
            if query == queries or not still.all():
                x_adv[standing] = here
                standing, goal, low, high, least, here = (
                    rows[still] for rows in (standing, goal, low, high, least, here)
                )
            side = _side(area, query / queries, height, width)
            first = _corner(draw(len(standing), 2), side, height, width)
            where = _square(first, side, height, width)
            up = draw(len(standing), x.shape[1], 1, 1) < 0.5
            tried = torch.where(where, torch.where(up, high, low), here)
            same = (tried == here).flatten(1).all(1).view(-1, 1, 1, 1)
            tried = torch.where(where & same, torch.where(up, low, high), tried)
    return x_adv


def _margins(scores: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """By how much the logit of `y` leads (or, if it is the target, lags); success is below 0."""
    return -leads(scores, y) if targeted else leads(scores, y)


def _side(area: float, progress: float, height: int, width: int) -> int:
    """Side of the square, in pixels, when this part of the queries is done."""
    halvings = sum(10_000 * progress > after for after in HALVINGS)
    side = round((area / 2**halvings * height * width) ** 0.5)
    return max(1, min(side, height, width))


def _corner(numbers: Tensor, side: int, height: int, width: int) -> Tensor:
    """First row and column of a square, int64 (n, 2), for two numbers each from [0, 1)."""
    most = torch.tensor([height - side, width - side], device=numbers.device)
    return (numbers * (most + 1)).long().minimum(most)


def _square(first: Tensor, side: int, height: int, width: int) -> Tensor:
    """The square that begins at `first` in each image, bool (n, 1, h, w)."""
    masks = []
    for start, length in zip(first.unsqueeze(2).unbind(1), (height, width), strict=True):
        at = torch.arange(length, device=first.device)
        masks.append((at >= start) & (at < start + side))
    return masks[0][:, None, :, None] & masks[1][:, None, None, :]
