"""Heat maps, scores of strangeness and ROC curves: closed forms, and scipy's statistics."""

import math

import numpy as np
import pytest
import torch
from conftest import images, labels, seeded, small_net, untouched
from scipy.spatial.distance import cdist
from scipy.stats import norm, spearmanr
from torch import nn

from advlib import bim, predict
from advlib.book import figures
from advlib.book.looking import Distance, Guarded, auroc, grad_cam, rank_correlation, roc, watched


def before_the_last():
    """A network of two layers: three maps of (4, 4), and a linear layer on them; its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(48, 5)).eval()
    return net, net[2].weight.detach().view(5, 3, 4, 4)


def test_a_layer_is_watched_and_left_as_it_was():
    net, x = small_net().eval(), images()
    with untouched(net):
        logits, maps = watched(net, x, layer="2")
        torch.testing.assert_close(logits, net(x))
        torch.testing.assert_close(maps, net[:3](x))
        with pytest.raises(AttributeError, match="nowhere"):
            watched(net, x, layer="nowhere")


def test_before_a_linear_layer_a_map_counts_by_the_mean_of_its_weights():
    net, weight = before_the_last()
    x, y = images(), labels(classes=5)
    expected = (weight[y].mean((2, 3))[..., None, None] * net[0](x)).sum(1).clamp_min(0)
    with untouched(net):
        found = grad_cam(net, x, y, layer="0")
    assert expected.max() > 0 == expected.min()
    torch.testing.assert_close(found, expected.detach())


def test_heat_runs_in_evaluation_mode_under_no_grad_and_has_the_size_of_the_image():
    net, x, y = small_net(), images(), labels()
    net.train()
    with untouched(net), torch.no_grad():
        found = grad_cam(net, x, y, layer="3")  # maps of (2, 2)
    assert (found.shape, found.requires_grad) == ((8, 4, 4), False)
    alone = torch.cat([grad_cam(net.eval(), x[[i]], y[[i]], layer="3") for i in range(8)])
    torch.testing.assert_close(found, alone)


def test_rank_correlation_is_scipys_with_ties_too():
    a, b = torch.rand(2, 20, 6, 5, generator=seeded())
    b[:10] = (4 * b[:10]).round()
    found = rank_correlation(a, b)
    expected = [spearmanr(u.flatten(), v.flatten()).statistic for u, v in zip(a, b, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert rank_correlation(a, torch.zeros_like(a)).isnan().all()


def test_the_distance_is_scipys_mahalanobis_to_the_nearest_mean():
    maps = (
        torch.randn(90, 4, 3, 3, generator=seeded()) * torch.tensor([1, 2, 3, 9.0])[:, None, None]
    )
    y = torch.arange(90) % 3 * 2  # a class may be missing
    maps[y == 2] += 1
    new = torch.randn(7, 4, 3, 3, generator=seeded(1))
    found = Distance(maps, y)(torch.zeros(7, 6), new)
    known, f = maps.mean((2, 3)).double().numpy(), new.mean((2, 3)).double().numpy()
    means = np.stack([known[y == k].mean(0) for k in (0, 2, 4)])
    apart = known - means[y.numpy() // 2]
    inverse = np.linalg.inv(apart.T @ apart / 90)
    expected = -(cdist(f, means, "mahalanobis", VI=inverse).min(1) ** 2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)


def test_a_map_that_never_moved_is_no_division_by_zero_and_betrays_a_stranger():
    maps = torch.randn(50, 3, 2, 2, generator=seeded())
    maps[:, 0] = 0
    score = Distance(maps, torch.arange(50) % 2)
    moved = maps.clone()
    moved[:, 0] = 0.5
    usual, strange = score(torch.zeros(50, 2), maps), score(torch.zeros(50, 2), moved)
    assert usual.isfinite().all()
    assert strange.max() < usual.min()


def test_a_guarded_network_says_stranger_below_the_level_and_else_what_it_said():
    net, x = small_net().eval(), images(40)

    def bright(logits, maps):
        return maps.mean((1, 2, 3))

    level = x.mean((1, 2, 3)).median()
    net = nn.Sequential(nn.Identity(), *net)
    guarded = Guarded(net, bright, layer="0", least=float(level), spread=0.1)
    said, strange = predict(guarded, x), x.mean((1, 2, 3)) < level
    assert strange.sum() == 19
    assert (said[strange] == 3).all()
    assert torch.equal(said[~strange], predict(net, x)[~strange])


def test_an_attack_gets_past_the_guard():
    net, x = nn.Sequential(nn.Identity(), *small_net().eval()), images(20) * 0.5
    guarded = Guarded(net, lambda _, maps: maps.mean((1, 2, 3)), layer="0", least=0.5, spread=0.05)
    assert (predict(guarded, x) == 3).all()
    x_adv = bim(guarded, x, predict(net, x), eps=0.5, alpha=0.05, steps=20, targeted=True)
    assert (predict(guarded, x_adv) == predict(net, x)).float().mean() > 0.8


def test_a_curve_and_its_area_made_by_hand():
    inside, outside = torch.tensor([1.0, 2, 2, 4]), torch.tensor([0.0, 2, 3])
    alarms, hits = roc(inside, outside)
    assert alarms.tolist() == [0, 0, 0.25, 0.75, 0.75, 1]
    torch.testing.assert_close(hits, torch.tensor([0, 1, 1, 2, 3, 3]) / 3)
    area = auroc(inside, outside)[0]
    assert area == pytest.approx((4 + 1 + 2 * 0.5 + 1) / 12)  # pairs won, and two ties
    assert float(torch.trapezoid(hits, alarms)) == pytest.approx(area)


def test_the_interval_has_a_width_at_both_ends_and_mirrors():
    low, high = torch.arange(200.0), torch.arange(200.0) + 1000
    assert auroc(low, high)[:2] == (0, 0)
    assert auroc(high, low)[::2] == (1, 1)
    assert 0.98 < auroc(high, low)[1] < 0.999
    some, few = torch.randn(2, 80, generator=seeded())
    a, b = auroc(some, few), auroc(few, some)
    assert [1 - v for v in a] == pytest.approx([b[0], b[2], b[1]], abs=1e-6)
    ends = auroc(some, few, z=1e-9)
    assert ends[1] == pytest.approx(ends[0]) == ends[2]


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_nineteen_of_twenty_intervals_hold_the_true_area(shift):
    draw, true, held, width = seeded(), norm.cdf(shift / math.sqrt(2)), 0, 0.0
    for _ in range(400):
        inside = torch.randn(90, generator=draw) + shift
        _, low, high = auroc(inside, torch.randn(60, generator=draw))
        held += low <= true <= high
        width += (high - low) / 400
    assert 0.92 < held / 400 <= 1
    assert width < 0.2


def test_a_heat_of_nothing_leaves_the_image_grey_and_every_curve_is_drawn():
    x = torch.rand(2, 1, 6, 6, generator=seeded())
    heat = torch.stack([torch.zeros(6, 6), torch.rand(6, 6, generator=seeded())])
    figure = figures.heat_maps({"one": (x, heat), "two": (x, heat)})
    drawn = [axis.images[-1].get_array().max() for axis in figure.axes[:2]]
    assert drawn == pytest.approx([0, 1])  # clear, and full orange
    rising = torch.linspace(0, 1, 5)
    lines = {str(k): (rising, rising) for k in range(5)}
    drawn = figures.roc_curves({"score": lines, "other": lines})
    assert [len(axis.lines) for axis in drawn.axes] == [6, 6]  # a coin's line, too
