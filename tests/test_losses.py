"""Training losses against plain rewrites, and what `fit` does with a loss."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import images, labels, linear, small_net
from torch import nn

from advlib import Batches, fgsm, fit
from advlib.losses import FULL_SIZE, WARM_UP, grad_align_loss, interval_loss, trades_loss

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def relu_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()


X, Y = images(dtype=DOUBLE), labels()
FGSM = partial(fgsm, eps=0.1)
LOSSES = {
    "trades": partial(trades_loss, eps=0.1, alpha=0.03, steps=3),
    "grad-align": partial(grad_align_loss, attack=FGSM, eps=0.1, weight=0.5),
    "interval": partial(interval_loss, eps=0.1),
}


def plain_trades(model, x, y, *, eps, alpha, steps, beta, generator):
    start = x + eps / 100 * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
    z = start.clamp(0, 1)
    clean = model(x).softmax(1).detach()
    for _ in range(steps):
        z.requires_grad_()
        divergence = (clean * (clean.log() - model(z).log_softmax(1))).sum()
        (slope,) = torch.autograd.grad(divergence, z)
        z = (x + (z.detach() + alpha * slope.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    p, log_q = model(x).softmax(1), model(z).log_softmax(1)
    divergence = (p * (p.log() - log_q)).sum(1).mean()
    return F.cross_entropy(model(x), y) + beta * divergence


def gradients(net, loss):
    return torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_equals_its_plain_rewrite_also_in_its_gradients(beta):
    net, options = plain_net(), {"eps": 0.1, "alpha": 0.03, "steps": 4, "beta": beta}
    mine = trades_loss(net, X, Y, **options, generator=seeded())
    plain = plain_trades(net, X, Y, **options, generator=seeded())
    torch.testing.assert_close(mine, plain)
    torch.testing.assert_close(gradients(net, mine), gradients(net, plain))
    if beta:
        assert mine > F.cross_entropy(net(X), Y) + 1e-6


def test_trades_attack_raises_the_divergence():
    net = plain_net()
    weak, strong = (
        trades_loss(net, X, Y, eps=0.2, alpha=alpha, steps=5, beta=1.0, generator=seeded())
        for alpha in (0.0, 0.05)
    )
    assert strong > weak + 1e-4


def test_grad_align_is_zero_where_the_gradient_never_turns():
    w = torch.randn(2, 16, generator=seeded(), dtype=DOUBLE)  # two classes: always along w0 - w1
    model, y = linear(w, DOUBLE), labels(classes=2)
    found = grad_align_loss(model, X, y, attack=FGSM, eps=0.3, weight=100.0)
    torch.testing.assert_close(found, F.cross_entropy(model(FGSM(model, X, y)), y))


def test_grad_align_equals_its_plain_rewrite_also_in_its_gradients():
    net = plain_net()
    mine = grad_align_loss(net, X, Y, attack=FGSM, eps=0.3, weight=2.0, generator=seeded())
    near = (X + 0.3 * (2 * torch.rand(X.shape, generator=seeded(), dtype=DOUBLE) - 1)).detach()
    slopes = []
    for z in (X.clone(), near):
        z.requires_grad_()
        loss = F.cross_entropy(net(z), Y, reduction="sum")
        slopes.append(torch.autograd.grad(loss, z, create_graph=True)[0].flatten(1))
    here, there = slopes[0].detach(), slopes[1]
    cosine = (here * there).sum(1) / here.norm(dim=1) / there.norm(dim=1)
    plain = F.cross_entropy(net(FGSM(net, X, Y)), Y) + 2.0 * (1 - cosine).mean()
    torch.testing.assert_close(mine, plain)
    torch.testing.assert_close(gradients(net, mine), gradients(net, plain))
    assert (1 - cosine).mean() > 1e-4


def test_interval_loss_grows_from_cross_entropy_to_half_of_the_worst_case():
    w = torch.randn(3, 16, generator=seeded(), dtype=DOUBLE)
    model, x = linear(w, DOUBLE), 0.2 + 0.6 * X
    clean = F.cross_entropy(model(x), Y)
    for progress in (0.0, WARM_UP / 2):
        torch.testing.assert_close(interval_loss(model, x, Y, progress, eps=0.1), clean)
    scores = model(x)
    reach = (w[Y][:, None] - w).abs().sum(2)
    for progress, size in (((WARM_UP + FULL_SIZE) / 2, 0.5), (FULL_SIZE, 1.0), (1.0, 1.0)):
        worst = F.cross_entropy(scores + size * 0.1 * reach, Y)
        expected = (1 - size / 2) * clean + size / 2 * worst
        found = interval_loss(model, x, Y, progress, eps=0.1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_interval_loss_makes_the_proven_margin_larger():
    from advlib.verification import margin_bounds

    net, x = relu_net(), 0.2 + 0.6 * X
    before = margin_bounds(net, x, Y, 0.05)
    fit(net, Batches(x, Y, batch_size=8), epochs=150, lr=0.1, loss=partial(interval_loss, eps=0.05))
    after = margin_bounds(net, x, Y, 0.05)
    assert (after > 0).sum() > (before > 0).sum() + 3


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_leaves_training_flags_and_images_alone(loss):
    net = relu_net()
    x = X.clone()
    flags = [module.training for module in net.modules()]
    value = loss(net, x, Y, 1.0)
    assert value.ndim == 0
    assert value.requires_grad
    assert torch.equal(x, X)
    assert [module.training for module in net.modules()] == flags
    assert all(p.grad is None for p in net.parameters())


def test_interval_loss_names_a_layer_it_does_not_know():
    with pytest.raises(ValueError, match=r"model.*Tanh"):
        interval_loss(plain_net(), X, Y, eps=0.1)


# fit


def test_fit_with_cross_entropy_as_its_loss_is_fit():
    nets = [plain_net(), plain_net()]
    options = {"epochs": 3, "lr": 0.1, "attack": FGSM}
    fit(nets[0], Batches(X, Y, batch_size=3), **options)
    seen = []

    def loss(model, x, y, progress):
        seen.append(progress)
        return F.cross_entropy(model(x), y)

    history = fit(nets[1], Batches(X, Y, batch_size=3), loss=loss, **options)
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())
    assert seen == [(i + 0.5) / 9 for i in range(9)]
    assert len(history.loss) == 9


def test_fit_runs_its_loss_in_training_mode():
    modes = []

    def loss(model, x, y, progress):
        modes.append(model.training)
        return F.cross_entropy(model(x), y)

    net = small_net(dtype=DOUBLE).eval()
    list(net.children())[-1].train()  # flags come back module by module
    before = [module.training for module in net.modules()]
    fit(net, Batches(X, Y), epochs=1, lr=0.1, loss=loss)
    assert modes == [True]
    assert [module.training for module in net.modules()] == before


def test_trades_learns_where_a_probability_underflows():
    net = linear(torch.tensor([[1.0], [-1.0]])).float()
    x, y = torch.ones(1, 1), torch.tensor([0])
    for parameter in net.parameters():
        parameter.requires_grad_()
        parameter.data.mul_(300)
    value = trades_loss(net, x, y, eps=0.1, alpha=0.03)
    slopes = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    assert all(slope is None or slope.isfinite().all() for slope in slopes)


def test_grad_align_sees_the_direction_of_tiny_gradients():
    for scale in (1.0, 20.0, 40.0):  # the more confident, the smaller the gradient: down to 1e-17
        net = linear(scale * torch.tensor([[1.0, 0.5], [-1.0, 0.25]]), DOUBLE)
        x, y = torch.full((3, 2), 0.5, dtype=DOUBLE), torch.tensor([0, 0, 0])
        plain, with_term = (
            grad_align_loss(net, x, y, attack=FGSM, eps=0.1, weight=w, generator=seeded())
            for w in (0.0, 1.0)
        )
        torch.testing.assert_close(with_term, plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sure", [84.0, 88.0, 95.0])
def test_grad_align_has_finite_gradients_where_those_of_images_nearly_underflow(sure):
    net = relu_net().float()
    x, y = torch.rand(20, 16, generator=seeded()), torch.zeros(20, dtype=torch.int64)
    with torch.no_grad():
        net[1].weight.mul_(100)
        net[3].bias.copy_(torch.tensor([sure, 0, 0]) - net(x).mean(0))
    found = grad_align_loss(net, x, y, attack=FGSM, eps=0.1, weight=1.0, generator=seeded())
    found.backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
