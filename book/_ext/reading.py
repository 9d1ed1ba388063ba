"""The pages as Sphinx settles them, read without executing any."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from docutils import nodes
from docutils.utils import new_document
from jupyter_book.config import get_final_config
from myst_parser.parsers.sphinx_ import MystParser
from notebooks import is_code
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import docutils_namespace, patch_docutils
from to_markdown import Page


class Captions(SphinxTransform):
    """Give a cell without outputs the caption, and so the number, of the figure that it makes."""

    default_priority = 5

    def apply(self, **options: Any) -> None:
        """Add them where they would have been."""
        for cell in self.document.findall(is_code):
            shown = cell["cell_metadata"].get("mystnb", {}).get("figure", {})
            if "caption" in shown and len(cell) == 1:
                parsed = new_document(self.document["source"], self.document.settings)
                MystParser().parse(shown["caption"], parsed)
                figure = nodes.figure("", nodes.caption("", "", *parsed[0].children))
                figure["names"] = [nodes.fully_normalize_name(shown.get("name", ""))]
                self.document.note_explicit_target(figure)
                cell += figure


def read_pages(root: Path) -> list[tuple[nodes.document, Page]]:
    """The executable pages in order; raises ValueError with what Sphinx warns of."""
    config, _ = get_final_config(
        user_yaml=root / "_config.yml",
        cli_config={"latex_individualpages": False, "nb_execution_mode": "off"},
        sourcedir=root,
    )
    read, warnings = {}, io.StringIO()
    with TemporaryDirectory() as folder, patch_docutils(), docutils_namespace():
        paths = [root, None, f"{folder}/pages", f"{folder}/trees"]
        app = Sphinx(*paths, "dummy", config, status=None, warning=warnings, freshenv=True)
        app.builder.get_target_uri = lambda name, kind=None: f"{name}.html"
        app.connect("doctree-resolved", lambda app, tree, name: read.update({name: tree}))
        app.build()
    if warnings.getvalue():
        raise ValueError(warnings.getvalue())
    return [(read[name], Page(name, app.book, app.env)) for name in app.book.chapters]
