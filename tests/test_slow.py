"""Minutes long, on the chapter networks: `make slow`. Other libraries are the oracle."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from conftest import seeded

from advlib import (
    Batches,
    accuracy,
    apgd,
    autoattack,
    bim,
    fast,
    load_data,
    mean_iou,
    pgd,
    predict,
    segpgd,
    verify,
)
from advlib.book import looking, recipes, trained
from advlib.verification import margin_bounds
from benchmarks import minimum
from benchmarks.parts import stop_at_success

pytestmark = pytest.mark.slow
EPS = recipes.EPS
KINDS = ("standard", "robust")
HALF_A_POINT = 0.005 + 1e-9  # one of 200 images, which another random start may break
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
    # in their own bundle APGD takes ten steps, in ours fifty
    bundle = [
        torchattacks.APGD(net, eps=EPS, steps=50, seed=0),
        torchattacks.APGDT(net, eps=EPS, steps=50, seed=0),
        torchattacks.FAB(net, eps=EPS, multi_targeted=True, seed=0),
        torchattacks.Square(net, eps=EPS, seed=0),
    ]
    theirs = left(net, x, y, torchattacks.MultiAttack(bundle))
    ours = accuracy(net, Batches(x, y), attack=partial(autoattack, eps=EPS, generator=seeded()))
    assert ours == pytest.approx(theirs, abs=HALF_A_POINT)


@both
@pytest.mark.parametrize(("name", "norm"), minimum.CASES)
def test_smallest_changes_are_no_larger_than_those_of_adv_lib_and_foolbox(kind, name, norm):
    pytest.importorskip("adv_lib")
    pytest.importorskip("foolbox")
    given = {"images": 100, "steps": 100, "rounds": 1, "device": torch.device("cpu")}
    ours, *theirs = minimum.compare(kind, name, norm, **given)
    for peer in theirs:
        assert ours["broken"] >= peer["broken"]
        assert ours["median size"] <= 1.02 * peer["median size"]
    if norm != "l2" or name == "ddn":  # where the others' FMN stalls at black pixels
        assert ours["median size"] == pytest.approx(theirs[0]["median size"], rel=0.02)


@both
def test_fifty_steps_of_apgd_leave_hardly_more_than_a_hundred(kind):
    net, batches = trained.network(kind, device="cpu"), Batches(*images(300))
    attack = partial(apgd, loss="targeted-dlr", eps=EPS, generator=seeded())
    fifty, hundred = (accuracy(net, batches, attack=partial(attack, steps=n)) for n in (50, 100))
    assert 0 <= fifty - hundred <= HALF_A_POINT  # one of 300 images on the robust network


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


def test_mean_iou_equals_the_jaccard_score_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    net, test = trained.network("scenes", device="cpu"), load_data("scenes", device="cpu")[1]
    x, y = test.x[:40], test.y[:40]
    attack = partial(segpgd, eps=0.02, alpha=0.01, steps=3, random_start=False)
    for attacked, images in ((None, x), (attack, attack(net, x, y))):
        answers = predict(net, images).flatten()
        expected = metrics.jaccard_score(y.flatten(), answers, average="macro")
        assert mean_iou(net, Batches(x, y), attack=attacked) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("kind", "steps"), [("standard", 1000), ("robust", 100)])
def test_stopping_where_pgd_repeats_changes_no_verdict_of_five_thousand_images(kind, steps):
    net, (x, y) = trained.network(kind, device="cpu"), images(5000)
    with fast.off():  # rounding as in the reference
        stopped = bim(net, x, y, eps=EPS, alpha=EPS / 10, steps=steps, early_exit=True)
    full = stop_at_success(net.eval(), x, y, steps)  # never looks whether an image repeats
    broken = (predict(net, stopped) != y, predict(net, full) != y)
    assert torch.equal(*broken)
    print(f"{kind}, {steps} steps: {int(broken[0].sum())} of 5000 broken either way")


@both
@pytest.mark.parametrize("layer", ["conv2", "relu2"])
def test_heat_is_that_of_captum(kind, layer):
    attr = pytest.importorskip("captum.attr")
    net, (x, y) = trained.network(kind, device="cpu").eval(), images(200)
    theirs = attr.LayerGradCam(net, net.get_submodule(layer))
    heat = theirs.attribute(x, target=y, relu_attributions=True)
    heat = attr.LayerAttribution.interpolate(heat, (28, 28), "bilinear")[:, 0].detach()
    found = looking.grad_cam(net, x, y, layer=layer)
    assert found.flatten(1).amax(1).gt(0).float().mean() > 0.8
    torch.testing.assert_close(found, heat, rtol=1e-4, atol=1e-5)


def test_areas_are_those_of_scikit_learn_and_scipy_and_curves_too():
    metrics = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    draw = seeded()
    for n, m, shift, ties in ((500, 500, 1.0, 0), (30, 400, -2.0, 0), (200, 50, 0.3, 4)):
        scores = torch.randn(n + m, generator=draw, dtype=torch.float64)
        scores[:n] += shift
        scores = (scores * ties).round() if ties else scores
        inside, outside = scores[:n], scores[n:]
        strange = torch.arange(n + m) >= n
        area, low, high = looking.auroc(inside, outside)
        assert area == pytest.approx(metrics.roc_auc_score(strange, -scores), abs=1e-9)
        pairs = stats.mannwhitneyu(inside.numpy(), outside.numpy()).statistic
        assert area == pytest.approx(pairs / (n * m), abs=1e-9)
        alarms, hits, _ = metrics.roc_curve(strange, -scores, drop_intermediate=False)
        curve = (torch.from_numpy(values).float() for values in (alarms, hits))
        for ours, exact in zip(looking.roc(inside, outside), curve, strict=True):
            torch.testing.assert_close(ours, exact)
        again = [torch.randint(k, (1000, k), generator=draw) for k in (n, m)]
        both = zip(inside[again[0]], outside[again[1]], strict=True)
        areas = torch.tensor([looking.auroc(a, b)[0] for a, b in both])
        ends = areas.quantile(torch.tensor([0.025, 0.975])).tolist()  # the bootstrap's
        assert (low, high) == pytest.approx(ends, abs=0.25 * (high - low))


@both
def test_areas_of_the_distance_are_those_of_scikit_learns_covariance(kind):
    covariance = pytest.importorskip("sklearn.covariance")
    net, (x, _) = trained.network(kind, device="cpu").eval(), images(300)
    train = load_data(device="cpu")[0]
    with torch.no_grad():
        known = looking.watched(net, train.x[:2000], layer="relu2")[1]
        logits, maps = looking.watched(net, x, layer="relu2")
    y, features = train.y[:2000], known.mean((2, 3)).double()
    means = torch.stack([features[y == k].mean(0) for k in range(10)])
    fitted = covariance.EmpiricalCovariance(assume_centered=True).fit((features - means[y]).numpy())
    new = maps.mean((2, 3)).double()
    exact = [fitted.mahalanobis((new - mean).numpy()) for mean in means]
    exact = -torch.tensor(np.array(exact)).amin(0)
    ours = looking.Distance(known, y)(logits, maps).double()
    order = torch.stack([exact, ours]).argsort(1).argsort(1).double().corrcoef()[0, 1]
    assert order > 0.98  # not equal: ours has a ridge
