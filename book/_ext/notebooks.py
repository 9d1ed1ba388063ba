"""An executable page as a clean notebook, for Colab and for download."""

import hashlib
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
from contents import CODE_CELL, Book
from docutils import nodes
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_node, solution_node
from to_markdown import Page, markdown

INSTALL = """\
# @title Install advlib where it is missing (run this first)
import importlib.util

if importlib.util.find_spec("advlib") is None:
    {how}"""
FROM_GITHUB = '%pip install -q "advlib @ git+https://github.com/{slug}@{commit}"'
BY_HAND = """raise ModuleNotFoundError(
        "This notebook needs advlib. In a copy of the book's repository, run: pip install -e ."
    )"""
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}
# the project's own files that a page reads: Colab has no copy, so they go beside the notebook
DATA_FILE = re.compile(r"""(?<=["'])[\w./-]+\.json(?=["'])""")
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}

Cell = tuple[str, str, dict[str, Any]]  # kind, text, metadata


def is_code(node: nodes.Node) -> bool:
    """Whether a node is a code cell, with its outputs if it has been executed."""
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def pieces(node: nodes.Element, page: Page) -> Iterator[Cell]:
    """What stands in a page, with marks around its solutions: an exercise's label, then ""."""
    for child in node.children:
        if is_code(child):
            tags = child["cell_metadata"].get("tags", [])
            hidden = FOLDED if {"hide-input", "hide-cell"} & set(tags) else {}
            for block in child.findall(nodes.container):
                if block.get("nb_element") == "cell_code_source":
                    yield "code", block.astext(), ({"tags": tags} if tags else {}) | hidden
            yield from (("caption", markdown(n, page), {}) for n in child.findall(nodes.caption))
        elif isinstance(child, solution_node):
            yield "mark", child["target_label"], {}
            yield from pieces(child, page)
            yield "mark", "", {}
        elif isinstance(child, nodes.section | exercise_node | exercise_enumerable_node):
            yield from pieces(child, page)
        elif text := markdown(child, page):
            yield "markdown", text, {}


def cells(tree: nodes.Element, page: Page) -> list[Cell]:
    """A page's cells, and the marks: what stands between two of them is one."""
    found: list[Cell] = []
    for kind, group in groupby(pieces(tree, page), key=lambda piece: piece[0]):
        parts = list(group)
        whole = ("markdown", "\n\n".join(text for _, text, _ in parts), {})
        found += parts if kind in ("code", "mark") else [whole]
    return found


def opening(book: Book, own: list[Cell]) -> list[Cell]:
    """The cells before a page's own: they install advlib and write the data files that it reads."""
    how = FROM_GITHUB.format(slug=book.slug, commit=book.commit) if book.slug else BY_HAND
    read = {path for kind, text, _ in own if kind == "code" for path in DATA_FILE.findall(text)}
    texts = {Path(path).name: (book.root / "book" / path).read_text("utf8") for path in read}
    written = [f"%%writefile {name}\n{text}" for name, text in sorted(texts.items())]
    return [("code", text, {"cellView": "form"}) for text in (INSTALL.format(how=how), *written)]


def add_cell(nb: Any, page: Page, kind: str, text: str, metadata: dict[str, Any]) -> None:
    """Append a cell; its id depends on its place only."""
    key = hashlib.sha256(f"{page.name}:{len(nb.cells)}".encode()).hexdigest()[:12]
    new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    if kind == "code" and not text.startswith("%%writefile"):
        text = DATA_FILE.sub(lambda path: Path(path[0]).name, text)
    nb.cells.append(new(text, id=key, metadata={"id": key, **metadata}))


def notebook(tree: nodes.document, page: Page) -> Any:
    """The clean notebook of a page, without outputs; what is wrong with it is in `page.faults`."""
    nb, own = nbformat.v4.new_notebook(metadata=METADATA, nbformat_minor=5), cells(tree, page)
    written = CODE_CELL.findall((page.book.root / f"{page.name}.md").read_text("utf8"))
    if [kind for kind, *_ in own].count("code") != len(written):
        page.faults.append(f"{page.name}: a code cell is missing: nested, or removed by a tag")
    own, folded, solution = [*opening(page.book, own), *own], [], 0
    for cell, (kind, text, _) in zip(own, [*own[1:], ("mark", "", {})], strict=True):
        if cell[0] != "mark":
            add_cell(nb, page, *cell)
        elif cell[1]:
            solution = len(nb.cells)
        # A heading folds all up to the next one, so nothing else may follow a solution.
        elif kind == "mark" or (kind == "markdown" and text.startswith("#")):
            nb.cells[solution].metadata["jp-MarkdownHeadingCollapsed"] = True
            folded.append(nb.cells[solution].id)
    nb.metadata["colab"]["collapsed_sections"] = folded
    nbformat.validate(nb)
    return nb


def write(nb: Any, folder: Path, name: str) -> None:
    """Write a notebook as the file `name` in `folder`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
