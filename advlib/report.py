"""The robustness report: attacks from weak to strong, intervals, and a search for masking."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advlib import fast
from advlib.attacks import bim, pgd
from advlib.attacks.auto import parts
from advlib.attacks.common import check_attack_input
from advlib.checks import (
    Attack,
    Bounds,
    check_attack,
    check_attacked,
    check_count,
    check_mapping,
    check_number,
    check_type,
)
from advlib.data import Batches
from advlib.evaluation import correct, wilson_interval
from advlib.masking import Check, overstep, signs
from advlib.runtime import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One attack's result: the fraction of all images that stay right, and its 95 % interval.

    `attack` is its name; "none" for images as they are, "worst case" for all attacks together.
    """

    attack: str
    accuracy: float
    interval: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class Report:
    """What `robustness_report` found. `print(report)` shows it as a table.

    Attributes:
        images: how many were attacked; `eps` and `norm` say within which ball.
        rows: clean accuracy first, then each attack's, the worst case last.
        broken_by: the first row that broke each image; "none" if wrong unattacked, "" if it stands.
        checks: what was looked for, and whether it was found.
    """

    images: int
    eps: float
    norm: str
    rows: list[Row]
    broken_by: list[str]
    checks: list[Check]

    @property
    def clean(self) -> float:
        """Accuracy without an attack."""
        return self.rows[0].accuracy

    @property
    def worst_case(self) -> float:
        """Fraction of images that no attack broke."""
        return self.rows[-1].accuracy

    @property
    def suspicious(self) -> list[Check]:
        """The checks that found something."""
        return [check for check in self.checks if check.suspicious]

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=1)

    def figure(self) -> "Figure":
        """Accuracies with their intervals."""
        from advlib import plots

        return plots.intervals(
            {row.attack: (row.accuracy, *row.interval) for row in self.rows},
            xlabel=f"accuracy of {self.images} images, {self.norm} eps {self.eps:g}",
        )

    def __str__(self) -> str:
        """The rows as a table, and the checks."""
        width = max(len(row.attack) for row in self.rows)
        lines = [f"{self.images} images, {self.norm} ball, eps {self.eps:g}", ""]
        lines.append(f"{'attack':<{width}}  accuracy  95 % interval   broke first  seconds")
        for row in self.rows:
            first = "" if row is self.rows[-1] else str(self.broken_by.count(row.attack))
            low, high = row.interval
            numbers = f"{row.accuracy:8.4f}  {low:.4f}-{high:.4f}  {first:>11}  {row.seconds:7.1f}"
            lines.append(f"{row.attack:<{width}}  {numbers}")
        return "\n".join([*lines, "", *map(str, self.checks)])


def robustness_report(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    attacks: Mapping[str, Attack] | None = None,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 500,
    seed: int = 0,
) -> Report:
    """Attack `model` in several ways, and look for signs that the attacks were fooled.

    Args:
        model: any module from images to logits (n, classes).
        x: images (n, c, h, w), or (n, features), inside `bounds`.
        y: true labels, int64 (n,).
        eps, norm: budget, in pixel units, and its norm, "linf" or "l2".
        attacks: by name; by default `standard_attacks(...)`, whose names some signs need.
        bounds: pixel range of `x`, which attacks keep.
        batch_size: images attacked at a time.
        seed: of the attacks' random starts.

    Every attack runs on all images that are right unattacked; the worst case counts an image as
    lost if any of them broke it. Raises TypeError or ValueError for an argument of the wrong type
    or range, or an attack that took more than `eps` or left `bounds`.
    References: Carlini et al., 2019, arXiv:1902.06705, for what an evaluation should contain;
    Athalye et al., ICML 2018, arXiv:1802.00420, for the signs of masked gradients.
    """
    x, y = check_attack_input(model, x, y, bounds, norm)
    eps = check_number("eps", eps)
    batch_size, seed = check_count("batch_size", batch_size), check_count("seed", seed, minimum=0)
    ball: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": bounds}
    if attacks is None:
        black_box = x.ndim == 4
        with evaluation_mode(model):
            classes = fast.logits(model, x[:1]).shape[1]
        attacks = standard_attacks(**ball, seed=seed, classes=classes, black_box=black_box)
    check_mapping("attacks", attacks)
    for name, attack in attacks.items():
        check_type("attacks' names", name, str, "a str")
        check_attack(f"attacks[{name!r}]", attack)
    if {"none", "worst case"} & attacks.keys():
        raise ValueError("attacks must not be called 'none' or 'worst case': the report has these")
    right, seconds = _timed(lambda: correct(model, Batches(x, y, batch_size=batch_size)))
    stands = {"none": right}
    rows = [_row("none", right, seconds)]
    broken_by = ["" if ok else "none" for ok in right.tolist()]
    for name, attack in attacks.items():
        survives, seconds = right.clone(), 0.0
        if right.any():
            batches = Batches(x[right], y[right], batch_size=batch_size)
            held = partial(_held, name, attack, ball)
            survives[right], seconds = _timed(partial(correct, model, batches, attack=held))
        stands[name] = survives
        rows.append(_row(name, survives, seconds))
        for i, ok in enumerate(survives.tolist()):
            broken_by[i] = broken_by[i] or ("" if ok else name)
    worst = torch.stack(list(stands.values())).all(0)
    rows.append(_row("worst case", worst, sum(row.seconds for row in rows)))
    checks = signs(model, x, y, **ball, seed=seed, stands=stands)
    return Report(len(x), float(eps), norm, rows, broken_by, checks)


def standard_attacks(
    *,
    eps: float,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    classes: int = 10,
    black_box: bool = True,
) -> dict[str, Attack]:
    """Return the report's attacks by name, weak to strong; Square for linf and `black_box` only."""
    check_number("eps", eps)
    check_count("seed", seed, minimum=0)
    ball: dict[str, Any] = {"eps": eps, "bounds": bounds}
    many = partial(pgd, **ball, norm=norm, alpha=eps / 10, restarts=2, early_exit=True)
    found: dict[str, Attack] = {
        "one step": partial(bim, **ball, norm=norm, alpha=eps, steps=1),
        "pgd": partial(many, steps=40, generator=torch.Generator().manual_seed(seed)),
    }
    for name, attack in parts(classes, norm, steps=50, queries=1000, images=black_box).items():
        found[name] = partial(attack, **ball, generator=torch.Generator().manual_seed(seed))
    return found


def _row(name: str, stands: Tensor, seconds: float) -> Row:
    count = int(stands.sum())
    return Row(name, count / len(stands), wilson_interval(count, len(stands)), seconds)


def _held(
    name: str, attack: Attack, ball: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor
) -> Tensor:
    """Run an attack, and refuse what it returns if it took more than it may."""
    x_adv = attack(model, x.clone(), y)
    check_attacked(f"attacks[{name!r}]", x_adv, x)
    if wrong := overstep(x_adv, x, **ball):
        raise ValueError(f"attacks[{name!r}] {wrong}")
    return x_adv


def _timed(task: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.perf_counter()
    return task(), time.perf_counter() - began
