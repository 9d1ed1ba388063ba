"""The book's own Sphinx extension: what the configuration file cannot say.

It finds out which repository this is (so that a fork's book opens the fork's notebooks), says
where executed pages are kept, writes the notebooks, points the page's buttons at them, and warns
about figures without a description.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from execution import cache_folder
from notebooks import find_commit, find_slug, notebook_path, read_book, write_notebooks
from pages import THEME, flat, mend, not_found
from plain_inline import UnknownMyst, site_url
from plain_markdown import running_time
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LAB = "book/attack_lab"
COLAB = "https://colab.research.google.com/github"
LOG = logging.getLogger(__name__)


def configure(app: Sphinx, config: Config) -> None:
    """Settle what depends on the repository, before myst-nb and the theme read it."""
    root = Path(app.srcdir)
    slug = find_slug(root, dict(os.environ))
    config.book_slug = slug
    os.environ.setdefault("ADVLIB_MONITOR", "static")  # the kernels inherit it
    config.nb_execution_cache_path = str(cache_folder(root))
    config.mathjax_path = "mathjax/startup.js"  # sphinx-mathjax-offline would set a larger one
    # YAML has no tuples, and Sphinx compares with tuples.
    config.nitpick_ignore = [tuple(pair) for pair in config.nitpick_ignore]
    options = config.html_theme_options
    for button in ("use_repository_button", "use_edit_page_button", "use_issues_button"):
        options[button] = slug is not None
    options["repository_url"] = f"https://github.com/{slug}" if slug else ""
    options["repository_branch"] = os.environ.get("GITHUB_REF_NAME") or "main"
    config.html_baseurl = config.ogp_site_url = site_url(slug)
    prefix = re.sub(r"^https://[^/]*", "", site_url(slug)) or "/"
    config.notfound_urls_prefix, config.notfound_context = prefix, not_found(prefix)
    if slug is None:
        config.suppress_warnings.append("sitemap.configuration")  # no address, so no sitemap


def make_notebooks(app: Sphinx) -> None:
    """Write the notebooks before anything is executed, so that a fault in a chapter shows early."""
    root = Path(app.srcdir)
    app.book = read_book(root, app.config.book_slug, find_commit(root, dict(os.environ)))
    if app.builder.format != "html":
        return
    try:
        written = write_notebooks(app.book, Path(app.outdir))
    except UnknownMyst as fault:
        raise ExtensionError(f"cannot turn the chapters into notebooks:\n{fault}") from fault
    LOG.info("wrote %d notebooks", len(written))


def make_lab(app: Sphinx, env: BuildEnvironment) -> None:
    """Write the attack lab's networks and the card."""
    if app.builder.format != "html" or LAB not in env.found_docs:
        return
    from card import write_card  # imports torch, as the lab does: other books can do without
    from lab import networks, write_lab

    nets, folder = networks(), Path(app.outdir) / "_static"
    write_lab(folder / "lab", nets)
    write_card(folder / "card.png", nets["standard"])
    if app.config.book_slug:
        app.config.ogp_image = "_static/card.png"


def add_lab(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Load the lab's files on its own page only."""
    if pagename == LAB:
        app.add_css_file("lab/lab.css")
        for script in ("network.js", "weights.js", "lab.js"):
            app.add_js_file(f"lab/{script}", loading_method="defer")


def finish(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Mend the page's HTML, and keep the running time out of what a shared link says of it."""
    if pagename == "_modules/index":
        context["body"] = flat(context["body"])
    if doctree is None:
        return
    images = app.builder.images.items()
    sources = {name: Path(app.srcdir) / source for source, name in images}
    context["body"] = mend(context["body"], sources)
    for line in list(doctree.findall(nodes.paragraph)):
        if "chapter-badges" in line["classes"]:
            line.parent.remove(line)


def trim_mathjax(app: Sphinx, failure: Exception | None) -> None:
    """Keep of MathJax what the pages can load: 18 of its 24 MB are other ways to bundle it."""
    for path in (Path(app.outdir) / "_static" / "mathjax").glob("*"):
        if path.name in ("sre", "ui"):  # for its menu, which we leave out
            shutil.rmtree(path)
        elif path.name.startswith(("tex-", "mml-", "node-")):
            path.unlink()


def colab_url(slug: str, name: str) -> str:
    """The address that opens a chapter's published notebook in Colab."""
    return f"{COLAB}/{slug}/blob/gh-pages/{notebook_path(name)}"


def set_buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give a chapter's page a Colab button (with a slug) and the clean notebook as its download.

    The theme's own Colab button would open the Markdown source, which Colab cannot run.
    """
    if pagename not in app.book.chapters:
        return
    buttons = context["header_buttons"]
    for group in buttons:
        if group.get("label") == "download-buttons":
            download = {
                "type": "link",
                "url": context["pathto"](notebook_path(pagename), 1),
                "text": ".ipynb",
                "icon": "fas fa-code",
                "tooltip": "Download notebook file",
                "label": "download-notebook-button",
            }
            kept = [b for b in group["buttons"] if b.get("label") != download["label"]]
            group["buttons"] = [download, *kept]
    if app.config.book_slug:
        buttons.insert(
            0,
            {
                "type": "link",
                "url": colab_url(app.config.book_slug, pagename),
                "text": "Colab",
                "icon": "_static/images/logo_colab.png",
                "tooltip": "Open this chapter in Colab",
                "label": "colab-button",
            },
        )


def check_alt_texts(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Warn about every image whose description is missing or is a file name."""
    for image in doctree.findall(nodes.image):
        alt = image.get("alt", "").strip()
        if not described(alt):
            LOG.warning(
                "image %s has no alt text (found %r): set mystnb: {image: {alt: ...}} on its cell",
                image.get("uri"),
                alt,
                location=image if image.source else docname,
                type="book",
                subtype="alt",
            )


def described(alt: str) -> bool:
    """Whether an alt text is words, and not empty or a file name."""
    return bool(alt.strip()) and not re.fullmatch(r"\S*\.\w{3,4}", alt.strip())


class ChapterBadges(SphinxDirective):
    """{chapter-badges}: the Colab link and the expected running time, as far as there are any."""

    def run(self) -> list[nodes.Node]:
        """One paragraph at most."""
        line = nodes.paragraph(classes=["chapter-badges"])
        if slug := self.config.book_slug:
            url = colab_url(slug, self.env.docname)
            badge = nodes.reference("", "Open in Colab", refuri=url, classes=["badge-colab"])
            line += [badge, nodes.Text(" ")]
        line += nodes.Text(running_time(Path(self.env.srcdir), self.env.docname))
        return [line] if line.astext().strip() else []


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything. Priorities: before the theme and myst-nb (100), after the theme (600)."""
    app.add_config_value("book_slug", None, "env", [str, type(None)])
    app.add_directive("chapter-badges", ChapterBadges)
    app.setup_extension("quiz")
    app.connect("config-inited", configure, priority=100)
    app.connect("builder-inited", make_notebooks)
    app.connect("env-updated", make_lab)
    app.connect("html-page-context", set_buttons, priority=600)
    app.connect("html-page-context", add_lab)
    app.connect("html-page-context", finish, priority=400)  # before sphinxext.opengraph reads it
    app.connect("build-finished", trim_mathjax, priority=900)  # after it has been copied
    app.add_js_file(None, body=THEME)
    app.connect("doctree-resolved", check_alt_texts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
