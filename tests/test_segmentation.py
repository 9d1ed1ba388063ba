"""Labels of pixels: SegPGD, mean intersection over union, and the book's U-Net."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import equal, global_rng, images, seeded, untouched
from torch import nn

from advlib import Batches, bim, load_data, mean_iou, predict, segpgd
from advlib.book import figures, segmentation, trained
from advlib.book.segmentation import iou, middle, overlaps, redraw, resampled, share, unet

MAPS = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
Y = torch.tensor([[[0, 0], [0, 1]], [[0, 1], [0, 0]]])
# class 0: 5 pixels in both, 7 in either; class 1: 1 in both, 3 in either; class 2 occurs nowhere
EXPECTED = (5 / 7 + 1 / 3) / 2
LOGITS = F.one_hot(MAPS, 3).permute(0, 3, 1, 2).float()  # of a model that passes them on


@pytest.mark.parametrize("size", [1, 2])
def test_mean_iou_counts_over_the_whole_set_and_leaves_out_what_occurs_nowhere(size):
    batches = Batches(LOGITS, Y, batch_size=size)
    assert mean_iou(nn.Identity(), batches) == pytest.approx(EXPECTED)
    assert mean_iou(nn.Identity(), Batches(LOGITS, MAPS)) == 1
    assert mean_iou(nn.Identity(), Batches(LOGITS, 2 - 2 * MAPS)) == 0  # what is said occurs, too
    assert iou(overlaps(MAPS, Y, 3).sum(1)) == pytest.approx(EXPECTED)


def test_mean_iou_takes_labels_of_images_and_an_attack_that_is_told_the_true_ones():
    scores, y = torch.eye(3)[[0, 1, 1, 2]].view(4, 3, 1, 1), torch.tensor([0, 1, 2, 2])
    assert mean_iou(nn.Flatten(), [(scores, y)]) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    repair = lambda model, x, y: F.one_hot(y, 3).permute(0, 3, 1, 2).float()  # noqa: E731
    assert mean_iou(nn.Identity(), [(LOGITS, Y)], attack=repair) == 1


def test_predicted_maps_and_counts_of_each_image_have_their_shapes():
    assert torch.equal(predict(nn.Identity(), LOGITS), MAPS)
    counts = overlaps(MAPS, Y, 3)
    assert counts.tolist() == [[[2, 1, 0], [3, 0, 0]], [[3, 2, 0], [4, 1, 0]]]
    times = resampled(2, draws=50)
    assert times.shape == (50, 2)
    assert (times.sum(1) == 2).all()
    assert times.unique().tolist() == [0, 1, 2]
    once = iou(torch.ones(1, 2).double() @ counts.double())
    assert once.tolist() == pytest.approx([EXPECTED])
    assert middle(torch.arange(1001)) == pytest.approx((25, 975))


def pixel_net():
    """Three classes for each pixel of images (n, 1, h, w), by what is near it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        return nn.Sequential(first, norm, nn.Tanh(), nn.Conv2d(6, 3, 3, padding=1))


def test_segpgd_follows_the_weights_of_the_paper_step_by_step():
    model, x, steps = pixel_net().eval(), images(), 4
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:, ::2] = (y[:, ::2] + 1) % 3  # half of the pixels are wrong before any step
    here = x.clone()
    for t in range(1, steps + 1):
        here.requires_grad_()
        scores, part = model(here), (t - 1) / (2 * steps)
        right = scores.argmax(1) == y
        losses = -scores.log_softmax(1).gather(1, y[:, None])[:, 0]
        loss = (1 - part) * losses[right].sum() + part * losses[~right].sum()
        ahead = here.detach() + 0.03 * torch.autograd.grad(loss, here)[0].sign()
        here = torch.max(torch.min(ahead, x + 0.05), x - 0.05).clamp(0, 1)
    found = segpgd(model, x, y, eps=0.05, alpha=0.03, steps=steps, random_start=False)
    assert (
        (found - here).abs() < 1e-6
    ).float().mean() > 0.99  # the sign of a slope near 0 may turn


def test_segpgd_leaves_what_is_wrong_alone_in_its_first_step():
    model = nn.Conv2d(1, 2, 1)  # each pixel answers for itself
    model.weight.data[:], model.bias.data[:] = torch.tensor([-1.0, 1]).view(2, 1, 1, 1), 0
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[1, 1], [0, 0]]])
    attack = partial(segpgd, model, x, y, eps=0.2, alpha=0.1, random_start=False)
    assert attack(steps=1)[0, 0].tolist() == [pytest.approx([0.4, 0.4]), [0.5, 0.5]]
    later = attack(steps=3)[0, 0]
    assert later.tolist() == [pytest.approx([0.3, 0.3]), pytest.approx([0.7, 0.7])]


def test_segpgd_stays_in_ball_and_box_draws_from_its_generator_and_leaves_no_trace():
    model, x = pixel_net().train(), images()
    y = torch.arange(x[:, 0].numel()).view_as(x[:, 0]) % 3
    attack = partial(segpgd, model, x, y, eps=0.1, alpha=0.05, steps=3)
    with untouched(model):
        found, again, other = (attack(generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert (found.min(), found.max()) == (0, 1)
    assert torch.equal(attack(eps=0.0), x)
    assert mean_iou(model, [(found, y)]) < mean_iou(model, [(x, y)])


def test_unet_labels_every_pixel_has_few_weights_and_comes_from_its_generator():
    before = global_rng()
    net, same, other = (unet(generator=seeded(seed)) for seed in (1, 1, 2))
    assert global_rng() == before
    assert equal(net, same)
    assert not equal(net, other)
    assert net(torch.rand(2, 1, 56, 48)).shape == (2, 11, 56, 48)
    assert 30_000 < sum(p.numel() for p in net.parameters()) < 105_000
    assert unet(classes=3, width=4)(torch.rand(1, 1, 8, 8)).shape == (1, 3, 8, 8)


def test_a_label_of_the_unet_may_depend_on_pixels_far_away():
    net, x = unet(generator=seeded()), load_data("scenes", device="cpu")[1].x[:1].clone()
    slope = torch.autograd.grad(net(x.requires_grad_())[0, :, 28, 28].sum(), x)[0][0, 0]
    rows = slope.abs().sum(1).nonzero().flatten()
    assert rows.min() < 14
    assert rows.max() > 42


def test_the_watch_sees_maps_clean_and_attacked():
    test = load_data("scenes", device="cpu")[1]
    net = unet(generator=seeded())
    found = segmentation.watch_maps(net, x=test.x[:4], y=test.y[:4], eps=0.05)
    assert found["clean"] == mean_iou(net, [(test.x[:4], test.y[:4])])
    assert found == segmentation.watch_maps(net, x=test.x[:4], y=test.y[:4], eps=0.05)
    assert found["pgd"] < found["clean"]


def test_redrawing_is_targeted_bim_and_leaves_pixels_alone_that_are_not_free():
    test = load_data("scenes", device="cpu")[1]
    x, y, net = test.x[:3], test.y[:3], trained.network("scenes", device="cpu")
    label = y.flatten(1).max(1).values.view(-1, 1, 1)
    goal, before, where = torch.zeros_like(label), predict(net, x), y == label
    found = redraw(net, x, y, label, goal, eps=0.1, steps=2)
    wanted = torch.where(where | (before == label), goal, before)
    expected = bim(net, x, wanted, eps=0.1, alpha=0.02, steps=2, targeted=True)
    assert ((found.x_adv - expected).abs() < 1e-6).float().mean() > 0.99
    assert torch.equal(found.maps, predict(net, found.x_adv))
    others = (y > 0) & ~where
    assert found.kept == pytest.approx((found.maps == before)[others].float().mean().item())
    for image in range(3):
        assert found.done[image] == (found.maps[image] == 0)[where[image]].float().mean()
    free = (~where)[:, None].float()
    outside = redraw(net, x, y, label, goal, eps=0.1, steps=2, free=free).x_adv
    assert torch.equal(outside[where[:, None]], x[where[:, None]])
    assert (outside - x).abs().max() > 0.03


def test_a_share_is_counted_in_each_image():
    assert share(MAPS == 1, Y == 1).tolist() == [1, 0]
    assert share(MAPS == 0, torch.ones_like(Y) > 0).tolist() == [0.5, 1]


def test_maps_are_drawn_with_their_digits_on_pieces_that_are_large_enough():
    maps = torch.zeros(2, 20, 20, dtype=torch.int64)
    maps[0, 2:8, 2:5], maps[0, 2:8, 10:13], maps[0, 15, 15:19] = 4, 4, 7
    for i in range(14):  # a diagonal is one piece
        maps[1, i, i] = 10
    figure = figures.label_maps({"canvas": torch.rand(2, 1, 20, 20), "map": maps}, ["a", "b"])
    first, second = ([text.get_text() for text in axis.texts] for axis in figure.axes[1::2])
    assert (first, second) == (["3", "3"], ["9"])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["canvas", "map"]
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["a", "b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*"0123456789"]
