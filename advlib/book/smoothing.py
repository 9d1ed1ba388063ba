"""Randomized smoothing: certificates from samples, for the l2 ball.

The smoothed network answers what a base network answers most often under Gaussian noise.
Reference: Cohen et al., ICML 2019, arXiv:1902.02918.
"""

import math
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor, nn

from advlib import fast
from advlib.book.parts import with_noise
from advlib.runtime import evaluation_mode


def votes(
    net: nn.Module, x: Tensor, *, sigma: float, samples: int, generator: torch.Generator
) -> Tensor:
    """How often `net` gives each answer under noise, for images (n, ...): int64 (n, classes)."""
    counts = []
    with evaluation_mode(net):
        for image in x.split(1):
            copies = image.expand(samples, *image.shape[1:])
            logits = fast.logits(
                net, with_noise(net, copies, copies, sigma=sigma, generator=generator)
            )
            counts.append(logits.argmax(1).bincount(minlength=logits.shape[1]))
    return torch.stack(counts)


def lower_bound(successes: int, total: int, *, alpha: float) -> float:
    """Clopper and Pearson's lower bound of a probability: in `alpha` of cases it may be too high.

    It is the p for which so many successes, or more, have a chance of just `alpha`.
    """
    k = torch.arange(successes, total + 1, dtype=torch.float64)
    ways = math.lgamma(total + 1) - torch.lgamma(k + 1) - torch.lgamma(total - k + 1)
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        p = (low + high) / 2
        chance = (ways + k * math.log(p) + (total - k) * math.log1p(-p)).exp().sum()
        low, high = (p, high) if chance < alpha else (low, p)
    return low


def certify(
    net: nn.Module,
    x: Tensor,
    *,
    sigma: float,
    first: int = 100,
    samples: int,
    alpha: float = 0.001,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Answers of the smoothed network, int64 (n,), and l2 radii (n,) within which they hold.

    Each certificate is wrong with a probability of at most `alpha`. `first` samples choose the
    class, others count it. Where it has no proven majority the answer is -1, and the radius 0.
    """
    draw = partial(votes, net, x, sigma=sigma, generator=generator)
    answers = draw(samples=first).argmax(1)
    counts = draw(samples=samples).gather(1, answers.unsqueeze(1))
    bounds = [lower_bound(count, samples, alpha=alpha) for count in counts.flatten().tolist()]
    radii = torch.tensor([sigma * NormalDist().inv_cdf(max(p, 0.5)) for p in bounds]).to(x)
    return torch.where(radii > 0, answers, -1), radii


class Smoothed(nn.Module):
    """Logarithms of a network's mean probabilities over `draws` noisy copies of each image.

    A differentiable stand-in for the smoothed network, for attacks (Salman et al., NeurIPS 2019,
    arXiv:1906.04584).
    """

    def __init__(self, net: nn.Module, *, sigma: float, draws: int) -> None:
        """Take the base network; the noise is drawn anew in each call, from seed 0 on."""
        super().__init__()
        self.net, self.sigma, self.draws = net, sigma, draws
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, ...) to (n, classes)."""
        copies = x.repeat_interleave(self.draws, 0)
        copies = with_noise(self, copies, copies, sigma=self.sigma, generator=self.generator)
        logs = self.net(copies).log_softmax(1).unflatten(0, (len(x), self.draws))
        return logs.logsumexp(1) - math.log(self.draws)
