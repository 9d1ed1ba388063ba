"""The watch for catastrophic overfitting, and how fit stops and gives back the best network."""

import warnings
from functools import partial

import pytest
import torch
from conftest import images, labels, small_net, untouched

from advlib import Batches, accuracy, fgsm, fit, pgd
from advlib.collapse import fgsm_against_pgd, has_collapsed
from advlib.runtime import default_generator

X, Y = images(40), labels(40)


def metrics(fgsm_values, pgd_values):
    return {"fgsm": fgsm_values, "pgd": pgd_values}


def test_both_accuracies_are_those_of_the_attacks_and_repeat():
    net = small_net().eval()
    generator = torch.Generator().manual_seed(0)
    many = partial(pgd, eps=0.2, alpha=0.05, steps=10, generator=generator)
    before = default_generator.get_state()
    with untouched(net):
        found = fgsm_against_pgd(net, x=X, y=Y, eps=0.2)
    assert torch.equal(default_generator.get_state(), before)  # training's own draws stay the same
    assert found == fgsm_against_pgd(net, x=X, y=Y, eps=0.2)
    assert found["fgsm"] == accuracy(net, Batches(X, Y), attack=partial(fgsm, eps=0.2))
    assert found["pgd"] == accuracy(net, Batches(X, Y), attack=many)


@pytest.mark.parametrize(
    "healthy",
    [
        metrics([0.5], [0.4]),
        metrics([0.5, 0.6, 0.7], [0.4, 0.5, 0.6]),
        metrics([0.7, 0.7], [0.6, 0.45]),  # a small fall
        metrics([0.7, 0.3], [0.6, 0.3]),  # both fell: training diverged, FGSM is not fooled
        metrics([0.9, 0.9], [0.3, 0.3]),  # far apart from the start, but nothing fell
    ],
)
def test_a_healthy_course_is_no_collapse(healthy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not has_collapsed(healthy)


def test_a_collapse_warns_with_the_numbers_and_asks_for_a_stop():
    collapse = metrics([0.6, 0.7, 0.95], [0.5, 0.6, 0.12])
    with pytest.warns(UserWarning, match=r"epoch 3: .* 0.12 \(at best 0.60\), under FGSM 0.95"):
        assert has_collapsed(collapse)
    with pytest.warns(UserWarning, match="catastrophic"):
        assert not has_collapsed(collapse, stop=False)
    assert not has_collapsed(collapse, fall=0.5)


@pytest.mark.parametrize(
    ("fgsm_value", "pgd_value", "collapsed"),
    [(0.6, 0.05, True), (0.6, 0.07, False), (0.4, 0.0, False)],
)
def test_pgd_that_never_rose_is_a_collapse_too(fgsm_value, pgd_value, collapsed):
    course = metrics([0.1, fgsm_value], [0.0, pgd_value])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert has_collapsed(course) == collapsed
    assert len(seen) == collapsed


def course(values):
    """An `evaluate` that reports these values, whatever the network does."""
    rest = iter(values)
    return lambda model: {"pgd": next(rest), "fgsm": 0.9}


def states(epochs, **options):
    """Weights after each epoch of a training, and the history and weights it ends with."""
    net, seen = small_net(), []

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return options["evaluate"](model)

    history = fit(net, Batches(X, Y), epochs=epochs, lr=0.1, **(options | {"evaluate": evaluate}))
    return seen, history, net.state_dict()


def test_keep_best_ends_with_the_weights_of_the_first_best_epoch():
    seen, history, last = states(4, evaluate=course([0.2, 0.6, 0.6, 0.1]), keep_best="pgd")
    assert history.kept_epoch == 2
    assert len(history.loss) == 4
    assert not history.stopped
    for name, value in last.items():
        assert torch.equal(value, seen[1][name])
    assert any(not torch.equal(last[name], seen[3][name]) for name in last)


def test_a_collapse_ends_training_and_gives_back_the_best():
    values = [0.5, 0.6, 0.1, 0.9]
    with pytest.warns(UserWarning, match="catastrophic"):
        seen, history, last = states(
            4, evaluate=course(values), keep_best="pgd", stop_when=has_collapsed
        )
    assert history.stopped
    assert history.metrics["pgd"] == values[:3]
    assert history.kept_epoch == 2
    assert all(torch.equal(last[name], seen[1][name]) for name in last)


def test_keep_best_goes_by_the_epochs_that_report_the_metric():
    values = [{"pgd": float("nan")}, {"pgd": 0.5}, {"clean": 1.0}, {"pgd": float("nan")}]
    found = iter([*values, {"pgd": 0.4}])
    seen, history, last = states(5, evaluate=lambda model: next(found), keep_best="pgd")
    assert history.kept_epoch == 2
    assert all(torch.equal(last[name], seen[1][name]) for name in last)


def test_the_best_weights_survive_an_error():
    net, values = small_net(), iter([0.5, 0.4])
    kept = []

    def evaluate(model):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"pgd": next(values)}

    with pytest.raises(StopIteration):
        fit(net, Batches(X, Y), epochs=3, lr=0.1, evaluate=evaluate, keep_best="pgd")
    assert all(torch.equal(value, kept[0][name]) for name, value in net.state_dict().items())


def test_a_stop_after_the_last_epoch_is_no_stop():
    _, history, _ = states(2, evaluate=course([0.1, 0.2]), stop_when=lambda m: len(m["pgd"]) == 2)
    assert not history.stopped
    assert history.kept_epoch is None


def test_a_metric_to_keep_by_that_evaluate_does_not_report_is_named():
    options = {"evaluate": lambda model: {"pgd": 1.0}, "keep_best": "clean"}
    with pytest.raises(ValueError, match=r"^keep_best"):
        fit(small_net(), Batches(X, Y), epochs=1, lr=0.1, **options)
