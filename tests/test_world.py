"""Turns, shifts, universal changes and patches against closed forms and plain rewrites."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from conftest import Spy, images, labels, linear, seeded, small_net, untouched

from advlib import added, load_data, moved, pasted, patch, predict, spatial, universal

DOUBLE = torch.float64
SPATIAL = partial(spatial, degrees=20, shift=1, turns=3, shifts=3)
DRAWN = partial(spatial, degrees=20, shift=1, draws=4)
ADDED = partial(added, change=images(1, channels=3) - 0.5)
PASTED = partial(pasted, patch=images(1, channels=3)[..., :2, :2])
ATTACKS = {"spatial": SPATIAL, "drawn": DRAWN, "added": ADDED, "pasted": PASTED}


def dot(row, column, height=5, width=9):
    x = torch.zeros(1, 1, height, width, dtype=DOUBLE)
    x[0, 0, row, column] = 1
    return x


@pytest.mark.parametrize(
    ("way", "place"),
    [
        ({"degrees": 90}, (4, 4)),  # clockwise: what is right of the centre goes below it
        ({"degrees": -90}, (0, 4)),
        ({"degrees": 180}, (2, 2)),
        ({"right": 1}, (2, 7)),
        ({"down": -2}, (0, 6)),
        ({"degrees": 90, "right": 3, "down": -1}, (3, 7)),  # first the turn, then the shift
    ],
)
def test_a_dot_right_of_the_centre_of_a_wide_image_goes_where_it_is_sent(way, place):
    torch.testing.assert_close(moved(dot(2, 6), **way), dot(*place), atol=1e-9, rtol=0)


def test_right_angles_equal_torch_and_whole_shifts_let_black_in():
    x = images(3, channels=3, dtype=DOUBLE)
    close = partial(torch.testing.assert_close, atol=1e-9, rtol=0)
    close(moved(x, degrees=90), x.rot90(-1, (2, 3)))
    close(moved(x, right=1), F.pad(x, (1, -1, 0, 0)))
    close(moved(x, down=0.5), (x + F.pad(x, (0, 0, 1, -1))) / 2)
    close(moved(x), x)


def test_one_way_per_image_equals_separate_calls():
    x, ways = images(3), {"degrees": torch.tensor([0.0, 30, -90]), "right": torch.tensor([1, 0, 2])}
    for i in range(3):
        alone = moved(x[[i]], **{name: float(way[i]) for name, way in ways.items()})
        torch.testing.assert_close(moved(x, **ways)[[i]], alone)


def test_turned_back_by_their_angles_digits_of_a_kind_are_more_alike():
    test = load_data(device="cpu")[1]
    for digit in (1, 4, 7):
        x, angles = (part[test.y == digit] for part in (test.x, test.angles))
        spread = [moved(x, degrees=s * angles).var(0).sum() for s in (-1, 0, 1)]
        assert spread[0] < 0.9 * min(spread[1:])


@pytest.mark.parametrize("targeted", [False, True])
def test_spatial_finds_what_a_search_of_the_whole_grid_finds(targeted):
    model, x, y = small_net(dtype=DOUBLE), images(40, dtype=DOUBLE), labels(40)
    x_adv = spatial(model, x, y, degrees=20, shift=1, turns=3, shifts=3, targeted=targeted)
    grid = product((-20, 0, 20), (-1, 0, 1), (-1, 0, 1))
    tried = torch.stack([moved(x, degrees=d, right=r, down=b) for d, r, b in grid])
    read = torch.stack([predict(model, z) for z in tried])
    broken = ((read == y) if targeted else (read != y)).any(0)
    assert 5 < broken.sum() < 38
    assert torch.equal((predict(model, x_adv) == y) == targeted, broken)
    apart = (tried - x_adv).flatten(2).abs().amax(2)
    assert (apart.amin(0) < 1e-9).all()  # each is one of the grid
    sign, model = (-1 if targeted else 1), model.eval()
    losses = torch.stack([sign * F.cross_entropy(model(z), y, reduction="none") for z in tried])
    found = sign * F.cross_entropy(model(x_adv), y, reduction="none")
    torch.testing.assert_close(found[~broken], losses.amax(0)[~broken])


def test_spatial_asks_only_about_images_that_still_stand():
    spy, x, y = Spy(small_net()), images(40), labels(40)
    SPATIAL(spy, x, y)
    asked = [len(batch) for batch in spy.seen]
    assert asked[0] == 40
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] == (predict(spy.model, SPATIAL(spy.model, x, y)) == y).sum() < 40


def test_draws_differ_between_images_and_fill_the_range_allowed():
    x = dot(4, 4, 9, 9).float().expand(500, 1, 9, 9)
    weight = torch.zeros(2, 81)
    weight[0] = 1  # never broken
    spy, y = Spy(linear(weight)), torch.zeros(500, dtype=torch.int64)
    spatial(spy, x, y, degrees=0, shift=2, draws=3, generator=seeded())
    assert len(spy.seen) == 3
    rows = torch.arange(9.0)
    for seen in spy.seen:
        for axis in (2, 3):
            places = (seen.sum(5 - axis)[:, 0] @ rows) - 4
            assert -2.001 < places.min() < -1.9 < 1.9 < places.max() < 2.001
            assert places.mean().abs() < 0.25


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_images_come_back_in_their_form_and_nothing_else_is_touched(attack):
    model, y = small_net(channels=3), labels()
    for memory in (torch.contiguous_format, torch.channels_last):
        x = images(channels=3).contiguous(memory_format=memory).requires_grad_()
        before = x.detach().clone()
        with untouched(model):
            x_adv = attack(model, x, y)
        assert x_adv.is_contiguous(memory_format=memory)
        assert not x_adv.requires_grad
        assert x_adv.shape == x.shape
        assert 0 <= x_adv.min() <= x_adv.max() <= 1
        assert torch.equal(x, before)


def weights():
    return torch.randn(2, 16, generator=seeded(), dtype=DOUBLE)


@pytest.mark.parametrize("target", [None, 0])
def test_the_universal_change_of_a_linear_model_is_the_sign_of_its_weights(target):
    w, x = weights(), 0.3 + 0.4 * images(dtype=DOUBLE)
    batches = [(x[:5], torch.zeros(5, dtype=torch.int64)), (x[5:], torch.zeros(3).long())]
    change = universal(linear(w, DOUBLE), batches, eps=0.1, alpha=0.03, epochs=3, target=target)
    sign = (w[1] - w[0]).sign().view(1, 1, 4, 4) * (1 if target is None else -1)
    torch.testing.assert_close(change, 0.1 * sign)
    attacked = added(small_net(), x, labels(), change=change)
    torch.testing.assert_close(attacked, x + 0.1 * sign)


def test_each_batch_of_each_epoch_gives_one_step_from_no_change():
    w, x, y = weights(), 0.3 + 0.4 * images(dtype=DOUBLE), torch.zeros(4, dtype=torch.int64)
    batches = [(x[:4], y), (x[4:], y)]
    change = universal(linear(w, DOUBLE), batches, eps=1, alpha=0.01, epochs=3)
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.06))


def test_the_gradients_of_a_batch_are_summed_before_the_sign_is_taken():
    w = torch.zeros(2, 16, dtype=DOUBLE)
    w[1, 0] = 10
    x = torch.full((3, 1, 4, 4), 0.5, dtype=DOUBLE)
    batch = (x, torch.tensor([1, 1, 0]))  # two that are sure against one that is not
    change = universal(linear(w, DOUBLE), [batch], eps=1, alpha=0.01, epochs=1)
    assert change[0, 0, 0, 0] == 0.01
    assert change.count_nonzero() == 1


TRAINING = {"size": 2, "alpha": 0.3, "epochs": 3, "target": 1}


@pytest.mark.parametrize("corner", [(0, 0), (1, 2)])
def test_the_patch_of_a_linear_model_is_white_where_that_helps_its_target(corner):
    w, (row, column) = weights(), corner
    batch = images(dtype=DOUBLE), labels(classes=2)
    found = patch(linear(w, DOUBLE), [batch], corner=corner, **TRAINING)
    helps = (w[1] - w[0]).view(4, 4)[row : row + 2, column : column + 2] > 0
    assert torch.equal(found, helps.double()[None, None])


def test_at_random_places_a_pixel_of_the_patch_learns_from_where_it_lay():
    w = torch.zeros(2, 16, dtype=DOUBLE)
    w[1, 0] = 1  # only the patch's first pixel ever lies on the image's first
    batch = images(64, dtype=DOUBLE), labels(64, 2)
    found = patch(linear(w, DOUBLE), [batch], generator=seeded(), **TRAINING)
    assert found.flatten().tolist() == [1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("train", [partial(universal, eps=0.5), partial(patch, size=2)])
def test_training_asks_the_model_in_evaluation_mode_about_images_in_range(train):
    spy, batch = Spy(small_net()), (images(), labels())
    with untouched(spy):
        found = train(spy, [batch], alpha=0.2, epochs=3)
    assert len(spy.seen) == spy.gradients == 3
    assert all(0 <= seen.min() <= seen.max() <= 1 for seen in spy.seen)
    if train.func is universal:
        assert torch.equal(found, train(small_net().eval(), [batch], alpha=0.2, epochs=3))


def test_a_patch_lies_where_it_should_and_leaves_the_rest_alone():
    x, y = images(4, channels=3), labels(4)
    found = images(2, channels=3)[1:, :, :3, :3]
    x_adv = pasted(small_net(), x, y, patch=found, corner=(1, 0))
    assert torch.equal(x_adv[:, :, 1:, :3], found.expand(4, -1, -1, -1))
    assert torch.equal(x_adv[:, :, 0], x[:, :, 0])
    assert torch.equal(x_adv[:, :, :, 3], x[:, :, :, 3])


def test_random_places_are_all_places_and_differ_between_images():
    x, y = torch.zeros(900, 1, 4, 5), torch.zeros(900, dtype=torch.int64)
    x_adv = pasted(small_net(), x, y, patch=torch.ones(1, 1, 2, 2), generator=seeded())
    kinds, counts = x_adv.unique(dim=0, return_counts=True)
    assert len(kinds) == 3 * 4
    assert 45 < counts.min() <= counts.max() < 110
    assert (kinds.sum((1, 2, 3)) == 4).all()
