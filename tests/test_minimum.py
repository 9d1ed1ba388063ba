"""Minimum-norm attacks against closed forms; `make slow` has other libraries as the oracle."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import linear, seeded
from torch import nn

from advlib import ddn, fmn, predict
from advlib.book import commands

DOUBLE = torch.float64
ORDER = {"l0": 0, "l2": 2, "linf": torch.inf}


@pytest.fixture
def case():
    """A linear model of five classes, and forty images that it reads right."""
    w = torch.randn(5, 30, generator=seeded(), dtype=DOUBLE)
    model = linear(w, DOUBLE)
    x = 0.1 + 0.8 * torch.rand(40, 30, generator=seeded(1), dtype=DOUBLE)
    y = predict(model, x)
    rivals = torch.tensor([[k for k in range(5) if k != label] for label in y])
    directions = w[rivals] - w[y].unsqueeze(1)  # to each other class
    leads = -torch.einsum("nkp,np->nk", directions, x)
    return model, x, y, rivals, directions, leads


def sizes(x_adv, x, norm):
    return (x_adv - x).norm(ORDER[norm], dim=1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("attack", "norm", "dual"),
    [(partial(fmn, norm="linf"), "linf", 1), (partial(fmn, norm="l2"), "l2", 2), (ddn, "l2", 2)],
)
def test_the_smallest_change_of_a_linear_model_is_found(case, attack, norm, dual, targeted):
    model, x, y, rivals, directions, leads = case
    borders = leads / directions.norm(dual, dim=2)  # distance to each other class
    goal, least = (rivals[:, 0], borders[:, 0]) if targeted else (y, borders.min(1).values)
    found = attack(model, x, goal, targeted=targeted, bounds=None)
    assert ((predict(model, found) == goal) == targeted).all()
    times = sizes(found, x, norm) / least  # a third class may lie between, or a local minimum
    assert times.min() > 1 - 1e-9
    assert times.max() < 2
    assert times.quantile(0.25) < 1.01
    assert targeted or times.median() < 1.003


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.5, 2.0)])
def test_few_pixels_are_changed_where_the_closed_form_needs_few(case, bounds):
    model, x, y, _, directions, leads = case
    ends = torch.where(directions > 0, bounds[1], bounds[0]) - x.unsqueeze(1)
    gains = (ends * directions).sort(2, descending=True).values.cumsum(2)
    least = (gains <= leads.unsqueeze(2)).sum(2).min(1).values + 1  # pixels, greedily
    found = fmn(model, x, y, norm="l0", steps=300, bounds=bounds)
    assert (predict(model, found) != y).all()
    assert bounds[0] <= found.min() <= found.max() <= bounds[1]
    size = sizes(found, x, "l0")
    assert (size >= least).all()
    assert (size - least).double().mean() < 0.7


@pytest.mark.parametrize("attack", [ddn, *(partial(fmn, norm=norm) for norm in ORDER)])
def test_what_is_wrong_already_or_cannot_be_broken_comes_back_as_it_was(case, attack):
    model, x, y, *_ = case
    y = torch.where(torch.arange(40) < 20, (y + 1) % 5, y)
    stubborn = nn.Sequential(model, nn.Hardtanh(-1e9, 1e9))
    model[1].bias = nn.Parameter(torch.zeros(5, dtype=DOUBLE), requires_grad=False)
    found = attack(stubborn, x, y, steps=20)
    unchanged = (found == x).all(1)
    assert unchanged[:20].all()
    assert not unchanged[20:].any()
    model[1].bias[0] = 1e3  # now class 0 is the answer to everything
    assert torch.equal(attack(stubborn, x, torch.zeros_like(y), steps=20), x)


def test_more_steps_find_no_larger_changes(case):
    model, x, y, *_ = case
    for norm in ORDER:
        few, many = (sizes(fmn(model, x, y, norm=norm, steps=n), x, norm) for n in (20, 200))
        assert many.mean() <= few.mean()


def test_the_books_sizes_are_found_again():
    stored = json.loads((Path(__file__).parents[1] / "book" / "minimum.json").read_text("utf8"))
    found = commands.minimum(3, "cpu")["sizes"]
    assert stored["images"] == 500
    for name, norms in found.items():
        for norm, values in norms.items():
            kept = stored["sizes"][name][norm]
            assert len(kept) == 500
            assert values == pytest.approx(kept[:3], rel=0.05, abs=norm == "l0")


@pytest.mark.parametrize(("dtype", "gamma"), [(torch.float16, 0.05), (torch.float32, 0.5)])
def test_a_budget_that_grows_without_end_gives_no_nan(dtype, gamma):
    model, x = nn.Linear(8, 2, dtype=dtype), torch.full((3, 8), 0.5, dtype=dtype)
    model.weight.data[:, :4] = 0  # pixels that nothing depends on
    model.bias.data = torch.tensor([100.0, 0.0], dtype=dtype)
    y = torch.zeros(3, dtype=torch.int64)
    for attack in (
        ddn,
        partial(fmn, norm="l2"),
        partial(fmn, norm="linf"),
        partial(fmn, norm="l0"),
    ):
        assert torch.equal(attack(model, x, y, steps=300, gamma=gamma), x)
