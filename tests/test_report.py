"""The robustness report: its numbers, and each sign of self-deception, provoked."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import images, labels, linear, small_net, untouched
from test_strong_attacks import Behind

from advlib import bim, fgsm, pgd, predict, robustness_report, self_test, wilson_interval
from advlib.report import standard_attacks

NET = small_net().eval()
Wrapped = partial(Behind, NET)
X = images(60)
Y = predict(NET, X)
WRONG = Y.clone()
WRONG[:6] = (WRONG[:6] + 1) % 3
ONE_STEP = {"one step": partial(fgsm, eps=0.1)}
PROBABILITIES, RANDOM = "outputs are probabilities", "the network answers differently twice"
ZERO, FLAT = "zero gradients", "the loss surface is flat or torn"
ONE_BEATS, MORE = "one step beats many", "more steps or restarts still help"
UNBOUNDED, BLACK_BOX = "an attack that may do anything fails", "a black box beats gradients"
CHECKS = {PROBABILITIES, RANDOM, ZERO, FLAT, ONE_BEATS, MORE, UNBOUNDED, BLACK_BOX}


def same(model, x, y):
    return x.clone()


def names(checks):
    return {check.name for check in checks}


def suspicions(model, y=Y, **options):
    return names(robustness_report(model, X, y, **({"eps": 0.1} | options)).suspicious)


@pytest.fixture(scope="module")
def report():
    return robustness_report(NET, X, WRONG, eps=0.1, seed=3)


@pytest.mark.parametrize("size", [7, 100])
def test_numbers_are_those_of_the_attacks_over_all_images(size):
    attacks = {"weak": partial(fgsm, eps=0.02)}
    attacks["strong"] = partial(bim, eps=0.2, alpha=0.02, steps=9)
    report = robustness_report(NET, X, WRONG, eps=0.2, attacks=attacks, batch_size=size)
    right = predict(NET, X) == WRONG
    weak, strong = (right & (predict(NET, a(NET, X, WRONG)) == WRONG) for a in attacks.values())
    expected = {"none": right, "weak": weak, "strong": strong, "worst case": weak & strong}
    assert [row.attack for row in report.rows] == list(expected)
    for row, ok in zip(report.rows, expected.values(), strict=True):
        assert row.accuracy == ok.sum().item() / 60
        assert row.interval == wilson_interval(int(ok.sum()), 60)
        assert row.seconds > 0
    assert (report.clean, report.worst_case) == (54 / 60, report.rows[-1].accuracy)
    for i, broken in enumerate(report.broken_by):
        first = "none" if not right[i] else "weak" if not weak[i] else "strong"
        assert broken == ("" if (weak & strong)[i] else first)
    assert {"none", "weak", "strong"} <= set(report.broken_by)


def test_standard_attacks_are_autoattacks_after_two_weaker_ones(report):
    by_gradient = ["one step", "pgd", "apgd-ce", "apgd-dlr"]
    assert list(standard_attacks(eps=0.1, norm="l2", classes=3)) == by_gradient
    left = {row.attack: row.accuracy for row in report.rows}
    assert list(left) == ["none", *by_gradient, "square", "worst case"]
    assert left["none"] > left["one step"] >= max(left["pgd"], left["apgd-ce"])


def test_report_repeats_with_its_seed_and_leaves_the_model_alone(report):
    model = small_net()
    with untouched(model):
        again = robustness_report(model, X, WRONG, eps=0.1, seed=3)
    assert report.broken_by == again.broken_by
    assert report.checks == again.checks


def test_it_prints_as_a_table_goes_through_json_and_is_drawn(report):
    checks = [replace(check, suspicious=i % 2 == 0) for i, check in enumerate(report.checks)]
    lines = str(replace(report, checks=checks)).splitlines()
    assert max(map(len, lines)) <= 78
    for row, line in zip(report.rows, lines[3:], strict=False):
        assert line.startswith(row.attack)
        assert f"{row.accuracy:.4f}" in line
    text = " ".join(" ".join(lines).split())
    for check in checks:
        assert f"{check.name}: {check.found}" in text
        assert (check.meaning in text) == check.suspicious
    content = json.loads(report.to_json())
    assert content["rows"][0]["accuracy"] == report.clean
    assert content["broken_by"] == report.broken_by
    assert [check["found"] for check in content["checks"]] == [c.found for c in report.checks]
    (axis,) = report.figure().axes
    assert [t.get_text() for t in axis.get_yticklabels()] == [row.attack for row in report.rows]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_that_takes_too_much_is_refused(norm):
    attacks = {"far": partial(bim, eps=0.103, alpha=0.103, steps=1, norm=norm)}
    with pytest.raises(ValueError, match=r"attacks\['far'\] changed an image by"):
        robustness_report(NET, X, Y, eps=0.1, norm=norm, attacks=attacks)
    robustness_report(NET, X, Y, eps=0.103, norm=norm, attacks=attacks)
    with pytest.raises(ValueError, match=r"attacks\['out'\] left the pixel range"):
        robustness_report(NET, X, Y, eps=9.0, norm=norm, attacks={"out": lambda m, x, y: x + 1})


def test_an_honest_network_is_not_suspected(report):
    assert names(report.checks) == CHECKS
    assert report.suspicious == []
    weights = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    assert suspicions(linear(weights), y=labels(60)) == set()
    assert suspicions(NET, norm="l2", eps=0.5) == set()


def test_rounded_pixels_are_found_by_their_missing_gradient_and_by_the_black_box():
    coarse = Wrapped(before=lambda x: (8 * x).round() / 8)
    assert {ZERO, BLACK_BOX, UNBOUNDED, FLAT} <= suspicions(coarse, y=predict(coarse, X))


def test_each_other_sign_is_found_where_it_was_provoked():
    drawn = torch.Generator()
    noisy = Wrapped(before=lambda x: x + 0.05 * torch.rand(x.shape, generator=drawn))
    rough = Wrapped(before=lambda x: x + 0.02 * torch.sin(300 * x))
    early = {"pgd": partial(bim, eps=0.3, alpha=0.001, steps=1)}
    beaten = {"one step": partial(fgsm, eps=0.3), "pgd": same}
    assert PROBABILITIES in suspicions(Wrapped(after=lambda z: z.softmax(1)), attacks=ONE_STEP)
    assert RANDOM in suspicions(noisy, attacks=ONE_STEP)
    assert ZERO in suspicions(Wrapped(after=lambda z: 1e5 * z), attacks=ONE_STEP)
    assert FLAT in suspicions(rough, y=predict(rough, X), eps=0.15, attacks=ONE_STEP)
    assert MORE in suspicions(NET, eps=0.3, attacks=early)
    assert ONE_BEATS in suspicions(NET, eps=0.3, attacks=beaten)


def test_signs_that_need_certain_attacks_are_left_out_without_them():
    report = robustness_report(NET, X, Y, eps=0.0, attacks={"own": same})
    assert names(report.checks) == {PROBABILITIES, RANDOM, ZERO, UNBOUNDED}
    report = robustness_report(NET, X, (Y + 1) % 3, eps=0.1)  # nothing to attack
    assert report.worst_case == report.clean == 0
    assert set(report.broken_by) == {"none"}
    assert names(report.checks) == {PROBABILITIES, RANDOM}


EPS_0, INSIDE, RISES = "eps 0 changes nothing", "images stay in ball and range", "the loss rises"
NOISE, HUGE = "noise of the same size does less", "with a huge eps nothing stands"
FOUR = partial(pgd, steps=40, random_start=False)


def downhill(model, x, y, *, eps):
    return FOUR(model, x, y, eps=eps, alpha=eps / 10, targeted=True)


@pytest.mark.parametrize(
    ("attack", "failed"),
    [
        (None, set()),
        (lambda model, x, y, eps: FOUR(model, x, y, eps=eps, alpha=eps / 10), set()),
        (lambda model, x, y, eps: x, {RISES, NOISE, HUGE}),
        (downhill, {RISES, NOISE, HUGE}),
        (lambda model, x, y, eps: bim(model, x, y, eps=0.1, alpha=0.01, steps=20), {EPS_0, HUGE}),
        (lambda model, x, y, eps: fgsm(model, x, y, eps=1.5 * eps), {INSIDE}),
        (partial(fgsm, bounds=None), {INSIDE}),
    ],
)
def test_an_attack_of_ones_own_is_tested(attack, failed):
    x, y = X.clamp(0.02, 0.98), Y
    checks = self_test(NET, x, y, eps=0.1, attack=attack)
    assert names(checks) == {EPS_0, INSIDE, RISES, NOISE, HUGE}
    assert names(c for c in checks if c.suspicious) == failed
    assert all(str(c).startswith("LOOK" if c.suspicious else "ok") for c in checks)


def test_a_defence_that_hides_its_gradient_fails_the_self_test():
    step = Wrapped(lambda x: (x * 4).round() / 4)
    assert names(c for c in self_test(step, X, Y, eps=0.1) if c.suspicious) >= {RISES, NOISE}
    assert not any(c.suspicious for c in self_test(NET, X, Y, eps=0.5, norm="l2"))
