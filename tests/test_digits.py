"""The shipped digits against the image statistics they were drawn by.

The source's figures, and the tolerances, are those of the book's data card. Five numbers are mean,
standard deviation, and the 5th, 50th and 95th percentile.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from advlib import load_data

CARD = (Path(__file__).parents[1] / "book" / "data_card.md").read_text("utf8")
COLUMNS = r"^\| (.*?) \| (.*?) \| (.*?) \| .*? \| (.*?) \|$"  # figure, source, ours, MNIST, within
_, *LINES = re.findall(COLUMNS, CARD, re.M)
ROWS = {name: columns for name, *columns in LINES}


def numbers(words):
    return np.array([float(number) for number in re.findall(r"[\d.]+", words)])


@pytest.fixture(scope="module")
def figures():
    train, test = load_data(device="cpu")
    x, test_x = (part.x[:, 0].numpy() for part in (train, test))
    y, test_y = train.y.numpy(), test.y.numpy()
    angles = train.angles.numpy()
    top = x.max((1, 2))
    edges = np.array([0, 0, 0.2, 0.8, 1]) + 1e-6 * np.array([0, 1, 1, 1, 1])
    shares = ("of pixels that are zero", "above zero, to .2", "above .2, to .8", "above .8")
    shown = zip(shares, np.histogram(x, edges)[0] / x.size, strict=True)
    found = {f"share {of}": share for of, share in shown}
    found |= {"mean": x.mean(), "standard deviation": x.std(), "brightest pixel, least": top.min()}
    found |= {"brightest pixel, mean": top.mean()}
    found |= {"brightest pixel, 5th percentile": np.quantile(top, 0.05)}
    some = np.random.default_rng(0).permutation(len(x))[:1000]
    measured = [of_one(x[i], angles[i]) for i in some]
    rows = {name: np.array([one[name] for one in measured], float) for name in measured[0]}
    dim = rows["grey on the skeleton"] < 0.6
    found["share of images whose skeleton is below .6"] = dim.mean()
    for name, values in rows.items():
        five = values.mean(), values.std(), *np.quantile(values, [0.05, 0.5, 0.95])
        found[name] = five[: len(numbers(ROWS[name][0]))]
    flat, tests = x.reshape(len(x), -1), np.random.default_rng(1).permutation(len(test_x))[:1500]
    other, labels = test_x[tests].reshape(1500, -1), test_y[tests]
    nearest = ((flat**2).sum(1) - 2 * other @ flat.T).argmin(1)
    found["nearest neighbour, accuracy"] = (y[nearest] == labels).mean()
    design = np.c_[flat, np.ones(len(flat))].astype(float)
    hot = np.eye(10)[y] - 0.1
    weight = np.linalg.solve(design.T @ design + 10 * np.eye(785), design.T @ hot)
    answers = (np.c_[other, np.ones(1500)] @ weight).argmax(1)
    found["ridge regression, accuracy"] = (answers == labels).mean()
    found["clockwise"] = clockwise(x[y == 1], angles[y == 1])
    return {name: np.atleast_1d(value) for name, value in found.items()}


def of_one(image, angle):
    """Figures of one image. The skeleton is that of the image magnified four times."""
    large = ndimage.zoom(image, 4, order=1)
    ink = large > image.max() / 2
    bone = skeletonize(ink)
    rows, columns = np.nonzero(image > 0.2)
    upright = np.nonzero(ndimage.rotate(image, angle, reshape=False, order=1) > 0.2)
    tall = np.ptp(upright[0]) + 1
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    centre = ndimage.center_of_mass(image)
    return {
        "width of the stroke, px": 2 * ndimage.distance_transform_edt(ink)[bone].mean() / 4,
        "ink over length": image.sum() / (bone.sum() / 4),
        "grey on the skeleton": large[bone].mean(),
        "height of the ink, px": np.ptp(rows) + 1,
        "width of the ink, px": np.ptp(columns) + 1,
        "upright height, px": tall,
        "upright width over height": (np.ptp(upright[1]) + 1) / tall,
        "pieces, mean": ndimage.label(image >= image.max() / 2, np.ones((3, 3)))[1],
        "share whose ink touches the border": (edge > 0.2).any(),
        "centre y: mean, deviation": centre[0],
        "centre x: mean, deviation": centre[1],
    }


def clockwise(ones, angles):
    """Correlation of the ones' lean with their angle: near 1 if positive angles turn clockwise."""
    weight = ones / ones.sum((1, 2), keepdims=True)
    grids = np.mgrid[:28, :28].astype(float)
    r, c = (grid - (weight * grid).sum((1, 2), keepdims=True) for grid in grids)
    return -np.corrcoef((weight * r * c).sum((1, 2)), angles)[0, 1]


@pytest.mark.parametrize("name", ROWS)
def test_digits_are_drawn_by_the_sources_figures(figures, name):
    source, _, within = ROWS[name]
    least, *most = numbers(within)  # "at least .9" or ".1 to .2"
    if "±" in within:
        least, most = numbers(source) - numbers(within), numbers(source) + numbers(within)
    assert (figures[name] >= least).all(), figures[name]
    assert (figures[name] <= (most if len(most) else 1)).all(), figures[name]


def test_the_data_card_says_the_same(figures):
    assert set(figures) == set(ROWS)
    for name, (_, ours, _) in ROWS.items():
        np.testing.assert_allclose(numbers(ours), figures[name], 0.005, 0.006, err_msg=name)
