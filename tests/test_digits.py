"""The shipped digits against the image statistics they were drawn by.

The figures of the source's images, and the tolerances, are those of the book's data card. Five
numbers are mean, standard deviation, and the 5th, 50th and 95th percentile.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from advlib import load_data

CARD = Path(__file__).parents[1] / "book" / "data_card.md"
# figure: (the source's, how far ours may be from it)
TARGETS = {
    "mean": (0.088, 0.0088),
    "standard deviation": (0.234, 0.0234),
    "share of pixels that are zero": (0.803, 0.02),
    "share above zero, to .2": (0.067, 0.15 * 0.067),
    "share above .2, to .8": (0.085, 0.15 * 0.085),
    "share above .8": (0.045, 0.15 * 0.045),
    "brightest pixel, mean": (0.978, 0.03),
    "brightest pixel, 5th percentile": (0.875, 0.05),
    "brightest pixel, least": (0.694, 0.15),
    "width of the stroke, px": ((1.91, 0.56, 1.08, 1.90, 2.93), 0.2),
    "ink over length": ((2.18, 0.51, 1.44, 2.10, 3.18), 0.25),
    "grey on the skeleton": ((0.81, 0.11, 0.61, 0.83, 0.97), 0.05),
    "share of images whose skeleton is below .6": (0.05, 0.03),
    "height of the ink, px": ((18.2, 3.4, 12, 19, 23), 1),
    "width of the ink, px": ((15.2, 3.9, 10, 15, 22), 1),
    "upright height, px": ((18.8, 2.5, 15, 19, 23), 1),
    "upright width over height": ((0.75, 0.18, 0.50, 0.74, 1.06), 0.08),
    "pieces, mean": (1.65, 0.35),
    "share whose ink touches the border": (0.095, 0.045),
    "centre y: mean, deviation": ((14.0, 1.52), (0.7, 0.4)),
    "centre x: mean, deviation": ((13.3, 1.43), (0.7, 0.4)),
    "nearest neighbour, accuracy": (0.995, 0.005),
    "ridge regression, accuracy": (0.65, 0.09),
    "clockwise": (0.85, 0.15),
}


@pytest.fixture(scope="module")
def figures() -> dict[str, np.ndarray]:
    train, test = load_data(device="cpu")
    x, test_x = (part.x[:, 0].numpy() for part in (train, test))
    y, test_y = train.y.numpy(), test.y.numpy()
    angles = train.angles.numpy()
    top = x.max((1, 2))
    bins = (
        np.histogram(x, np.array([0, 0, 0.2, 0.8, 1]) + 1e-6 * np.array([0, 1, 1, 1, 1]))[0]
        / x.size
    )
    found = {
        "mean": x.mean(),
        "standard deviation": x.std(),
        "share of pixels that are zero": bins[0],
        "share above zero, to .2": bins[1],
        "share above .2, to .8": bins[2],
        "share above .8": bins[3],
        "brightest pixel, mean": top.mean(),
        "brightest pixel, 5th percentile": np.quantile(top, 0.05),
        "brightest pixel, least": top.min(),
    }
    some = np.random.default_rng(0).permutation(len(x))[:1000]
    measured = [of_one(x[i], angles[i]) for i in some]
    rows = {name: np.array([one[name] for one in measured], float) for name in measured[0]}
    found["share of images whose skeleton is below .6"] = (
        rows["grey on the skeleton"] < 0.6
    ).mean()
    for name, values in rows.items():
        five = values.mean(), values.std(), *np.quantile(values, [0.05, 0.5, 0.95])
        found[name] = five[: np.size(TARGETS[name][0])]
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


def of_one(image: np.ndarray, angle: int) -> dict[str, float]:
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


def clockwise(ones: np.ndarray, angles: np.ndarray) -> float:
    """Correlation of the ones' lean with their angle: near 1 if positive angles turn clockwise."""
    weight = ones / ones.sum((1, 2), keepdims=True)
    r, c = (
        grid - (weight * grid).sum((1, 2), keepdims=True)
        for grid in np.mgrid[:28, :28].astype(float)
    )
    return -np.corrcoef((weight * r * c).sum((1, 2)), angles)[0, 1]


@pytest.mark.parametrize("name", TARGETS)
def test_digits_are_drawn_by_the_sources_figures(figures, name: str) -> None:
    wanted, tolerance = (np.atleast_1d(value) for value in TARGETS[name])
    assert (np.abs(figures[name] - wanted) <= tolerance).all(), figures[name]


def test_the_data_card_says_the_same(figures) -> None:
    rows = dict(
        re.findall(r"^\| (.*?) \| .*? \| (.*?) \| .*? \| .*? \|$", CARD.read_text("utf8"), re.M)
    )
    for name in TARGETS:
        said = [float(number) for number in rows[name].split()]
        np.testing.assert_allclose(said, figures[name], rtol=0.005, atol=0.006, err_msg=name)
