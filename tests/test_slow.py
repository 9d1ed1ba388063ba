"""Minutes long, on the chapter networks: `make slow`. Other libraries are the oracle."""

import os
from functools import partial

import pytest
import torch
from conftest import seeded

from advlib import Batches, accuracy, apgd, autoattack, bim, fast, load_data, pgd, predict, verify
from advlib.book import recipes, trained
from advlib.verification import margin_bounds
from benchmarks.parts import stop_at_success

pytestmark = pytest.mark.slow
EPS = recipes.EPS
KINDS = ("standard", "robust")
HALF_A_POINT = 0.005
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True, scope="module")
def all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def images(n):
    test = load_data(device="cpu")[1]
    return test.x[:n], test.y[:n]


def left(net, x, y, attack):
    """Accuracy under another library's attack."""
    return accuracy(net, Batches(x, y), attack=lambda model, x, y: attack(x, y))


@both
def test_apgd_equals_that_of_torchattacks(kind):
    torchattacks = pytest.importorskip("torchattacks")
    net, (x, y) = trained.network(kind, device="cpu"), images(400)
    theirs = torchattacks.APGD(net, norm="Linf", eps=EPS, steps=50, n_restarts=1, seed=0)
    ours = partial(apgd, eps=EPS, steps=50, generator=seeded())
    found = accuracy(net, Batches(x, y), attack=ours)
    assert found == pytest.approx(left(net, x, y, theirs), abs=HALF_A_POINT)


@both
def test_pgd_equals_that_of_foolbox(kind):
    foolbox = pytest.importorskip("foolbox")
    net, (x, y) = trained.network(kind, device="cpu"), images(400)
    wrapped = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=40, random_start=True).repeat(3)

    def theirs(x, y):
        return attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=EPS)[1]

    ours = partial(pgd, eps=EPS, alpha=0.01, steps=40, restarts=3, generator=seeded())
    found = accuracy(net, Batches(x, y), attack=ours)
    assert found == pytest.approx(left(net, x, y, theirs), abs=HALF_A_POINT)


@both
def test_autoattack_is_no_weaker_than_that_of_torchattacks(kind):
    torchattacks = pytest.importorskip("torchattacks")
    net, (x, y) = trained.network(kind, device="cpu"), images(200)
    theirs = left(net, x, y, torchattacks.AutoAttack(net, norm="Linf", eps=EPS, seed=0))
    ours = accuracy(net, Batches(x, y), attack=partial(autoattack, eps=EPS, generator=seeded()))
    assert theirs - HALF_A_POINT <= ours <= theirs + 0.003


@both
def test_fifty_steps_of_apgd_leave_what_a_hundred_leave(kind):
    net, batches = trained.network(kind, device="cpu"), Batches(*images(300))
    attack = partial(apgd, loss="targeted-dlr", eps=EPS, generator=seeded())
    fifty, hundred = (accuracy(net, batches, attack=partial(attack, steps=n)) for n in (50, 100))
    assert fifty == hundred


def test_no_attack_breaks_one_of_five_thousand_verified_images():
    net, (x, y) = trained.network("provable", device="cpu"), images(5000)
    proved = 0
    for eps in (0.05, EPS):
        safe = margin_bounds(net, x, y, eps, method="interval") > 0
        attack = partial(autoattack, eps=eps, steps=20, queries=100, generator=seeded())
        assert accuracy(net, Batches(x[safe], y[safe]), attack=attack) == 1.0
        proved += int(safe.sum())
    assert proved >= 5000
    for kind in KINDS:
        net = trained.network(kind, device="cpu")
        for eps in (0.005, 0.02):
            safe = verify(net, x[:200], y[:200], eps).verified
            attack = partial(autoattack, eps=eps, queries=500, generator=seeded())
            assert accuracy(net, Batches(x[:200][safe], y[:200][safe]), attack=attack) == 1.0
            proved += int(safe.sum())
    print(f"verified and attacked: {proved}, broken: 0")


@pytest.mark.parametrize("kind", [*KINDS, "provable"])
def test_crown_proves_more_than_intervals_and_both_less_than_an_attack_leaves(kind):
    net = trained.network(kind, device="cpu")
    x, y = images(200)
    gained = 0
    for eps in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1):
        found = verify(net, x, y, eps)
        by_interval = margin_bounds(net, x, y, eps, method="interval") > 0
        attack = partial(apgd, eps=eps, steps=30, generator=seeded())
        stands = accuracy(net, Batches(x, y), attack=attack)
        assert by_interval.float().mean() <= found.certified_accuracy <= stands
        gained += int(found.verified.sum() - by_interval.sum())
    assert gained > 0


@pytest.mark.parametrize(("kind", "steps"), [("standard", 1000), ("robust", 100)])
def test_stopping_where_pgd_repeats_changes_no_verdict_of_five_thousand_images(kind, steps):
    net, (x, y) = trained.network(kind, device="cpu"), images(5000)
    with fast.off():  # rounding as in the reference
        stopped = bim(net, x, y, eps=EPS, alpha=EPS / 10, steps=steps, early_exit=True)
    full = stop_at_success(net.eval(), x, y, steps)  # never looks whether an image repeats
    broken = (predict(net, stopped) != y, predict(net, full) != y)
    assert torch.equal(*broken)
    print(f"{kind}, {steps} steps: {int(broken[0].sum())} of 5000 broken either way")
