"""Each figure shows what it was given, and pyplot keeps none of them."""

import warnings
from functools import partial

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import images, labels, small_net
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from advlib import plots, predict

X, Y = images(6), labels(6)
GRADIENTS = {"standard": X - 0.5, "robust": torch.zeros_like(X)}
FIGURES = {
    "images": partial(plots.show_images, X),
    "one image": partial(plots.show_images, X[:1], ["only"]),
    "colour images": partial(plots.show_images, images(5, channels=3), list("abcde"), columns=2),
    "predictions": partial(plots.show_predictions, small_net(), X, Y, classes=list("abc")),
    "one prediction": partial(plots.show_predictions, small_net(), X[:1], Y[:1]),
    "colour predictions": partial(
        plots.show_predictions, small_net(3), images(6, channels=3), Y, columns=3
    ),
    "gradients": partial(plots.show_gradients, X, GRADIENTS),
    "one gradient": partial(plots.show_gradients, X[:1], {"one": X[:1]}),
    "attack": partial(
        plots.attack_view,
        X[:1],
        Y[:1],
        {"standard": X[1:2], "robust": X[:1]},
        {"standard": torch.tensor([[0.0, 2.0, 1.0]]), "robust": torch.tensor([[3.0, 0.0, 0.0]])},
        eps=0.1,
        classes=list("abc"),
    ),
    "colour attack": partial(
        plots.attack_view,
        images(1, channels=3),
        Y[:1],
        {"only": images(1, channels=3) - 0.1},
        {"only": torch.arange(12.0)[None]},
        eps=0.1,
    ),
    "loss": partial(plots.loss_curve, [2.0, 1.0, 0.5], 2),
    "no loss": partial(plots.loss_curve, [], 0),
    "curves": partial(
        plots.accuracy_curves,
        [0.0, 0.1],
        {"standard": [0.9, 0.1], "robust": [0.9, 0.8]},
        xlabel="eps",
        intervals={"robust": [(0.8, 1.0), (0.7, 0.9)]},
    ),
    "bars": partial(
        plots.bars,
        {"first": {"a": 3.0, "b": 1.5}, "second": {"b": 2.0, "c": 4.0, "d": 1.0, "e": 2.5}},
        xlabel="length",
    ),
    "confusion": partial(plots.confusion_matrix, Y, Y.flip(0), classes=list("abc")),
    "intervals": partial(plots.intervals, {"a": (0.5, 0.4, 0.6), "b": (1.0, 0.9, 1.0)}, xlabel="x"),
    "panels": partial(
        plots.panels,
        [0.0, 0.1],
        {"one": {"a": [0.9, 0.1], "b": [0.5, 0.0]}, "two": {"a": [1.0, 0.9], "b": [0.9, 0.8]}},
        xlabel="eps",
        ylabel="accuracy",
    ),
    "relaxation": partial(plots.relu_relaxation, -1.0, 2.0),
    "targeted": partial(plots.targeted_grid, images(9), torch.arange(9) % 2 == 0),
    "margin": partial(
        plots.linear_margin, torch.tensor([1.0, -2.0]), 0.5, torch.tensor([0.5, 0.5]), eps=0.1
    ),
    "projection": plots.projection_picture,
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_every_figure_draws_without_a_warning_and_is_not_kept_by_pyplot(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = make()
        figure.canvas.draw()
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []


def view(**changes):
    good = {"x": X[:1], "y": Y[:1], "attacked": {"n": X[:1]}, "logits": {"n": torch.zeros(1, 3)}}
    return plots.attack_view(**(good | {"eps": 0.1} | changes))


def pictures_of(axis):
    return axis.get_images()[0].get_array()


def pictures(figure):
    return [pictures_of(axis) for axis in figure.axes if axis.get_images()]


def test_bars_stand_beside_each_other_with_their_names_and_numbers():
    axis = FIGURES["bars"]().axes[0]
    drawn = {(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in axis.patches}
    assert drawn == {(0, 3.0), (1, 1.5), (7, 2.0), (8, 4.0), (9, 1.0), (10, 2.5)}
    shown = {text.get_text() for text in axis.texts}
    assert shown == {"a  3.0", "b  1.5", "b  2.0", "c  4.0", "d  1.0", "e  2.5"}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_appear_in_order_with_their_own_pixels_and_titles(channels):
    x = images(5, channels=channels)
    figure = plots.show_images(x, list("abcde"), columns=2)
    for shown, image in zip(pictures(figure), x, strict=True):
        expected = image[0] if channels == 1 else image.permute(1, 2, 0)
        torch.testing.assert_close(torch.as_tensor(shown), expected)
    assert [axis.get_title() for axis in figure.axes] == [*"abcde", ""]


def test_right_and_wrong_differ_by_mark_and_by_colour():
    model = small_net()
    figure = plots.show_predictions(model, X, Y, classes=list("abc"))
    right = (predict(model, X) == Y).tolist()
    assert True in right
    assert False in right
    for axis, taken, ok in zip(figure.axes, predict(model, X), right, strict=False):
        assert axis.get_title() == f"{'abc'[taken]} {'✓' if ok else '✗'}"
        assert to_hex(axis.title.get_color()).upper() == (plots.BLUE if ok else plots.RED)


def test_each_gradient_is_scaled_by_its_own_largest_entry():
    shown = pictures(plots.show_gradients(X, {"small": 1e-9 * (X - 0.5)}))[6:]
    for picture in shown:
        assert abs(picture).max() == pytest.approx(1, abs=1e-3)


def test_an_attack_shows_image_perturbation_and_verdict_of_each_network():
    image, change, bars, *_, robust = FIGURES["attack"]().axes
    assert torch.equal(torch.as_tensor(pictures_of(image)), X[1, 0])
    torch.testing.assert_close(torch.as_tensor(pictures_of(change)), X[1, 0] - X[0, 0])
    assert change.get_images()[0].get_clim() == (-0.1, 0.1)
    lengths = torch.tensor([bar.get_width() for bar in bars.patches], dtype=torch.float32)
    torch.testing.assert_close(lengths, torch.tensor([0.0, 2.0, 1.0]).softmax(0))
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == list("abc")
    for axis, verdict, colour in ((bars, "says b ✗", plots.RED), (robust, "says a ✓", plots.BLUE)):
        assert axis.get_title("left") == verdict
        assert to_hex(axis._left_title.get_color()).upper() == colour


def test_an_attack_in_colour_is_not_stretched_and_shows_the_ten_likeliest_classes():
    image, change, bars = FIGURES["colour attack"]().axes
    assert image.get_aspect() == change.get_aspect() == 1
    shown = torch.as_tensor(pictures_of(image)).permute(2, 0, 1)
    torch.testing.assert_close(shown, (images(1, channels=3)[0] - 0.1).clamp_min(0))
    torch.testing.assert_close(torch.as_tensor(pictures_of(change)), torch.full((4, 4), -0.1))
    assert [int(label.get_text()) for label in bars.get_yticklabels()] == list(range(2, 12))


def test_pixels_of_another_range_are_drawn_from_black_to_white():
    x = 2 * X[:1] - 1
    view = plots.attack_view(
        x, Y[:1], {"n": x}, {"n": torch.zeros(1, 3)}, eps=0.0, limits=(-1.0, 1.0)
    )
    torch.testing.assert_close(torch.as_tensor(pictures_of(view.axes[0])), X[0, 0])


def test_loss_curve_shows_every_iteration_and_the_mean_of_each_whole_epoch():
    every, means = plots.loss_curve([4.0, 2.0, 1.0, 0.0, 9.0], 2).axes[0].get_lines()
    assert list(every.get_xdata()) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert list(every.get_ydata()) == [4.0, 2.0, 1.0, 0.0, 9.0]
    assert list(means.get_ydata()) == [3.0, 0.5]


def test_accuracy_curves_differ_by_marker_and_line_style_too():
    lines = plots.accuracy_curves(
        [1, 2], {name: [0.1, 0.2] for name in "abcd"}, xlabel="steps"
    ).axes[0]
    styles = {(line.get_marker(), line.get_linestyle()) for line in lines.get_lines()}
    assert len({marker for marker, _ in styles}) == len({style for _, style in styles}) == 4


def test_confusion_matrix_has_truth_in_rows_and_predictions_in_columns():
    figure = plots.confusion_matrix(torch.tensor([1, 1, 1, 0]), torch.tensor([0, 0, 1, 0]))
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(0, 0): "1", (1, 0): "2", (1, 1): "1"}  # (column, row)
    assert pictures(figure)[0].tolist() == [[0, 2], [0, 0]]


def test_panels_show_their_own_lines_under_their_names():
    lines = {"one": {"a": [0.9, 0.1], "b": [0.5, 0.0]}, "two": {"a": [1.0, 0.8], "b": [0.7, 0.6]}}
    figure = plots.panels([0.0, 0.1], lines, xlabel="eps", ylabel="accuracy")
    drawn = {
        axis.get_title(): {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
        for axis in figure.axes
    }
    assert drawn == lines


@pytest.mark.parametrize(("lower", "upper"), [(-1.0, 2.0), (-2.0, 1.0), (-1.0, 1.0)])
def test_relu_lies_between_the_two_lines_of_its_relaxation(lower, upper):
    figure = plots.relu_relaxation(lower, upper)
    ends = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    at = torch.linspace(0, 1, 21, dtype=torch.float64)
    above, below = (y[0] + at * (y[-1] - y[0]) for y in (ends["line above"], ends["line below"]))
    relu = (lower + at * (upper - lower)).relu()
    assert (above >= relu - 1e-12).all()
    assert (relu >= below - 1e-12).all()


def test_targeted_grid_crosses_out_what_failed_beside_the_diagonal():
    x = torch.rand(9, 1, 2, 3)
    reached = torch.tensor([False, True, False, False, False, True, True, True, True])
    axis = plots.targeted_grid(x, reached).axes[0]
    mosaic = axis.get_images()[0].get_array()
    assert torch.equal(torch.as_tensor(mosaic[2:4, 6:9]), x[5, 0])  # row 1, column 2
    true, aimed = axis.get_yticks().tolist(), axis.get_xticks().tolist()
    names = [int(text.get_text()) for text in axis.get_yticklabels()]
    crosses = {(names[true.index(y)], aimed.index(x)) for x, y in axis.collections[0].get_offsets()}
    assert crosses == {(0, 2), (1, 0)}
    top = max(zip(true, names, strict=True))
    assert top[1] == 0  # where the first row of the mosaic is drawn
    assert axis.get_ylim() == (-0.5, 2.5)
