"""Figures of images, predictions and curves. Each function returns a matplotlib Figure.

Make it a cell's last line: pyplot does not keep it. Colours are Okabe and Ito's, which colour-blind
readers can tell apart, and never the only sign: right and wrong also carry a mark.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from advlib import fast
from advlib.checks import (
    Bounds,
    check_bounds,
    check_count,
    check_images,
    check_labels,
    check_list,
    check_mapping,
    check_model,
    check_numbers,
)
from advlib.runtime import evaluation_mode

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
    limits: Bounds = (0.0, 1.0),
    colour: str = "gray",
) -> "Figure":
    """Show images (n, c, h, w) in a grid, each under its title.

    One channel is drawn with the colour map `colour` between `limits`, or the image's own with
    None; three as RGB. Raises TypeError or ValueError for a wrong argument or number of titles.
    """
    x = _check_pictures(x)
    check_count("columns", columns)
    check_bounds(limits, "limits")
    check_list("titles", [] if titles is None else titles, "texts")
    if titles and len(titles) != len(x):
        raise ValueError(f"titles must hold {len(x)} texts, got {len(titles)}")
    axes, figure = _grid(len(x), columns)
    for i, (axis, image) in enumerate(zip(axes, x.detach().cpu(), strict=False)):
        _draw(axis, image, limits, colour)
        if titles:
            axis.set_title(titles[i], fontsize=9)
    return figure


def show_predictions(
    model: nn.Module, x: Tensor, y: Tensor, *, columns: int = 4, classes: Sequence[str] = ()
) -> "Figure":
    """Show each image under what `model` takes it for, ✓ and blue if right, ✗ and red if wrong.

    Below stands the answer's softmax. `x` are images (n, c, h, w), c 1 or 3, in [0, 1], `y` labels,
    int64 (n,), `classes` their names, by default numbers. Raises TypeError or ValueError.
    """
    x = _check_pictures(x)
    y = check_labels(y, x)
    check_count("columns", columns)
    check_list("classes", classes, "names")
    found = _read(model, x)
    if classes and len(classes) <= (most := max(found)[0]):
        raise ValueError(f"classes must name class {most}, got {len(classes)} names")
    axes, figure = _grid(len(x), columns)
    rows = zip(axes, x.detach().cpu(), found, y.tolist(), strict=False)
    for axis, image, (answer, sure), label in rows:
        _draw(axis, image)
        name = classes[answer] if classes else str(answer)
        mark, colour = ("✓", BLUE) if answer == label else ("✗", RED)
        title = f"{name} {mark}\n{sure}"
        axis.set_title(title, color=colour, fontsize=9, fontweight="bold", linespacing=1.0)
    return figure


def _read(model: nn.Module, x: Tensor) -> list[tuple[int, str]]:
    """Return each image's answer and how sure `model` is of it, rounded down to 99.9 % at most."""
    check_model(model)
    with evaluation_mode(model):
        sure, read = (of.tolist() for of in fast.logits(model, x).softmax(1).max(1))
    return [(k, f"{min(int(1000 * p), 999) / 10} %") for k, p in zip(read, sure, strict=True)]


def loss_curve(losses: Sequence[float], iterations_per_epoch: int = 1) -> "Figure":
    """Show the loss of each iteration and its mean over each epoch, against the epoch."""
    check_count("iterations_per_epoch", iterations_per_epoch, minimum=0)
    losses = check_numbers("losses", losses, finite=False)
    figure, axis = _single(figsize=(6, 3))
    per_epoch = max(iterations_per_epoch, 1)
    epochs = [(i + 1) / per_epoch for i in range(len(losses))]
    axis.plot(epochs, losses, color=BLUE, alpha=0.35, linewidth=0.8, label="each iteration")
    begun = range(0, len(losses) - per_epoch + 1, per_epoch)
    means = [sum(losses[i : i + per_epoch]) / per_epoch for i in begun]
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
    """Show one line of accuracies per name against `values`, with a band where there is one.

    Raises ValueError for a band without a line, or without an interval for each of `values`.
    """
    bands = {} if intervals is None else intervals
    values = check_numbers("values", values)
    check_mapping("accuracies", accuracies)
    check_mapping("intervals", bands)
    for name, line in accuracies.items():
        if len(check_numbers(f"accuracies[{name!r}]", line)) != len(values):
            raise ValueError(f"accuracies[{name!r}] must hold {len(values)} numbers")
    for name, band in bands.items():
        check_list(f"intervals[{name!r}]", band, "pairs")
        if name not in accuracies or len(band) != len(values):
            raise ValueError(f"intervals[{name!r}] must hold {len(values)} pairs for a line's name")
    figure, axis = _single(figsize=(6, 3.4))
    for i, (name, line) in enumerate(accuracies.items()):
        colour, marker, style = SERIES[i % len(SERIES)]
        axis.plot(values, line, color=colour, marker=marker, linestyle=style, label=name)
        if name in bands:
            low, high = zip(*bands[name], strict=True)
            axis.fill_between(values, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.03, 1.03))
    axis.legend(frameon=False)
    return figure


def intervals(rows: Mapping[str, tuple[float, float, float]], *, xlabel: str) -> "Figure":
    """Show a fraction per name, with its interval: name to (fraction, low, high)."""
    check_mapping("rows", rows)
    for name, row in rows.items():
        value, low, high = (*check_numbers(f"rows[{name!r}]", row), -1, -1, -1)[:3]
        if len(row) != 3 or not 0 <= low <= high <= 1 or not 0 <= value <= 1:
            raise ValueError(f"rows[{name!r}] must be (fraction, low, high), got {rows[name]}")
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


def _grid(images: int, columns: int) -> "tuple[list[Axes], Figure]":
    rows = -(-images // columns)
    columns = min(columns, images)
    figure, axes = _subplots(rows, columns, figsize=(columns * 0.85 + 0.4, rows * 1.05))
    for axis in axes.flat:
        axis.axis("off")
    return list(axes.flat), figure


def _draw(axis: "Axes", image: Tensor, limits: Bounds = (0.0, 1.0), colour: str = "gray") -> None:
    axis.axis("off")
    if len(image) == 3:
        axis.imshow(image.float().permute(1, 2, 0).numpy())
    else:
        low, high = limits or (None, None)
        axis.imshow(image[0].float().numpy(), cmap=colour, vmin=low, vmax=high)


def _single(**options: Any) -> "tuple[Figure, Axes]":
    figure, axes = _subplots(1, 1, **options)
    axes[0, 0].spines[["top", "right"]].set_visible(False)
    return figure, axes[0, 0]


def _subplots(rows: int, columns: int, **options: Any) -> Any:
    """Make a figure that pyplot does not keep: it is shown as a cell's value, once."""
    import matplotlib.pyplot as plt

    options |= {"squeeze": False, "layout": "constrained", "dpi": 110}
    figure, axes = plt.subplots(rows, columns, **options)
    plt.close(figure)
    return figure, axes


def _check_pictures(x: Any) -> Tensor:
    x = check_images(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"x must have shape (n, 1 or 3, h, w), got {tuple(x.shape)}")
    return x
