"""APGD, Square, AutoAttack and the l2 ball, against closed forms and what their papers say."""

from functools import partial

import pytest
import torch
from conftest import images, labels, linear, small_net
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advlib import apgd, autoattack, bim, fgsm, n_fgsm, pgd, predict, square
from advlib.attacks.apgd import _checkpoints, dlr, targeted_dlr
from advlib.attacks.common import BALLS, project
from advlib.attacks.square import _side

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(classes, pixels, seed=0):
    return torch.randn(classes, pixels, generator=seeded(seed), dtype=DOUBLE)


def inner_images(n, pixels):
    """Images far enough from 0 and 1 for every ball of the closed forms."""
    return 0.3 + 0.4 * torch.rand(n, pixels, generator=seeded(1), dtype=DOUBLE)


class Coarse(nn.Module):
    """A network behind a rounding of pixels to `levels` steps: no gradient gets through."""

    def __init__(self, model, levels):
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x):
        return self.model((x * self.levels).round() / self.levels)


class Scaled(nn.Module):
    """A network whose logits are multiplied by `factor`: the same decisions."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


class Spy(nn.Module):
    """Keeps the images that the model was asked about, and whether a gradient was wanted."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen, self.gradients = model, [], 0

    def forward(self, x):
        self.seen.append(x.detach().clone())
        self.gradients += x.requires_grad
        return self.model(x)


# Closed forms


@pytest.mark.parametrize(
    "attack",
    [
        partial(bim, alpha=0.05, steps=10),
        partial(pgd, alpha=0.05, steps=60),
        partial(apgd, steps=10),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_worst_margin_of_a_linear_model_is_reached_in_either_norm(attack, norm):
    w = weights(2, 12)
    difference = w[0] - w[1]
    dual = difference.abs().sum() if norm == "linf" else difference.norm()
    y = torch.zeros(20, dtype=torch.int64)
    x = inner_images(20, 12)
    x = x + ((3 - x @ difference) / (difference @ difference))[:, None] * difference  # margin 3
    x_adv = attack(linear(w, DOUBLE), x, y, eps=0.1, norm=norm, bounds=None)
    assert (x @ difference > 0.1 * dual).all()  # none breaks, so no attack stops early
    torch.testing.assert_close((x - x_adv) @ difference, (0.1 * dual).expand(20), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted-dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_breaks_a_linear_model_where_the_closed_form_says(loss, norm):
    w, eps = weights(5, 8), 0.05 if norm == "linf" else 0.1
    x = inner_images(200, 8)
    y = (x @ w.T).argmax(1)
    gaps = (x @ w.T).gather(1, y[:, None]) - x @ w.T
    apart = w[y][:, None] - w
    reach = eps * (apart.abs().sum(2) if norm == "linf" else apart.norm(dim=2))
    breakable = ((gaps - reach).scatter(1, y[:, None], 1.0) < 0).any(1)
    assert 20 < breakable.sum() < 180
    x_adv = apgd(linear(w, DOUBLE), x, y, eps=eps, loss=loss, norm=norm, generator=seeded())
    broken = (x_adv @ w.T).argmax(1) != y
    assert not (broken & ~breakable).any()
    missed = (breakable & ~broken).sum().item()
    assert missed <= (0 if loss == "targeted-dlr" else 10)


def test_targeted_apgd_reaches_the_class_it_is_given():
    model, x = small_net(dtype=DOUBLE).eval(), images(30, dtype=DOUBLE)
    target = (model(x).argmax(1) + 1) % 3
    x_adv = apgd(model, x, target, eps=0.5, targeted=True, generator=seeded())
    reached = predict(model, x_adv) == target
    by_pgd = (
        predict(model, pgd(model, x, target, eps=0.5, alpha=0.05, steps=50, targeted=True))
        == target
    )
    assert reached.sum() >= by_pgd.sum() > 5
    with pytest.raises(ValueError, match="loss"):
        apgd(model, x, target, eps=0.5, targeted=True, loss="dlr")


# APGD


def test_checkpoints_are_those_of_the_paper():
    assert list(_checkpoints(100)) == list(
        zip((22, 41, 57, 70, 80, 87, 93, 99), (22, 19, 16, 13, 10, 7, 6, 6), strict=True)
    )
    assert list(_checkpoints(1)) == [(1, 1)]


def test_dlr_losses_by_hand():
    scores = torch.tensor([[5.0, 1.0, 3.0, 2.0], [1.0, 4.0, 0.0, 2.0]])
    y = torch.tensor([[0, 3], [0, 2]])
    torch.testing.assert_close(
        dlr(scores, y), torch.tensor([-(5 - 3) / (5 - 2), (4 - 1) / (4 - 1)])
    )
    expected = torch.tensor([-(5 - 2) / (5 - 1.5), (0 - 1) / (4 - 0.5)])
    torch.testing.assert_close(targeted_dlr(scores, y), expected)


def test_dlr_breaks_a_model_whose_cross_entropy_is_saturated():
    model, x = small_net().eval(), images(40)
    y = predict(model, x)
    loud = Scaled(model, 1e5)
    options = {"eps": 0.3, "steps": 20}
    quiet = (predict(model, apgd(model, x, y, **options, generator=seeded())) == y).sum()
    for loss in ("ce", "dlr"):
        x_adv = apgd(loud, x, y, **options, loss=loss, generator=seeded())
        stands = (predict(loud, x_adv) == y).sum()
        assert stands <= quiet + 1 if loss == "dlr" else stands > quiet + 5


def test_apgd_returns_broken_images_as_they_broke_and_the_others_at_their_best():
    model, x = small_net(dtype=DOUBLE).eval(), images(40, dtype=DOUBLE)
    y = predict(model, x)
    y[:4] = (y[:4] + 1) % 3  # wrong already
    x_adv = apgd(model, x, y, eps=0.15, steps=30, generator=seeded())
    assert torch.equal(x_adv[:4], x[:4])
    stands = predict(model, x_adv) == y
    assert 5 < stands.sum() < 35
    losses = [nn.functional.cross_entropy(model(z), y, reduction="none") for z in (x, x_adv)]
    assert (losses[1] > losses[0])[stands].all()


def test_more_restarts_never_lose_an_image_that_fewer_broke():
    model, x = small_net(dtype=DOUBLE).eval(), images(40, dtype=DOUBLE)
    y = predict(model, x)
    one, three = (
        predict(model, apgd(model, x, y, eps=0.1, steps=5, restarts=n, generator=seeded())) != y
        for n in (1, 3)
    )
    assert (three >= one).all()


def test_targeted_dlr_breaks_an_image_by_any_of_its_targets():
    # class 1 comes close and can't be pushed further; class 2 is far off, and steep
    weights = torch.zeros(4, 16)
    weights[2] = 10
    model = linear(weights)
    model[1].bias = torch.nn.Parameter(torch.tensor([0.0, -0.1, -90.0, -200.0]))
    x, y = torch.full((6, 1, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64)
    eps = torch.tensor([0.01, 0.05, 0.07, 0.1, 0.02, 0.2])
    attack = partial(apgd, model, x, y, eps=eps, loss="targeted-dlr", generator=seeded())
    assert (predict(model, attack(targets=1)) == y).all()
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


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_makes_its_steps_small_enough_to_settle_on_a_top_inside_the_ball(norm):
    x, y = torch.full((8, 1, 4, 4), 0.5), torch.zeros(8, dtype=torch.int64)
    x_adv = apgd(Hill(), x, y, eps={"linf": 0.1, "l2": 0.4}[norm], norm=norm, generator=seeded())
    assert (x_adv - Hill.top).abs().max() < 0.002


def test_apgd_restarts_only_for_what_stands():
    x, y = images(6), torch.zeros(6, dtype=torch.int64)
    spies = [Spy(linear(torch.stack([torch.zeros(16), torch.ones(16)]))) for _ in range(2)]
    for spy in spies:  # so far ahead that one step breaks it
        spy.model[1].bias = nn.Parameter(torch.tensor([x.flatten(1).sum(1).max().item(), 0.0]))
    for spy, restarts in zip(spies, (1, 4), strict=True):
        x_adv = apgd(spy, x, y, eps=0.9, bounds=None, restarts=restarts, generator=seeded())
        assert (predict(spy.model, x_adv) == 1).all()
    assert spies[0].gradients == spies[1].gradients


def test_square_spends_no_query_on_what_it_knows():
    # one pixel: stripes and square both are it, and only one of the two corners breaks it
    model = linear([[0.0], [1.0]])
    model[1].bias = nn.Parameter(torch.tensor([0.55, 0.0]))
    x, y = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64, dtype=torch.int64)
    x_adv = square(model, x, y, eps=0.1, queries=2, generator=seeded())
    assert (predict(model, x_adv) == 1).all()


def test_square_leaves_an_image_alone_that_a_tie_already_breaks():
    model = linear(torch.ones(2, 16))  # equal logits: argmax says 0
    x = images(3)
    assert torch.equal(square(model, x, torch.ones(3, dtype=torch.int64), eps=0.1, queries=20), x)


def test_targeted_square_reaches_its_target():
    model, x = small_net().eval(), images(40)
    target = (predict(model, x) + 1) % 3
    x_adv = square(model, x, target, eps=0.4, queries=300, targeted=True, generator=seeded())
    assert (predict(model, x_adv) == target).sum() > 10


# Square


def test_square_wants_no_gradient_and_breaks_what_hides_it():
    model, x = Coarse(small_net().eval(), levels=8), images(40)
    y = predict(model, x)
    with_gradients = pgd(model, x, y, eps=0.2, alpha=0.02, steps=20, generator=seeded())
    spy = Spy(model)
    x_adv = square(spy, x, y, eps=0.2, queries=300, generator=seeded())
    assert spy.gradients == 0
    fallen = [(predict(model, z) != y).sum().item() for z in (with_gradients, x_adv)]
    assert fallen[1] > fallen[0] + 5


def test_square_moves_each_pixel_to_the_surface_of_ball_or_box():
    x = images(20, channels=3).to(DOUBLE)
    net = small_net(3, DOUBLE)
    y = predict(net, x)
    x_adv = square(net, x, y, eps=0.1, queries=50, generator=seeded())
    at_surface = ((x_adv - x).abs() - 0.1).abs() < 1e-9
    at_bounds = (x_adv == 0) | (x_adv == 1)
    assert (at_surface | at_bounds).flatten(1).all(1).sum() >= 15


def test_more_queries_never_make_squares_margin_larger():
    model, x = small_net(dtype=DOUBLE).eval(), images(1, dtype=DOUBLE)
    y = predict(model, x)

    def margin(queries):
        scores = model(square(model, x, y, eps=0.02, queries=queries, generator=seeded()))[0]
        return (scores[y] - scores[[i for i in range(3) if i != y]].max()).item()

    margins = [margin(queries) for queries in (1, 5, 20, 100)]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] < margins[0]


def test_side_of_the_square_follows_the_papers_schedule():
    at = [1, 25, 60, 150, 400, 700, 1500, 2500, 3500, 4500]
    area = [0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625]
    queries = [1, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]  # of 10,000
    assert len(at) == len(area)
    for query, part in zip(queries, area, strict=True):
        assert _side(0.8, query / 10_000, 224, 224) == round((part * 224 * 224) ** 0.5)
    assert _side(0.8, 0.9, 4, 4) == 1
    assert _side(1.0, 0.0, 4, 6) == 4


# AutoAttack


def test_autoattack_goes_on_only_with_what_still_stands():
    model, x = small_net().eval(), images(40)
    y = predict(model, x)
    y[:3] = (y[:3] + 1) % 3
    first = apgd(model, x, y, eps=0.12, steps=5, generator=seeded())
    broken = predict(model, first) != y
    spy = Spy(model)
    x_adv = autoattack(spy, x, y, eps=0.12, steps=5, queries=5, generator=seeded())
    assert torch.equal(x_adv[:3], x[:3])
    assert torch.equal(x_adv[broken], first[broken])
    stands = predict(model, x_adv) == y
    assert 0 < stands.sum() < (~broken).sum()
    assert (stands & broken).sum() == 0
    assert len(spy.seen[-1]) < (~broken).sum()  # Square's last question, about the last survivors


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("flat", [False, True])
def test_autoattack_makes_do_with_few_classes_and_with_flat_images(classes, flat):
    model = linear(weights(classes, 16), DOUBLE)
    x = 0.2 + 0.6 * images(30, dtype=DOUBLE)
    x = x.flatten(1) if flat else x
    y = predict(model, x)
    x_adv = autoattack(model, x, y, eps=0.1, steps=10, queries=5)
    assert (predict(model, x_adv) != y).any()


# N-FGSM


def test_n_fgsm_adds_noise_and_one_step_and_leaves_the_ball():
    w, y = weights(2, 16), labels(classes=2)
    model, x = linear(w, DOUBLE), images(dtype=DOUBLE)
    found = n_fgsm(model, x, y, eps=0.1, bounds=None, generator=seeded())
    noise = 0.2 * (2 * torch.rand(x.shape, generator=seeded(), dtype=DOUBLE) - 1)
    towards = ((w[1] - w[0]).sign() * (1 - 2 * y[:, None])).view_as(x)
    torch.testing.assert_close(found, x + noise + 0.1 * towards)
    assert (found - x).abs().max() > 0.25
    without = n_fgsm(model, x, y, eps=0.1, noise=0.0)
    torch.testing.assert_close(without, fgsm(model, x, y, eps=0.1))


# Balls


@given(
    attack=st.sampled_from(
        [
            partial(bim, alpha=0.2, steps=3),
            partial(pgd, alpha=0.2, steps=2, restarts=2),
            partial(pgd, alpha=0.2, steps=2, early_exit=True),
            partial(apgd, steps=5),
            partial(apgd, steps=5, loss="dlr"),
            partial(autoattack, steps=3, queries=5),
        ]
    ),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 2),
    bounds=st.sampled_from([None, (0.0, 1.0), (-0.25, 2.0)]),
    per_image=st.booleans(),
)
def test_every_image_the_model_sees_or_gets_back_is_in_ball_and_box(
    attack, norm, eps, bounds, per_image
):
    model, x, y = Spy(small_net()), images(4), labels(4)
    eps = eps * torch.tensor([0.0, 0.3, 0.7, 1.0]) if per_image else eps
    limit = torch.as_tensor(eps).expand(4) + 1e-5
    found = attack(model, x, y, eps=eps, norm=norm, bounds=bounds, generator=seeded())
    change = (found - x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (size <= limit).all()
    if bounds is not None:
        for seen in [found, *model.seen]:
            assert seen.min() >= bounds[0]
            assert seen.max() <= bounds[1]


@given(eps=st.floats(0, 1), channels=st.integers(1, 3), bounds=st.sampled_from([None, (0.0, 1.0)]))
def test_square_stays_in_ball_and_box(eps, channels, bounds):
    model, x, y = Spy(small_net(channels)), images(4, channels), labels(4)
    found = square(model, x, y, eps=eps, queries=20, bounds=bounds, generator=seeded())
    assert ((found - x).abs() <= eps + 1e-6).all()
    for seen in [found, *model.seen] if bounds else []:
        assert seen.min() >= 0
        assert seen.max() <= 1


def test_l2_projection_finds_the_nearest_point_and_keeps_what_is_inside():
    x = torch.zeros(3, 2)
    x_adv = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = project(x_adv, x, 1.0, None, "l2")
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_l2_start_is_spread_evenly_over_the_ball():
    x = torch.zeros(20_000, 3, dtype=DOUBLE)
    start = BALLS["l2"].random(x, seeded())
    radius = start.norm(dim=1)
    assert radius.max() <= 1
    volumes = (radius**3).histc(10, 0, 1) / len(x)  # volume grows with the cube of the radius
    assert (volumes - 0.1).abs().max() < 0.01
    assert start.mean(0).abs().max() < 0.02


def test_l2_steps_of_a_zero_gradient_stand_still():
    x = images()
    model = linear(torch.zeros(3, 16))
    assert torch.equal(bim(model, x, labels(), eps=0.5, alpha=0.1, steps=2, norm="l2"), x)
