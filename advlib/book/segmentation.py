"""A network that labels every pixel, and what chapter 16 measures of its maps."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from advlib.attacks import input_gradient, pgd
from advlib.attacks.common import project
from advlib.data import Batches
from advlib.evaluation import mean_iou, predict
from advlib.models import Normalize, glorot
from advlib.runtime import source_of


class _Below(nn.Module):
    """Layers that work at half the resolution; beside what they make goes what came in."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        below = F.interpolate(self.net(F.max_pool2d(x, 2)), scale_factor=2)
        return torch.cat([x, below], 1)


def unet(
    *, classes: int = 11, width: int = 16, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Build a small U-Net: two poolings, two ways back up, and at each a skip past them.

    Maps grey images (n, 1, h, w) in [0, 1], h and w multiples of 8, to logits (n, classes, h, w).
    The first convolution halves the resolution, and the last layer doubles it again, which saves
    three quarters of the work. Weights are Glorot-uniform from `generator`.
    References: Ronneberger et al., MICCAI 2015, arXiv:1505.04597; Shi et al., CVPR 2016,
    arXiv:1609.05158, for the last layer.
    """

    def conv(before: int, after: int) -> tuple[nn.Module, nn.Module]:
        return skip_init(nn.Conv2d, before, after, 3, padding=1), nn.ReLU()

    w = width
    deepest = _Below(*conv(2 * w, 4 * w), *conv(4 * w, 4 * w))
    middle = _Below(*conv(w, 2 * w), deepest, *conv(6 * w, 2 * w))
    net = nn.Sequential(
        Normalize([0.25], [0.2]),
        skip_init(nn.Conv2d, 1, w, 4, 2, padding=1),
        nn.ReLU(),
        middle,
        *conv(3 * w, 2 * w),
        skip_init(nn.Conv2d, 2 * w, 4 * classes, 1),
        nn.PixelShuffle(2),
    )
    return glorot(net, source_of(generator))


def overlaps(maps: Tensor, y: Tensor, classes: int = 11) -> Tensor:
    """Pixels of each class in both of two maps (n, h, w), and in either: int64 (2, n, classes)."""
    each = torch.arange(classes, device=y.device).view(-1, 1, 1, 1)
    said, true = maps == each, y == each
    return torch.stack([found.sum((2, 3)).T.cpu() for found in (said & true, said | true)])


def iou(counts: Tensor) -> Tensor:
    """Mean intersection over union of `overlaps` that were summed, (2, ..., classes)."""
    both, either = counts.double().unbind()
    return (both / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1)


def resampled(n: int, *, draws: int = 1000) -> Tensor:
    """How often each of `n` images is in each of `draws` samples of n, float64 (draws, n).

    The samples are drawn with replacement, always by the same seed: a bootstrap.
    """
    rows = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(0))
    return torch.zeros(draws, n).double().scatter_add_(1, rows, torch.ones(draws, n).double())


def middle(values: Tensor) -> tuple[float, float]:
    """Where the middle 95 % of `values` lie."""
    ranked = values.sort().values.tolist()
    return ranked[len(ranked) // 40], ranked[-1 - len(ranked) // 40]


def watch_maps(model: nn.Module, *, x: Tensor, y: Tensor, eps: float) -> dict[str, float]:
    """Mean intersection over union on held-out images: "clean", and under five steps of "pgd"."""
    attack = partial(pgd, eps=eps, alpha=eps / 2, steps=5)
    attack = partial(attack, generator=torch.Generator().manual_seed(0))
    both = {"clean": None, "pgd": attack}
    return {name: mean_iou(model, Batches(x, y), attack=found) for name, found in both.items()}


def share(hit: Tensor, where: Tensor) -> Tensor:
    """Of each image's pixels in `where`, bool (n, h, w), the part at which `hit` holds, (n,)."""
    return (hit & where).flatten(1).sum(1) / where.flatten(1).sum(1)


class Redrawn(NamedTuple):
    """What `redraw` made: images, their maps, and how much of each wish was granted.

    `done` is the part of each image's pixels in question that has its new label, (n,); `kept` is
    the part of all pixels of other digits whose answer is what it was, `ground` that of the ground.
    """

    x_adv: Tensor
    maps: Tensor
    done: Tensor
    kept: float
    ground: float


def redraw(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    label: Tensor,
    goal: Tensor,
    *,
    eps: float,
    free: Tensor | float = 1.0,
    steps: int = 10,
) -> Redrawn:
    """Have pixels of one `label` taken for `goal` instead, and all others for what they are now.

    Others that are taken for `label` are sent to `goal`, too. It is targeted BIM with steps of
    eps / 5, for maps. `label` and `goal` are int64 (n, 1, 1);
    `free`, in the shape of `x`, is 0 at pixels that may not change.
    """
    before, where = predict(net, x), y == label
    wanted = torch.where(where | (before == label), goal, before)
    here = x
    for _ in range(steps):
        here = here - eps / 5 * input_gradient(net, here, wanted).sign() * free
        here = project(here, x, eps, (0.0, 1.0), "linf")
    maps = predict(net, here)
    same = maps == before
    kept, ground = (float(same[part].float().mean()) for part in ((y > 0) & ~where, y == 0))
    return Redrawn(here, maps, share(maps == goal, where), kept, ground)
