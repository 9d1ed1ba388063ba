"""Two pixels to drag, in headless Chromium: PyTorch's numbers, and a point that moves."""

from functools import partial
from pathlib import Path

import pytest
import torch

from advlib import bim, fgsm
from advlib.book import figures

FOLDER = Path(__file__).resolve().parents[1] / "book" / "_static" / "pixels"
PAGE = """<!doctype html><html lang="en"><meta charset="utf8"><title>pixels</title>
<link rel="stylesheet" href="{0}/pixels.css">
<figure id="fig-projection"><img alt="still"><figcaption>caption</figcaption></figure>
<figure id="fig-linear"><img alt="still"><figcaption>caption</figcaption></figure>
<script src="{0}/pixels.js" defer></script>"""

ENDS = """([name, points, eps]) => points.map((x) => {
  const { MODELS, margin, path } = advlibPixels;
  const ends = [[eps, 1], [eps / 10, 20]].map(([alpha, k]) => path(MODELS[name], x, eps, alpha, k));
  const images = [x, ...ends.map((way) => way.at(-1))];
  return images.map((end) => [...end, margin(MODELS[name], end)]);
})"""


def model(stored):
    """The script's model as a network with two logits, the margin and 0: class 0 is right."""
    inner, outer = (torch.tensor(stored[part]).double() for part in ("inner", "outer"))
    layers = [torch.nn.Linear(2, len(inner)), torch.nn.Tanh(), torch.nn.Linear(len(inner), 2)]
    net = torch.nn.Sequential(*(layers if stored["curved"] else layers[::2])).double()
    with torch.no_grad():
        net[0].weight.copy_(inner), net[0].bias.copy_(torch.tensor(stored["offsets"]))
        net[-1].weight.copy_(torch.stack([outer, 0 * outer]))
        net[-1].bias.copy_(torch.tensor([stored["last"], 0.0]))
    return net


@pytest.fixture
def page(browser, tmp_path):
    """Both places, opened from the disk; any error or request that leaves it fails the test."""
    (tmp_path / "index.html").write_text(PAGE.format(FOLDER.as_uri()))
    page, faults, asked = browser.new_page(viewport={"width": 390, "height": 844}), [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "index.html").as_uri())
    yield page
    page.close()
    assert faults == []
    assert [url for url in asked if not url.startswith("file:")] == []


@pytest.mark.parametrize("name", ["a straight line", "a curved network"])
def test_margins_and_attacks_are_those_of_pytorch(name, page):
    net = model(page.evaluate("name => advlibPixels.MODELS[name]", name))
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)).double()
    y, eps = torch.zeros(200, dtype=torch.int64), 0.15
    found = torch.tensor(page.evaluate(ENDS, [name, x.tolist(), eps])).double()
    attacked = fgsm(net, x, y, eps=eps), bim(net, x, y, eps=eps, alpha=eps / 10, steps=20)
    expected = torch.stack([x, *attacked], 1)
    margins = net(expected)[..., :1]
    torch.testing.assert_close(found, torch.cat([expected, margins], 2), atol=1e-6, rtol=0)
    _, after_fgsm, after_bim = (margins[..., 0] > 0).unbind(1)
    assert (after_fgsm & ~after_bim).any() == (name == "a curved network")  # where FGSM misses


def test_the_still_picture_shows_the_same_network(page):
    net = model(page.evaluate("advlibPixels.MODELS['a curved network']")).float()
    x = torch.rand(50, 2)
    torch.testing.assert_close(figures.two_pixel_network()(x), net(x))


def test_keys_and_mouse_move_the_point_and_the_text_follows(page):
    widget = page.locator("#fig-projection")
    status, point = widget.get_by_role("status"), widget.get_by_label("The image")
    assert not widget.locator("img").is_visible()
    first = status.inner_text()
    assert "After FGSM: right ✓" in first
    assert "After BIM: wrong ✗" in first
    point.press("ArrowLeft")
    point.press("Shift+ArrowDown")
    assert point.get_attribute("aria-valuetext") == "pixel 1 0.12, pixel 2 0.70"
    assert status.inner_text() != first
    box = widget.locator(".pixels-right").bounding_box()
    page.mouse.move(*centre(point.bounding_box()))
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.4 * box["height"], steps=4)
    page.mouse.up()
    assert status.inner_text().startswith("The image: wrong ✗")
    widget.get_by_label("eps").fill("0")
    widget.get_by_label("Model").select_option("a straight line")
    assert widget.get_by_role("status").inner_text().count("margin −0.45") == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_finger_drags_the_point_and_not_the_page(page):
    point = page.locator("#fig-projection .pixels-point")
    x, y = centre(point.bounding_box())
    touch = partial(page.context.new_cdp_session(page).send, "Input.dispatchTouchEvent")
    touch({"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for far in range(10, 90, 10):
        touch({"type": "touchMove", "touchPoints": [{"x": x + far, "y": y + far}]})
    touch({"type": "touchEnd", "touchPoints": []})
    reached = centre(point.bounding_box())
    assert reached == pytest.approx((x + 80, y + 80), abs=1)  # it would not, had the page moved


def centre(box):
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
