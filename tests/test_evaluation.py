"""Accuracy counted by hand, per-image worst cases, and published intervals."""

import pytest
import torch
from conftest import cuda, images, labels, small_net, untouched
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advlib import Batches, accuracy, correct, predict, robust_accuracy
from advlib import wilson_interval as wilson

MODEL = nn.Flatten()  # images are their own logits; image i is larger the larger i, to be known by
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
X = (torch.eye(3)[Y] * torch.arange(1, 8)[:, None]).view(7, 3, 1, 1)
WRONG = torch.where(torch.tensor([4, 6]) == torch.arange(7)[:, None], 1, 0).any(1)
FIVE_RIGHT = torch.where(WRONG, (Y + 1) % 3, Y)


def same(model, x, y):
    return x


def breaks(*which):
    """An attack that makes the images of these numbers wrong."""

    def attack(model, x, y):
        hit = torch.isin(x.amax((1, 2, 3)), 1 + torch.tensor(which, dtype=torch.float))
        return torch.where(hit.view(-1, 1, 1, 1), torch.eye(3)[(y + 1) % 3].view_as(x), x)

    return attack


def test_predict_is_the_largest_logit_in_evaluation_mode():
    model, x = small_net(), images(11)
    with untouched(model):
        found = predict(model, x)
    expected = model.eval()(x).argmax(1)
    assert expected.unique().numel() > 1
    assert torch.equal(found, expected)
    assert found.dtype == torch.int64


PAIRS = list(zip(X.split(3), FIVE_RIGHT.split(3), strict=True))
LOADER = DataLoader(TensorDataset(X, FIVE_RIGHT), batch_size=4)
SIZES = [Batches(X, FIVE_RIGHT, batch_size=n) for n in (1, 2, 3, 4, 7)]


@pytest.mark.parametrize("batches", [PAIRS, LOADER, *SIZES])
@pytest.mark.parametrize("attack", [None, same])
def test_accuracy_counts_over_all_images_of_any_batches_and_divides_once(batches, attack):
    assert accuracy(MODEL, iter(batches), attack=attack) == 5 / 7
    assert torch.equal(correct(MODEL, batches, attack=attack), ~WRONG)


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
    batches = Batches(X, Y, batch_size=3, shuffle=shuffle)
    one, two = breaks(0, 1), breaks(1, 4, 6)
    assert [accuracy(MODEL, batches, attack=attack) for attack in (one, two)] == [5 / 7, 4 / 7]
    assert robust_accuracy(MODEL, batches, attacks=[one, two]) == 3 / 7
    assert robust_accuracy(MODEL, batches, attacks=[two, one]) == 3 / 7
    assert robust_accuracy(MODEL, batches, attacks=[]) == 1.0


def test_robust_accuracy_attacks_only_what_is_standing():
    seen = []

    def spy(attack):
        return lambda model, x, y: (seen.append(len(x)), attack(model, x, y))[1]

    attacks = [spy(breaks(0, 1)), spy(breaks(1, 2)), spy(breaks(3, 5)), spy(same)]
    assert robust_accuracy(MODEL, [(X, FIVE_RIGHT)], attacks=attacks) == 0
    assert seen == [5, 3, 2]  # and the last attack is not asked


def test_robust_accuracy_counts_an_image_that_only_an_attack_puts_right_as_wrong():
    batches = Batches(X, FIVE_RIGHT)
    repair = lambda model, x, y: torch.eye(3)[y].view_as(x)  # noqa: E731
    assert accuracy(MODEL, batches, attack=repair) == 1.0
    assert robust_accuracy(MODEL, batches, attacks=[repair]) == 5 / 7


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3; the last two by z^2 / (n + z^2)
WILSON = [(81, 263, 1.96, (0.2553, 0.3662)), (15, 148, 1.96, (0.0624, 0.1605))]
WILSON += [(0, 20, 1.96, (0, 0.1611)), (1, 29, 1.96, (0.0061, 0.1718))]
WILSON += [(10, 10, 1.96, (0.7225, 1)), (0, 20, 2, (0, 4 / 24))]


@pytest.mark.parametrize(("successes", "total", "z", "expected"), WILSON)
def test_wilson_interval_equals_published_values(successes, total, z, expected):
    assert wilson(successes, total, z=z) == pytest.approx(expected, abs=5e-5)


@cuda
def test_accuracy_on_cuda_is_that_of_the_cpu():
    model, x, y = small_net(), images(50), labels(50)
    expected = correct(model, Batches(x, y)).tolist()
    assert correct(model.cuda(), Batches(x.cuda(), y.cuda())).tolist() == expected
