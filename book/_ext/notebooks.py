"""The book's chapters as clean notebooks, for Colab and for download.

`read_book` finds the chapters through `_toc.yml` and what they may refer to; `notebook` makes one;
`write_notebooks` writes them all. No Sphinx is needed, so tests can call this directly.
"""

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from plain_inline import Book, Page, UnknownMyst
from plain_markdown import FOLD, UNFOLD, caption, convert
from pybtex.database import parse_file

INSTALL = """\
# @title Install advlib where it is missing (run this first)
import importlib.util

if importlib.util.find_spec("advlib") is None:
"""
INSTALL_FROM = '    %pip install -q "advlib @ git+https://github.com/{slug}@{commit}"'
INSTALL_BY_HAND = """\
    raise ModuleNotFoundError(
        "This notebook needs advlib. In a copy of the book's repository, run: pip install -e ."
    )"""

# What must not be left over: fences of directives, roles, targets, links to Markdown sources.
RAW_MYST = re.compile(
    r"""^[ >]*:{3,} | ^[ >]*[`~]{3,}\{ | \{[\w:.+-]+\}` | ^\([^()\s]+\)= | \{(?:cite|ref)
    | \]\((?!https?:)[^)\s]*\.md\b | ^% | ^\+\+\+ | \x00""",
    re.M | re.X,
)
NOT_TEXT = re.compile(r"(?<![}`])(`+)(?!`).+?(?<!`)\1(?!`)|\$\$.*?\$\$|\$[^$\n]+\$", re.S)
# a page's name: no part of it is empty or begins with a dot, so it can't lead out of its folder
PAGE = re.compile(r"([^./\\:][^/\\:]*/)*[^./\\:][^/\\:]*")
FENCED = re.compile(r"^([ >]*)(`{3,}|~{3,})(?!\{).*?^\1\2", re.M | re.S)


def read_toc(root: Path) -> list[tuple[str, str]]:
    """Every page in order, as (name, number); the number is "" outside numbered parts."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf8"))
    pages, count = [(toc["root"], "")], 0

    def walk(entries: list[dict[str, Any]], numbered: bool) -> Iterator[tuple[str, str]]:
        nonlocal count
        for entry in entries:
            count += numbered
            yield entry["file"], str(count) if numbered else ""
            yield from ((name, "") for name, _ in walk(entry.get("sections", []), False))

    for part in toc.get("parts", [toc]):
        pages += walk(part.get("chapters", []), bool(part.get("numbered")))
    for name, _ in pages:
        if not PAGE.fullmatch(str(name)):
            raise ValueError(f"_toc.yml: {name!r} is no page under the book's folder")
    return pages


def is_chapter(path: Path) -> bool:
    """Whether a source is executable: a notebook header and at least one code cell."""
    text = path.read_text(encoding="utf8") if path.suffix == ".md" and path.exists() else ""
    header = re.match(r"---\n(.*?)\n---\n", text, re.S)
    has_kernel = header is not None and "kernelspec" in header[1]
    return has_kernel and re.search(r"^`{3,}\{code-cell", text, re.M) is not None


def read_book(root: Path, slug: str | None = None, commit: str = "HEAD") -> Book:
    """The book under `root`: its pages, labels and citations."""
    toc = read_toc(root)
    book = Book(root, slug=slug, commit=commit, numbers={name: n for name, n in toc if n})
    sources = {name: root / f"{name}.md" for name, _ in toc}
    book.chapters = [name for name, path in sources.items() if is_chapter(path)]
    for path, count in Counter(map(notebook_path, book.chapters)).items():
        if count > 1:
            raise ValueError(f"_toc.yml: {count} chapters would be {path}, give them other names")
    for name, path in sources.items():
        text = path.read_text(encoding="utf8") if path.exists() else ""
        title = re.search(r"^# (.*)$", text, re.M)
        book.pages[name] = title[1].strip() if title else name
    bibliography = root / "book" / "references.bib"
    if bibliography.exists():
        book.citations = read_citations(bibliography)
    for name, path in sources.items():
        if path.exists():
            for _ in cells(jupytext.read(path, fmt="md:myst"), Page(name, book, collect=True)):
                pass
    return book


def read_citations(path: Path) -> dict[str, dict[str, str]]:
    """Names, year, title and address of every entry of a BibTeX file."""
    found = {}
    for key, entry in parse_file(str(path)).entries.items():
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        last = [
            " ".join(str(part) for part in (*person.rich_prelast_names, *person.rich_last_names))
            for person in people
        ]
        names = f"{last[0]} et al." if len(last) > 2 else " and ".join(last) or key
        url = entry.fields.get("url", "")
        if not url and "doi" in entry.fields:
            url = f"https://doi.org/{entry.fields['doi']}"
        if not url and "eprint" in entry.fields:
            url = f"https://arxiv.org/abs/{entry.fields['eprint']}"
        title = re.sub(r"[{}]", "", entry.fields.get("title", ""))
        found[key] = {"names": names, "year": entry.fields.get("year", "n.d."), "url": url}
        found[key]["title"] = title
    return found


def cells(source: Any, page: Page) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A chapter's cells in plain form, as (type, text, metadata), with marks around solutions."""
    for cell in source.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.get("tags", [])
            hidden = any(tag.startswith(("hide-input", "hide-cell", "remove-")) for tag in tags)
            metadata: dict[str, Any] = {"tags": tags} if tags else {}
            if hidden:  # folded, not dropped: later cells need what it defines
                metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
            yield "code", cell.source, metadata
            shown = cell.metadata.get("mystnb", {}).get("figure", {})
            if words := caption(page, "Fig.", shown.get("caption", ""), shown.get("name", "")):
                yield "markdown", words, {}
        else:
            text = convert(cell.source, page)
            for part in re.split(f"^({FOLD}|{UNFOLD})$", text, flags=re.M):
                if part in (FOLD, UNFOLD):
                    yield "mark", part, {}
                elif part.strip():
                    yield "markdown", part.strip(), {}


def opening(source: Any, book: Book) -> list[tuple[str, str, dict[str, Any]]]:
    """The cells before a notebook's own: they install advlib and write the data files."""
    how = INSTALL_FROM.format(slug=book.slug, commit=book.commit) if book.slug else INSTALL_BY_HAND
    texts = [INSTALL + how, *data_files(source, book.root)]
    return [("code", text, {"cellView": "form"}) for text in texts]


def empty_notebook() -> Any:
    """A notebook without cells that asks for a GPU."""
    metadata = {
        "accelerator": "GPU",
        "colab": {"gpuType": "T4", "provenance": []},
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return nbformat.v4.new_notebook(metadata=metadata, nbformat_minor=5)


def add_cell(nb: Any, name: str, kind: str, text: str, metadata: dict[str, Any]) -> Any:
    """Append a cell of the chapter `name`; its id depends on its place only."""
    if kind == "markdown" and (raw := raw_myst(text)):
        raise UnknownMyst(f"{name}: raw MyST left in the notebook: {raw!r}")
    key = hashlib.sha256(f"{name}:{len(nb.cells)}".encode()).hexdigest()[:12]
    new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    nb.cells.append(new(text, id=key, metadata={"id": key, **metadata}))
    return nb.cells[-1]


def notebook(name: str, book: Book) -> Any:
    """The clean notebook of the chapter `name`: no outputs, stable ids."""
    source = jupytext.read(book.root / f"{name}.md", fmt="md:myst")
    nb = empty_notebook()
    mark, solution, folded = "", None, []
    for kind, text, metadata in [*opening(source, book), *cells(source, Page(name, book))]:
        if kind == "mark":
            mark = text
            continue
        cell = add_cell(nb, name, kind, text, metadata)
        if mark == FOLD:
            solution = cell
        if mark == UNFOLD and (kind, text[:1]) == ("markdown", "#"):
            # A heading folds all up to the next heading, so nothing else may follow a solution.
            fold(solution, folded)
        mark = ""
    if mark == UNFOLD:
        fold(solution, folded)
    nb.metadata["colab"]["collapsed_sections"] = folded
    nbformat.validate(nb)
    return nb


def data_files(source: Any, root: Path) -> list[str]:
    """Cells that write the project's own JSON files which the page reads: Colab has no copy.

    Each is written beside the notebook, and read from there.
    """
    written = []
    for cell in source.cells:
        if cell.cell_type == "code":
            for path in re.findall(r"""["']([\w./-]+\.json)["']""", cell.source):
                name = Path(path).name
                cell.source = cell.source.replace(path, name)
                content = (root / "book" / path).read_text(encoding="utf8")
                written.append(f"%%writefile {name}\n{content}")
    return sorted(set(written))


def fold(cell: Any, folded: list[str]) -> None:
    """Fold what stands under a heading's cell: first for JupyterLab, then for Colab."""
    cell.metadata["jp-MarkdownHeadingCollapsed"] = True
    folded.append(cell.id)


def raw_myst(text: str) -> str:
    """The first piece of raw MyST in a Markdown cell, outside code and mathematics; "" if none."""
    text = NOT_TEXT.sub("", FENCED.sub("", text))
    found = RAW_MYST.search(text)
    return text[max(0, found.start() - 20) : found.end() + 40] if found else ""


def notebook_path(name: str) -> str:
    """Where the chapter's notebook lies, relative to the site's top."""
    return f"notebooks/{name.rsplit('/', 1)[-1]}.ipynb"


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` in `folder`; raises ValueError where a link leads out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of {folder}, to {path.resolve()}: remove the link")
    return path


def write_notebooks(book: Book, outdir: Path) -> list[Path]:
    """Write every chapter's notebook under `outdir`; raise UnknownMyst with all faults at once."""
    written, faults = [], []
    for name in book.chapters:
        path = inside(outdir, notebook_path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            nbformat.write(notebook(name, book), path)
            written.append(path)
        except UnknownMyst as fault:
            faults.append(str(fault))
    if faults:
        raise UnknownMyst("\n".join(faults))
    return written


# ---- which repository this is ------------------------------------------------------------------


def git(root: Path, *command: str) -> str:
    """What git answers in `root`; "" where it does not or `root` is no repository of its own."""
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def find_slug(root: Path, environment: dict[str, str]) -> str | None:
    """`owner/name` on GitHub, from the Actions environment or the remote `origin`; else None."""
    if slug := environment.get("GITHUB_REPOSITORY"):
        return slug
    remote = git(root, "remote", "get-url", "origin")
    match = re.search(r"github\.com[:/]([\w.-]+)/([\w.-]+?)(?:\.git)?/?$", remote)
    return f"{match[1]}/{match[2]}" if match else None


def find_commit(root: Path, environment: dict[str, str]) -> str:
    """The commit the notebooks install from."""
    return git(root, "rev-parse", "HEAD") or environment.get("GITHUB_SHA", "HEAD")
