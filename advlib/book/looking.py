"""What a network looks at, and what it has never seen: heat maps, and scores of strangeness."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib.runtime import evaluation_mode

Score = Callable[[Tensor, Tensor], Tensor]  # of logits (n, classes), a layer's maps: (n,)
Number = float | Tensor


def watched(net: nn.Module, x: Tensor, *, layer: str) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) of images, and the output of the layer of this name, on one graph."""
    kept: list[Tensor] = []
    hook = net.get_submodule(layer).register_forward_hook(lambda *given: kept.append(given[2]))
    try:
        return net(x), kept[0]
    finally:
        hook.remove()


def grad_cam(net: nn.Module, x: Tensor, y: Tensor, *, layer: str) -> Tensor:
    """Where the feature maps of a layer speak for class `y`: heat (n, h, w) in the size of `x`.

    Each map (h', w') counts by the mean of the class logit's gradient over it; what is negative in
    their sum becomes zero. Reference: Selvaraju et al., ICCV 2017, arXiv:1610.02391.
    """
    with evaluation_mode(net), torch.enable_grad():
        logits, maps = watched(net, x.detach().requires_grad_(), layer=layer)
        [slopes] = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), maps)
    heat = (slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    return F.interpolate(heat, x.shape[2:], mode="bilinear").squeeze(1).detach()


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of each map in `a` (n, h, w) with that in `b`; NaN for a constant."""
    ranks = []
    for values in (a.flatten(1), b.flatten(1)):
        ordered = values.sort(1).values  # twice a rank is how many are below, and below or equal
        sides = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
        rank = sum(sides) - values.new_tensor(values.shape[1])
        ranks.append(rank / rank.norm(dim=1, keepdim=True))
    return (ranks[0] * ranks[1]).sum(1)


class Distance:
    """Minus the squared Mahalanobis distance of features to those of the nearest class.

    A feature is the mean of a map. Each class has a mean, all share one covariance, to whose
    diagonal a millionth of its mean is added.
    Reference: Lee et al., NeurIPS 2018, arXiv:1807.03888.
    """

    def __init__(self, maps: Tensor, y: Tensor) -> None:
        """Learn from the maps (n, k, h, w) of a layer for images with labels `y` (n,)."""
        features, y = maps.detach().mean((2, 3)).cpu().double(), y.cpu()  # MPS has no double
        means = torch.stack([features[y == k].mean(0) for k in y.unique()])
        apart = features - means[y.unique(return_inverse=True)[1]]
        covariance = apart.T @ apart / len(apart)
        covariance.diagonal().add_(1e-6 * covariance.diagonal().mean())
        self.means = means.to(maps)
        self.root = torch.linalg.cholesky(covariance.inverse()).to(maps)

    def __call__(self, logits: Tensor, maps: Tensor) -> Tensor:
        """Return the score of each image, (n,): zero at a mean, negative elsewhere."""
        apart = maps.mean((2, 3))[:, None] - self.means
        return -(apart @ self.root).square().sum(2).amin(1)


class Guarded(nn.Module):
    """A network with one more class, "stranger", which wins where a score is below `least`.

    It leads by what is lacking, over `spread`. The idea is Carlini and Wagner's, AISec 2017,
    arXiv:1705.07263; their logit is another one.
    """

    def __init__(self, net: nn.Module, score: Score, *, layer: str, least: Number, spread: Number):
        """Guard `net` by a score of its logits and of the maps of `layer`."""
        super().__init__()
        self.net, self.score, self.layer = net, score, layer
        self.least, self.spread = least, spread

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, ...) to logits (n, classes + 1)."""
        logits, maps = watched(self.net, x, layer=self.layer)
        lack = (self.least - self.score(logits, maps)) / self.spread
        return torch.cat([logits, (logits.amax(1) + lack)[:, None]], 1)


def roc(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """False alarms and hits, (k,), as the level rises below which scores are called strange."""
    levels = torch.cat([inside, outside, inside.new_tensor([math.inf])]).unique()
    alarms, hits = ((scores[:, None] < levels).float().mean(0) for scores in (inside, outside))
    return alarms, hits


def auroc(inside: Tensor, outside: Tensor, *, z: float = 1.96) -> tuple[float, float, float]:
    """The chance that a score (n,) from inside is above one (m,) from outside; and its interval.

    Ties count half. The interval holds the areas that are at most `z` of their own standard errors
    away, which are those of Hanley and McNeil, Radiology 143 (1982). So it has a width at 1, too.
    """
    wins = (inside[:, None] > outside).sum() + 0.5 * (inside[:, None] == outside).sum()
    n, m, area = len(inside), len(outside), float(wins) / (len(inside) * len(outside))

    def near(a: float) -> bool:
        spread = 1 + (n - 1) * (1 - a) / (2 - a) + (m - 1) * a / (1 + a)
        return abs(a - area) <= z * math.sqrt(a * (1 - a) * spread / (n * m))

    ends = [0.0, 1.0]
    for i in (0, 1):
        held = area
        for _ in range(40):
            middle = (held + ends[i]) / 2
            held, ends[i] = (middle, ends[i]) if near(middle) else (held, middle)
    return area, ends[0], ends[1]
