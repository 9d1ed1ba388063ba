"""Each broken defence keeps its network's answers, and keeps PGD from its gradient."""

import pytest
import torch

from advlib import accuracy, bim, input_gradient, load_data, predict
from advlib.book import recipes, trained
from advlib.book.defences import Rippled, Rounded, Saturated


@pytest.fixture(scope="module")
def standard():
    return trained.network("standard", device="cpu")


@pytest.fixture(scope="module")
def pair():
    test = load_data(device="cpu")[1]
    return test.x[2000:2040], test.y[2000:2040]


def test_they_compute_what_they_say():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x = torch.tensor([[[[0.0, 0.06, 0.0626, 1.0]]]])
    assert torch.equal(Rounded(net)(x), net(torch.tensor([[[[0.0, 0.0, 0.125, 1.0]]]])))
    assert torch.equal(Saturated(net)(x), 1000 * net(x))
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rippled, again = Rippled(net, seed=1), Rippled(net, seed=1)
    assert torch.equal(rippled(x), again(x))
    rippled(x)  # its next call has other phases
    assert all(0 < (image - x).abs().max() <= 0.0201 for image in seen)
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize("defence", [Rounded, Rippled, Saturated])
def test_it_fools_bim_and_the_same_images_break_it_from_behind(defence, standard, pair):
    masked = defence(standard)
    assert accuracy(masked, [pair]) > 0.9
    assert accuracy(masked, [pair], attack=recipes.BIM) > 0.8
    behind = recipes.BIM(standard, *pair)
    assert (predict(masked, behind) == pair[1]).float().mean() < 0.3


def test_the_gradient_is_nothing_or_hardly_better_than_a_coin(standard, pair):
    x, y = pair
    assert (input_gradient(Rounded(standard), x, y) == 0).all()
    silent = (input_gradient(Saturated(standard), x, y) == 0).flatten(1).all(1)
    assert silent.float().mean() > 0.8
    truth, found = (input_gradient(net, x, y).sign() for net in (standard, Rippled(standard)))
    agree = (truth == found)[truth != 0].float().mean()
    assert 0.5 < agree < 0.6  # the ripple's slope is up to 6, so about one half and asin(1/6)/pi


def test_a_model_is_a_module():
    for defence in (Rounded, Rippled, Saturated):
        with pytest.raises(TypeError, match="model"):
            defence(bim)
