"""Restarts, early exit, APGD, Square and AutoAttack: what they find, and whom they ask about."""

from functools import partial

import pytest
import torch
from conftest import Spy, images, linear, seeded, small_net
from torch import nn

from advlib import apgd, autoattack, bim, pgd, predict, square
from advlib.attacks.apgd import _checkpoints, dlr, targeted_dlr
from advlib.attacks.square import _side

DOUBLE = torch.float64


class Behind(nn.Module):
    """A network behind a function of its images, or one whose logits go through another."""

    def __init__(self, model, before=lambda x: x, after=lambda scores: scores):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


class Window(nn.Module):
    """Mistakes an image for class 1 exactly where low < its one pixel < high; gradient zero.

    The loss is *lower* on the mistake than elsewhere, so a choice by largest loss misses it.
    """

    right, wrong = torch.tensor([0.34, 0.33, 0.33]).log(), torch.tensor([0.48, 0.52, 1e-9]).log()

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        inside = (x.flatten(1) > self.low) & (x.flatten(1) < self.high)
        return torch.where(inside, self.wrong, self.right) + 0 * x.flatten(1)


def broken(model, x_adv, y):
    return predict(model, x_adv) != y


def right_images(n=40, dtype=DOUBLE):
    """A network, and images that it gets right."""
    model, x = small_net(dtype=dtype).eval(), images(n, dtype=dtype)
    return model, x, predict(model, x)


EARLY = partial(bim, alpha=0.05, steps=8, early_exit=True)
QUICK = [partial(square, queries=20), partial(autoattack, queries=20)]


@pytest.mark.parametrize("attack", [EARLY, apgd, *QUICK])
def test_an_image_that_is_wrong_already_be_it_by_a_tie_comes_back_as_it_is(attack):
    model, x, y = right_images(8)
    y[:4] = (y[:4] + 1) % 3
    assert torch.equal(attack(model, x, y, eps=0.3)[:4], x[:4])
    tied, ones = linear(torch.ones(2, 16), DOUBLE), torch.ones(8, dtype=torch.int64)
    assert torch.equal(attack(tied, x, ones, eps=0.3), x)  # equal logits: argmax says 0


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_any_success_counts_not_the_largest_loss_nor_the_last(targeted):
    model, x = Window(0.6, 0.9), torch.full((50, 1), 0.5)
    y = torch.full((50,), int(targeted))
    options = {"eps": 0.5, "alpha": 0.0, "steps": 1, "targeted": targeted}
    attack = partial(pgd, model, x, y, **options, generator=seeded())
    assert 5 < predict(model, attack(restarts=1)).sum() < 25  # three restarts in ten succeed
    assert predict(model, attack(restarts=40)).sum() == 50


@pytest.mark.parametrize("attack", [partial(pgd, alpha=0.02, steps=5), partial(apgd, steps=5)])
def test_restarts_keep_what_an_early_success_found_and_attack_only_the_rest(attack):
    model, x, y = right_images()
    spies = [Spy(model), Spy(model)]
    one = attack(spies[0], x, y, eps=0.1, restarts=1, generator=seeded())
    four = attack(spies[1], x, y, eps=0.1, restarts=4, generator=seeded())
    fell = broken(model, one, y)
    assert 0 < fell.sum() < 40
    assert torch.equal(one[fell], four[fell])
    assert broken(model, four, y).sum() >= fell.sum()
    # the first call after the first restart asks which fell
    later = [len(seen) for seen in spies[1].seen[len(spies[0].seen) + 1 :]]
    assert 0 < max(later) <= (~fell).sum()


def test_images_that_no_restart_breaks_are_not_zeros_but_lie_in_the_ball():
    x, y = torch.full((50, 1), 0.5), torch.zeros(50, dtype=torch.int64)
    found = pgd(Window(2, 3), x, y, eps=0.1, alpha=0.01, steps=2, restarts=3, generator=seeded())
    assert ((found - x).abs() <= 0.1).all()
    assert (found != x).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", [0.3, torch.linspace(0, 0.6, 24)], ids=["one", "per image"])
def test_early_exit_keeps_each_image_as_its_first_success_left_it_and_asks_no_more(targeted, eps):
    model, x, y = right_images(24)
    y[:3] = (y[:3] + 1) % 3  # broken (or on target) from the start
    options = {"eps": eps, "alpha": 0.05, "targeted": targeted}
    runs = [x] + [bim(model, x, y, **options, steps=k) for k in range(1, 9)]
    hits = torch.stack([broken(model, run, y) != targeted for run in runs[:-1]])
    first = torch.where(hits.any(0), hits.int().argmax(0), 8)  # steps that each image takes
    spy = Spy(model)
    found = bim(spy, x, y, **options, early_exit=True, steps=8)
    assert torch.equal(found, torch.stack([runs[k][i] for i, k in enumerate(first)]))
    assert 0 < (first > 0).sum() < 24
    assert sum(len(seen) for seen in spy.seen) <= (first + 1).clamp(max=8).sum() + 1


def test_autoattack_goes_on_only_with_what_still_stands():
    model, x, y = right_images(dtype=torch.float32)
    first = apgd(model, x, y, eps=0.12, steps=5, generator=seeded())
    fell = broken(model, first, y)
    spy = Spy(model)
    x_adv = autoattack(spy, x, y, eps=0.12, steps=5, queries=5, generator=seeded())
    assert torch.equal(x_adv[fell], first[fell])
    assert fell.sum() < broken(model, x_adv, y).sum() < 40
    assert len(spy.seen[-1]) < (~fell).sum()  # Square's last question, about the last survivors


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("flat", [False, True])
def test_autoattack_makes_do_with_few_classes_and_with_flat_images(classes, flat):
    model = linear(torch.randn(classes, 16, generator=seeded()), DOUBLE)
    x = 0.2 + 0.6 * images(30, dtype=DOUBLE)
    x = x.flatten(1) if flat else x
    y = predict(model, x)
    assert broken(model, autoattack(model, x, y, eps=0.1, steps=10, queries=5), y).any()


@pytest.mark.parametrize("attack", [apgd, partial(square, queries=300)])
def test_a_targeted_attack_reaches_the_class_it_is_given(attack):
    model, x, y = right_images()
    x_adv = attack(model, x, (y + 1) % 3, eps=0.4, targeted=True, generator=seeded())
    assert (~broken(model, x_adv, (y + 1) % 3)).sum() > 10


def test_checkpoints_are_those_of_the_paper():
    at, gaps = (22, 41, 57, 70, 80, 87, 93, 99), (22, 19, 16, 13, 10, 7, 6, 6)
    assert list(_checkpoints(100)) == list(zip(at, gaps, strict=True))
    assert list(_checkpoints(1)) == [(1, 1)]


def test_dlr_losses_by_hand():
    scores = torch.tensor([[5.0, 1.0, 3.0, 2.0], [1.0, 4.0, 0.0, 2.0]])
    y = torch.tensor([[0, 3], [0, 2]])
    expected = torch.tensor([-(5 - 3) / (5 - 2), (4 - 1) / (4 - 1)])
    torch.testing.assert_close(dlr(scores, y), expected)
    expected = torch.tensor([-(5 - 2) / (5 - 1.5), (0 - 1) / (4 - 0.5)])
    torch.testing.assert_close(targeted_dlr(scores, y), expected)


def test_dlr_breaks_a_model_whose_cross_entropy_is_saturated():
    model, x, y = right_images(dtype=torch.float32)
    loud = Behind(model, after=lambda scores: 1e5 * scores)
    attack = partial(apgd, x=x, y=y, eps=0.3, steps=20)
    quiet = broken(model, attack(model, generator=seeded()), y).sum()
    ce, ratio = (
        broken(loud, attack(loud, loss=loss, generator=seeded()), y).sum() for loss in ("ce", "dlr")
    )
    assert ce < quiet - 5 < quiet - 1 <= ratio


def test_targeted_dlr_breaks_an_image_by_any_of_its_targets():
    # class 1 comes close and can't be pushed further; class 2 is far off, and steep
    weights = torch.zeros(4, 16)
    weights[2] = 10
    model = linear(weights)
    model[1].bias = nn.Parameter(torch.tensor([0.0, -0.1, -90.0, -200.0]))
    x, y = torch.full((6, 1, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64)
    eps = torch.tensor([0.01, 0.05, 0.07, 0.1, 0.02, 0.2])
    attack = partial(apgd, model, x, y, eps=eps, loss="targeted-dlr", generator=seeded())
    assert not broken(model, attack(targets=1), y).any()
    x_adv = attack(targets=2)
    assert torch.equal(predict(model, x_adv) == 2, 160 * (0.5 + eps) > 90)
    # what stands comes back at its largest loss: towards class 1, the others pushed further off
    assert torch.allclose(x_adv[0] - x[0], torch.tensor(-0.01))


class Hill(nn.Module):
    """Class 1 comes closest at the pixels `top`, and never wins."""

    top = 0.53

    def forward(self, x):
        height = -1 - 50 * (x - self.top).flatten(1).square().sum(1)
        return torch.stack([torch.zeros_like(height), height], 1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.4)])
def test_apgd_makes_its_steps_small_enough_to_settle_on_a_top_inside_the_ball(norm, eps):
    x, y = torch.full((8, 1, 4, 4), 0.5), torch.zeros(8, dtype=torch.int64)
    x_adv = apgd(Hill(), x, y, eps=eps, norm=norm, generator=seeded())
    assert (x_adv - Hill.top).abs().max() < 0.002


def test_square_spends_no_query_on_what_it_knows():
    # one pixel: stripes and square both are it, and only one of the two corners breaks it
    model = linear([[0.0], [1.0]])
    model[1].bias = nn.Parameter(torch.tensor([0.55, 0.0]))
    x, y = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64, dtype=torch.int64)
    assert broken(model, square(model, x, y, eps=0.1, queries=2, generator=seeded()), y).all()


def test_square_wants_no_gradient_and_breaks_what_hides_it():
    model = Behind(small_net().eval(), before=lambda x: (x * 8).round() / 8)
    x = images(40)
    y = predict(model, x)
    by_gradients = pgd(model, x, y, eps=0.2, alpha=0.02, steps=20, generator=seeded())
    spy = Spy(model)
    x_adv = square(spy, x, y, eps=0.2, queries=300, generator=seeded())
    assert spy.gradients == 0
    assert broken(model, x_adv, y).sum() > broken(model, by_gradients, y).sum() + 5


def test_more_queries_never_make_squares_margin_larger():
    model, x, y = right_images(1)
    margins = []
    for queries in (1, 5, 20, 100):
        scores = model(square(model, x, y, eps=0.02, queries=queries, generator=seeded()))[0]
        margins.append(2 * scores[y].item() - scores.topk(2).values.sum().item())
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] < margins[0]


def test_side_of_the_square_follows_the_papers_schedule():
    queries = [1, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]  # of 10,000
    for halvings, query in enumerate(queries):
        area = 0.8 / 2**halvings
        assert _side(0.8, query / 10_000, 224, 224) == round((area * 224 * 224) ** 0.5)
    assert _side(0.8, 0.9, 4, 4) == 1
    assert _side(1.0, 0.0, 4, 6) == 4
