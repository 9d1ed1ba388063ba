"""The watch for catastrophic overfitting, and how fit stops and gives back the best network."""

import warnings
from contextlib import suppress
from functools import partial

import pytest
import torch
from conftest import images, labels, seeded, small_net, untouched

from advlib import Batches, accuracy, fgsm, fit, pgd, seed_everything
from advlib.collapse import fgsm_against_pgd, has_collapsed

X, Y = images(40), labels(40)
NAN = float("nan")


def test_both_accuracies_are_those_of_the_attacks_and_repeat():
    net = small_net().eval()
    many = partial(pgd, eps=0.2, alpha=0.05, steps=10, generator=seeded())
    drawn = []
    for _ in range(2):
        drawn.append(fgsm(net, X, Y, eps=0.2, random_start=True))
        seed_everything(0)
        with untouched(net):
            found = fgsm_against_pgd(net, x=X, y=Y, eps=0.2)
    seed_everything(0)
    drawn.append(fgsm(net, X, Y, eps=0.2, random_start=True))
    assert torch.equal(*drawn[1:])  # training's own draws stay the same
    assert found == fgsm_against_pgd(net, x=X, y=Y, eps=0.2)
    assert found["fgsm"] == accuracy(net, Batches(X, Y), attack=partial(fgsm, eps=0.2))
    assert found["pgd"] == accuracy(net, Batches(X, Y), attack=many)


@pytest.mark.parametrize(
    ("one", "many", "collapsed"),
    [
        ([0.5], [0.4], False),
        ([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], False),
        ([0.7, 0.7], [0.6, 0.45], False),  # a small fall
        ([0.7, 0.3], [0.6, 0.3], False),  # both fell: training diverged, FGSM is not fooled
        ([0.9, 0.9], [0.3, 0.3], False),  # far apart from the start, but nothing fell
        ([0.6, 0.7, 0.95], [0.5, 0.6, 0.12], True),
        ([0.1, 0.6], [0.0, 0.05], True),  # PGD's never rose
        ([0.1, 0.6], [0.0, 0.07], False),
        ([0.1, 0.4], [0.0, 0.0], False),
    ],
)
def test_a_collapse_is_a_fall_under_pgd_or_no_rise_that_fgsm_does_not_see(one, many, collapsed):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert has_collapsed({"fgsm": one, "pgd": many}) == collapsed
    assert len(seen) == collapsed


def test_a_collapse_warns_with_the_numbers_also_where_it_should_not_stop():
    collapse = {"fgsm": [0.6, 0.7, 0.95], "pgd": [0.5, 0.6, 0.12]}
    with pytest.warns(UserWarning, match=r"epoch 3: .* 0.12 \(at best 0.60\), under FGSM 0.95"):
        assert not has_collapsed(collapse, stop=False)
    assert not has_collapsed(collapse, fall=0.5)


def train(reports, **options):
    """The history of a training with these reports, whether it failed, and the epoch it is at."""
    net, seen, rest = small_net(), [], iter(reports)

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(rest)

    history = None
    with suppress(StopIteration):
        history = fit(net, Batches(X, Y), epochs=4, lr=0.1, evaluate=evaluate, **options)
    at = [all(torch.equal(v, old[n]) for n, v in net.state_dict().items()) for old in seen]
    return history, at.index(True) + 1


@pytest.mark.parametrize(
    "values",
    [[0.2, 0.6, 0.6, 0.1], [NAN, 0.5, None, NAN], [0.1, 0.4, 0.3]],
    ids=["the first best", "of those reported", "also after an error"],
)
def test_keep_best_ends_with_the_weights_of_the_best_epoch(values):
    reports = [{"clean": 1.0} if value is None else {"pgd": value} for value in values]
    history, epoch = train(reports, keep_best="pgd")
    assert epoch == 2
    if len(values) == 4:
        assert (history.kept_epoch, history.stopped, len(history.loss)) == (2, False, 4)


def test_a_collapse_ends_training_and_gives_back_the_best():
    reports = [{"fgsm": 0.9, "pgd": value} for value in (0.5, 0.6, 0.1, 0.9)]
    with pytest.warns(UserWarning, match="catastrophic"):
        history, epoch = train(reports, keep_best="pgd", stop_when=has_collapsed)
    assert history.metrics["pgd"] == [0.5, 0.6, 0.1]
    assert (history.stopped, history.kept_epoch, epoch) == (True, 2, 2)


def test_a_stop_after_the_last_epoch_is_no_stop():
    reports = [{"pgd": 0.1}] * 4
    history, epoch = train(reports, stop_when=lambda metrics: len(metrics["pgd"]) == 4)
    assert (history.stopped, history.kept_epoch, epoch) == (False, None, 4)
