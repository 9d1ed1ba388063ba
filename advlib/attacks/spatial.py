"""Turns and shifts: the attacks of a camera that is held badly."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib import fast
from advlib.attacks.common import budget_per_image, check_attack_input, check_pictures, is_broken
from advlib.checks import check_classes, check_count, check_images, check_number
from advlib.runtime import evaluation_mode, uniform


def moved(
    x: Tensor,
    *,
    degrees: float | Tensor = 0.0,
    right: float | Tensor = 0.0,
    down: float | Tensor = 0.0,
) -> Tensor:
    """Turn images (n, c, h, w) about their centre, then shift them; black comes in from outside.

    `degrees` are positive clockwise, as `Images.angles` are; `right` and `down` are in pixels. Each
    is a number, or a tensor (n,) with one per image. Between pixels values are read bilinearly, so
    that a turn blurs a little. Raises TypeError or ValueError naming the argument.
    """
    x = check_pictures(check_images(x))
    ways = {"degrees": degrees, "right": right, "down": down}
    each = [budget_per_image(name, way, x, signed=True).flatten() for name, way in ways.items()]
    return _moved(x, torch.stack(each, 1))


def spatial(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    degrees: float,
    shift: float,
    turns: int = 5,
    shifts: int = 5,
    draws: int | None = None,
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Worst turn and shift of images (n, c, h, w) in [0, 1], up to `degrees` and `shift` pixels.

    It tries a grid: `turns` angles, each with `shifts` places across and as many down, by default
    125 in all; odd numbers leave the image as it is among them. With `draws` it tries so many
    random ones instead, others for each image. An image is done with the first that breaks it, and
    is else left as that with the largest loss. It needs no gradient, and is no attack within an
    eps-ball: a shift by one pixel may change a pixel from black to white.
    Reference: Engstrom et al., ICML 2019, arXiv:1712.02779.
    """
    x, y = check_attack_input(model, x, y, (0.0, 1.0), generator=generator, targeted=targeted)
    check_pictures(x)
    degrees = check_number("degrees", degrees, maximum=180)
    shift = check_number("shift", shift, maximum=max(x.shape[2:]))
    turns, shifts = check_count("turns", turns), check_count("shifts", shifts)
    if draws is None:
        steps = [_steps(turns), _steps(shifts), _steps(shifts)]
        tries = (torch.tensor(way).to(x).expand(len(x), 3) for way in product(*steps))
    else:
        draws = check_count("draws", draws)
        like = x.new_empty(len(x), 3)
        tries = (uniform(like, generator) for _ in range(draws))
    x_adv, left = x.clone(), torch.arange(len(x), device=x.device)
    most = torch.full(y.shape, -torch.inf, dtype=torch.float32, device=x.device)
    farthest = torch.tensor([degrees, shift, shift]).to(x)
    with evaluation_mode(model):
        for part in tries:
            tried = _moved(x[left], farthest * part[left])
            scores = fast.logits(model, tried)
            check_classes(scores, y)
            loss = F.cross_entropy(scores.float(), y[left], reduction="none")
            loss = -loss if targeted else loss
            broken = is_broken(scores, y[left], targeted)
            better = broken | (loss > most[left])
            x_adv[left[better]], most[left[better]] = tried[better], loss[better]
            left = left[~broken]
            if len(left) == 0:
                break
    return x_adv


def _steps(count: int) -> list[float]:
    """So many evenly spaced numbers from -1 to 1; 0, if one."""
    return [2 * i / (count - 1) - 1 for i in range(count)] if count > 1 else [0.0]


def _moved(x: Tensor, ways: Tensor) -> Tensor:
    """Images turned and shifted by `ways` (n, 3): degrees, right, down."""
    height, width = x.shape[2:]
    wide, ways = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, ways))
    angle, right, down = ways.unbind(1)
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    # where a pixel's value comes from: back by the shift, then by the turn; sides are from -1 to 1
    across = [cos, sin * height / width, -2 / width * (cos * right + sin * down)]
    along = [-sin * width / height, cos, -2 / height * (cos * down - sin * right)]
    back = torch.stack(across + along, 1).view(-1, 2, 3)
    grid = F.affine_grid(back, list(x.shape), align_corners=False)
    return F.grid_sample(wide, grid, align_corners=False).to(x.dtype)
