"""The attack lab's widgets, without a browser: buttons are pressed by `click`."""

import base64
import io
import re
import sys

import pytest
import torch
from conftest import Breakdown, FailsAfter, images, labels, small_net, untouched

from advlib import bim, digit_net
from advlib.plots import attack_view
from advlib.widgets import attack_lab

pytest.importorskip("ipywidgets")
X, Y = images(5), labels(5)
NETS = {"standard": small_net(), "other": digit_net(size=4, classes=3)}


class Hands:
    """What a reader sees and touches."""

    def __init__(self, *arguments, **options):
        self.box = attack_lab(*arguments, **options)
        controls, self.status, self.html = self.box.children
        self.image, self.eps, self.attack, self.reset = controls.children
        self.controls = controls.children

    def picture(self):
        encoded = re.search('base64,([^"]*)', self.html.value)[1]
        return base64.b64decode(encoded)


def drawn(models, x, y, attacked, eps, limits=(0.0, 1.0)):
    """The picture that the lab should show."""
    with torch.no_grad():
        logits = {name: model.eval()(attacked[name]) for name, model in models.items()}
    figure = attack_view(x, y, attacked, logits, eps=eps, limits=limits)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


@pytest.mark.parametrize(("channels", "bounds"), [(1, (0.0, 1.0)), (3, None)])
def test_an_attack_ends_where_bim_does_for_each_network(channels, bounds):
    models = {
        "standard": small_net(channels),
        "other": digit_net(channels=channels, size=4, classes=3),
    }
    x, eps = images(5, channels=channels), 0.2
    hands = Hands(models, x, Y, eps=eps, steps=2, bounds=bounds)
    assert hands.picture() == drawn(models, x[:1], Y[:1], dict.fromkeys(models, x[:1]), eps)
    hands.attack.click()
    expected = {
        name: bim(model, x[:1], Y[:1], eps=eps, alpha=eps / 8, steps=2, bounds=bounds)
        for name, model in models.items()
    }
    assert not torch.equal(*expected.values())
    assert hands.picture() == drawn(models, x[:1], Y[:1], expected, eps)


def test_every_step_is_that_of_bim_to_the_bit(monkeypatch):
    shown = []
    monkeypatch.setattr(
        "advlib.widgets.attack_view",
        lambda x, y, attacked, *rest, **options: (
            shown.append(attacked["standard"]) or attack_view(x, y, attacked, *rest, **options)
        ),
    )
    hands = Hands(NETS, X, Y, eps=0.2, steps=5)
    hands.attack.click()
    assert len(shown) == 6
    for k in range(1, 6):
        expected = bim(NETS["standard"], X[:1], Y[:1], eps=0.2, alpha=0.2 / 8, steps=k)
        assert torch.equal(shown[k], expected)


def test_the_status_and_the_alternative_text_say_what_the_networks_take_it_for():
    hands = Hands(NETS, X, Y, eps=0.3, steps=2, classes=["cat", "<dog>", "eel"])
    hands.attack.click()
    said = []
    for name, model in NETS.items():
        x_adv = bim(model, X[:1], Y[:1], eps=0.3, alpha=0.3 / 8, steps=2)
        answer = int(model.eval()(x_adv).argmax())
        verdict = "right ✓" if answer == Y[0] else "wrong ✗"
        said.append(f"{name}: {['cat', '<dog>', 'eel'][answer]}, {verdict}")
    assert hands.status.value == f"Step 2 of 2, eps 0.3. {'; '.join(said)}"
    alt = hands.status.value.replace("<", "&lt;").replace(">", "&gt;")
    assert f'alt="{alt}"' in hands.html.value
    assert [name for name, _ in hands.image.options][:2] == ["1: cat", "2: <dog>"]


@pytest.mark.parametrize(
    "act",
    [
        lambda hands: hands.reset.click(),
        lambda hands: setattr(hands.image, "value", 3),
        lambda hands: setattr(hands.eps, "value", 0.1),
    ],
    ids=["reset", "image", "eps"],
)
def test_reset_another_image_and_another_eps_show_the_clean_image(act):
    hands = Hands(NETS, X, Y, eps=0.3, steps=1)
    before = hands.picture()
    hands.attack.click()
    assert hands.picture() != before
    act(hands)
    i = hands.image.value
    clean = dict.fromkeys(NETS, X[i : i + 1])
    assert hands.picture() == drawn(NETS, X[i : i + 1], Y[i : i + 1], clean, hands.eps.value)
    assert hands.status.value.startswith("Step 0 of 1")


def test_the_chosen_image_is_attacked_within_the_chosen_eps():
    hands = Hands(NETS, X, Y, eps=0.3, steps=1)
    hands.image.value, hands.eps.value = 4, 0.09
    hands.attack.click()
    x, y = X[4:], Y[4:]
    expected = {n: bim(m, x, y, eps=0.09, alpha=0.09 / 8, steps=1) for n, m in NETS.items()}
    assert hands.picture() == drawn(NETS, x, y, expected, 0.09)


def test_controls_are_disabled_during_the_attack_and_enabled_afterwards():
    hands, seen = Hands(NETS, X, Y, steps=2), []
    hands.status.observe(lambda change: seen.append([c.disabled for c in hands.controls]), "value")
    hands.attack.click()
    assert seen == [[True] * 4] * 2
    assert [control.disabled for control in hands.controls] == [False] * 4


def test_a_failed_attack_is_reported_and_controls_are_enabled(caplog):
    model = FailsAfter(small_net(), 10_000)
    hands = Hands(model, X, Y)
    model.calls = 3
    hands.attack.click()
    assert caplog.records[-1].exc_info[0] is Breakdown
    assert hands.status.value.startswith("The attack failed. Breakdown")
    assert [control.disabled for control in hands.controls] == [False] * 4


def test_every_control_has_a_name():
    assert [c.description for c in Hands(NETS, X, Y).controls] == [
        "image",
        "eps",
        "Attack",
        "Reset",
    ]


def test_models_and_random_state_stay_as_they_were():
    model = small_net()
    model.train()
    model[1].eval()
    model(X).sum().backward()
    with untouched(model):
        Hands(model, X, Y, steps=2).attack.click()


def test_one_network_needs_no_name():
    assert Hands(small_net(), X, Y).status.value.startswith("Step 0 of 20, eps 0.1. network: ")


def test_a_missing_ipywidgets_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"advlib\[notebook\]"):
        attack_lab(small_net(), X, Y)
