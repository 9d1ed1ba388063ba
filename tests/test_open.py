"""What students bring is taken as it is: numpy, changed models, half precision, odd networks."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import images, labels, linear, seeded, small_net
from test_attacks import ALL, ATTACKS, BIM, FGSM
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import advlib
from advlib import Batches, accuracy, apgd, bim, fgsm, fit, input_gradient, predict
from advlib.book import trained

X, Y = images(11), labels(11)
PREDICT = lambda model, x, y: predict(model, x)  # noqa: E731


@pytest.mark.parametrize("size", [1, 3, 4, 11, 100])
@pytest.mark.parametrize(("attack", "passes"), [(None, 0), (FGSM, 1), (BIM, 5)])
def test_a_model_is_asked_as_often_as_the_attack_says_and_once_for_its_answer(size, attack, passes):
    rows, model = [], small_net()
    model.register_forward_hook(lambda module, given, scores: rows.append(len(scores)))
    accuracy(model, Batches(X, Y, batch_size=size), attack=attack)
    assert sum(rows) == (passes + 1) * 11


def test_numpys_numbers_and_arrays_and_a_plain_label_are_as_good_as_tensors():
    model, eps = small_net(), np.array([0.1, 0.2], dtype=np.float32)
    for steps in np.arange(1, 4):
        found = bim(model, X.numpy(), Y.numpy(), eps=eps[1], alpha=eps[0] / 4, steps=steps)
        plain = {"eps": float(eps[1]), "alpha": float(eps[0]) / 4, "steps": int(steps)}
        assert torch.equal(found, bim(model, X, Y, **plain))
    found = fgsm(model, X[:2].numpy(), Y[:2].numpy(), eps=eps)
    assert torch.equal(found, fgsm(model, X[:2], Y[:2], eps=torch.tensor(eps)))
    assert torch.equal(FGSM(model, X[2:3], 2), FGSM(model, X[2:3], Y[2:3]))
    arrays = [(X.numpy(), Y.numpy())]
    assert accuracy(model, arrays, attack=FGSM) == accuracy(model, [(X, Y)], attack=FGSM)


@pytest.mark.parametrize("call", [FGSM, BIM, input_gradient, PREDICT])
def test_a_single_image_is_told_how_to_become_a_batch(call):
    with pytest.raises(ValueError, match=r"x\[None\]"):
        call(small_net(), X[0], Y[:1])


@pytest.mark.parametrize("function", [accuracy, partial(fit, epochs=1, lr=0.1)])
def test_another_librarys_attack_is_told_how_to_be_wrapped(function):
    foreign = type("Foreign", (), {"model": nn.Flatten(), "__call__": lambda self, x, y: x})()
    with pytest.raises(TypeError, match="lambda model, x, y"):
        function(small_net(), Batches(X, Y), attack=foreign)


CHANGES = {
    "forward": lambda m: setattr(m, "forward", lambda x, old=m.forward: old(1 - x)),
    "layer's": lambda m: setattr(m[2], "forward", lambda x, old=m[2].forward: old(x).square()),
    "hook": lambda m: m.register_forward_hook(lambda m, given, scores: scores.square()),
    "before a layer": lambda m: m[2].register_forward_pre_hook(lambda m, given: given[0].square()),
    "parametrization": lambda m: register_parametrization(m[-1], "weight", nn.Softplus()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel], ids=["bare", "DataParallel"])
def test_gradients_and_answers_are_those_of_the_model_as_it_is_called(change, wrap):
    net, y = advlib.digit_net(generator=seeded()).eval().double(), labels(60, 10)
    change(net)
    x = torch.rand(60, 1, 28, 28, generator=seeded(), dtype=torch.float64).requires_grad_()
    scores = wrap(net)(x)
    (slopes,) = torch.autograd.grad(F.cross_entropy(scores, y, reduction="sum"), x)
    torch.testing.assert_close(input_gradient(wrap(net), x, y), slopes)
    assert torch.equal(predict(wrap(net), x), scores.argmax(1))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_loses_no_images_gradient(half, autocast):
    net, test = trained.network("standard", device="cpu"), advlib.load_data(device="cpu")[1]
    x, y = test.x[:150], test.y[:150]
    expected = input_gradient(net, x, y).flatten(1).any(1).sum()
    net, x = (net, x) if autocast else (net.to(half), x.to(half))
    with torch.autocast("cpu", half, enabled=autocast):
        assert input_gradient(net, x, y).flatten(1).any(1).sum() == expected > 140


CALLS = ALL | {"accuracy": lambda model, x, y: accuracy(model, [(x, y)]), "predict": PREDICT}
CALLS["report"] = partial(advlib.robustness_report, eps=0.1, attacks={"fgsm": FGSM})


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_nan_in_a_logit_is_an_error_that_names_the_model_and_minus_infinity_is_fine(call, value):
    model = small_net()
    model[-1].bias.data[1] = value
    fine = value == -torch.inf
    with nullcontext() if fine else pytest.raises(FloatingPointError, match="model"):
        call(model, X, torch.zeros_like(Y))


@pytest.mark.parametrize("cut", [torch.no_grad(), lambda call: lambda x: call(x.detach())])
@pytest.mark.parametrize("attack", [FGSM, BIM, ATTACKS["pgd"], ATTACKS["apgd"], input_gradient])
def test_a_model_that_gives_no_gradient_is_named(cut, attack):
    model = small_net().eval()
    model.forward = cut(model.forward)
    with pytest.raises(ValueError, match=r"^model"):
        attack(model, X, predict(model, X))


@pytest.mark.parametrize("attack", [fgsm, partial(bim, alpha=4e18, steps=2), apgd])
@pytest.mark.parametrize("bounds", [(0, 1), None])
def test_an_eps_that_would_overflow_is_refused_and_one_below_gives_finite_images(attack, bounds):
    model = linear(torch.randn(3, 16, generator=seeded()))
    found = attack(model, X, Y, eps=4e18, bounds=bounds)
    assert torch.equal(found, found.clamp(*bounds or (-5e18, 5e18)))  # not so for NaN
    with pytest.raises(ValueError, match="eps"):
        attack(model, X, Y, eps=3e38, bounds=bounds)


def test_an_attack_that_works_in_place_changes_no_image_of_the_caller():
    x, y = images(6), labels(6)
    before = x.clone()
    dark = lambda model, x, y: x.zero_()  # noqa: E731
    accuracy(small_net(), Batches(x, y), attack=dark)
    fit(small_net(), [(x, y)], epochs=1, lr=0.1, attack=dark, augment=torch.Tensor.relu_)
    assert torch.equal(x, before)


def test_an_attack_with_a_surrogate_of_its_own_is_taken():
    class Transfer:
        model = linear(torch.eye(16))

        def __call__(self, model, x, y):
            return x

    assert accuracy(small_net(), Batches(images(6), labels(6)), attack=Transfer()) >= 0


def flat(images):
    """Pixels (n * h * w, c) of images (n, c, h, w)."""
    return images.movedim(1, -1).flatten(0, -2)


@pytest.fixture
def pixelwise():
    """A network that looks at each pixel alone, and the same one for pixels as rows; six images."""
    whole, alone = nn.Conv2d(3, 4, 1), nn.Linear(3, 4)
    with torch.no_grad():
        whole.weight.copy_(torch.randn(4, 3, 1, 1, generator=seeded()))
        alone.weight.copy_(whole.weight[:, :, 0, 0])
        alone.bias.copy_(whole.bias)
    x = torch.rand(6, 3, 5, 7, generator=seeded())
    return whole, alone, x, torch.randint(4, (6, 5, 7), generator=seeded())


@pytest.mark.parametrize("size", [1, 4, 6])
@pytest.mark.parametrize("targeted", [False, True])
def test_labels_of_pixels_are_attacked_as_those_of_images(pixelwise, size, targeted):
    whole, alone, x, y = pixelwise
    attack = partial(bim, eps=0.2, alpha=0.05, steps=6, targeted=targeted)
    assert torch.equal(flat(attack(whole, x, y)), attack(alone, flat(x), y.flatten()))
    assert torch.equal(predict(whole, x).flatten(), predict(alone, flat(x)))
    slopes = input_gradient(whole, x, y), input_gradient(alone, flat(x), y.flatten())
    torch.testing.assert_close(flat(slopes[0]), slopes[1])
    found = accuracy(whole, Batches(x, y, batch_size=size), attack=attack)
    assert found == accuracy(alone, Batches(flat(x), y.flatten()), attack=attack)


def test_labels_of_pixels_are_trained_on_as_those_of_images(pixelwise):
    whole, alone, x, y = pixelwise
    attack = partial(fgsm, eps=0.1)
    losses = [
        fit(net, Batches(*data, batch_size=size), epochs=3, lr=0.5, attack=attack).loss
        for net, data, size in ((whole, (x, y), 2), (alone, (flat(x), y.flatten()), 70))
    ]
    assert losses[0] == pytest.approx(losses[1])
    torch.testing.assert_close(whole.weight[:, :, 0, 0], alone.weight)


def test_an_image_is_broken_when_no_label_of_its_pixels_is_right(pixelwise):
    whole, _, x, _ = pixelwise
    right = predict(whole, x)
    y = (right + 1) % 4
    y[1, 0, 0], y[2] = right[1, 0, 0], right[2]  # one pixel of an image, all of the next
    attack = partial(advlib.pgd, eps=0.1, alpha=0.1, steps=2, random_start=False, early_exit=True)
    for targeted, done in ((False, [0, 3, 4, 5]), (True, [2])):
        found = attack(whole, x, y, targeted=targeted)
        assert (found == x).flatten(1).all(1).nonzero().flatten().tolist() == done


@pytest.mark.parametrize("wrong", [(6,), (6, 5), (6, 7, 5), (6, 5, 7, 1)])
def test_labels_that_fit_neither_the_images_nor_the_logits_are_refused(pixelwise, wrong):
    whole, _, x, _ = pixelwise
    y = torch.zeros(wrong, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"y must have shape \("):
        bim(whole, x, y, eps=0.1, alpha=0.1, steps=1)
    with pytest.raises(ValueError, match=r"y must have shape \("):
        accuracy(whole, [(x, y)])


@pytest.mark.parametrize("function", [apgd, advlib.autoattack, advlib.square])
def test_where_each_image_needs_one_answer_labels_of_pixels_are_refused(pixelwise, function):
    whole, _, x, y = pixelwise
    with pytest.raises(ValueError, match=r"y must have shape \(6,\)"):
        function(whole, x, y, eps=0.1)
    with pytest.raises(ValueError, match=r"y must have shape \(6,\)"):
        advlib.robust_accuracy(whole, [(x, y)], attacks=[FGSM])
    with pytest.raises(ValueError, match=r"y must have shape \('n', 5, 7\)"):
        function(whole, x, y[:, 0, 0], eps=0.1)
