"""Print the book's single page as a PDF: python -m tools.print_book _build/singlehtml book.pdf

Chromium does the printing, so the page looks as on the site. What folds on the site is printed
open, as paper can't be clicked.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

OPEN_ALL = """
for (const image of document.images) image.loading = "eager";
for (const fold of document.querySelectorAll("details")) {
  fold.removeAttribute("name");
  fold.open = true;
}
for (const fold of document.querySelectorAll(".toggle-hidden")) {
  fold.classList.remove("toggle-hidden");
}
await Promise.all([...document.images].map((image) => image.decode()));
"""
PAGE_NUMBER = """<div style="font: 8pt sans-serif; width: 100%; text-align: center">
<span class="pageNumber"></span></div>"""
MARGIN = {"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}


def print_book(site: Path, pdf: Path) -> None:
    """Print the page that Sphinx's singlehtml builder wrote under `site`."""
    # Its links to styles and pictures count from the top, but it is written beside its source;
    # links that the pages wrote themselves, as HTML, count from there.
    html = (site / "book" / "index.html").read_text(encoding="utf-8")
    page_file = site / "print.html"
    page_file.write_text(html.replace('src="../', 'src="'), encoding="utf-8")
    system = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(page_file.resolve().as_uri())
        page.evaluate("MathJax.startup.promise")
        page.evaluate(f"async () => {{ {OPEN_ALL} }}")
        page.emulate_media(media="print", color_scheme="light")
        page.pdf(
            path=pdf,
            format="A4",
            scale=0.8,
            margin=MARGIN,
            print_background=True,
            outline=True,
            tagged=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=PAGE_NUMBER,
        )
        browser.close()


if __name__ == "__main__":
    print_book(Path(sys.argv[1]), Path(sys.argv[2]))
