"""The book's one-off figures, drawn as those of `advlib.plots` are."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib import fast
from advlib.attacks import input_gradient
from advlib.book import smoothing
from advlib.evaluation import predict
from advlib.plots import BLUE, ORANGE, RED, SERIES, _draw, _read, _single, _subplots
from advlib.runtime import evaluation_mode
from advlib.verification import output_bounds

SHADES = ("#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#999999", "#DDDDDD")


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
    low, high = limits
    figure, axes = _subplots(len(attacked), 3, figsize=(7.2, 2.5 * len(attacked)))
    clean, label = x[0].detach().cpu().float(), int(y)
    for row, name in zip(axes, attacked, strict=True):
        image = attacked[name][0].detach().cpu().float()
        _draw(row[0], ((image - low) / (high - low)).clamp(0, 1))
        _draw_change(row[1], image - clean, eps or 1.0)
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


def plane(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    reach: float = 1.0,
    points: int = 41,
    along: nn.Module | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Look at `net` around one image (1, c, h, w), along its FGSM step and random signs.

    Returns the positions from -reach to reach, in eps, and loss and prediction at each pair of
    them, (points, points): rows go along the random signs, columns along the FGSM step. Pixels are
    not clipped, so that the plane is flat. The eps-ball's cut is where the sizes of row and column
    add up to 1 at most, as each pixel moves by the sum of both. `along` is the network whose FGSM
    step it is, `net` itself by default.
    """
    places = torch.linspace(-reach, reach, points).to(x)
    ahead = eps * input_gradient(along or net, x, y).sign()
    coin = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x) - 0.5
    aside = eps * coin.sign()
    grid = places.view(-1, 1, 1, 1, 1) * aside + places.view(1, -1, 1, 1, 1) * ahead
    return places.cpu(), *_asked(net, x + grid, y)


def _asked(net: nn.Module, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss for label `y` and the prediction at each of (rows, columns, c, h, w)."""
    with evaluation_mode(net):
        logits = fast.logits(net, images.flatten(0, 1))
    loss = F.cross_entropy(logits, y.expand(len(logits)), reduction="none")
    return loss.view(images.shape[:2]).cpu(), logits.argmax(1).view(images.shape[:2]).cpu()


def loss_surfaces(
    nets: Mapping[str, nn.Module], x: Tensor, y: Tensor, *, eps: float, reach: float = 1.0
) -> "Figure":
    """Draw each network's loss over the plane of its FGSM step and random signs, as hills.

    `x` is one image (1, c, h, w), or one for each network, `y` as many labels. Blue is read right,
    orange wrong; all hills are to the same scale.
    """
    from matplotlib.colors import to_rgb

    x, y = x.expand(len(nets), *x.shape[1:]), y.expand(len(nets))
    figure, axes = _subplots(
        1, len(nets), figsize=(2.7 * len(nets) + 0.2, 2.8), subplot_kw={"projection": "3d"}
    )
    each = zip(nets.values(), x.split(1), y.split(1), strict=True)
    found = [plane(net, image, label, eps=eps, reach=reach) for net, image, label in each]
    top = max(float(loss.max()) for _, loss, _ in found)
    shown = zip(axes.flat, nets, y, found, strict=True)
    for axis, name, label, (places, loss, read) in shown:
        ahead, aside = torch.meshgrid(places, places, indexing="xy")
        wrong = (read != int(label)).numpy()[..., None]
        colours = np.where(wrong, to_rgb(ORANGE), to_rgb(BLUE))
        axis.plot_surface(
            ahead.numpy(),
            aside.numpy(),
            loss.numpy(),
            facecolors=colours,
            rcount=41,
            ccount=41,
            linewidth=0.2,
            edgecolor="white",
            shade=True,
        )
        axis.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1], zlim=(0, top))
        axis.set(xlabel="along FGSM", ylabel="random signs", title=f"loss, {name}")
        axis.set_box_aspect((1, 1, 0.8), zoom=0.8)  # constrained layout sees no labels of 3D axes
        axis.view_init(elev=28, azim=-125)
    return figure


def decision_map(
    nets: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    reach: float = 2.0,
    along: nn.Module | None = None,
) -> "Figure":
    """Draw what each network reads on the plane of its FGSM step and random signs.

    The true digit's region is blue, the others are pale, with their digits; the diamond is the
    plane's cut through the eps-ball. `along` as in `plane`: with it all maps are of one plane.
    """
    from matplotlib.colors import to_rgb

    figure, axes = _subplots(1, len(nets), figsize=(2.9 * len(nets) + 0.3, 3.2))
    for axis, (name, net) in zip(axes.flat, nets.items(), strict=True):
        places, _, read = plane(net, x, y, eps=eps, reach=reach, points=81, along=along)
        values = read.unique().tolist()
        others = [v for v in values if v != int(y)]
        table = {v: SHADES[i % len(SHADES)] for i, v in enumerate(others)} | {int(y): BLUE}
        picture = np.array([[to_rgb(table[int(v)]) for v in row] for row in read])
        axis.imshow(picture, origin="lower", extent=(-reach, reach) * 2, alpha=0.75)
        for v in values:
            down, across = (read == v).nonzero().float().median(0).values.long().tolist()
            if (read == v).sum() > 60:
                axis.text(places[across], places[down], str(v), ha="center", va="center", size=13)
        axis.plot([1, 0, -1, 0, 1], [0, 1, 0, -1, 0], color="black", linewidth=1.5)
        axis.plot(0, 0, "k.")
        axis.set(title=name, xlabel="along FGSM, in eps")
    axes[0, 0].set_ylabel("random signs, in eps")
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
    lines: Mapping[str, Mapping[str, Sequence[float | None]]],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> "Figure":
    """Show a panel per name, and in it up to four lines by name against `values`, from 0 to 1.

    A line has a gap where it is None. With `log` the axis of `values` is logarithmic.
    """
    # below each other, as the text of panels side by side would be too small on a phone
    figure, axes = _subplots(len(lines), 1, figsize=(5, 2.1 * len(lines) + 0.8), sharex=True)
    for axis, (title, panel) in zip(axes[:, 0], lines.items(), strict=True):
        for i, (name, line) in enumerate(panel.items()):
            colour, marker, style = SERIES[i]
            axis.plot(values, line, color=colour, marker=marker, linestyle=style, label=name)
        axis.set(title=title, ylabel=ylabel, ylim=(-0.03, 1.03))
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(xlabel)
    if all(isinstance(value, int) for value in values):
        axes[-1, 0].locator_params(axis="x", integer=True)
    if log:
        axes[-1, 0].set_xscale("log")
    names = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        *names,
        frameon=False,
        ncols=2 if max(map(len, names[1])) > 12 else len(SERIES),
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


# Paul Tol's muted colours, which colour-blind readers can tell apart, and black
_TEN = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255")
LABELS = (*_TEN, "#AA4499", "#000000")


def label_maps(columns: Mapping[str, Tensor], rows: Sequence[str] = ()) -> "Figure":
    """Show a column per name: grey images (n, 1, h, w), or maps of labels (n, h, w), all of one n.

    In a map the ground, label 0, is white. Each digit d, label d + 1, has its colour, and d is
    written on each of its pieces of twelve pixels or more.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    n, outline = len(next(iter(columns.values()))), [withStroke(linewidth=2.5, foreground="white")]
    figure, axes = _subplots(n, len(columns), figsize=(1.35 * len(columns), 1.45 * n + 0.5))
    for column, (name, values) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=10)
        for axis, image in zip(column, values.detach().cpu(), strict=True):
            axis.set(xticks=[], yticks=[])
            if image.ndim == 3:
                axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
                continue
            axis.imshow(image.numpy(), cmap=ListedColormap(["white", *LABELS]), vmin=0, vmax=10)
            for label in image[image > 0].unique().tolist():
                pieces = _pieces(image == label)
                for piece in pieces[pieces > 0].unique():
                    down, across = (pieces == piece).nonzero().float().mean(0).tolist()
                    if (pieces == piece).sum() >= 12:
                        place = {"ha": "center", "va": "center", "weight": "bold", "size": 9}
                        axis.text(across, down, str(label - 1), path_effects=outline, **place)
    for axis, name in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(name)
    keys = [Patch(color=colour, label=str(d)) for d, colour in enumerate(LABELS)]
    figure.legend(
        handles=keys,
        ncols=10 if len(columns) > 4 else 5,
        loc="outside lower center",
        frameon=False,
        handlelength=1,
        columnspacing=1,
    )
    return figure


def _pieces(mask: Tensor) -> Tensor:
    """Number the connected pieces of a mask, bool (h, w); 0 is outside of it."""
    found = torch.arange(1.0, mask.numel() + 1).view(mask.shape) * mask
    before = torch.zeros_like(found)
    while not torch.equal(found, before):  # the largest number floods its piece
        before, found = found, F.max_pool2d(found[None], 3, 1, 1)[0] * mask
    return found


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


def two_pixel_network() -> nn.Module:
    """Make the network of two pixels and two hidden units that a page shows; class 0 is right."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    values = [[-7.0, 6], [2, -4]], [-2.3, 1.6], [[1.1, 1.2], [0, 0]], [0.5, 0.0]
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    return net.requires_grad_(False).eval()


def two_pixel_attacks(net: nn.Module, x: Tensor, paths: Mapping[str, Tensor]) -> "Figure":
    """Draw what `net` makes of all images of two pixels, and ways of attacks from `x`, (2,).

    The ways, (steps, 2), run inside the eps-square of their farthest point, which is drawn too.
    """
    from matplotlib.patches import Rectangle

    figure, axis = _single(figsize=(4.6, 4.6))
    side = torch.linspace(0, 1, 201)
    across, up = torch.meshgrid(side, side, indexing="xy")
    with torch.no_grad():
        logits = net(torch.stack([across, up], 2))
    margin = (logits[..., 0] - logits[..., 1]).numpy()
    axis.contourf(side, side, margin, levels=[-1e9, 0, 1e9], colors=[ORANGE, BLUE], alpha=0.25)
    axis.contour(side, side, margin, levels=[0], colors="black")
    inner = margin[15:-15, 35:-35]  # room for the words
    for name, place in (("wrong side", inner.argmin()), ("right side", inner.argmax())):
        row, column = divmod(int(place), inner.shape[1])
        across_at, up_at = float(side[column + 35]), float(side[row + 15])
        axis.text(across_at, up_at, name, ha="center", va="center")
    eps = max(float((path - x).abs().max()) for path in paths.values())
    low = (float(x[0]) - eps, float(x[1]) - eps)
    axis.add_patch(Rectangle(low, 2 * eps, 2 * eps, fill=False, color=BLUE, linewidth=2))
    looks = ("X", "--", RED, 10), ("o", "-", "black", 3)
    for (name, path), (marker, style, colour, size) in zip(paths.items(), looks, strict=False):
        (way,) = axis.plot(*path.T, color=colour, linestyle=style, label=name)
        way.set(marker=marker, markersize=size, markevery=slice(1, None))
    axis.plot(*x, "k*", markersize=13, label="the image")
    axis.set(xlabel="pixel 1", ylabel="pixel 2", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    return figure


def _arrow(
    axis: "Axes", start: tuple[float, float], end: tuple[float, float], colour: str, style: str
) -> None:
    arrow = {"arrowstyle": "->", "color": colour, "linestyle": style, "linewidth": 1.8}
    axis.annotate("", xy=end, xytext=start, arrowprops=arrow)


def with_guess(figure: "Figure", guess: Mapping[float, float]) -> "Figure":
    """Mark on a figure of curves what the reader guessed: value on the x axis to accuracy."""
    axis = figure.axes[0]
    axis.plot(list(guess), list(guess.values()), "kX", markersize=9, label="guess")
    axis.legend(frameon=False)
    return figure


def curve(values: Sequence[float], line: Sequence[float], *, xlabel: str, ylabel: str) -> "Figure":
    """Draw one line of any numbers against `values`."""
    figure, axis = _single(figsize=(6, 3))
    axis.plot(values, line, color=BLUE, marker="o")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def logit_intervals(
    nets: Mapping[str, nn.Module], x: Tensor, y: Tensor, budgets: Sequence[float]
) -> "Figure":
    """Draw what each logit of one image (1, c, h, w) can be: a row per budget, a column per net.

    Broad grey bars are bounds by intervals, narrow ones CROWN's, blue for the class `y`, orange for
    the others. The dotted line stands at its lowest logit; a title has ✓ if all others stay below.
    """
    shape, true = (len(budgets), len(nets)), int(y)
    figure, axes = _subplots(*shape, figsize=(5.6, 1.8 * len(budgets) + 0.6), sharex="col")
    for column, (name, net) in zip(axes.T, nets.items(), strict=True):
        for axis, eps in zip(column, budgets, strict=True):
            box = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
            for method, height in (("interval", 0.9), ("crown", 0.45)):
                low, high = (b[0].cpu() for b in output_bounds(net, *box, method=method))
                colours = [BLUE if k == true else RED for k in range(len(low))]
                colours = ["silver"] * len(low) if method == "interval" else colours
                axis.barh(range(len(low)), high - low, height, left=low, color=colours)
            others = torch.cat([high[:true], high[true + 1 :]])
            axis.axvline(low[true], color=BLUE, linestyle=":", linewidth=1.2)
            mark = "✓" if low[true] > others.max() else "✗"
            axis.set_title(f"{name}, eps {eps} {mark}", fontsize=10)
            axis.set_yticks(range(len(low)))
            axis.tick_params(labelsize=8)
            axis.invert_yaxis()
        column[-1].set_xlabel("logit")
    for axis in axes[:, 0]:
        axis.set_ylabel("class")
    return figure


def certified_circle(
    net: nn.Module, x: Tensor, ahead: Tensor, *, sigma: float, radius: float, reach: float
) -> "Figure":
    """Draw what `net` answers around one image (1, c, h, w), and its smoothed version, in l2.

    The plane is spanned by the direction `ahead`, in the shape of `x`, and a random one at right
    angles to it. Blue is the answer at `x`, orange another one; for the smoothed network the colour
    is the share of 100 votes, with a line at one half. The circle has the certified `radius`.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Circle

    draw = torch.Generator().manual_seed(0)
    coin = torch.randn(x.shape, generator=draw).to(x)
    ahead = ahead / ahead.norm()
    aside = coin - (coin * ahead).sum() * ahead
    colours = LinearSegmentedColormap.from_list("votes", [RED, "white", BLUE])
    answer = predict(net, x)
    figure, axes = _subplots(1, 2, figsize=(6, 3.3), sharey=True)
    for axis, title, points in zip(axes[0], ("base", "smoothed"), (41, 13), strict=True):
        places = torch.linspace(-reach, reach, points).to(x).view(-1, 1, 1, 1)
        images = (places.unsqueeze(1) * aside / aside.norm() + places * ahead + x).flatten(0, 1)
        if title == "base":
            shares = (predict(net, images) == answer).float()
        else:
            counts = smoothing.votes(net, images, sigma=sigma, samples=100, generator=draw)
            shares = counts[:, answer].flatten() / 100
        side = places.flatten().cpu()
        picture = shares.view(points, points).cpu()
        axis.contourf(side, side, picture, 20, cmap=colours, vmin=0, vmax=1)
        axis.contour(side, side, picture, [0.5], colors="black", linestyles="--")
        axis.add_patch(Circle((0, 0), radius, fill=False, color="black", linewidth=2))
        axis.plot(0, 0, "k.")
        axis.set(title=f"{title} network", xlabel="along the attack", aspect="equal")
    axes[0, 0].set_ylabel("at right angles to it")
    return figure


def answers(votes: Mapping[str, Tensor], label: int) -> "Figure":
    """Draw how often each class was answered, (classes,): a histogram per name.

    The class `label` is blue and has a ✓, the others are orange.
    """
    figure, axes = _subplots(1, len(votes), figsize=(2.9 * len(votes), 2.6), sharey=True)
    for axis, (name, counts) in zip(axes[0], votes.items(), strict=True):
        classes = range(len(counts))
        colours = [BLUE if k == label else RED for k in classes]
        axis.bar(classes, counts.tolist(), color=colours)
        axis.set_xticks(classes, [f"{k}\n✓" if k == label else str(k) for k in classes])
        axis.set(title=name, xlabel="answer")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("votes")
    return figure


def two_ways(
    nets: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    ways: Mapping[str, Tensor],
    *,
    points: int = 61,
) -> "Figure":
    """Draw each network's loss and answers on the plane through an image and two attacked ones.

    `x` is one image (1, c, h, w), `y` its label, `ways` holds two attacked images by name, one eps
    from it. Where the true digit is read the plane is blue, elsewhere orange; lines join points of
    one loss; within the plane the eps-ball ends at the dashed line.
    """
    (across, first), (up, second) = ways.items()
    figure, axes = _subplots(1, len(nets), figsize=(3 * len(nets), 3.2), sharey=True)
    places = torch.linspace(-0.15, 1.15, points).to(x)
    right, ahead = places.view(1, -1, 1, 1, 1), places.view(-1, 1, 1, 1, 1)
    images = x + right * (first - x) + ahead * (second - x)
    at = places.cpu().numpy()
    for axis, (name, net) in zip(axes.flat, nets.items(), strict=True):
        loss, read = _asked(net, images, y)
        wrong = (read != int(y)).float()
        axis.contourf(at, at, wrong, levels=[-1, 0.5, 2], colors=[BLUE, RED], alpha=0.35)
        hills = loss.clamp_min(1e-6)
        lines = axis.contour(at, at, hills, levels=[0.01, 0.1, 1, 4], colors="black", linewidths=1)
        axis.clabel(lines, fmt="%g", fontsize=9)
        axis.plot([1, 0], [0, 1], color="black", linestyle="--", linewidth=1)
        for place, sign, word in ((0, 0), "o", "image"), ((1, 0), "s", across), ((0, 1), "^", up):
            axis.plot(*place, "k", marker=sign)
            axis.annotate(word, place, textcoords="offset points", xytext=(0, -13), ha="center")
        axis.set(title=name, aspect="equal", xticks=[0, 1], yticks=[0, 1], xlabel=f"to {across}")
    axes[0, 0].set_ylabel(f"to {up}")
    return figure


def surest(net: nn.Module, x: Tensor, x_adv: Tensor) -> int:
    """Return which image's reading changes where `net` is surest of it before and after."""
    with evaluation_mode(net):
        before, after = (fast.logits(net, images).topk(2, dim=1) for images in (x, x_adv))
    margins = [found.values[:, 0] - found.values[:, 1] for found in (before, after)]
    changed = before.indices[:, 0] != after.indices[:, 0]
    return int((torch.minimum(*margins) * changed).argmax())


def one_change(
    net: nn.Module, x: Tensor, x_adv: Tensor, *, magnified: int = 5, width: float = 6.6
) -> "Figure":
    """Show an image (1, c, h, w) and its change, magnified, and the sum, each with words below.

    They say what `net` reads and how sure it is; the first reading counts as right.
    """
    (before, sure), (after, still) = _read(net, torch.cat([x, x_adv]))
    large, small = 4 * width, 2.5 * width
    figure, axes = _subplots(1, 3, figsize=(width, 0.42 * width))
    figure.get_layout_engine().set(wspace=0.1)
    _draw(axes[0, 0], x[0].detach().cpu())
    _draw_change(axes[0, 1], magnified * (x_adv - x)[0].detach().cpu(), 0.5)
    _draw(axes[0, 2], x_adv[0].detach().cpu())
    words = [
        (f"a {before} ✓", f"{sure} sure", BLUE),
        ("change", f"magnified {magnified} times", "black"),
        (f"a {after} ✗", f"{still} sure", RED),
    ]
    for axis, (above, below, colour) in zip(axes[0], words, strict=True):
        place = {"transform": axis.transAxes, "ha": "center", "va": "top", "color": colour}
        axis.text(0.5, -0.05, above, size=large, weight="bold", **place)
        axis.text(0.5, -0.27, below, size=small, **place)
    for axis, sign in zip(axes[0], "+=", strict=False):
        place = {"transform": axis.transAxes, "ha": "center", "va": "center"}
        axis.text(1.14, 0.5, sign, size=large, **place)
    return figure


def _draw_change(axis: "Axes", change: Tensor, most: float) -> None:
    """Draw a change of (c, h, w), orange where brighter and blue where darker, in a thin frame."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("change", [BLUE, "white", ORANGE])
    axis.imshow(change.mean(0).numpy(), cmap=colours, vmin=-most, vmax=most)
    axis.set(xticks=[], yticks=[])


def four_numbers(accuracies: Mapping[str, Mapping[str, float]]) -> "Figure":
    """Show, for each network and each kind of images, how many of 100 squares are read right.

    Blue is right, hatched orange wrong; the square at the border may be cut, so the area is exact.
    """
    figure, axes = _subplots(1, len(accuracies), figsize=(3 * len(accuracies), 2.4))
    for axis, (name, kinds) in zip(axes[0], accuracies.items(), strict=True):
        ticks = {}
        for i, (kind, fraction) in enumerate(kinds.items()):
            columns = np.arange(10) + 12 * i + 0.5
            right = (100 * fraction - 10 * np.arange(10)).clip(0, 10)
            axis.bar(columns, right, width=1, color=BLUE)
            axis.bar(columns, 10 - right, 1, right, color=RED, hatch="////", edgecolor="white")
            axis.vlines(np.arange(11) + 12 * i, 0, 10, color="white", linewidth=1.5)
            axis.hlines(np.arange(11), 12 * i, 12 * i + 10, color="white", linewidth=1.5)
            ticks[12 * i + 5] = f"{100 * fraction:.1f} %\n{kind}"
        axis.set_xticks(list(ticks), list(ticks.values()), size=13)
        axis.set_title(name, size=14, weight="bold")
        axis.set(yticks=[], aspect="equal")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    return figure


def running_sum(w: Tensor, margin: float, *, eps: float) -> "Figure":
    """Draw what a linear margin loses, pixel by pixel: against the weights `w` (n,), and at random.

    Every pixel moves by `eps`; the dashed line is the margin to lose.
    """
    w = w.detach().cpu().float()
    coin = torch.rand(w.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    figure, axis = _single(figsize=(5.5, 3.4))
    for signs, label, colour, style in (
        (w.sign(), "against each weight's sign", RED, "-"),
        (coin.sign(), "random signs", BLUE, ":"),
    ):
        axis.plot(eps * (signs * w).cumsum(0), color=colour, linestyle=style, label=label)
    axis.axhline(margin, color="black", linestyle="--", label="the margin")
    axis.set(xlabel="pixels changed, row by row", ylabel="loss of margin")
    axis.legend(frameon=False)
    return figure


def heat_maps(rows: Mapping[str, tuple[Tensor, Tensor]]) -> "Figure":
    """Show a row per name: images (n, 1, h, w) in grey, and on them their heat (n, h, w).

    Each heat is scaled by its own maximum, from clear to orange; where there is none it stays grey.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    clear = LinearSegmentedColormap.from_list("heat", [(*to_rgb(ORANGE), a) for a in (0, 0.9)])
    columns = len(next(iter(rows.values()))[0])
    figure, axes = _subplots(len(rows), columns, figsize=(0.8 * columns + 1.3, 0.85 * len(rows)))
    for row, (name, (x, heat)) in zip(axes, rows.items(), strict=True):
        row[0].text(-0.1, 0.5, name, transform=row[0].transAxes, ha="right", va="center")
        for axis, image, hot in zip(row, x.detach().cpu(), heat.detach().cpu(), strict=True):
            _draw(axis, image, (0.0, 1.6))
            hot = hot / hot.max().clamp_min(1e-12)
            axis.imshow(hot, cmap=clear, vmin=0, vmax=1, interpolation="nearest")  # a light file
    return figure


def roc_curves(panels: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]) -> "Figure":
    """Show a panel per name, and in it up to six curves: name to (false alarms, hits)."""
    figure, axes = _subplots(1, len(panels), figsize=(2.3 * len(panels) + 0.3, 3.45), sharey=True)
    looks = [(colour, style) for colour, _, style in SERIES] + [("black", "-"), ("gray", "--")]
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="silver", linewidth=1)
        for (name, (alarms, hits)), (colour, style) in zip(curves.items(), looks, strict=False):
            axis.plot(alarms.cpu(), hits.cpu(), color=colour, linestyle=style, label=name)
        axis.set(title=title, xlabel="false alarms", aspect="equal", xticks=[0, 1], yticks=[0, 1])
    axes[0, 0].set_ylabel("strangers found")
    names = axes[0, 0].get_legend_handles_labels()
    figure.legend(*names, frameon=False, ncols=3, loc="outside lower center")
    return figure


def border_walk(sizes: Sequence[float], broken: Sequence[bool]) -> "Figure":
    """Draw how large a change is after each step, and whether the image is misread with it."""
    figure, axis = _single(figsize=(6, 3))
    axis.plot(sizes, color="silver", zorder=0)
    for hit, marker, colour, name in ((False, "o", BLUE, "right ✓"), (True, "X", RED, "misread ✗")):
        at = [k for k, each in enumerate(broken) if each == hit]
        axis.scatter(at, [sizes[k] for k in at], marker=marker, color=colour, label=name)
    axis.set(xlabel="step", ylabel="size of the change", ylim=(0, None))
    axis.legend(frameon=False)
    return figure


def standing(sizes: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """Draw which share of the images is still right after their best changes up to a size.

    A panel per norm, and in it a line per network, of the size that breaks each image.
    """
    figure, axes = _subplots(len(sizes), 1, figsize=(5, 2.1 * len(sizes) + 0.5))
    for axis, (norm, lines) in zip(axes[:, 0], sizes.items(), strict=True):
        for (name, found), (colour, _, style) in zip(lines.items(), SERIES, strict=False):
            at = sorted(found)
            left = [1 - (i + 1) / len(at) for i in range(len(at))]
            axis.step([0, *at], [1, *left], color=colour, linestyle=style, label=name, where="post")
        axis.set(xlabel=f"size of the change, {norm}", ylabel="still right", ylim=(-0.03, 1.03))
        axis.set_xlim(0, max(sorted(found)[int(0.97 * len(found))] for found in lines.values()))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    return figure
