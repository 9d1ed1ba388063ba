"""The built book in headless Chromium, as readers get it: every page, in light and in dark."""

import http.server
import importlib
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import chromium, need
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[1]
SITE = Path(os.environ.get("ADVLIB_SITE", ROOT / "_build" / "html")).resolve()
sys.path.insert(0, str(ROOT / "book" / "_ext"))
described = importlib.import_module("book_ext").described

pytestmark = pytest.mark.built
LIMIT = 2_500_000
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}

# no preload: it would fetch the style sheets again, and one of them from the wrong folder
AXE = {"resultTypes": ["violations"], "preload": False}
CONTRAST = AXE | {"runOnly": ["color-contrast"]}  # all that the dark can change
# Code looks alike everywhere, and has most of the elements: it is looked at on one page.
CODE, WITH_CODE = {"exclude": [["pre"]]}, "book/02_build_network.html"

# Everything a reader will load who scrolls to the end, and all formulas in place.
SETTLE = """async () => {
  const images = [...document.images];
  for (const image of images) image.loading = "eager";
  await Promise.allSettled(images.map((image) => image.decode()));
  await window.MathJax?.startup.promise;
  await document.fonts.ready;
}"""
IMAGES = """() => [...document.querySelectorAll("article img")].map((image) => ({
  source: image.getAttribute("src"), alt: image.alt, lazy: image.loading === "lazy",
  given: ["width", "height"].map((side) => Number(image.getAttribute(side))),
  natural: [image.naturalWidth, image.naturalHeight],
  background: getComputedStyle(image).backgroundColor, filter: getComputedStyle(image).filter,
}))"""
FORMULAS = """() => ({
  written: document.querySelectorAll("article .math").length,
  drawn: document.querySelectorAll("article .math mjx-container").length,
  wrong: [...document.querySelectorAll("mjx-merror")].map((e) => e.textContent),
})"""
# What sticks out of the page, for a message that names it.
WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] :
  [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth || e.scrollWidth > innerWidth)
    .map((e) => e.outerHTML.slice(0, 90)).slice(-5)"""


def page_names() -> list[str]:
    paths = sorted(SITE.rglob("*.html"))
    names = [path.relative_to(SITE).as_posix() for path in paths]
    # the root is only a redirect to the front page; listings of source all look alike
    listings = [name for name in names if name.startswith("_modules/")]
    left_out = {"index.html", *sorted(listings, key=lambda n: (SITE / n).stat().st_size)[:-1]}
    return [n for n in names if not n.startswith("_static/") and n not in left_out]


@pytest.fixture(scope="module")
def site():
    """The site's address: served as GitHub Pages does, under its prefix and with its 404 page."""
    need(SITE.is_dir(), f"needs the built book in {SITE}: make book")
    lost = (SITE / "404.html").read_text(encoding="utf8")
    prefix = re.search(r'href="(/(?:[^"]*/)?)_static/', lost)[1]

    class Handler(http.server.SimpleHTTPRequestHandler):
        error_message_format = lost.replace("%", "%%")

        def translate_path(self, path):
            return super().translate_path(path.removeprefix(prefix[:-1]))

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{prefix}"
    server.shutdown()
    server.server_close()


def listen(page, site):
    """What goes wrong on this page from now on, and the files that it loads."""
    faults, files = [], set()

    def note(request):
        if request.url.startswith(site):
            files.add(unquote(urlsplit(request.url.removeprefix(site)).path))
        elif not request.url.startswith(("data:", "blob:")):
            faults.append(f"asks for {request.url}")

    page.on("request", note)
    page.on("requestfailed", lambda request: faults.append(f"{request.url}: {request.failure}"))
    page.on("pageerror", lambda error: faults.append(f"script fails: {error}"))
    page.on("response", lambda r: r.ok or faults.append(f"{r.url}: {r.status}"))
    page.on("console", lambda m: m.type == "error" and faults.append(f"console: {m.text}"))
    return faults, files


def audit(page, context, options):
    """axe's serious and critical findings, one line per element."""
    return [
        f"{fault['id']}: {node['target']} {node['html'][:120]} {node['failureSummary'][-200:]}"
        for fault in Axe().run(page, context, options).response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def bare(image, first):
    """Whether an image lacks what it should have before it is looked at."""
    complete = described(image["alt"]) and all(image["given"])
    return not complete or image["lazy"] == first


def ugly(image):
    """Whether an image is drawn in another shape than its own, or hard to read in the dark."""
    (width, height), (w, h) = image["natural"], image["given"]
    legible = (image["background"], image["filter"]) == ("rgb(255, 255, 255)", "none")
    return not legible or abs(width * h - height * w) > width + height


def visit(page, site, name):
    """Load a page, look at it in light and in dark and on a phone, and say what is wrong."""
    found, context = {}, None if name == WITH_CODE else CODE
    found["loads from this site alone"], files = listen(page, site)
    page.goto(site + name)
    images = page.evaluate(IMAGES)
    bad = [image for i, image in enumerate(images) if bare(image, first=i == 0)]
    found["has images described, sized and loaded when needed"] = bad
    page.evaluate(SETTLE)
    formulas = page.evaluate(FORMULAS)
    undrawn = formulas["wrong"] or formulas["drawn"] < formulas["written"]
    found["draws its formulas"] = [formulas] if undrawn else []
    found["is accessible in the light"] = audit(page, context, AXE)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    found["keeps images in shape and legible"] = [*filter(ugly, page.evaluate(IMAGES))]
    found["is accessible in the dark"] = audit(page, context, CONTRAST)
    page.set_viewport_size(PHONE)
    found["fits on a phone"] = page.evaluate(WIDE)
    paths = [SITE / file for file in files]  # a missing one is among the faults
    weight = sum(path.stat().st_size for path in paths if path.is_file())
    found["is light"] = [weight] if weight > LIMIT else []
    print(f"{weight / 1e6:5.2f} MB  {name}")
    return found, len(images), formulas["written"]


def visit_some(site, names):
    found = {}
    with chromium() as browser:
        for name in names:
            page = browser.new_page(viewport=DESK, color_scheme="light", reduced_motion="reduce")
            found[name] = visit(page, site, name)
            page.close()
    return found


@pytest.fixture(scope="module")
def visits(site):
    """Every page, visited once, by as many browsers at a time as there are cores."""
    names, n = page_names(), os.cpu_count() or 1
    with ThreadPoolExecutor(n) as pool:
        parts = pool.map(partial(visit_some, site), [names[i::n] for i in range(n)])
        return {name: found for part in parts for name, found in part.items()}


FACTS = [
    *("loads from this site alone", "is light", "fits on a phone", "draws its formulas"),
    *("is accessible in the light", "is accessible in the dark"),
    *("has images described, sized and loaded when needed", "keeps images in shape and legible"),
]


@pytest.mark.parametrize("fact", FACTS)
def test_every_page(fact, visits):
    faults = [f"{name}: {fault}" for name, (found, *_) in visits.items() for fault in found[fact]]
    assert not faults, "\n".join(faults)


def test_pages_images_and_formulas_are_many(visits):
    assert len(visits) > 15
    assert WITH_CODE in visits
    assert sum(images for _, images, _ in visits.values()) > 20
    assert sum(formulas for *_, formulas in visits.values()) > 50


def test_a_quiz_answers_at_once_by_mouse_and_by_keyboard(site, browser):
    page = browser.new_page()
    page.goto(f"{site}book/04_bim_attack.html")
    quiz = page.locator(".quiz").first
    wrong, right = quiz.locator("details.wrong").first, quiz.locator("details.right")
    expect(quiz.get_by_text("✗ Not this one.").first).to_be_hidden()
    wrong.locator("summary").click()
    expect(wrong.get_by_text("✗ Not this one.")).to_be_visible()
    right.locator("summary").press("Enter")
    expect(right.get_by_text("✓ Right.")).to_be_visible()
    expect(wrong.get_by_text("✗ Not this one.")).to_be_hidden()  # one answer at a time
    page.close()


def test_search_finds_a_word(site, browser):
    page = browser.new_page()
    page.goto(f"{site}search.html?q=projection")
    page.locator("#search-results a[href*='book/04_bim_attack.html']").first.wait_for()
    page.close()


def test_an_address_that_is_not_there_leads_back(site, browser):
    page = browser.new_page()
    faults, files = listen(page, site)
    lost = "book/no/such/page.html"
    assert page.goto(site + lost).status == 404
    page.evaluate(SETTLE)
    assert [fault for fault in faults if lost not in fault and "status of 404" not in fault] == []
    assert "_static/book.css" in files
    for link in page.locator("article a:not(.headerlink)").all():
        assert page.request.get(page.evaluate("a => a.href", link.element_handle())).ok
    page.close()
