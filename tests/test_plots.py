"""Each figure shows what it was given, draws without a warning, and pyplot keeps none of them."""

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import images, labels, seeded, small_net
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from torch.nn.functional import cross_entropy

from advlib import fgsm, output_bounds, plots, predict
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
    sure = model.eval()(X).softmax(1).amax(1).tolist()
    axes = axes_of(plots.show_predictions(model, X, Y, classes=list("abc")))
    for axis, taken, ok, confidence in zip(axes, predictions, right, sure, strict=False):
        answer, said = axis.get_title().split("\n")
        assert answer == f"{'abc'[taken]} {'✓' if ok else '✗'}"
        assert 0 <= 100 * confidence - float(said.removesuffix(" %")) < 0.1
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


def test_a_plane_is_that_of_the_fgsm_step_and_random_signs():
    model, x, y = small_net().eval(), X[:1], Y[:1]
    places, loss, read = figures.plane(model, x, y, eps=0.1, points=3)
    assert (places.tolist(), loss.shape) == ([-1, 0, 1], (3, 3))
    for column, image in ((1, x), (2, fgsm(model, x, y, eps=0.1, bounds=None))):
        torch.testing.assert_close(loss[1, column], cross_entropy(model(image), y).detach())
        assert read[1, column] == predict(model, image)
    coin = (loss[2, 1], loss[0, 1])
    assert coin[0] != coin[1] != loss[1, 1]
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 3))
    borrowed = figures.plane(model, x, y, eps=0.1, points=3, along=other)[1]
    ahead = fgsm(other, x, y, eps=0.1, bounds=None)
    torch.testing.assert_close(borrowed[1, 2], cross_entropy(model(ahead), y).detach())
    for draw in (figures.loss_surfaces, figures.decision_map):
        assert len(axes_of(draw({"a": model, "b": model}, x, y, eps=0.1))) == 2
    two = figures.loss_surfaces({"a": model, "b": model}, X[:2], Y[:2], eps=0.1)
    top = max(
        float(figures.plane(model, X[i : i + 1], Y[i : i + 1], eps=0.1)[1].max()) for i in (0, 1)
    )
    assert [axis.get_zlim()[1] for axis in axes_of(two)] == [pytest.approx(top)] * 2


def test_two_pixels_show_their_attacks_and_the_side_on_which_each_ends():
    net, x = figures.two_pixel_network(), torch.tensor([[0.14, 0.8]])
    ways = {"FGSM": torch.cat([x, fgsm(net, x, torch.tensor([0]), eps=0.15)])}
    (axis,) = axes_of(figures.two_pixel_attacks(net, x[0], ways))
    way, start = axis.get_lines()
    assert torch.as_tensor(way.get_xydata()).float().equal(ways["FGSM"])
    assert start.get_xydata().tolist() == [pytest.approx([0.14, 0.8])]
    (square,) = axis.patches
    assert square.get_bbox().bounds == pytest.approx((-0.01, 0.65, 0.3, 0.3), abs=1e-6)
    for label in axis.texts:
        right = net(torch.tensor(label.get_position())).argmax() == 0
        assert label.get_text() == ("right side" if right else "wrong side")


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


def test_a_guess_is_marked_where_it_was_made_and_named():
    line = plots.accuracy_curves([1, 2], {"seen": [0.25, 0.5]}, xlabel="epoch")
    (axis,) = axes_of(figures.with_guess(line, {2: 0.75, 1: 0.0}))
    assert axis.get_lines()[1].get_xydata().tolist() == [[2, 0.75], [1, 0]]
    assert texts(axis.get_legend().get_texts()) == ["seen", "guess"]
    (axis,) = axes_of(figures.curve([-1, 1], [5, 0.5], xlabel="a", ylabel="b"))
    assert axis.get_lines()[0].get_xydata().tolist() == [[-1, 5], [1, 0.5]]


def test_logit_intervals_are_those_of_both_methods_and_say_when_they_are_apart():
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)
    )
    net[1].weight.data[:] = torch.randn(3, 16, generator=seeded())
    net[3].weight.data = torch.randn(3, 3, generator=seeded(1))
    x, y = X[:1], predict(net, X[:1])
    axes = axes_of(figures.logit_intervals({"a": net, "b": net}, x, y, [0.5, 0.0001]))
    titles = [axis.get_title() for axis in axes]
    assert titles == ["a, eps 0.5 ✗", "b, eps 0.5 ✗", "a, eps 0.0001 ✓", "b, eps 0.0001 ✓"]
    box = (x - 0.5).clamp(0, 1), (x + 0.5).clamp(0, 1)
    for bars, method in ((axes[0].patches[:3], "interval"), (axes[0].patches[3:], "crown")):
        ends = torch.tensor([[bar.get_x(), bar.get_x() + bar.get_width()] for bar in bars]).T
        expected = torch.cat(output_bounds(net, *box, method=method))
        torch.testing.assert_close(ends.double(), expected, atol=1e-5, rtol=1e-5)
    colours = [to_hex(bar.get_facecolor()).upper() for bar in axes[0].patches[3:]]
    assert colours == [plots.BLUE if k == int(y) else plots.RED for k in range(3)]


def test_a_certified_circle_has_its_radius_and_the_line_its_distance():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2, bias=False))
    w = torch.randn(16, generator=seeded())
    net[1].weight.data = torch.stack([w, -w])
    x = 0.5 * (w / w.norm()).view(1, 1, 4, 4)  # at distance 0.5 from where both logits are 0
    options = {"sigma": 1e-6, "radius": 0.3, "reach": 1.0}
    for axis in axes_of(figures.certified_circle(net, x, -x, **options)):
        assert axis.patches[0].get_radius() == 0.3
        line = torch.as_tensor(axis.collections[1].get_paths()[0].vertices)
        assert (line[:, 0] - 0.5).abs().max() < 0.1  # within a step of the grid


def test_answers_are_counted_and_the_right_one_is_marked():
    votes = {"a": torch.tensor([5, 0, 2]), "b": torch.tensor([1, 6, 0])}
    for axis, counts in zip(axes_of(figures.answers(votes, 1)), votes.values(), strict=True):
        assert [bar.get_height() for bar in axis.patches] == counts.tolist()
        assert [bar.get_facecolor() == axis.patches[1].get_facecolor() for bar in axis.patches] == [
            *(False, True, False),
        ]
        assert texts(axis.get_xticklabels()) == ["0", "1\n✓", "2"]


def test_two_ways_draws_losses_and_answers_on_the_plane_of_two_attacked_images(monkeypatch):
    model, (x, y) = small_net(), (images(1), labels(1))
    ways, drawn = {"one": (x + 0.3).clamp(0, 1), "other": (x - 0.2).clamp(0, 1)}, []
    for draw in (Axes.contour, Axes.contourf):

        def spy(axis, across, up, values, *, draw=draw, **options):
            drawn.append((across[2], up[0], values[0, 2]))
            return draw(axis, across, up, values, **options)

        monkeypatch.setattr(Axes, draw.__name__, spy)
    figure = figures.two_ways({"a": model}, x, y, ways, points=3)
    corner = x + 1.15 * (ways["one"] - x) - 0.15 * (ways["other"] - x)
    (*_, wrong), (across, up, loss) = drawn
    assert (across, up) == pytest.approx((1.15, -0.15))
    expected = cross_entropy(model.eval()(corner), y).item()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert wrong == (predict(model, corner) != y)
    (axis,) = axes_of(figure)
    assert {"image", "one", "other"} <= set(texts(axis.texts))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("to one", "to other")


def test_surest_is_the_change_with_the_largest_margins():
    class Rows(torch.nn.Module):  # the pixels are the logits
        def forward(self, x):
            return x.flatten(1)

    before = torch.tensor([[0.9, 0.1], [0.6, 0.2], [0.9, 0.0], [0.2, 0.9]])
    after = torch.tensor([[0.1, 0.2], [0.1, 0.6], [1.0, 0.0], [0.7, 0.5]])  # the third stays
    assert figures.surest(Rows(), before.view(4, 1, 1, 2), after.view(4, 1, 1, 2)) == 1


def test_one_change_is_drawn_as_a_sum_with_what_the_network_reads():
    net, x_adv = small_net().eval(), (X + 0.1).clamp(0, 1)
    axes = axes_of(figures.one_change(net, X[:1], x_adv[:1]))
    assert torch.equal(picture(axes[0]), X[0, 0])
    assert torch.equal(picture(axes[2]), x_adv[0, 0])
    assert torch.allclose(picture(axes[1]), 5 * (x_adv - X)[0].mean(0))
    for axis, image, mark in ((axes[0], X, "✓"), (axes[2], x_adv, "✗")):
        sure, read = net(image[:1]).detach().softmax(1).max(1)
        answer, percent, *_ = texts(axis.texts)
        assert answer == f"a {int(read)} {mark}"
        assert 0 <= 100 * float(sure) - float(percent.removesuffix(" % sure")) < 0.1


def test_four_numbers_are_areas():
    figure = figures.four_numbers({"a": {"clean": 0.99, "attacked": 0.043}, "b": {"clean": 1.0}})
    first, second = axes_of(figure)
    for axis, areas in ((first, [99, 1, 4.3, 95.7]), (second, [100, 0])):
        drawn = [sum(bar.get_height() for bar in bars) for bars in axis.containers]
        assert drawn == pytest.approx(areas)
    assert texts(first.get_xticklabels()) == ["99.0 %\nclean", "4.3 %\nattacked"]


def test_running_sum_ends_at_what_a_linear_margin_loses():
    w = torch.tensor([0.5, -2.0, 0.0, 1.5])
    (axis,) = axes_of(figures.running_sum(w, 0.3, eps=0.1))
    against, noise, margin = (torch.as_tensor(line.get_ydata()) for line in axis.get_lines())
    torch.testing.assert_close(against, torch.tensor([0.05, 0.25, 0.25, 0.4]))
    steps = torch.cat([noise[:1], noise.diff()])
    torch.testing.assert_close(steps.abs(), 0.1 * w.abs())
    assert margin.tolist() == pytest.approx([0.3, 0.3])
