"""The robustness report: several attacks, intervals, and a search for signs of self-deception."""

import json
import math
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advlib import engine
from advlib.attacks import bim, input_gradient, pgd
from advlib.attacks.auto import parts
from advlib.attacks.common import BALLS, check_attack_input, indices, leads
from advlib.data import Batches
from advlib.evaluation import correct, wilson_interval
from advlib.runtime import (
    Attack,
    Bounds,
    check_attacked,
    check_bounds,
    check_choice,
    check_count,
    check_flag,
    check_function,
    check_mapping,
    check_number,
    evaluation_mode,
    uniform,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOR_CHECKS = 100  # images that the checks for gradient masking look at


@dataclass(frozen=True)
class Row:
    """One attack's result.

    Attributes:
        attack: its name; "none" for the images as they are, "worst case" for all together.
        accuracy: fraction of all images that stay right.
        interval: 95 % Wilson interval of it, (low, high).
        seconds: time it took.
    """

    attack: str
    accuracy: float
    interval: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class Check:
    """One sign of gradient masking, or of another mistake.

    Attributes:
        name: what was looked for.
        suspicious: it was found.
        found: the number behind it, in words.
        meaning: what a find means.
    """

    name: str
    suspicious: bool
    found: str
    meaning: str


@dataclass(frozen=True)
class Report:
    """What `robustness_report` found. `print(report)` shows it as a table.

    Attributes:
        images: how many images were attacked.
        eps: budget, in pixel units.
        norm: "linf" or "l2".
        rows: clean accuracy first, then each attack's, the worst case last.
        broken_by: for each image the first attack in the order of `rows` that broke it: "none" if
            it was wrong unattacked, "" if it stands.
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
            lines.append(
                f"{row.attack:<{width}}  {row.accuracy:8.4f}  {low:.4f}-{high:.4f}  "
                f"{first:>11}  {row.seconds:7.1f}"
            )
        lines.append("")
        wrap = partial(textwrap.wrap, width=78, subsequent_indent=" " * 8)
        for check in self.checks:
            line = f"{'LOOK' if check.suspicious else 'ok':<4}  {check.name}: {check.found}"
            lines += wrap(line)
            if check.suspicious:
                lines += wrap(check.meaning, initial_indent=" " * 6)
        return "\n".join(lines)


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
        eps: budget, in pixel units.
        norm: "linf" or "l2".
        attacks: the attacks to run, by name; by default `standard_attacks(...)`. Some signs can
            only be looked for among attacks of those names.
        bounds: pixel range of `x`, which attacks keep.
        batch_size: images attacked at a time.
        seed: of the attacks' random starts.

    Every attack runs on all images that are right unattacked, so that each accuracy can be read
    for itself; the worst case counts an image as lost if any of them broke it.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range, or an attack took more
            than `eps` or left `bounds`.

    References: Carlini et al., 2019, arXiv:1902.06705, for what an evaluation should contain;
    Athalye et al., ICML 2018, arXiv:1802.00420, for the signs of masked gradients.
    """
    classes = check_attack_input(model, x, y, bounds, norm)
    check_number("eps", eps, maximum=torch.finfo(x.dtype).max)
    check_count("batch_size", batch_size)
    check_count("seed", seed, minimum=0)
    x = x.detach()
    if attacks is None:
        attacks = standard_attacks(
            eps=eps, norm=norm, bounds=bounds, seed=seed, classes=classes, black_box=x.ndim == 4
        )
    _check_attacks(attacks)
    right, seconds = _timed(lambda: correct(model, Batches(x, y, batch_size=batch_size)))
    stands = {"none": right}
    rows = [_row("none", right, seconds)]
    broken_by = ["" if ok else "none" for ok in right.tolist()]
    for name, attack in attacks.items():
        survives = right.clone()
        if right.any():
            batches = Batches(x[right], y[right], batch_size=batch_size)
            held = partial(_held, name=name, attack=attack, eps=eps, norm=norm, bounds=bounds)
            survives[right], seconds = _timed(partial(correct, model, batches, attack=held))
        stands[name] = survives
        rows.append(_row(name, survives, seconds))
        for i, ok in enumerate(survives.tolist()):
            broken_by[i] = broken_by[i] or ("" if ok else name)
    worst = torch.stack(list(stands.values())).all(0)
    rows.append(_row("worst case", worst, sum(row.seconds for row in rows)))
    checks = _checks(model, x, y, eps=eps, norm=norm, bounds=bounds, seed=seed, stands=stands)
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
    """Return the attacks of the report, from weak to strong, by name.

    Square, the black box, comes last; it is left out with `norm="l2"`, or if not `black_box`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range.
    """
    check_number("eps", eps)
    check_choice("norm", norm, list(BALLS))
    check_flag("black_box", black_box)
    check_bounds(bounds)
    check_count("seed", seed, minimum=0)
    check_count("classes", classes, minimum=2)
    ball: dict[str, Any] = {"eps": eps, "bounds": bounds}
    many = partial(pgd, **ball, norm=norm, alpha=eps / 10, restarts=2, early_exit=True)
    found: dict[str, Attack] = {
        "one step": partial(bim, **ball, norm=norm, alpha=eps, steps=1),
        "pgd": partial(many, steps=40, generator=_seeded(seed)),
    }
    for name, attack in parts(classes, norm, steps=50, queries=1000, images=black_box).items():
        found[name] = partial(attack, **ball, generator=_seeded(seed))
    return found


def _row(name: str, stands: Tensor, seconds: float) -> Row:
    count = int(stands.sum())
    return Row(name, count / len(stands), wilson_interval(count, len(stands)), seconds)


def _checks(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str,
    bounds: Bounds,
    seed: int,
    stands: Mapping[str, Tensor],
) -> list[Check]:
    """Signs that gradients are masked, looked for on the first images that are right."""
    chosen = indices(stands["none"])[:FOR_CHECKS]
    with evaluation_mode(model):
        checks = [_check_probabilities(model, x), _check_repeats(model, x, y)]
        if len(chosen) == 0:
            return checks
        x, y, stands = x[chosen], y[chosen], {name: ok[chosen] for name, ok in stands.items()}
        ball: dict[str, Any] = {"norm": norm, "bounds": bounds, "early_exit": True}
        climb = partial(pgd, **ball, generator=_seeded(seed))
        checks.append(_check_gradients(model, x, y))
        if eps > 0:
            checks.append(_check_direction(model, x, y, eps, norm, bounds, seed))
        # these compare the report's own attacks, which the caller may have left out
        if {"one step", "pgd"} <= stands.keys():
            checks.append(_check_one_step(stands))
        if "pgd" in stands:
            checks.append(_check_more_steps(model, x, y, eps, climb, stands))
        if "square" in stands and len(stands) > 2:
            checks.append(_check_black_box(stands))
        return [*checks, _check_unbounded(model, x, y, norm, bounds, climb)]


def _check_probabilities(model: nn.Module, x: Tensor) -> Check:
    scores = engine.logits(model, x[:FOR_CHECKS])
    sums = scores.sum(1)
    among = bool((scores >= 0).all() and (sums - 1).abs().max() < 1e-3)
    return Check(
        "outputs are probabilities",
        among,
        f"rows sum to {sums.min():.3g} to {sums.max():.3g}",
        "a softmax inside the model saturates the gradients: let it return logits",
    )


def _check_repeats(model: nn.Module, x: Tensor, y: Tensor) -> Check:
    x = x[:FOR_CHECKS]
    change = (engine.logits(model, x) - engine.logits(model, x)).abs().max().item()
    return Check(
        "the network answers differently twice",
        change > 1e-3,
        f"logits change by up to {change:.2g}",
        "it is random: attack the mean of many answers instead",
    )


def _check_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Check:
    gone = (input_gradient(model, x, y).flatten(1) == 0).all(1).float().mean().item()
    return Check(
        "zero gradients",
        gone > 0.01,
        f"{gone:.1%} of images have no gradient at all",
        "gradient attacks stand still there, and their accuracy means nothing",
    )


def _check_direction(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str, bounds: Bounds, seed: int
) -> Check:
    """Compare a tenth of the budget along the gradient with the same in a random direction."""
    small = eps / 10

    def margins(x: Tensor) -> Tensor:
        return leads(engine.logits(model, x), y)

    along = bim(model, x, y, eps=small, alpha=small, steps=1, norm=norm, bounds=bounds)
    noise = BALLS[norm].steepest(uniform(x, _seeded(seed)))
    aside = x + small * noise if bounds is None else (x + small * noise).clamp(*bounds)
    flat = (margins(along) >= margins(aside)).float().mean().item()
    return Check(
        "the loss surface is flat or torn",
        flat > 0.1,
        f"on {flat:.1%} of images a small step along the gradient is no better than a random one",
        "the gradient does not say where the loss rises: attack without it, or a smooth stand-in",
    )


def _check_one_step(stands: Mapping[str, Tensor]) -> Check:
    missed = _only(stands, ["one step"], ["pgd"])
    return Check(
        "one step beats many",
        missed > 0.01,
        f"{missed:.1%} of images fall to one step and not to PGD",
        "more steps can do all that one can: the surface leads them astray",
    )


def _check_more_steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    climb: Callable[..., Tensor],
    stands: Mapping[str, Tensor],
) -> Check:
    name, meaning = "more steps or restarts still help", "the attack had not finished: use more"
    left = stands["pgd"]
    if not left.any():
        return Check(name, False, "PGD left nothing standing", meaning)
    longer = partial(climb, eps=eps, alpha=eps / 20, steps=160)
    lost = 1 - correct(model, [(x[left], y[left])], attack=longer).float().mean().item()
    found = f"four times the steps break {lost:.1%} of what PGD left standing"
    return Check(name, lost > 0.05, found, meaning)


def _check_unbounded(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, bounds: Bounds, climb: Callable[..., Tensor]
) -> Check:
    low, high = bounds or (x.min().item(), x.max().item())
    far = (high - low) * (1.0 if norm == "linf" else math.sqrt(x[0].numel()))
    anything = partial(climb, eps=far, alpha=far / 10, steps=40)
    right = correct(model, [(x, y)], attack=anything).float().mean().item()
    return Check(
        "an attack that may do anything fails",
        right > 0.05,
        f"accuracy {right:.3f} when every pixel may take any value",
        "with the whole picture free anything can be broken: the attack does not work here",
    )


def _check_black_box(stands: Mapping[str, Tensor]) -> Check:
    names = [name for name in stands if name not in ("none", "square")]
    missed = _only(stands, ["square"], names)
    return Check(
        "a black box beats gradients",
        missed > 0.01,
        f"{missed:.1%} of images fall to Square alone",
        "whoever sees gradients knows more, and should not lose: they are masked",
    )


def _only(stands: Mapping[str, Tensor], by: list[str], not_by: list[str]) -> float:
    """Fraction of images that some attack of one list breaks and none of the other."""
    everything = next(iter(stands.values()))
    broken = torch.zeros_like(everything)
    for name in by:
        broken |= ~stands[name]
    for name in not_by:
        broken &= stands[name]
    return broken.float().mean().item()


def _held(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    name: str,
    attack: Attack,
    eps: float,
    norm: str,
    bounds: Bounds,
) -> Tensor:
    """Run an attack, and refuse what it returns if it took more than it may."""
    x_adv = attack(model, x, y)
    check_attacked(f"attacks[{name!r}]", x_adv, x)
    change = (x_adv - x).flatten(1)
    sizes = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    rounding = torch.finfo(x.dtype).eps * x.abs().max() * change.shape[1] ** 0.5
    if (sizes > 1.0001 * eps + 4 * rounding).any():
        raise ValueError(
            f"attacks[{name!r}] changed an image by {sizes.max():.4g}, more than eps={eps:g}"
        )
    if bounds is not None and ((x_adv < bounds[0]) | (x_adv > bounds[1])).any():
        raise ValueError(f"attacks[{name!r}] left the pixel range {bounds}")
    return x_adv


def _check_attacks(attacks: Any) -> None:
    check_mapping("attacks", attacks)
    for name, attack in attacks.items():
        if not isinstance(name, str):
            raise TypeError(f"attacks must have names of type str, got {name!r}")
        check_function(f"attacks[{name!r}]", attack)
        if name in ("none", "worst case"):
            raise ValueError(f"attacks must not be called {name!r}: the report has such a row")


def _timed(task: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.perf_counter()
    return task(), time.perf_counter() - began


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
