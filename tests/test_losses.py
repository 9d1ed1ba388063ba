"""Training losses against plain rewrites, and what `fit` does with a loss."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import equal, images, labels, linear, seeded
from torch import nn

from advlib import Batches, fgsm, fit
from advlib.book.parts import grad_align_loss
from advlib.losses import FULL_SIZE, WARM_UP, interval_loss, trades_loss
from advlib.verification import margin_bounds

DOUBLE = torch.float64
X, Y = images(dtype=DOUBLE), labels()
FGSM = partial(fgsm, eps=0.1)


def plain_net(activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), activation(), nn.Linear(8, 3)).double()


def assert_same_with_gradients(net, mine, plain):
    torch.testing.assert_close(mine, plain)
    slopes = (torch.autograd.grad(loss, list(net.parameters())) for loss in (mine, plain))
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_trades_equals_its_plain_rewrite_also_in_its_gradients(beta):
    net, eps, alpha, steps = plain_net(), 0.1, 0.03, 4
    noise = 2 * torch.rand(X.shape, generator=seeded(), dtype=DOUBLE) - 1
    z, clean = (X + eps / 100 * noise).clamp(0, 1), net(X).softmax(1).detach()

    def divergence(p, z):
        return (p * (p.log() - net(z).log_softmax(1))).sum(1)

    start = divergence(clean, z).mean()
    for _ in range(steps):
        z.requires_grad_()
        (slope,) = torch.autograd.grad(divergence(clean, z).sum(), z)
        z = (X + (z.detach() + alpha * slope.sign() - X).clamp(-eps, eps)).clamp(0, 1)
    moved = divergence(net(X).softmax(1), z).mean()
    assert moved > start + 1e-4  # the attack is one
    plain = F.cross_entropy(net(X), Y) + beta * moved
    options = {"eps": eps, "alpha": alpha, "steps": steps, "beta": beta, "generator": seeded()}
    assert_same_with_gradients(net, trades_loss(net, X, Y, **options), plain)


def test_grad_align_equals_its_plain_rewrite_also_in_its_gradients():
    net = plain_net()
    near = X + 0.3 * (2 * torch.rand(X.shape, generator=seeded(), dtype=DOUBLE) - 1)
    slopes = []
    for z in (X.clone().requires_grad_(), near.requires_grad_()):
        loss = F.cross_entropy(net(z), Y, reduction="sum")
        slopes.append(torch.autograd.grad(loss, z, create_graph=True)[0].flatten(1))
    turned = (1 - F.cosine_similarity(slopes[0].detach(), slopes[1])).mean()
    assert turned > 1e-4
    mine = grad_align_loss(net, X, Y, attack=FGSM, eps=0.3, weight=2.0, generator=seeded())
    assert_same_with_gradients(net, mine, F.cross_entropy(net(FGSM(net, X, Y)), Y) + 2 * turned)


def test_interval_loss_grows_from_cross_entropy_to_half_of_the_worst_case():
    w = torch.randn(3, 16, generator=seeded(), dtype=DOUBLE)
    model, x = linear(w, DOUBLE), 0.2 + 0.6 * X
    reach = (w[Y][:, None] - w).abs().sum(2)
    middle = (WARM_UP + FULL_SIZE) / 2
    for progress, size in ((0, 0), (WARM_UP / 2, 0), (middle, 0.5), (FULL_SIZE, 1), (1, 1)):
        worst = F.cross_entropy(model(x) + size * 0.1 * reach, Y)
        expected = (1 - size / 2) * F.cross_entropy(model(x), Y) + size / 2 * worst
        found = interval_loss(model, x, Y, progress, eps=0.1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_interval_loss_makes_the_proven_margin_larger():
    net, x = plain_net(nn.ReLU), 0.2 + 0.6 * X
    before = margin_bounds(net, x, Y, 0.05)
    fit(net, Batches(x, Y, batch_size=8), epochs=150, lr=0.1, loss=partial(interval_loss, eps=0.05))
    after = margin_bounds(net, x, Y, 0.05)
    assert (after > 0).sum() > (before > 0).sum() + 3


def test_fit_with_cross_entropy_as_its_loss_is_fit():
    nets, loss = [plain_net(), plain_net()], lambda model, x, y, _: F.cross_entropy(model(x), y)
    for net, options in zip(nets, ({}, {"loss": loss}), strict=True):
        fit(net, Batches(X, Y, batch_size=3), epochs=3, lr=0.1, attack=FGSM, **options)
    assert equal(*nets)


def test_trades_learns_where_a_probability_underflows():
    net = linear(torch.tensor([[300.0], [-300.0]]))
    value = trades_loss(net, torch.ones(1, 1), torch.tensor([0]), eps=0.1, alpha=0.03)
    assert torch.autograd.grad(value, net[1].weight)[0].isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 20.0, 40.0])  # the gradient: down to 1e-17
def test_grad_align_sees_the_direction_of_tiny_gradients(scale):
    net = linear(scale * torch.tensor([[1.0, 0.5], [-1.0, 0.25]]), DOUBLE)
    x, y = torch.full((3, 2), 0.5, dtype=DOUBLE), torch.tensor([0, 0, 0])
    loss = partial(grad_align_loss, net, x, y, attack=FGSM, eps=0.1)
    plain, with_term = (loss(weight=weight, generator=seeded()) for weight in (0.0, 1.0))
    torch.testing.assert_close(with_term, plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sure", [84.0, 88.0, 95.0])
def test_grad_align_has_finite_gradients_where_those_of_images_nearly_underflow(sure):
    net = plain_net(nn.ReLU).float()
    x, y = torch.rand(20, 16, generator=seeded()), torch.zeros(20, dtype=torch.int64)
    with torch.no_grad():
        net[1].weight.mul_(100)
        net[3].bias.copy_(torch.tensor([sure, 0, 0]) - net(x).mean(0))
    found = grad_align_loss(net, x, y, attack=FGSM, eps=0.1, weight=1.0, generator=seeded())
    found.backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
