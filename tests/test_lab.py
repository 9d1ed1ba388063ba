"""The attack lab in headless Chromium: it computes what PyTorch does, and its controls work."""

import copy
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch

from advlib import bim, load_data, predict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
lab = importlib.import_module("lab")
EPS, STEPS = 0.1, 20

PAGE = """<!doctype html><html lang="en"><meta charset="utf8"><title>lab</title>
<link rel="stylesheet" href="lab.css"><div id="lab" class="lab">still</div>
<script src="network.js"></script><script src="weights.js"></script><script src="lab.js"></script>
"""

SAME_AS_PYTORCH = """([name, images, labels, eps, alpha, steps]) => {
  const { network, logits, step } = advlibNetwork();
  const net = network(advlibLab.networks[name]);
  return images.map((pixels, i) => {
    const clean = Float32Array.from(pixels);
    const before = logits(net, clean);
    let image = clean, scores = before;
    for (let done = 0; done < steps; done++) {
      image = step(net, image, scores, clean, labels[i], eps, alpha);
      scores = logits(net, image);
    }
    return [[...before], [...scores]];
  });
}"""

# red of each pixel that the robust network's picture shows
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
    page.wait_for_function("document.querySelector('.lab-status').textContent.includes('robust')")


def answers(page):
    """What both networks say now, by name."""
    texts = page.locator(".lab-verdict").all_inner_texts()
    return [int(text.split()[1].rstrip(",")) for text in texts]


@pytest.mark.parametrize("name", ["standard", "robust"])
def test_logits_and_attacks_are_those_of_pytorch(name, nets, page):
    test = load_data(device="cpu")[1]
    x, y = test.x[:25], test.y[:25]
    arguments = [name, x.flatten(1).tolist(), y.tolist(), EPS, EPS / 8, STEPS]
    before, after = torch.tensor(page.evaluate(SAME_AS_PYTORCH, arguments)).unbind(1)
    with torch.no_grad():
        torch.testing.assert_close(before, nets[name](x), atol=1e-3, rtol=0)
    # A gradient near 0 may get another sign by rounding: PyTorch, too, is asked twice.
    exact, options = copy.deepcopy(nets[name]).double(), {"alpha": EPS / 8, "steps": STEPS}
    once = predict(nets[name], bim(nets[name], x, y, eps=EPS, **options))
    settled = once == predict(exact, bim(exact, x.double(), y, eps=EPS, **options))
    assert settled.sum() >= 23
    assert torch.equal(after.argmax(1)[settled], once[settled])
    assert ((after - before).abs().amax(1) > 0.1).all()  # every image was attacked


def test_keys_attack_and_reset_show_what_both_networks_say(nets, page):
    test = load_data(device="cpu")[1]
    # the first image of each class that both get right, as the lab has chosen them
    right = torch.stack([predict(net, test.x) == test.y for net in nets.values()]).all(0)
    chosen = [int((right & (test.y == k)).nonzero()[0]) for k in range(10)]
    x, y = test.x[chosen], test.y[chosen]
    options = {"eps": 0.3, "alpha": 0.3 / 8, "steps": STEPS}
    with torch.no_grad():
        attacked = torch.stack([net(bim(net, x, y, **options)) for net in nets.values()])
    # the clearest that one breaks: an image at the border may tip over by a rounding error
    gaps = attacked.topk(2).values.diff(dim=2).abs().amin((0, 2))
    label = int((gaps * (attacked[0].argmax(1) != y)).argmax())
    expected = attacked[:, label].argmax(1).tolist()
    page.get_by_label(f"Test image {2 * label + 1}, a {label}").click()
    ready(page)
    assert answers(page) == [label, label]
    for _ in range(20):
        page.get_by_label("eps").press("ArrowRight")
    assert page.locator("output").inner_text() == "0.30"
    attack(page)
    assert answers(page) == expected != [label, label]
    assert "after step 20" in page.locator(".lab-verdict").first.inner_text()
    page.get_by_role("button", name="Reset").click()
    ready(page)
    assert answers(page) == [label, label]


def test_a_drawing_is_brought_to_the_middle_read_and_attacked(nets, page):
    box = page.locator(".lab-pad").bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 15)
    page.mouse.down()
    page.mouse.move(box["x"] + 25, box["y"] + 75, steps=8)
    page.mouse.up()
    page.get_by_label("You drew a").wait_for()
    ready(page)
    shown = page.get_by_label("What the robust network sees").first.evaluate(SHOWN)
    seen = torch.tensor(shown).view(1, 1, 28, 28) / 255
    rows, columns = (seen[0, 0].amax(axis) > 0 for axis in (1, 0))
    assert rows.nonzero().flatten().tolist() == list(range(4, 24))
    assert columns.nonzero().float().mean() == pytest.approx(13.5, abs=0.5)
    read = [int(predict(net, seen)) for net in nets.values()]
    assert answers(page) == read
    meant = page.get_by_label("You drew a")
    assert meant.input_value() == str(read[1])
    meant.select_option(str((read[1] + 1) % 10))
    page.locator(".lab-verdict").nth(1).filter(has_text="wrong").wait_for()
    attack(page)
    page.get_by_role("button", name="Clear").click()
    assert not meant.is_visible()


def test_the_lab_is_small(site):
    assert (site / "weights.js").stat().st_size <= 2 * 400_000
    assert sum(path.stat().st_size for path in site.iterdir()) <= 1_200_000
