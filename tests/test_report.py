"""The robustness report: its numbers, and each sign of self-deception, provoked."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import Breakdown, FailsAfter, images, labels, linear, small_net, untouched
from torch import nn

from advlib import bim, fgsm, predict, robustness_report, wilson_interval
from advlib.report import standard_attacks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Wrapped(nn.Module):
    """A function around a network's logits, or around its images."""

    def __init__(self, model, before=None, after=None):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        scores = self.model(x)
        return scores if self.after is None else self.after(scores)


NET = small_net().eval()
X = images(60)
Y = predict(NET, X)
WRONG = Y.clone()
WRONG[:6] = (WRONG[:6] + 1) % 3
BLACK_BOX = "a black box beats gradients"
CHECKS = {
    "outputs are probabilities",
    "the network answers differently twice",
    "zero gradients",
    "the loss surface is flat or torn",
    "one step beats many",
    "more steps or restarts still help",
    "an attack that may do anything fails",
    BLACK_BOX,
}


ONE_STEP = {"one step": partial(fgsm, eps=0.1)}


def suspicions(model, x=X, y=Y, **options):
    report = robustness_report(model, x, y, **({"eps": 0.1} | options))
    without = set() if "square" in [row.attack for row in report.rows] else {BLACK_BOX}
    assert {check.name for check in report.checks} == CHECKS - without
    return {check.name for check in report.suspicious}


def test_numbers_are_those_of_the_attacks_over_all_images():
    weak, strong = partial(fgsm, eps=0.02), partial(bim, eps=0.2, alpha=0.02, steps=10)
    report = robustness_report(NET, X, WRONG, eps=0.2, attacks={"weak": weak, "strong": strong})
    right = predict(NET, X) == WRONG
    stands = [right & (predict(NET, a(NET, X, WRONG)) == WRONG) for a in (weak, strong)]
    expected = [right, *stands, stands[0] & stands[1]]
    assert [row.attack for row in report.rows] == ["none", "weak", "strong", "worst case"]
    for row, ok in zip(report.rows, expected, strict=True):
        assert row.accuracy == ok.sum().item() / 60
        assert row.interval == wilson_interval(int(ok.sum()), 60)
        assert row.seconds > 0
    assert report.clean == 54 / 60
    assert report.worst_case == expected[-1].sum().item() / 60
    for i in range(60):
        first = "none" if not right[i] else "weak" if not stands[0][i] else "strong"
        assert report.broken_by[i] == (first if not expected[-1][i] else "")
    assert {"none", "weak", "strong"} <= set(report.broken_by)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_standard_attacks_get_stronger_and_keep_to_their_budget(norm):
    attacks = standard_attacks(eps=0.1, norm=norm, classes=3)
    names = ["one step", "pgd", "apgd-ce", "apgd-dlr"]
    assert list(attacks) == names + (["square"] if norm == "linf" else [])
    left = {}
    for name, attack in attacks.items():
        x_adv = attack(NET, X, Y)
        change = (x_adv - X).flatten(1)
        assert (change.abs().amax(1) if norm == "linf" else change.norm(dim=1)).max() < 0.1 + 1e-5
        left[name] = (predict(NET, x_adv) == Y).sum()
    assert left["apgd-ce"] <= left["one step"]
    assert left["pgd"] <= left["one step"]


def test_report_repeats_with_its_seed_and_leaves_the_model_alone():
    model = small_net()
    with untouched(model):
        first, again = (robustness_report(model, X[:20], Y[:20], eps=0.1, seed=3) for _ in "ab")
    assert first.broken_by == again.broken_by
    assert [c.found for c in first.checks] == [c.found for c in again.checks]


@pytest.fixture(scope="module")
def report():
    return robustness_report(NET, X, WRONG, eps=0.1)


def test_it_prints_as_a_table_and_goes_through_json(report):
    checks = [replace(check, suspicious=True) for check in report.checks]
    assert max(map(len, str(replace(report, checks=checks)).splitlines())) <= 78
    text = str(report)
    for row in report.rows:
        assert any(
            line.startswith(row.attack) and f"{row.accuracy:.4f}" in line
            for line in text.splitlines()
        )
    for check in report.checks:
        assert f"{check.name}: {check.found}" in " ".join(text.split())
        assert (check.meaning in " ".join(text.split())) == check.suspicious
    content = json.loads(report.to_json())
    assert content["rows"][0]["accuracy"] == report.clean
    assert content["broken_by"] == report.broken_by
    assert [check["suspicious"] for check in content["checks"]] == [
        check.suspicious for check in report.checks
    ]


def test_figure_has_a_row_for_every_attack(report):
    (axis,) = report.figure().axes
    assert [t.get_text() for t in axis.get_yticklabels()] == [row.attack for row in report.rows]


def test_batches_of_another_size_give_the_same_report():
    fixed = {"bim": partial(bim, eps=0.1, alpha=0.01, steps=5)}
    by_size = [
        robustness_report(NET, X, Y, eps=0.1, attacks=fixed, batch_size=size).broken_by
        for size in (7, 100)
    ]
    assert by_size[0] == by_size[1]


# Signs of masked gradients


def test_an_honest_network_is_not_suspected():
    assert suspicions(NET) == set()
    assert suspicions(linear(torch.randn(3, 16, generator=seeded())), y=labels(60)) == set()
    assert suspicions(NET, norm="l2", eps=0.5) == set()


def test_a_softmax_at_the_end_is_found():
    found = Wrapped(NET, after=lambda z: z.softmax(1))
    report = robustness_report(found, X, Y, eps=0.1, attacks=ONE_STEP)
    assert "outputs are probabilities" in {check.name for check in report.suspicious}


def test_a_random_network_is_found():
    drawn = seeded()
    noisy = Wrapped(NET, before=lambda x: x + 0.05 * torch.rand(x.shape, generator=drawn))
    report = robustness_report(noisy, X, Y, eps=0.1, attacks=ONE_STEP)
    assert "the network answers differently twice" in {check.name for check in report.suspicious}


def test_rounded_pixels_are_found_by_their_missing_gradient_and_by_the_black_box():
    coarse = Wrapped(NET, before=lambda x: (8 * x).round() / 8)
    found = suspicions(coarse, y=predict(coarse, X))
    assert {"zero gradients", "a black box beats gradients"} <= found
    assert {"an attack that may do anything fails", "the loss surface is flat or torn"} <= found


def test_saturated_logits_are_found():
    loud = Wrapped(NET, after=lambda z: 1e5 * z)
    assert "zero gradients" in suspicions(loud)


def test_a_surface_with_ripples_makes_more_steps_help():
    rough = Wrapped(NET, before=lambda x: x + 0.02 * torch.sin(300 * x))
    found = suspicions(rough, y=predict(rough, X), eps=0.15)
    assert "the loss surface is flat or torn" in found


def test_an_attack_that_stops_too_early_is_found():
    early = {"pgd": partial(bim, eps=0.3, alpha=0.001, steps=1)}
    report = robustness_report(NET, X, Y, eps=0.3, attacks=early)
    assert "more steps or restarts still help" in {check.name for check in report.suspicious}


def test_one_step_that_beats_many_is_found():
    def harmless(model, x, y):
        return x.clone()

    attacks = {"one step": partial(fgsm, eps=0.3), "pgd": harmless}
    assert "one step beats many" in suspicions(NET, attacks=attacks, eps=0.3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_takes_too_much_is_refused(norm):
    attacks = {"far": partial(bim, eps=0.103, alpha=0.103, steps=1, norm=norm)}
    with pytest.raises(ValueError, match=r"attacks\['far'\] changed an image by"):
        robustness_report(NET, X, Y, eps=0.1, norm=norm, attacks=attacks)
    robustness_report(NET, X, Y, eps=0.103, norm=norm, attacks=attacks)


def test_an_attack_that_leaves_the_pixel_range_is_refused():
    with pytest.raises(ValueError, match=r"attacks\['out'\] left the pixel range"):
        robustness_report(NET, X, Y, eps=9.0, attacks={"out": lambda model, x, y: x + 1})


def test_signs_that_need_certain_attacks_are_left_out_without_them():
    report = robustness_report(NET, X, Y, eps=0.0, attacks={"own": lambda model, x, y: x})
    assert {check.name for check in report.checks} == {
        "outputs are probabilities",
        "the network answers differently twice",
        "zero gradients",
        "an attack that may do anything fails",
    }


def test_nothing_is_claimed_about_images_that_are_all_wrong():
    report = robustness_report(NET, X, (Y + 1) % 3, eps=0.1)
    assert report.worst_case == report.clean == 0
    assert set(report.broken_by) == {"none"}
    assert len(report.checks) == 2


def test_flags_come_back_after_an_error_midway():
    for calls in (9, 300):
        model = FailsAfter(small_net(), calls)
        with untouched(model), pytest.raises(Breakdown):
            robustness_report(model, X, Y, eps=0.1)
