"""The book's one-off figures, drawn as those of `advlib.plots` are."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advlib.plots import BLUE, GREEN, ORANGE, RED, SERIES, _draw, _single, _subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def show_gradients(x: Tensor, gradients: Mapping[str, Tensor]) -> "Figure":
    """Show images (n, 1, h, w) in the first row, and under them a row of gradients per name.

    Each gradient is scaled by its own largest entry: red raises the loss, blue lowers it.
    """
    figure, axes = _subplots(
        1 + len(gradients), len(x), figsize=(1.1 * len(x) + 0.8, 1.25 * (1 + len(gradients)))
    )
    for axis, image in zip(axes[0], x.detach().cpu(), strict=True):
        _draw(axis, image)
    for row, (name, gradient) in zip(axes[1:], gradients.items(), strict=True):
        row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center", size=14)
        for axis, image in zip(row, gradient.detach().cpu(), strict=True):
            _draw(axis, image / image.abs().max().clamp_min(1e-12), (-1.0, 1.0), "RdBu_r")
    return figure


def attack_view(
    x: Tensor,
    y: Tensor,
    attacked: Mapping[str, Tensor],
    logits: Mapping[str, Tensor],
    *,
    eps: float,
    limits: tuple[float, float] = (0.0, 1.0),
    classes: Sequence[str] = (),
) -> "Figure":
    """Show a row per network: the attacked image, its perturbation, the class probabilities.

    Orange pixels became brighter and blue ones darker, full colour is a change of eps; of a colour
    image it is the mean of the channels. Of more than ten classes the ten likeliest are shown.

    Args:
        x: the image, (1, c, h, w) with c 1 or 3.
        y: its label, int64 (1,).
        attacked: for each network's name the attacked image, in the shape of `x`.
        logits: for each network's name what it makes of that image, (1, classes).
        eps: the largest change of a pixel that the attack may make.
        limits: the pixels that are drawn black and white.
        classes: the classes' names, their numbers by default.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("change", [BLUE, "white", ORANGE])
    low, high = limits
    figure, axes = _subplots(len(attacked), 3, figsize=(7.2, 2.5 * len(attacked)))
    clean, label = x[0].detach().cpu().float(), int(y)
    for row, name in zip(axes, attacked, strict=True):
        image = attacked[name][0].detach().cpu().float()
        _draw(row[0], ((image - low) / (high - low)).clamp(0, 1))
        most = eps or 1.0
        row[1].imshow((image - clean).mean(0).numpy(), cmap=colours, vmin=-most, vmax=most)
        row[1].set(xticks=[], yticks=[])
        likely, found = (
            logits[name][0].detach().cpu().float().softmax(0).topk(min(10, logits[name].shape[1]))
        )
        answer = int(found[0])
        mark, colour = ("✓", BLUE) if answer == label else ("✗", RED)
        shown = sorted(zip(found.tolist(), likely.tolist(), strict=True))
        drawn = row[2].barh(
            [classes[k] if classes else str(k) for k, _ in shown],
            [probability for _, probability in shown],
            color=[colour if k == answer else "silver" for k, _ in shown],
        )
        row[2].bar_label(drawn, fmt="%.2f", padding=2, fontsize=7)
        row[2].set(xlim=(0, 1.2), xticks=[], box_aspect=image.shape[1] / image.shape[2])
        row[2].tick_params(labelsize=7, length=0)
        row[2].spines[:].set_visible(False)
        row[2].invert_yaxis()
        row[0].set_title(name, fontsize=10)
        row[1].set_title("perturbation", fontsize=10)
        said = classes[answer] if classes else answer
        verdict = {"color": colour, "fontweight": "bold"}
        row[2].set_title(f"says {said} {mark}", loc="left", fontsize=10, **verdict)
    return figure


def bars(values: Mapping[str, Mapping[str, float]], *, xlabel: str, digits: int = 1) -> "Figure":
    """Show groups of horizontal bars, each with its number: group name, bar name, length."""
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    figure, axis = _single(figsize=(6, 0.5 + 0.22 * len(values) * (len(names) + 1)))
    for i, name in enumerate(names):
        at = [g * (len(names) + 1) + i for g, group in enumerate(values.values()) if name in group]
        lengths = [group[name] for group in values.values() if name in group]
        colour, *_ = SERIES[i % len(SERIES)]
        hatch = "" if i < len(SERIES) else "//"
        drawn = axis.barh(at, lengths, color=colour, hatch=hatch, edgecolor="white", label=name)
        axis.bar_label(drawn, [f"{name}  {length:.{digits}f}" for length in lengths], padding=3)
    middle = (len(names) - 1) / 2
    axis.set_yticks([g * (len(names) + 1) + middle for g in range(len(values))], list(values))
    axis.set(xlabel=xlabel)
    axis.margins(x=0.3)
    axis.invert_yaxis()
    return figure


def panels(
    values: Sequence[float],
    lines: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
) -> "Figure":
    """Show a panel per name, and in it up to four lines by name against `values`, from 0 to 1."""
    # below each other, as the text of panels side by side would be too small on a phone
    figure, axes = _subplots(len(lines), 1, figsize=(5, 2.1 * len(lines) + 0.8), sharex=True)
    for axis, (title, panel) in zip(axes[:, 0], lines.items(), strict=True):
        for i, (name, line) in enumerate(panel.items()):
            colour, marker, style = SERIES[i]
            axis.plot(values, line, color=colour, marker=marker, linestyle=style, label=name)
        axis.set(title=title, ylabel=ylabel, ylim=(-0.03, 1.03))
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(xlabel)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        frameon=False,
        ncols=len(SERIES),
        loc="outside lower center",
    )
    return figure


def relu_relaxation(lower: float, upper: float) -> "Figure":
    """Draw ReLU between `lower` < 0 and `upper` > 0, the chord above and the line below it."""
    if not lower < 0 < upper:
        raise ValueError(f"lower and upper must lie on both sides of 0, got {lower} and {upper}")
    figure, axis = _single(figsize=(4.6, 3))
    axis.plot([lower, 0, upper], [0, 0, upper], color="black", linewidth=2, label="ReLU")
    axis.plot([lower, upper], [0, upper], color=RED, linestyle="--", label="line above")
    slope = 1 if upper > -lower else 0
    below = [slope * lower, slope * upper]
    axis.plot([lower, upper], below, color=BLUE, linestyle=":", label="line below")
    axis.set(xlabel="input", ylabel="output")
    axis.legend(frameon=False)
    return figure


def confusion_matrix(
    predictions: Tensor, y: Tensor, *, classes: Sequence[str] | None = None
) -> "Figure":
    """Count what each class is taken for; the diagonal, which is right, is left pale.

    `predictions` and `y` are int64 (n,); rows are true classes, columns predictions.
    """
    if predictions.shape != y.shape:
        given = f"{len(predictions)} and {len(y)}"
        raise ValueError(f"predictions and y must be of the same images, got {given}")
    names = classes or [str(i) for i in range(int(max(y.max(), predictions.max())) + 1)]
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    counts.index_put_((y.cpu(), predictions.cpu()), torch.tensor(1), accumulate=True)
    wrong = counts.clone().fill_diagonal_(0)
    figure, axis = _single(figsize=(5, 4.6))
    axis.imshow(wrong.numpy(), cmap="Oranges", vmax=max(int(wrong.max()), 1) * 1.6)
    for i, row in enumerate(counts.tolist()):
        for j, count in enumerate(row):
            if count:
                axis.text(j, i, str(count), ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="prediction", ylabel="true digit")
    return figure


def targeted_grid(x: Tensor, reached: Tensor) -> "Figure":
    """Show grey images (k * k, 1, h, w), class i attacked towards class j in row i, column j.

    Those that did not get there, False in `reached` (k * k,), are crossed out; the diagonal, where
    there was nothing to do, never is.
    """
    side = math.isqrt(len(x))
    height, width = x.shape[2:]
    rows = x.detach().cpu().float().view(side, side, height, width)
    mosaic = rows.permute(0, 2, 1, 3).reshape(side * height, side * width)
    figure, axis = _single(figsize=(6.5, 6.5))
    extent = (-0.5, side - 0.5) * 2
    axis.imshow(mosaic.numpy(), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    missed = ~reached.cpu().view(side, side)
    down, across = missed.fill_diagonal_(False).nonzero().unbind(1)
    axis.scatter(across, side - 1 - down, s=500, marker="x", c=ORANGE, linewidths=2.5)
    axis.set_xticks(range(side))
    axis.set_yticks(range(side), [str(i) for i in reversed(range(side))])
    axis.set(xlabel="class aimed at", ylabel="true class")
    return figure


def linear_margin(w: Tensor, b: float, x: Tensor, *, eps: float) -> "Figure":
    """Draw a linear model on two pixels, the eps-square around `x`, and its worst corner."""
    from matplotlib.patches import Rectangle

    w, x = (value.detach().cpu().float() for value in (w, x))
    figure, axis = _single(figsize=(4.6, 4.2))
    side = torch.linspace(0, 1, 101)
    margin = w[0] * side[None, :] + w[1] * side[:, None] + b
    axis.contourf(side, side, margin, levels=[0, 1e9], colors=[BLUE], alpha=0.12)
    axis.contour(side, side, margin, levels=[0], colors="black")
    centre, low, corner = (tuple(p.tolist()) for p in (x, x - eps, x - eps * w.sign()))
    axis.add_patch(Rectangle(low, 2 * eps, 2 * eps, fill=False, color=BLUE, linewidth=2))
    _arrow(axis, centre, corner, RED, "-")
    axis.plot(*centre, "ko")
    axis.plot(*corner, color=RED, marker="X", markersize=10)
    axis.text(0.97, 0.03, "right side", ha="right", color=BLUE)
    axis.text(0.03, 0.95, "wrong side", color=RED)
    axis.set(xlabel="pixel 1", ylabel="pixel 2", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure


def projection_picture(eps: float = 0.1, alpha: float = 0.06, steps: int = 4) -> "Figure":
    """Draw BIM in two pixels: steps along the sign, and projections where one leaves the ball."""
    from matplotlib.patches import Rectangle

    figure, axis = _single(figsize=(4.6, 4.2))
    axis.add_patch(Rectangle((-eps, -eps), 2 * eps, 2 * eps, fill=False, color=BLUE, linewidth=2))
    signs = [(1, 1), (1, -1), (1, 1), (-1, 1)]
    point = (0.0, 0.0)
    for k in range(steps):
        sign = signs[k % len(signs)]
        step = (point[0] + alpha * sign[0], point[1] + alpha * sign[1])
        inside = (max(-eps, min(eps, step[0])), max(-eps, min(eps, step[1])))
        _arrow(axis, point, step, RED, "-")
        if inside != step:
            _arrow(axis, step, inside, GREEN, ":")
        point = inside
    axis.plot(0, 0, "ko")
    axis.plot(*point, "k*", markersize=12)
    axis.annotate("x", (0, 0), textcoords="offset points", xytext=(-12, -12))
    axis.annotate("$x_{adv}$", point, textcoords="offset points", xytext=(-34, 8))
    axis.plot([], [], color=RED, label="step along the sign")
    axis.plot([], [], color=GREEN, linestyle=":", label="projection")
    axis.plot([], [], color=BLUE, label=r"eps-ball: $|x_{adv}-x| \leq$ eps")
    axis.set(xlabel="change of pixel 1", ylabel="change of pixel 2", aspect="equal")
    axis.set(xlim=(-1.4 * eps, 1.9 * eps), ylim=(-1.4 * eps, 1.6 * eps))
    figure.legend(frameon=False, loc="outside lower center", fontsize=9)
    return figure


def _arrow(
    axis: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str, style: str
) -> None:
    arrow = {"arrowstyle": "->", "color": colour, "linestyle": style, "linewidth": 1.8}
    axis.annotate("", xy=end, xytext=start, arrowprops=arrow)
