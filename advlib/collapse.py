"""A watch for catastrophic overfitting: FGSM training that learns to fool FGSM, and nothing else.

Hand both functions to `fit`::

    watch = partial(fgsm_against_pgd, x=test.x[:200], y=test.y[:200], eps=0.1)
    fit(..., attack=..., evaluate=watch, stop_when=has_collapsed, keep_best="pgd")

Reference: Wong et al., ICLR 2020, arXiv:2001.03994.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advlib.attacks import fgsm, pgd
from advlib.attacks.common import check_attack_input
from advlib.checks import (
    Bounds,
    check_count,
    check_flag,
    check_mapping,
    check_number,
    check_numbers,
)
from advlib.data import Batches
from advlib.evaluation import accuracy


def fgsm_against_pgd(
    model: nn.Module,
    *,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int = 10,
    bounds: Bounds = (0.0, 1.0),
) -> dict[str, float]:
    """Accuracy on held-out images under one step and under many: "fgsm" and "pgd".

    PGD takes `steps` steps of eps / 4 from one random start, always the same. Errors as in `pgd`.
    """
    x, y = check_attack_input(model, x, y, bounds)
    eps, steps = check_number("eps", eps), check_count("steps", steps)
    batches = Batches(x, y)
    ball: dict[str, Any] = {"eps": eps, "bounds": bounds}
    source = torch.Generator().manual_seed(0)
    many = partial(pgd, **ball, alpha=eps / 4, steps=steps, generator=source)
    return {
        "fgsm": accuracy(model, batches, attack=partial(fgsm, **ball)),
        "pgd": accuracy(model, batches, attack=many),
    }


def has_collapsed(
    metrics: Mapping[str, Sequence[float]], *, fall: float = 0.2, stop: bool = True
) -> bool:
    """Warn if FGSM is fooled: accuracy under it is high, and under PGD it fell or never rose.

    `metrics` are those of `fgsm_against_pgd`, epoch by epoch. The last epoch is a collapse if "pgd"
    is `fall` below its best and at least as far below "fgsm"; or if "fgsm" is above one half, and
    "pgd" less than a tenth of it. Returns True after a collapse, unless `stop` is False.
    """
    check_number("fall", fall)
    check_flag("stop", stop)
    check_mapping("metrics", metrics)
    for name in ("fgsm", "pgd"):
        if name not in metrics or not check_numbers(f"metrics[{name!r}]", metrics[name]):
            raise ValueError(f"metrics must hold {name!r}: evaluate with fgsm_against_pgd")
    one, many, best = metrics["fgsm"][-1], metrics["pgd"][-1], max(metrics["pgd"])
    fell = min(best, one) - many >= fall
    if not fell and not (one > 0.5 and many < one / 10):
        return False
    warnings.warn(
        f"catastrophic overfitting in epoch {len(metrics['pgd'])}: accuracy under PGD is "
        f"{many:.2f} (at best {best:.2f}), under FGSM {one:.2f}",
        stacklevel=2,
    )
    return stop
