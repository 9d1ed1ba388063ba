"""What Sphinx leaves unchecked in a site: python book/_ext/check_html.py _build/html"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

COLAB = "https://colab.research.google.com/"


class PageReader(HTMLParser):
    """Collects a page's links and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what this tag refers to."""
        given = {key: value for key, value in attributes if value}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        self.links += [given[key] for key in ("href", "src") if key in given]


def check(site: Path) -> list[str]:
    """Every fault of the site under `site`, one line each."""
    paths = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.relative_to(site).parts]
    pages = {path: PageReader(path.read_text(encoding="utf8")) for path in paths}
    faults = [] if pages else [f"{site}: no pages"]
    for path, page in pages.items():
        name = path.relative_to(site)
        if "Traceback (most recent call last)" in page.text:
            faults.append(f"{name}: a traceback")
        if "&lt;Figure size" in page.text:
            faults.append(f"{name}: a figure's name in place of its picture")
        if path.name != "404.html":  # served at any depth, so its links are absolute
            faults += [f"{name}: {fault}" for fault in broken_links(path, pages, site)]
    return faults


def notebook(link: str, site: Path) -> Path | None:
    """The file that a Colab link opens."""
    return site / unquote(link.partition("/blob/gh-pages/")[2]) if link.startswith(COLAB) else None


def broken_links(path: Path, pages: dict[Path, PageReader], site: Path) -> list[str]:
    """Links of one page that lead nowhere: local ones, and Colab's to notebooks of ours."""
    faults = []
    # viewcode links a source page back to names it guesses from the module, not always documented.
    is_source = "_modules" in path.relative_to(site).parts
    for link in pages[path].links:
        parts = urlsplit(link)
        opened = notebook(link, site)
        if opened and not opened.is_file():
            faults.append(f"Colab link without its file: {link}")
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            faults.append(f"link to a missing file: {link}")
        elif target.suffix == ".html" and parts.fragment and not is_source:
            found = pages.get(site / target.relative_to(site.resolve()))
            if found and unquote(parts.fragment) not in found.ids:
                faults.append(f"link to a missing place: {link}")
    return faults


if __name__ == "__main__":
    site = Path(sys.argv[1])
    found = check(site)
    print("\n".join(found) or f"{site}: no tracebacks, no broken links")
    sys.exit(bool(found))
