"""Certificates by noise against closed forms, and against scipy's binomial distribution."""

import torch
from conftest import seeded
from scipy.stats import beta, norm
from torch import nn

from advlib import Images
from advlib.book import commands
from advlib.book.smoothing import Smoothed, certify, lower_bound, votes


def two_sides(shape=(1, 8, 8)):
    """A linear network of two classes, and its weights: the sign of w x decides."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 2, bias=False))
    w = torch.randn(shape, generator=seeded())
    net[1].weight.data = torch.stack([w.flatten(), -w.flatten()])
    return net, w


def test_the_bound_is_clopper_and_pearsons():
    for total, alpha in ((10, 0.05), (100, 0.001), (10_000, 0.001)):
        for successes in (0, 1, total // 2, total - 1, total):
            exact = beta.ppf(alpha, successes, total - successes + 1) if successes else 0.0
            found = lower_bound(successes, total, alpha=alpha)
            assert exact - 1e-8 < found < exact + 1e-8


def test_votes_of_a_linear_network_have_the_chances_of_the_normal_distribution():
    net, w = two_sides()
    x = torch.rand(3, 1, 8, 8, generator=seeded(1)) - 0.5
    counts = votes(net, x, sigma=0.5, samples=4000, generator=seeded())
    assert counts.sum(1).tolist() == [4000] * 3
    leads = (x * w).flatten(1).sum(1) / w.norm() / 0.5
    exact = torch.tensor(norm.cdf(leads.numpy()))
    assert (counts[:, 0] / 4000 - exact).abs().max() < 0.04  # five standard deviations


def test_a_certificate_of_a_linear_network_is_nearly_its_distance_and_never_more():
    net, w = two_sides()
    x = 0.1 * (torch.rand(20, 1, 8, 8, generator=seeded(1)) - 0.5)
    lead = (x * w).flatten(1).sum(1) / w.norm()
    answers, radii = certify(net, x, sigma=0.25, samples=2000, generator=seeded())
    sure = answers >= 0
    assert ((radii > 0) == sure).all()
    assert (answers[sure] == (lead[sure] < 0).long()).all()
    assert (radii <= lead.abs()).all()
    assert (lead.abs() - radii).max() < 0.25 * 0.2


def test_the_stand_in_for_attacks_is_the_mean_of_probabilities():
    net, _ = two_sides()
    x = torch.rand(2, 1, 8, 8, generator=seeded(1))
    for sigma, draws in ((0.0, 3), (1e-5, 1)):
        found = Smoothed(net, sigma=sigma, draws=draws)(x)
        torch.testing.assert_close(found, net(x).log_softmax(1), atol=1e-2, rtol=0)
    spread = Smoothed(net, sigma=0.5, draws=500)(x).exp()
    torch.testing.assert_close(spread.sum(1), torch.ones(2))
    noise = 0.5 * torch.randn(1000, 1, 8, 8, generator=seeded())  # as it draws: images in a row
    exact = torch.stack(
        [net(x[i] + noise[500 * i : 500 * i + 500]).softmax(1).mean(0) for i in (0, 1)]
    )
    torch.testing.assert_close(spread, exact)


def test_the_command_measures_a_linear_network_as_its_distances_say(monkeypatch):
    net, w = two_sides((1, 28, 28))
    distance = torch.tensor([0.1, 0.15, 0.4, 0.8])
    x = 0.5 + distance.view(-1, 1, 1, 1) * w / w.norm()
    net[1].weight.data *= 10
    net[1].bias = nn.Parameter(-0.5 * net[1].weight.data.sum(1))
    test = Images(x, torch.zeros(4, dtype=torch.int64), ("a", "b"))
    monkeypatch.setattr(commands, "load_data", lambda device: (None, test))
    monkeypatch.setattr(commands.trained, "network", lambda name, device: net.eval())
    found = commands.smoothing(4, "cpu")
    counted = ("abstained", "certified and misread", "certified and broken")
    assert [found[name] for name in counted] == [0, 0, 0]
    lines, exact = found["lines"], distance * w.norm() / w.abs().sum()
    for i, size in enumerate(found["radii"]):
        proven = (exact > size).float().mean().item()
        assert lines["CROWN, noisy"][i] == lines["CROWN, provable"][i] == proven
        holds = (distance > size).float().mean().item()
        assert lines["attack, l2"][i] == (holds if size >= 0.25 else None)
        assert lines["smoothing, linf"][i] <= lines["smoothing, l2"][i] <= holds
    assert lines["smoothing, l2"][:7] == [1, 1, 1, 0.75, 0.5, 0.5, 0.25]
    assert lines["smoothing, linf"][:3] == [0.5, 0.25, 0]
