"""Accuracy counted by hand, per-image worst cases, and published intervals."""

import pytest
import torch
from conftest import cuda, images, labels, small_net, untouched
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advlib import Batches, accuracy, correct, evaluation_mode, predict, robust_accuracy
from advlib import wilson_interval as wilson

ANSWERS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
RIGHT = [True, True, True, True, False, True, False]  # 5 of 7


def answers():
    """Images that are their own logits: the model `Flatten` predicts what ANSWERS says."""
    y = torch.where(torch.tensor(RIGHT), ANSWERS, (ANSWERS + 1) % 3)
    return torch.eye(3)[ANSWERS].view(7, 3, 1, 1), y


MODEL = nn.Flatten()


def breaks(*which):
    """An attack that makes the images of these numbers wrong; it knows them by a mark."""

    def attack(model, x, y):
        hit = torch.isin(x.amax((1, 2, 3)), 1 + torch.tensor(which, dtype=torch.float))
        wrong = torch.eye(3)[(y + 1) % 3].view_as(x)
        return torch.where(hit.view(-1, 1, 1, 1), wrong, x)

    return attack


def marked():
    """As `answers`, all right, image i scaled by i + 1 so that attacks can tell them apart."""
    x, _ = answers()
    return x * torch.arange(1, 8).view(-1, 1, 1, 1), ANSWERS


def test_predict_is_the_largest_logit_in_evaluation_mode_whatever_the_batch_size():
    model, x = small_net(), images(11)
    with untouched(model):
        found = [predict(model, x, batch_size=n) for n in (1, 4, 11, 100)]
    expected = model.eval()(x).argmax(1)
    assert expected.unique().numel() > 1
    assert all(torch.equal(one, expected) for one in found)
    assert expected.dtype == found[0].dtype == torch.int64


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_accuracy_counts_over_all_images_and_divides_once(batch_size):
    batches = Batches(*answers(), batch_size=batch_size)
    assert accuracy(MODEL, batches) == 5 / 7
    assert correct(MODEL, batches).tolist() == RIGHT


def test_images_wrong_before_the_attack_count_as_wrong_not_as_absent():
    batches = Batches(*answers(), batch_size=3)
    assert accuracy(MODEL, batches, attack=lambda model, x, y: x) == 5 / 7
    assert accuracy(MODEL, batches, attack=lambda model, x, y: -x) < 5 / 7


@pytest.mark.parametrize("kind", ["loader", "generator", "list"])
def test_any_iterable_of_batches_will_do(kind):
    x, y = answers()
    pairs = list(zip(x.split(3), y.split(3), strict=True))
    given_batches = {
        "loader": DataLoader(TensorDataset(x, y), batch_size=3),
        "generator": (pair for pair in pairs),
        "list": pairs,
    }[kind]
    assert robust_accuracy(MODEL, given_batches, attacks=[lambda model, x, y: x]) == 5 / 7


def test_the_attack_gets_the_true_labels_and_the_model_in_evaluation_mode():
    model, y, seen = small_net(), labels(), []

    def attack(attacked, x, y):
        assert not any(module.training for module in attacked.modules())
        seen.append(y)
        return x

    with untouched(model):
        accuracy(model, Batches(images(), y, batch_size=3), attack=attack)
    assert torch.equal(torch.cat(seen), y)


@pytest.mark.parametrize("shuffle", [False, True])
def test_robust_accuracy_is_the_worst_case_image_by_image(shuffle):
    batches = Batches(*marked(), batch_size=3, shuffle=shuffle)
    one, two = breaks(0, 1), breaks(1, 4, 6)
    assert accuracy(MODEL, batches, attack=one) == 5 / 7
    assert accuracy(MODEL, batches, attack=two) == 4 / 7
    assert robust_accuracy(MODEL, batches, attacks=[one, two]) == 3 / 7
    assert robust_accuracy(MODEL, batches, attacks=[two, one]) == 3 / 7
    assert robust_accuracy(MODEL, batches, attacks=[]) == 1.0


def test_robust_accuracy_attacks_only_what_is_standing():
    seen = []

    def spy(attack):
        return lambda model, x, y: (seen.append(len(x)), attack(model, x, y))[1]

    x, y = marked()
    x[2] = -x[2]  # wrong without any attack
    attacks = [spy(breaks(0, 1)), spy(breaks(1, 4, 6)), spy(breaks(3, 5)), spy(breaks())]
    assert robust_accuracy(MODEL, [(x, y)], attacks=attacks) == 0
    assert seen == [6, 4, 2]  # and the last attack is not asked


def test_robust_accuracy_counts_an_image_that_only_an_attack_puts_right_as_wrong():
    batches = Batches(*answers())
    repair = lambda model, x, y: torch.eye(3)[y].view_as(x)  # noqa: E731
    assert accuracy(MODEL, batches, attack=repair) == 1.0
    assert robust_accuracy(MODEL, batches, attacks=[repair]) == 5 / 7


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3; the rest by z^2 / (n + z^2)
@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_interval_equals_published_values(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


@given(total=st.integers(1, 10_000), part=st.floats(0, 1), z=st.floats(0.1, 5))
def test_wilson_interval_holds_the_proportion_mirrors_and_narrows(total, part, z):
    successes = round(part * total)
    low, high = wilson(successes, total, z=z)
    assert 0 <= low <= successes / total + 1e-12
    assert successes / total - 1e-12 <= high <= 1
    assert wilson(total - successes, total, z=z) == pytest.approx((1 - high, 1 - low))
    wider, narrower = wilson(successes, total, z=z + 0.1), wilson(4 * successes, 4 * total, z=z)
    assert wider[1] - wider[0] > high - low > narrower[1] - narrower[0]


@cuda
def test_accuracy_on_cuda_is_that_of_the_cpu():
    model, x, y = small_net(), images(50), labels(50)
    with evaluation_mode(model):
        expected = correct(model, Batches(x, y)).tolist()
    assert correct(model.cuda(), Batches(x.cuda(), y.cuda())).tolist() == expected
