"""Checks of the built site, run by `make book`: python book/_ext/check_html.py _build/html

Sphinx does not look at what it wrote: a cell's traceback, a link to a notebook that is not there
and a picture without a description are all valid HTML.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

COLAB = "https://colab.research.google.com/"
PICTURE = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")


class PageReader(HTMLParser):
    """Collects a page's links, ids and article images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.images: list[tuple[str, str]] = []
        self.depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what this tag refers to."""
        given = {key: value or "" for key, value in attributes}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        self.links += [given[key] for key in ("href", "src") if given.get(key)]
        self.depth += tag == "article"
        if tag == "img" and self.depth:
            self.images.append((given.get("src", "")[:80], given.get("alt", "")))

    def handle_endtag(self, tag: str) -> None:
        """Leave the article, where the theme's own pictures are."""
        self.depth -= tag == "article"


def check(site: Path) -> list[str]:
    """Every fault of the site under `site`, one line each."""
    paths = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.relative_to(site).parts]
    texts = {path: path.read_text(encoding="utf8") for path in paths}
    if not texts:
        return [f"{site}: no pages"]
    pages = {path: PageReader(text) for path, text in texts.items()}
    faults = []
    for path, page in pages.items():
        name = path.relative_to(site)
        if "Traceback (most recent call last)" in texts[path]:
            faults.append(f"{name}: a traceback")
        for source, alt in page.images:
            if not alt.strip() or alt.strip().lower().endswith(PICTURE):
                faults.append(f"{name}: no alt text for {source} (alt={alt!r})")
        if name.name != "404.html":  # served at any depth, so its links are absolute
            faults += [f"{name}: {fault}" for fault in broken_links(path, page, pages, site)]
    return faults + notebook_faults(pages, site)


def broken_links(
    path: Path, page: PageReader, pages: dict[Path, PageReader], site: Path
) -> list[str]:
    """Local links of one page that lead nowhere."""
    faults = []
    # viewcode links a source page back to names it guesses from the module, not always documented.
    is_source = "_modules" in path.relative_to(site).parts
    for link in page.links:
        parts = urlsplit(link)
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


def notebook_faults(pages: dict[Path, PageReader], site: Path) -> list[str]:
    """Colab links without their notebook; where there are any, also notebooks without a link."""
    faults, linked = [], set()
    for path, page in pages.items():
        for link in page.links:
            if link.startswith(COLAB):
                notebook = site / unquote(link.partition("/blob/gh-pages/")[2])
                linked.add(notebook)
                if not notebook.is_file():
                    faults.append(f"{path.relative_to(site)}: Colab link without its file: {link}")
    if linked:
        unlinked = set(site.glob("notebooks/*.ipynb")) - linked
        faults += [f"notebook that no Colab link opens: {path.name}" for path in sorted(unlinked)]
    return faults


def main() -> int:
    """Print the faults; 1 if there are any."""
    site = Path(sys.argv[1])
    faults = check(site)
    print("\n".join(faults) or f"{site}: no tracebacks, no broken links, no undescribed pictures")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
