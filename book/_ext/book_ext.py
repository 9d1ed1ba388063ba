"""The book's own Sphinx extension: what the configuration file cannot say."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from contents import notebook_path, read_book, site_url
from docutils import nodes
from execution import cache_folder, running_time
from myst_nb.sphinx_ import HideCodeCellNode, depart_HideCellInput, visit_HideCellInput
from notebooks import notebook, write
from pages import THEME, flat, mend, not_found
from quiz import Quiz
from reading import Captions
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from to_markdown import Page

LAB = "book/attack_lab"
PIXELS = ("book/02_build_network", "book/04_bim_attack")
COLAB = "https://colab.research.google.com/github"
LOG = logging.getLogger(__name__)


def configure(app: Sphinx, config: Config) -> None:
    """Settle what depends on the repository, before myst-nb and the theme read it."""
    root, app.faults = Path(app.srcdir), []
    app.book = read_book(root, dict(os.environ))
    slug = config.book_slug = app.book.slug
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


def make_notebook(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Write the notebook of an executable page."""
    if app.builder.format == "html" and docname in app.book.chapters:
        page = Page(docname, app.book, app.env)
        write(notebook(doctree, page), Path(app.outdir), notebook_path(docname))
        app.faults += page.faults


def refuse_faults(app: Sphinx, failure: Exception | None) -> None:
    """Fail with everything that has no form in a notebook."""
    if app.faults and not failure:
        raise ExtensionError("cannot turn pages into notebooks:\n" + "\n".join(app.faults))


def make_lab(app: Sphinx, env: BuildEnvironment) -> None:
    """Write the attack lab's networks and the card."""
    if app.builder.format != "html" or LAB not in env.found_docs:
        return
    from lab import networks, write_card, write_lab  # imports torch: other books do without

    nets, folder = networks(), Path(app.outdir) / "_static"
    write_lab(folder / "lab", nets)
    write_card(folder / "card.png", nets["standard"])
    if app.config.book_slug:
        app.config.ogp_image = "_static/card.png"


def finish(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Mend the page's HTML, and keep the running time out of what a shared link says of it."""
    if name == "_modules/index":
        context["body"] = flat(context["body"])
    if name == LAB:
        app.add_css_file("lab/lab.css")
        for script in ("network.js", "weights.js", "lab.js"):
            app.add_js_file(f"lab/{script}", loading_method="defer")
    if name in PIXELS:
        app.add_css_file("pixels/pixels.css")
        app.add_js_file("pixels/pixels.js", loading_method="defer")
    if tree is not None:
        images = app.builder.images.items()
        sources = {shown: Path(app.srcdir) / source for source, shown in images}
        context["body"] = mend(context["body"], sources)
        for line in list(tree.findall(nodes.paragraph)):
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


def set_buttons(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Give a chapter's page a Colab button (with a slug) and the clean notebook as its download.

    The theme's own Colab button would open the Markdown source, which Colab cannot run.
    """
    if name not in app.book.chapters:
        return
    clean = {"label": "download-notebook-button", "text": ".ipynb", "icon": "fas fa-code"}
    clean |= {"type": "link", "tooltip": "Download notebook file"}
    clean["url"] = context["pathto"](notebook_path(name), 1)
    buttons = context["header_buttons"]
    for group in buttons:
        if group.get("label") == "download-buttons":
            kept = [b for b in group["buttons"] if b.get("label") != clean["label"]]
            group["buttons"] = [clean, *kept]
    if slug := app.config.book_slug:
        colab = {"label": "colab-button", "text": "Colab", "icon": "_static/images/logo_colab.png"}
        colab |= {"type": "link", "tooltip": "Open this chapter in Colab"}
        buttons.insert(0, colab | {"url": colab_url(slug, name)})


def check_alt_texts(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Warn about every image whose description is missing or is a file name."""
    advice = "image %s has no alt text (found %r): set mystnb: {image: {alt: ...}} on its cell"
    for image in doctree.findall(nodes.image):
        if not described(alt := image.get("alt", "")):
            place = image if image.source else docname
            LOG.warning(advice, image["uri"], alt, location=place, type="book", subtype="alt")


def described(alt: str) -> bool:
    """Whether an alt text is words, and not empty or a file name."""
    return bool(alt.strip()) and not re.fullmatch(r"\S*\.\w{3,4}", alt.strip())


class ChapterBadges(SphinxDirective):
    """{chapter-badges}: the Colab link and the expected running time, as far as there are any.

    On the front page it holds a line of links, which are shown as buttons in place of the time.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One paragraph at most."""
        name, slug, line = self.env.docname, self.config.book_slug, []
        words, classes = "Run it on Colab" if self.content else "Open in Colab", ["chapter-badges"]
        if slug:
            place = {"refuri": colab_url(slug, name), "classes": ["badge-colab"]}
            line = [nodes.reference("", words, **place), nodes.Text(" ")]
        if self.content:
            line += self.parse_content_to_nodes()[0].children
            classes.append("front-buttons")
        elif time := running_time(Path(self.env.srcdir), name):
            line.append(nodes.Text(time))
        return [nodes.paragraph("", "", *line, classes=classes)] if line else []


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect everything. Priorities: before the theme and myst-nb (100), after the theme (600)."""
    app.add_config_value("book_slug", None, "env", [str, type(None)])
    app.add_directive("chapter-badges", ChapterBadges)
    app.add_directive("quiz", Quiz)
    app.connect("config-inited", configure, priority=100)
    app.add_transform(Captions)
    # the PDF's builder: myst-nb names html alone, and others' nodes for singlehtml hide that
    folded = visit_HideCellInput, depart_HideCellInput
    app.add_node(HideCodeCellNode, override=True, singlehtml=folded)
    app.connect("doctree-resolved", make_notebook, priority=400)
    app.connect("build-finished", refuse_faults)
    app.connect("env-updated", make_lab)
    app.connect("html-page-context", set_buttons, priority=600)
    app.connect("html-page-context", finish, priority=400)  # before sphinxext.opengraph reads it
    app.connect("build-finished", trim_mathjax, priority=900)  # after it has been copied
    app.add_js_file(None, body=THEME)
    app.connect("doctree-resolved", check_alt_texts)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
