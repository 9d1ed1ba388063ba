"""The picture that stands for the book where a link to it is shared."""

from pathlib import Path

from lab import EPS
from matplotlib.figure import Figure
from torch import nn

from advlib import bim, load_data, predict
from advlib.plots import BLUE, RED


def write_card(path: Path, net: nn.Module) -> None:
    """A digit, what BIM adds to it, and what `net` reads then: 1200 by 630 pixels."""
    test = load_data(device="cpu")[1]
    x, y = test.x[:200], test.y[:200]
    attacked = bim(net, x, y, eps=EPS, alpha=EPS / 8, steps=20)
    before, after = predict(net, x), predict(net, attacked)
    i = int(((before == y) & (after != y)).nonzero()[0])

    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    signed = {"cmap": "RdBu_r", "vmin": -EPS, "vmax": EPS}
    shown = [
        (x[i], grey, f"read as {before[i]} ✓", BLUE),
        ((attacked - x)[i], signed, f"at most {EPS} a pixel", "black"),
        (attacked[i], grey, f"read as {after[i]} ✗", RED),
    ]
    figure = Figure(figsize=(12, 6.3), dpi=100)
    figure.text(0.5, 0.86, "Adversarial robustness, hands on", ha="center", size=36, weight="bold")
    for left, (image, colours, words, colour) in zip((0.06, 0.38, 0.7), shown, strict=True):
        axes = figure.add_axes((left, 0.22, 0.24, 0.24 * 1200 / 630))
        axes.imshow(image[0], interpolation="nearest", **colours)
        axes.set_axis_off()
        figure.text(left + 0.12, 0.11, words, ha="center", size=26, color=colour)
    for middle, sign in ((0.34, "+"), (0.66, "=")):
        figure.text(middle, 0.45, sign, ha="center", va="center", size=48)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
