"""The attack lab in headless Chromium: it computes what PyTorch does, and its controls work."""

import copy
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch

from advlib import bim, load_data, predict
from advlib.verification import margin_bounds

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
lab = importlib.import_module("lab")
NAMES, EPS, STEPS = lab.NAMES, 0.1, 20

PAGE = """<!doctype html><html lang="en"><meta charset="utf8"><title>lab</title>
<link rel="stylesheet" href="lab.css"><div id="lab" class="lab">still</div>
<script src="network.js"></script><script src="weights.js"></script><script src="lab.js"></script>
"""

SAME_AS_PYTORCH = """([name, images, labels, targeted, eps, steps]) => {
  const { network, logits, step } = advlibNetwork();
  const net = network(advlibLab.networks[name]);
  return images.map((pixels, i) => {
    const clean = Float32Array.from(pixels);
    const set = { label: labels[i], target: targeted ? labels[i] : null, eps };
    const before = logits(net, clean);
    let image = clean, scores = before;
    for (let done = 0; done < steps; done++) {
      image = step(net, image, scores, clean, set);
      scores = logits(net, image);
    }
    return [[...before], [...scores]];
  });
}"""

MARGINS = """([name, images, labels, budgets]) => {
  const { network, margin } = advlibNetwork();
  const net = network(advlibLab.networks[name]);
  return budgets.map((eps) =>
    images.map((pixels, i) => margin(net, Float32Array.from(pixels), labels[i], eps)));
}"""

# red of each pixel that a picture shows
SHOWN = """canvas => [...canvas.getContext("2d").getImageData(0, 0, 28, 28).data]
  .filter((_, i) => i % 4 === 0)"""


@pytest.fixture(scope="module")
def nets():
    return lab.networks()


@pytest.fixture(scope="module")
def site(nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "lab"
    shutil.copytree(ROOT / "book" / "_static" / "lab", folder)
    lab.write_lab(folder, nets)
    (folder / "index.html").write_text(PAGE)
    return folder


@pytest.fixture
def page(site, browser):
    """The lab, opened from the disk; any error or request that leaves it fails the test."""
    page, faults, asked = browser.new_page(), [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{site}/index.html")
    ready(page)
    yield page
    page.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []


def ready(page):
    page.wait_for_selector("#lab[data-state=done]")


def attack(page):
    page.get_by_role("button", name="Attack").click()
    ready(page)
    return page.locator("#lab-status").inner_text()


def slide(page, name, value):
    page.get_by_label(name, exact=True).fill(str(value))
    ready(page)


def answers(page):
    """What the networks say now."""
    texts = page.locator(".lab-name p").all_inner_texts()
    return [int(text.split()[1].rstrip(",")) for text in texts]


def certified(page):
    """Of which networks the page says that no change breaks them."""
    texts = page.locator(".lab-proof").all_inner_texts()
    return [name for name, text in zip(NAMES, texts, strict=True) if "no change up to" in text]


def seen(page, name):
    """The image that this network's panel shows, (1, 1, 28, 28)."""
    shown = page.get_by_label(f"What the {name} network sees").evaluate(SHOWN)
    return torch.tensor(shown).view(1, 1, 28, 28) / 255


def proven(nets, x, y, eps):
    return [n for n, net in nets.items() if margin_bounds(net, x, y, eps, method="interval") > 0]


def read(nets, x):
    return [int(predict(net, x)) for net in nets.values()]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_attacks_are_those_of_pytorch(name, targeted, nets, page):
    test = load_data(device="cpu")[1]
    x, y = test.x[:12], test.y[:12]
    goal = (y + 3) % 10 if targeted else y
    arguments = [name, x.flatten(1).tolist(), goal.tolist(), targeted, EPS, STEPS]
    before, after = torch.tensor(page.evaluate(SAME_AS_PYTORCH, arguments)).unbind(1)
    exact = copy.deepcopy(nets[name]).double()  # the page, too, computes in double precision
    options = {"eps": EPS, "alpha": EPS / 10, "steps": STEPS, "targeted": targeted}
    x_adv = bim(exact, x.double(), goal, **options)
    with torch.no_grad():
        torch.testing.assert_close(before, nets[name](x), atol=1e-3, rtol=0)
        expected = exact(x_adv).float()
    # but for images, which are in single: so a gradient near 0 may get another sign
    assert ((after - expected).abs().amax(1) < 0.01).sum() >= 8
    assert (after.argmax(1) == expected.argmax(1)).sum() >= 11
    assert ((after - before).abs().amax(1) > 0.1).all()  # every image was attacked


@pytest.mark.parametrize("name", NAMES)
def test_certificates_are_advlibs_and_never_claim_more(name, nets, page):
    test, budgets = load_data(device="cpu")[1], [0, 0.05, 0.1, 0.15]
    x, y = test.x[:25], test.y[:25]
    found = page.evaluate(MARGINS, [name, x.flatten(1).tolist(), y.tolist(), budgets])
    found = torch.tensor(found, dtype=torch.float64)
    known = torch.stack([margin_bounds(nets[name], x, y, e, method="interval") for e in budgets])
    torch.testing.assert_close(found, known, atol=1e-5, rtol=0)
    assert (found < known).all()
    assert (found[0] > 0).sum() > 20 > (found[-1] > 0).sum()


def test_keys_attack_and_reset_show_what_the_networks_say(nets, page):
    x, y = (part[::2] for part in lab.digits(nets))
    options = {"eps": 0.3, "alpha": 0.03, "steps": STEPS}
    with torch.no_grad():
        attacked = torch.stack([net(bim(net, x, y, **options)) for net in nets.values()])
    # the clearest that one breaks: an image at the border may tip over by a rounding error
    gaps = attacked.topk(2).values.diff(dim=2).abs().amin((0, 2))
    label = int((gaps * (attacked[0].argmax(1) != y)).argmax())
    sure, expected = attacked[:, label].softmax(1).max(1)
    page.get_by_label(f"Test image {2 * label + 1}, a {label}").click()
    ready(page)
    assert answers(page) == [label] * 3
    assert certified(page) == proven(nets, x[label : label + 1], y[label : label + 1], 0.1) != []
    for _ in range(20):
        page.get_by_label("eps", exact=True).press("ArrowRight")
    ready(page)
    assert page.locator("output").first.inner_text() == "0.30"
    assert certified(page) == proven(nets, x[label : label + 1], y[label : label + 1], 0.3)
    broken = [name for name, says in zip(NAMES, expected, strict=True) if says != label]
    assert attack(page).startswith(f"BIM, 20 steps, breaks: {', '.join(broken)}. ")
    assert answers(page) == expected.tolist() != [label] * 3
    assert page.locator("figcaption").first.inner_text() == "step 20"
    texts = page.locator(".lab-name p").all_inner_texts()
    shown = [float(text.split()[2]) / 100 for text in texts]
    assert shown == pytest.approx(sure.tolist(), abs=0.002)
    page.get_by_role("button", name="Reset").click()
    ready(page)
    assert answers(page) == [label] * 3


def test_a_target_is_reached_only_where_it_is_read(nets, page):
    options = {"eps": 0.15, "alpha": 0.015, "steps": STEPS, "targeted": True}
    x, goal = lab.digits(nets)[0][-1:], torch.tensor([3])
    found = [int(predict(net, bim(net, x, goal, **options))) for net in nets.values()]
    assert page.get_by_label("aim at").locator("option[value='9']").is_disabled()
    page.get_by_label("aim at").select_option("3")
    slide(page, "eps", 0.15)
    reached = [name for name, says in zip(NAMES, found, strict=True) if says == 3]
    assert 0 < len(reached) < 3
    assert attack(page).startswith(f"BIM, 20 steps, gets a 3 from: {', '.join(reached)}. ")
    assert answers(page) == found


def test_noise_moves_each_pixel_by_eps_up_or_down_by_chance(nets, page):
    page.get_by_label("attack by").select_option("random noise")
    slide(page, "eps", 0.2)
    assert attack(page).startswith("Random noise, breaks: ")
    assert page.get_by_label("aim at").is_disabled()
    images = torch.cat([seen(page, name) for name in NAMES])
    rose, fell = (images - (lab.digits(nets)[0][-1:] + d).clamp(0, 1) for d in (0.2, -0.2))
    assert (torch.minimum(rose.abs(), fell.abs()) < 0.003).all()
    assert 0.45 < (rose.abs() < 0.003).float().mean() < 0.55
    assert not torch.equal(images[0], images[1])
    assert answers(page) == [read(nets, images[i : i + 1])[i] for i in range(3)]
    page.locator("#lab-sweep").click()
    page.get_by_text("Done: one draw of random noise").wait_for(timeout=90_000)
    assert page.locator(".lab-chart .lab-point").count() == 21


def test_fainter_digits_are_looked_at_and_swept_as_advlib_would(nets, page):
    (x, y), four = lab.digits(nets), ".lab-chart .lab-curve-0:nth-child(5)"
    x = x / 2
    slide(page, "contrast", 50)
    torch.testing.assert_close(seen(page, "robust"), x[-1:], atol=0.003, rtol=0)
    assert answers(page) == read(nets, x[-1:])
    for eps in (0.02, 0.05, 0.08):
        slide(page, "eps", eps)
        assert certified(page) == proven(nets, x[-1:], y[-1:], eps)
    toggle, chart = page.locator("#lab-sweep"), page.locator(".lab-chart")
    toggle.click()
    page.wait_for_selector(four, state="attached", timeout=90_000)  # the first one's four points
    toggle.click()
    assert page.locator("#lab-swept").inner_text().startswith("Stopped: BIM, 20 steps")
    share = page.locator("#lab-progress").evaluate("bar => bar.value")
    page.wait_for_timeout(1000)
    assert page.locator("#lab-progress").evaluate("bar => bar.value") == share > 0
    words = chart.get_attribute("aria-label").split(": ")[1].split("; ")
    for (name, net), said in zip(nets.items(), words, strict=True):
        counts = [text.split(", ") for text in said.removeprefix(f"{name} ").split(", certified ")]
        stands = torch.ones_like(y, dtype=torch.bool)
        for i, (count, safe) in enumerate(zip(*counts, strict=True)):
            options = {"eps": i / 20, "alpha": i / 200, "steps": STEPS, "early_exit": True}
            stands &= predict(net, bim(net, x, y, **options)) == y
            assert abs(int(count) - int(stands.sum())) <= 1  # rounding may tip one over
            assert int(safe) == (margin_bounds(net, x, y, i / 20, method="interval") > 0).sum()


def test_a_drawing_is_brought_to_the_middle_read_and_attacked(nets, page):
    box = page.locator("#lab-pad").bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 15)
    page.mouse.down()
    page.mouse.move(box["x"] + 25, box["y"] + 75, steps=8)
    page.mouse.up()
    page.get_by_label("You drew a").wait_for()
    ready(page)
    image = seen(page, "robust")
    rows, columns = (image[0, 0].amax(axis) > 0 for axis in (1, 0))
    assert rows.nonzero().flatten().tolist() == list(range(4, 24))
    assert columns.nonzero().float().mean() == pytest.approx(13.5, abs=0.5)
    assert answers(page) == read(nets, image)
    meant, taken = page.get_by_label("You drew a"), read(nets, image)[1]
    assert meant.input_value() == str(taken)
    meant.select_option(str((taken + 1) % 10))
    page.locator(".lab-name").nth(1).filter(has_text="wrong").wait_for()
    target = next(k for k in range(10) if k not in ((taken + 1) % 10, *read(nets, image)))
    page.get_by_label("aim at").select_option(str(target))
    slide(page, "eps", 0)  # what is wrong, but not as aimed, is no success
    assert attack(page).startswith(f"BIM, 20 steps, gets a {target} from: none. ")
    page.get_by_role("button", name="Clear").click()
    assert not meant.is_visible()


def test_the_still_picture_is_what_its_description_says(nets, monkeypatch):
    shown = []
    monkeypatch.setattr(lab.plots, "show_images", lambda x, titles, **_: shown.append(titles))
    lab._still(nets, *lab.digits(nets))
    assert " ".join(title.split()[1] for title in shown[0]) == "0 0 0 2 0 0"
    assert float(shown[0][3].split()[3]) > 99


def test_the_lab_is_small(site):
    assert (site / "weights.js").stat().st_size <= 3 * 400_000
    assert sum(path.stat().st_size for path in site.iterdir()) <= 1_300_000
