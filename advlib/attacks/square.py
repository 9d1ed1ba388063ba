"""Square attack: random search that sees the logits only, never a gradient."""

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.attacks.common import budget_per_image, check_attack_input, indices
from advlib.runtime import Bounds, check_count, check_number, default_generator, evaluation_mode

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
    and less later. An image is left alone from the moment it is broken.

    As it needs no gradient, it also finds what a model hides from gradient attacks.

    Reference: Andriushchenko et al., ECCV 2020, arXiv:1912.00049.
    """
    check_attack_input(model, x, y, bounds)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (n, c, h, w), got {tuple(x.shape)}")
    check_count("queries", queries)
    if not 0 < check_number("area", area) <= 1:
        raise ValueError(f"area must be above 0 and at most 1, got {area}")
    eps = budget_per_image("eps", eps, x)
    source = default_generator if generator is None else generator
    x = x.detach()
    height, width = x.shape[2:]
    x_adv = x.clone()

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=source, device=source.device).to(x)

    def inside(image: Tensor) -> Tensor:
        return image if bounds is None else image.clamp(*bounds)

    def margins(image: Tensor, labels: Tensor) -> Tensor:
        return _margins(engine.logits(model, image), labels, targeted)

    with evaluation_mode(model):
        standing = indices(margins(x, y) >= 0)
        stripes = eps[standing] * _signs(draw(len(standing), x.shape[1], 1, width))
        best = inside(x[standing] + stripes)
        least = margins(best, y[standing]) if len(standing) else x.new_zeros(0)
        for query in range(1, queries + 1):
            x_adv[standing] = best
            still = least >= 0
            standing, best, least = standing[still], best[still], least[still]
            if query == queries or len(standing) == 0:
                break
            side = _side(area, query / queries, height, width)
            where = _window(draw(len(standing), 2), side, height, width)
            change = eps[standing] * _signs(draw(len(standing), x.shape[1], 1, 1))
            tried = torch.where(where, inside(x[standing] + change), best)
            opposite = torch.where(where, inside(x[standing] - change), best)
            same = (tried == best).flatten(1).all(1)
            tried = torch.where(same.view(-1, 1, 1, 1), opposite, tried)
            found = margins(tried, y[standing])
            better = (found < least).view(-1, 1, 1, 1)
            best, least = torch.where(better, tried, best), torch.minimum(found, least)
    return x_adv


def _margins(scores: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """By how much the logit of `y` leads (or, if it is the target, lags); below 0 is success."""
    of_y = scores.gather(1, y.unsqueeze(1)).squeeze(1)
    lead = of_y - scores.scatter(1, y.unsqueeze(1), -torch.inf).max(1).values
    return -lead if targeted else lead


def _signs(numbers: Tensor) -> Tensor:
    """Plus or minus one for numbers drawn from [0, 1)."""
    return 1 - 2 * numbers.round()


def _side(area: float, progress: float, height: int, width: int) -> int:
    """Side of the square, in pixels, when this part of the queries is done."""
    halvings = sum(10_000 * progress > after for after in HALVINGS)
    side = round((area / 2**halvings * height * width) ** 0.5)
    return max(1, min(side, height, width))


def _window(numbers: Tensor, side: int, height: int, width: int) -> Tensor:
    """A square at a random place for each row of two numbers from [0, 1), bool (n, 1, h, w)."""
    masks = []
    for number, length in zip(numbers.unbind(1), (height, width), strict=True):
        first = (number * (length - side + 1)).floor().clamp(max=length - side).unsqueeze(1)
        at = torch.arange(length, device=numbers.device)
        masks.append((at >= first) & (at < first + side))
    return masks[0][:, None, :, None] & masks[1][:, None, None, :]
