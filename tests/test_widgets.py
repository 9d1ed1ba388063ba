"""The attack lab's widgets, without a browser: buttons are pressed by `click`."""

import sys

import pytest
import torch
from conftest import Breakdown, FailsAfter, images, labels, small_net, untouched
from matplotlib.figure import Figure

from advlib import bim, digit_net
from advlib.book.lab import attack_lab

pytest.importorskip("ipywidgets")
X, Y = images(5), labels(5)
NETS = {"standard": small_net(), "other": digit_net(size=4, classes=3)}


class Hands:
    """What a reader sees and touches."""

    def __init__(self, *arguments, **options):
        self.box = attack_lab(*arguments, **options)
        controls, self.status, self.html = self.box.children
        self.image, self.eps, self.attack, self.reset = self.controls = controls.children


@pytest.fixture
def shown(monkeypatch):
    """What each picture is drawn of; the pictures themselves stay empty."""
    calls = []

    def note(x, y, attacked, logits, **options):
        calls.append((dict(attacked), logits, options["eps"]))
        return Figure()

    monkeypatch.setattr("advlib.book.lab.attack_view", note)
    return calls


@pytest.mark.parametrize(("channels", "bounds"), [(1, (0.0, 1.0)), (3, None)])
def test_every_step_is_that_of_bim_to_the_bit_for_each_network(channels, bounds, shown):
    other = digit_net(channels=channels, size=4, classes=3)
    models, x = {"standard": small_net(channels), "other": other}, images(5, channels=channels)
    hands = Hands(models, x, Y, eps=0.2, steps=3, bounds=bounds)
    hands.attack.click()
    for act in (
        lambda: hands.reset.click(),
        lambda: setattr(hands.image, "value", 4),
        lambda: setattr(hands.eps, "value", 0.09),
    ):
        act()
        i, eps = hands.image.value, hands.eps.value
        image, label = x[i : i + 1], Y[i : i + 1]
        assert all(torch.equal(attacked, image) for attacked in shown[-1][0].values())
        assert hands.status.value.startswith("Step 0 of 3")
        shown.clear()
        hands.attack.click()
        assert len(shown) == 3
        for k, (attacked, logits, drawn_eps) in enumerate(shown, 1):
            assert drawn_eps == eps
            for name, model in models.items():
                x_adv = bim(model, image, label, eps=eps, alpha=eps / 10, steps=k, bounds=bounds)
                assert torch.equal(attacked[name], x_adv)
                assert torch.equal(logits[name], model.eval()(x_adv))


def test_the_status_and_the_alternative_text_say_what_the_networks_take_it_for():
    hands = Hands(NETS, X, Y, eps=0.3, steps=2, classes=["cat", "<dog>", "eel"])
    hands.attack.click()
    said = []
    for name, model in NETS.items():
        x_adv = bim(model, X[:1], Y[:1], eps=0.3, alpha=0.3 / 10, steps=2)
        answer = int(model.eval()(x_adv).argmax())
        verdict = "right ✓" if answer == Y[0] else "wrong ✗"
        said.append(f"{name}: {['cat', '<dog>', 'eel'][answer]}, {verdict}")
    assert hands.status.value == f"Step 2 of 2, eps 0.3. {'; '.join(said)}"
    alt = hands.status.value.replace("<", "&lt;").replace(">", "&gt;")
    assert f'alt="{alt}" src="data:image/png;base64,iVBOR' in hands.html.value
    assert [name for name, _ in hands.image.options][:2] == ["1: cat", "2: <dog>"]
    assert [c.description for c in hands.controls] == ["image", "eps", "Attack", "Reset"]


def test_controls_are_disabled_only_during_the_attack_also_if_it_fails(shown, caplog):
    net, seen = small_net(), []
    net.train()
    net[1].eval()
    net(X).sum().backward()
    model = FailsAfter(net, 10_000)
    with untouched(model):
        hands = Hands(model, X, Y, steps=2)
        assert hands.status.value.startswith("Step 0 of 2, eps 0.1. network: ")
        look = lambda change: seen.append([c.disabled for c in hands.controls])  # noqa: E731
        hands.status.observe(look, "value")
        hands.attack.click()
        assert seen == [[True] * 4] * 2
        assert [control.disabled for control in hands.controls] == [False] * 4
        model.calls = 1
        hands.attack.click()
    assert caplog.records[-1].exc_info[0] is Breakdown
    assert hands.status.value.startswith("The attack failed. Breakdown")
    assert [control.disabled for control in hands.controls] == [False] * 4


def test_what_cannot_be_attacked_is_named(monkeypatch):
    nets = {"models": {"one": small_net(), "two": print}}
    for wrong in (nets, {"x": X[:, 0]}, {"x": 255 * X}, {"eps": 0}, {"steps": 0}, {"y": Y.float()}):
        with pytest.raises((TypeError, ValueError), match=f"^{next(iter(wrong))} must"):
            attack_lab(**({"models": NETS, "x": X, "y": Y} | wrong))
    for wrong in ({"y": Y + 1}, {"classes": ["cat", "dog"]}):
        with pytest.raises(ValueError, match=r"^y and classes must be of the 3 classes"):
            attack_lab(**({"models": NETS, "x": X, "y": Y} | wrong))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install .advlib\[notebook\]"):
        attack_lab(NETS, X, Y)
