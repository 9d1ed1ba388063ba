"""The book's figures. Each function returns a matplotlib Figure; make it a cell's last line.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and never the only sign:
right and wrong also carry a mark.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advlib.evaluation import predict
from advlib.runtime import (
    check_count,
    check_images,
    check_labels,
    check_list,
    check_logits,
    check_mapping,
    check_names,
    check_number,
    check_numbers,
    check_pair,
    check_tensor,
    check_text,
    evaluation_mode,
)

MOST_CLASSES = 1000  # in a confusion matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SERIES = [(BLUE, "o", "-"), (RED, "s", "--"), (GREEN, "^", "-."), (ORANGE, "D", ":")]


def show_images(
    x: Tensor,
    titles: Sequence[str] | None = None,
    *,
    columns: int = 10,
    limits: tuple[float, float] = (0.0, 1.0),
    colour: str = "gray",
) -> "Figure":
    """Show images (n, c, h, w) in a grid, each under its title.

    One channel is drawn with the colour map `colour` between `limits`; three are drawn as RGB.
    """
    from matplotlib import colormaps

    _check_pictures(x)
    check_count("columns", columns)
    check_names("titles", titles, len(x))
    check_pair("limits", limits)
    if not isinstance(colour, str) or colour not in colormaps:
        raise ValueError(f"colour must be the name of a matplotlib colour map, got {colour!r}")
    axes, figure = _grid(len(x), columns)
    for i, (axis, image) in enumerate(zip(axes, x.detach().cpu(), strict=False)):
        _draw(axis, image, limits, colour)
        if titles:
            axis.set_title(titles[i], fontsize=9)
    return figure


def show_predictions(
    model: nn.Module, x: Tensor, y: Tensor, *, columns: int = 4, classes: Sequence[str] = ()
) -> "Figure":
    """Show each image under what `model` takes it for: ✓ and blue if right, ✗ and red if wrong."""
    _check_pictures(x)
    check_labels(y, x)
    check_count("columns", columns)
    with evaluation_mode(model):
        check_names("classes", classes, check_logits(model, x, y))
    predictions = predict(model, x).tolist()
    axes, figure = _grid(len(x), columns)
    pairs = zip(axes, x.detach().cpu(), predictions, y.tolist(), strict=False)
    for axis, image, prediction, label in pairs:
        _draw(axis, image, (0.0, 1.0), "gray")
        name = classes[prediction] if classes else str(prediction)
        mark, colour = ("✓", BLUE) if prediction == label else ("✗", RED)
        axis.set_title(f"{name} {mark}", color=colour, fontsize=11, fontweight="bold")
    return figure


def show_gradients(x: Tensor, gradients: Mapping[str, Tensor]) -> "Figure":
    """Show images (n, 1, h, w) in the first row, and under them a row of gradients per name.

    Each gradient is scaled by its own largest entry: red raises the loss, blue lowers it.
    """
    _check_pictures(x, channels=(1,))
    check_mapping("gradients", gradients)
    for name, gradient in gradients.items():
        _check_like(f"gradients[{name!r}]", gradient, x)
    figure, axes = _subplots(
        1 + len(gradients), len(x), figsize=(1.1 * len(x) + 0.8, 1.25 * (1 + len(gradients)))
    )
    for axis, image in zip(axes[0], x.detach().cpu(), strict=True):
        _draw(axis, image, (0.0, 1.0), "gray")
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

    _check_view(x, y, attacked, logits, classes)
    check_number("eps", eps)
    check_pair("limits", limits)
    colours = LinearSegmentedColormap.from_list("change", [BLUE, "white", ORANGE])
    low, high = limits
    figure, axes = _subplots(len(attacked), 3, figsize=(7.2, 2.5 * len(attacked)))
    clean, label = x[0].detach().cpu().float(), int(y)
    for row, name in zip(axes, attacked, strict=True):
        image = attacked[name][0].detach().cpu().float()
        _draw(row[0], ((image - low) / (high - low)).clamp(0, 1), (0.0, 1.0), "gray")
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


def loss_curve(losses: Sequence[float], iterations_per_epoch: int = 1) -> "Figure":
    """Show the loss of each iteration and its mean over each epoch, against the epoch."""
    losses = check_numbers("losses", losses, finite=False)
    check_count("iterations_per_epoch", iterations_per_epoch, minimum=0)
    figure, axis = _single(figsize=(6, 3))
    per_epoch = max(iterations_per_epoch, 1)
    epochs = [(i + 1) / per_epoch for i in range(len(losses))]
    axis.plot(epochs, losses, color=BLUE, alpha=0.35, linewidth=0.8, label="each iteration")
    means = [
        sum(losses[i : i + per_epoch]) / per_epoch
        for i in range(0, len(losses) - per_epoch + 1, per_epoch)
    ]
    middles = [i + 0.5 for i in range(len(means))]
    axis.plot(middles, means, color=RED, marker="o", markersize=3, label="mean of each epoch")
    axis.set(xlabel="epoch", ylabel="cross-entropy loss", ylim=(0, None))
    axis.legend(frameon=False)
    return figure


def accuracy_curves(
    values: Sequence[float],
    accuracies: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str = "accuracy",
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> "Figure":
    """Show one line of accuracies per name against `values`, with a band where there is one."""
    values = check_numbers("values", values)
    lines = _lines("accuracies", accuracies, len(values))
    bands = _bands("intervals", {} if intervals is None else intervals, len(values))
    check_text("xlabel", xlabel)
    check_text("ylabel", ylabel)
    figure, axis = _single(figsize=(6, 3.4))
    for i, (name, line) in enumerate(lines.items()):
        colour, marker, style = SERIES[i % len(SERIES)]
        axis.plot(values, line, color=colour, marker=marker, linestyle=style, label=name)
        if name in bands:
            low, high = zip(*bands[name], strict=True)
            axis.fill_between(values, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.03, 1.03))
    axis.legend(frameon=False)
    return figure


def bars(values: Mapping[str, Mapping[str, float]], *, xlabel: str, digits: int = 1) -> "Figure":
    """Show groups of horizontal bars, each with its number: group name, bar name, length."""
    check_mapping("values", values)
    for title, group in values.items():
        check_mapping(f"values[{title!r}]", group)
        for name, length in group.items():
            check_number(f"values[{title!r}][{name!r}]", length, -math.inf)
    check_text("xlabel", xlabel)
    check_count("digits", digits, minimum=0, maximum=20)
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


def intervals(rows: Mapping[str, tuple[float, float, float]], *, xlabel: str) -> "Figure":
    """Show a fraction per name, with its interval: name to (fraction, low, high)."""
    for name, row in _lines("rows", rows, 3).items():
        if not 0 <= row[1] <= row[2] <= 1 or not 0 <= row[0] <= 1:
            raise ValueError(f"rows[{name!r}] must be (fraction, low, high), got {row}")
    check_text("xlabel", xlabel)
    figure, axis = _single(figsize=(6, 0.9 + 0.36 * len(rows)))
    for i, (value, low, high) in enumerate(rows.values()):
        axis.plot([low, high], [i, i], color=BLUE, marker="|", markersize=9)
        axis.plot(value, i, color=BLUE, marker="o")
        axis.annotate(
            f"{value:.3f}", (value, i), textcoords="offset points", xytext=(0, 7), ha="center"
        )
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(xlabel=xlabel, xlim=(-0.05, 1.05), ylim=(len(rows) - 0.5, -0.8))
    axis.grid(axis="x", alpha=0.3)
    return figure


def panels(
    values: Sequence[float],
    lines: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
) -> "Figure":
    """Show a panel per name, and in it up to four lines by name against `values`, from 0 to 1."""
    values = check_numbers("values", values)
    check_mapping("lines", lines)
    if not lines:
        raise ValueError("lines must hold at least one panel")
    for title, panel in lines.items():
        _lines(f"lines[{title!r}]", panel, len(values))
        if len(panel) > len(SERIES):
            raise ValueError(f"lines[{title!r}] must have at most {len(SERIES)} lines")
    check_text("xlabel", xlabel)
    check_text("ylabel", ylabel)
    # below each other, as the text of panels side by side would be too small on a phone
    figure, axes = _subplots(len(lines), 1, figsize=(5, 2.1 * len(lines) + 0.8), sharex=True)
    for axis, (title, panel) in zip(axes[:, 0], lines.items(), strict=True):
        for (colour, marker, style), (name, line) in zip(SERIES, panel.items(), strict=False):
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
    check_number("lower", lower, -math.inf)
    check_number("upper", upper, -math.inf)
    if not lower < 0 < upper:
        raise ValueError(f"lower and upper must lie on both sides of 0, got {lower} and {upper}")
    figure, axis = _single(figsize=(4.6, 3))
    axis.plot([lower, 0, upper], [0, 0, upper], color="black", linewidth=2, label="ReLU")
    axis.plot([lower, upper], [0, upper], color=RED, linestyle="--", label="line above")
    slope = 1 if upper > -lower else 0
    axis.plot(
        [lower, upper],
        [slope * lower, slope * upper],
        color=BLUE,
        linestyle=":",
        label="line below",
    )
    axis.set(xlabel="input", ylabel="output")
    axis.legend(frameon=False)
    return figure


def confusion_matrix(
    predictions: Tensor, y: Tensor, *, classes: Sequence[str] | None = None
) -> "Figure":
    """Count what each class is taken for; the diagonal, which is right, is left pale."""
    for name, value in (("predictions", predictions), ("y", y)):
        check_tensor(name, value)
        if value.dtype != torch.int64 or value.ndim != 1:
            given = f"{value.dtype}, {tuple(value.shape)}"
            raise TypeError(f"{name} must be int64 class numbers (n,), got {given}")
    if predictions.shape != y.shape or len(y) == 0:
        given = f"{len(predictions)} and {len(y)}"
        raise ValueError(f"predictions and y must be of the same images, got {given}")
    for name, value in (("predictions", predictions), ("y", y)):
        if value.min() < 0 or value.max() >= MOST_CLASSES:
            raise ValueError(f"{name} must be from 0 to {MOST_CLASSES - 1}")
    count = int(max(y.max(), predictions.max())) + 1
    check_names("classes", classes)
    if classes and len(classes) < count:
        raise ValueError(f"classes must hold {count} names or more, got {len(classes)}")
    names = classes or [str(i) for i in range(count)]
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
    _check_pictures(x, channels=(1,))
    side = math.isqrt(len(x))
    if side**2 != len(x):
        raise ValueError(f"x must hold a square number of images, got {len(x)}")
    check_tensor("reached", reached)
    if reached.shape != x.shape[:1] or reached.dtype != torch.bool:
        given = f"{tuple(reached.shape)}, {reached.dtype}"
        raise ValueError(f"reached must be bool of shape ({len(x)},), got {given}")
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

    for name, value in (("w", w), ("x", x)):
        _check_like(name, value, torch.empty(2))
    check_number("b", b, -math.inf)
    check_number("eps", eps)
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

    if check_number("eps", eps) == 0:
        raise ValueError("eps must be above 0")
    check_number("alpha", alpha)
    check_count("steps", steps, maximum=100)
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


def _check_view(x: Any, y: Any, attacked: Any, logits: Any, classes: Sequence[str]) -> None:
    _check_pictures(x)
    check_labels(y, x)
    if len(x) != 1:
        raise ValueError(f"x must hold one image, got {len(x)}")
    check_mapping("attacked", attacked)
    check_mapping("logits", logits)
    if not attacked:
        raise ValueError("attacked must hold an image for at least one network")
    if set(logits) != set(attacked):
        raise ValueError(f"logits must have the names of attacked, got {list(logits)}")
    for name, image in attacked.items():
        _check_like(f"attacked[{name!r}]", image, x)
        scores = logits[name]
        check_images(scores, name=f"logits[{name!r}]")
        if scores.ndim != 2 or len(scores) != 1:
            raise ValueError(f"logits[{name!r}] must have shape (1, classes), got {scores.shape}")
        if int(y) >= scores.shape[1]:
            raise ValueError(f"y must be below the {scores.shape[1]} classes, got {int(y)}")
        check_names("classes", classes, scores.shape[1])


def _check_like(name: str, value: Any, x: Tensor) -> None:
    """Accept a floating tensor in the shape of `x`, finite."""
    check_tensor(name, value)
    if value.shape != x.shape or not value.is_floating_point() or value.dtype.itemsize < 2:
        wanted, given = tuple(x.shape), f"{tuple(value.shape)}, {value.dtype}"
        raise ValueError(f"{name} must be floating point of shape {wanted}, got {given}")
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def _lines(name: str, lines: Any, length: int) -> dict[Any, list[float]]:
    """Lists of so many numbers, by name."""
    check_mapping(name, lines)
    found = {key: check_numbers(f"{name}[{key!r}]", line) for key, line in lines.items()}
    for key, line in found.items():
        if len(line) != length:
            raise ValueError(f"{name}[{key!r}] must have {length} values, got {len(line)}")
    return found


def _bands(name: str, bands: Any, length: int) -> dict[Any, Any]:
    """Lists of so many pairs (low, high), by name."""
    check_mapping(name, bands)
    for key, pairs in bands.items():
        check_list(f"{name}[{key!r}]", pairs, "pairs (low, high)")
        if len(pairs) != length:
            raise ValueError(f"{name}[{key!r}] must have {length} pairs, got {len(pairs)}")
        for i, pair in enumerate(pairs):
            numbers = check_numbers(f"{name}[{key!r}][{i}]", pair)
            if len(numbers) != 2 or numbers[0] > numbers[1]:
                raise ValueError(f"{name}[{key!r}][{i}] must be (low, high), got {pair!r}")
    return dict(bands)


def _arrow(
    axis: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str, style: str
) -> None:
    arrow = {"arrowstyle": "->", "color": colour, "linestyle": style, "linewidth": 1.8}
    axis.annotate("", xy=end, xytext=start, arrowprops=arrow)


def _grid(images: int, columns: int) -> "tuple[list[Axes], Figure]":
    rows = -(-images // columns)
    columns = min(columns, images)
    figure, axes = _subplots(rows, columns, figsize=(columns * 0.85 + 0.4, rows * 1.05))
    for axis in axes.flat:
        axis.axis("off")
    return list(axes.flat), figure


def _draw(axis: "Axes", image: Tensor, limits: tuple[float, float], colour: str) -> None:
    axis.axis("off")
    if len(image) == 3:
        axis.imshow(image.float().permute(1, 2, 0).numpy())
    else:
        axis.imshow(image[0].float().numpy(), cmap=colour, vmin=limits[0], vmax=limits[1])


def _single(**options: Any) -> "tuple[Figure, Axes]":
    figure, axes = _subplots(1, 1, **options)
    axes[0, 0].spines[["top", "right"]].set_visible(False)
    return figure, axes[0, 0]


def _subplots(rows: int, columns: int, **options: Any) -> Any:
    """Make a figure that pyplot does not keep: it is shown as a cell's value, once."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, squeeze=False, layout="constrained", dpi=110, **options
    )
    plt.close(figure)
    return figure, axes


def _check_pictures(x: Any, channels: Sequence[int] = (1, 3)) -> None:
    check_images(x)
    if x.ndim != 4 or x.shape[1] not in channels:
        allowed = " or ".join(map(str, channels))
        raise ValueError(f"x must have shape (n, {allowed}, h, w), got {tuple(x.shape)}")
