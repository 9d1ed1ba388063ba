"""Each figure shows what it was given, draws without a warning, and pyplot keeps none of them."""

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import images, labels, small_net
from matplotlib.colors import to_hex

from advlib import plots, predict
from advlib.book import figures

pytestmark = pytest.mark.filterwarnings("error")
X, Y = images(6), labels(6)


@pytest.fixture(autouse=True)
def none_is_kept():
    yield
    assert plt.get_fignums() == []


def axes_of(figure):
    figure.canvas.draw()
    return figure.axes


def picture(axis):
    return torch.as_tensor(axis.get_images()[0].get_array())


def texts(labels):
    return [label.get_text() for label in labels]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_appear_in_order_with_their_own_pixels_and_titles(channels):
    x = images(5, channels=channels)
    axes = axes_of(plots.show_images(x, list("abcde"), columns=2))
    for axis, image in zip(axes, x, strict=False):
        assert torch.equal(picture(axis), image[0] if channels == 1 else image.permute(1, 2, 0))
    assert [axis.get_title() for axis in axes] == [*"abcde", ""]


def test_right_and_wrong_differ_by_mark_and_by_colour():
    model = small_net()
    predictions = predict(model, X).tolist()
    right = [prediction == label for prediction, label in zip(predictions, Y.tolist(), strict=True)]
    axes = axes_of(plots.show_predictions(model, X, Y, classes=list("abc")))
    for axis, taken, ok in zip(axes, predictions, right, strict=False):
        assert axis.get_title() == f"{'abc'[taken]} {'✓' if ok else '✗'}"
        assert to_hex(axis.title.get_color()).upper() == (plots.BLUE if ok else plots.RED)


def test_loss_curve_shows_every_iteration_and_the_mean_of_each_whole_epoch():
    (axis,) = axes_of(plots.loss_curve([4.0, 2.0, 1.0, 0.0, 9.0], 2))
    every, means = axis.get_lines()
    assert list(every.get_xdata()) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert list(every.get_ydata()) == [4.0, 2.0, 1.0, 0.0, 9.0]
    assert list(means.get_ydata()) == [3.0, 0.5]
    axes_of(plots.loss_curve([], 0))  # before the first iteration


def test_accuracy_curves_differ_by_marker_and_line_style_too_and_have_their_bands():
    lines, band = {name: [0.1, 0.2] for name in "abcd"}, {"b": [(0.0, 0.3), (0.1, 0.4)]}
    (axis,) = axes_of(plots.accuracy_curves([1, 2], lines, xlabel="steps", intervals=band))
    styles = {(line.get_marker(), line.get_linestyle()) for line in axis.get_lines()}
    assert len({marker for marker, _ in styles}) == len({style for _, style in styles}) == 4
    corners = {tuple(point) for point in axis.collections[0].get_paths()[0].vertices.round(6)}
    assert corners == {(1, 0.0), (1, 0.3), (2, 0.1), (2, 0.4)}


def test_intervals_stand_at_their_ends_with_their_fraction():
    (axis,) = axes_of(plots.intervals({"a": (0.5, 0.4, 0.6), "b": (1.0, 0.9, 1.0)}, xlabel="x"))
    ends = [list(line.get_xdata()) for line in axis.get_lines()]
    assert ends == [[0.4, 0.6], [0.5], [0.9, 1.0], [1.0]]
    assert texts(axis.texts) == ["0.500", "1.000"]


def test_an_attack_shows_image_perturbation_and_verdict_of_each_network():
    x = 2 * images(3, channels=3) - 1  # in colour, and of another range
    attacked = {"standard": x[1:2], "robust": x[:1]}
    logits = {"standard": torch.tensor([[0.0, 2, 1]]), "robust": torch.tensor([[3.0, 0, 0]])}
    options = {"eps": 0.1, "classes": list("abc"), "limits": (-1.0, 1.0)}
    axes = axes_of(figures.attack_view(x[:1], Y[:1], attacked, logits, **options))
    image, change, bars, *_, robust = axes
    assert torch.equal(picture(image), (x[1].permute(1, 2, 0) + 1) / 2)
    assert torch.equal(picture(change), (x[1] - x[0]).mean(0))
    assert change.get_images()[0].get_clim() == (-0.1, 0.1)
    lengths = torch.tensor([bar.get_width() for bar in bars.patches], dtype=torch.float32)
    torch.testing.assert_close(lengths, logits["standard"][0].softmax(0))
    assert texts(bars.get_yticklabels()) == list("abc")
    for axis, verdict, colour in ((bars, "says b ✗", plots.RED), (robust, "says a ✓", plots.BLUE)):
        assert axis.get_title("left") == verdict
        assert to_hex(axis._left_title.get_color()).upper() == colour


def test_confusion_matrix_has_truth_in_rows_and_predictions_in_columns():
    predictions, y = torch.tensor([0, 0, 1, 0]), torch.tensor([1, 1, 1, 0])
    (axis,) = axes_of(figures.confusion_matrix(predictions, y))
    shown = {text.get_position(): text.get_text() for text in axis.texts}
    assert shown == {(0, 0): "1", (0, 1): "2", (1, 1): "1"}  # (column, row)
    assert picture(axis).tolist() == [[0, 0], [2, 0]]
    with pytest.raises(ValueError, match="of the same images"):
        figures.confusion_matrix(predictions[:1], y)


def test_targeted_grid_crosses_out_what_failed_beside_the_diagonal():
    x, reached = torch.rand(9, 1, 2, 3), torch.tensor([0, 1, 0, 0, 0, 1, 1, 1, 1]).bool()
    (axis,) = axes_of(figures.targeted_grid(x, reached))
    assert torch.equal(picture(axis)[2:4, 6:9], x[5, 0])  # row 1, column 2
    true, aimed = axis.get_yticks().tolist(), axis.get_xticks().tolist()
    names = [int(name) for name in texts(axis.get_yticklabels())]
    crosses = {(names[true.index(y)], aimed.index(x)) for x, y in axis.collections[0].get_offsets()}
    assert crosses == {(0, 2), (1, 0)}
    assert names[true.index(max(true))] == 0  # where the first row of the mosaic is drawn
