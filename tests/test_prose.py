"""The book's text: its size, its cells, its bibliography, and where its numbers come from."""

import ast
import re
from pathlib import Path

import jupytext
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
PAGES = sorted(path.stem for path in BOOK.glob("*.md") if path.stem not in ("api", "references"))
CHAPTERS = [name for name in PAGES if re.match(r"\d", name)]
LISTED = yaml.safe_load((ROOT / "tests" / "numbers_in_prose.yml").read_text(encoding="utf8"))

NUMBER = re.compile(
    r"(?<![\w.,])(?:\d[\d,]* (?:of|in) (?:the |all )?\d[\d,]*"  # n of m
    r"|\d[\d,]*(?:\.\d+)?(?: ?%| percent)"
    r"|\d+\.\d+)(?![\w]|\.\d|,\d)"
)
# what is no prose: code, formulas, addresses, targets of links and roles, options of directives
NO_PROSE = re.compile(
    r"^```(?:python|bash|bibtex|\{(?:math|chapter-badges)).*?^```|^    .*?$|^:\w+:.*?$"
    r"|\$\$.*?\$\$|\$[^$\n]*(?:\n[^$\n]+)?\$|`[^`\n]*`|\]\([^)]*\)|<[^>\n]*>",
    re.M | re.S,
)
CITED = re.compile(r"\{cite:[pt]\}`[^`]*`")
QUIZ = re.compile(r"^```\{quiz\}.*?^```$", re.M | re.S)
NEAR = 3  # cells before and after in which the assert may stand


def cells_of(name):
    text = (BOOK / f"{name}.md").read_text(encoding="utf8")
    return jupytext.reads(text, fmt="md:myst").cells


def code_of(cell):
    return TransformerManager().transform_cell(cell.source)


def asserted(cell):
    """The numbers that stand in asserts of a code cell."""
    if cell.cell_type != "code":
        return set()
    tests = [node for node in ast.walk(ast.parse(code_of(cell))) if isinstance(node, ast.Assert)]
    literals = [node for test in tests for node in ast.walk(test) if isinstance(node, ast.Constant)]
    return {float(n.value) for n in literals if type(n.value) in (int, float)}


def meant(number):
    """The ways in which an assert may write a number of the prose: any of these sets."""
    values = [float(part.replace(",", "")) for part in re.findall(r"\d[\d,]*(?:\.\d+)?", number)]
    if len(values) == 2:
        return [set(values), {values[0] / values[1]}]
    if number.endswith(("%", "percent")):
        return [{values[0]}, {round(values[0] / 100, 6)}]
    return [set(values)]


def prose_of(cell):
    """What a reader reads of a cell: its text, or the caption and description of its figure."""
    if cell.cell_type == "markdown":
        text = QUIZ.sub(" ", cell.source)
    else:
        shown = cell.metadata.get("mystnb", {})
        parts = shown.get("figure", {}).get("caption", ""), shown.get("image", {}).get("alt", "")
        text = "\n\n".join(parts)
    return NO_PROSE.sub(" ", CITED.sub("{cite}", text))


def sentences(text):
    return re.split(r"(?<=[.?!:])\s+(?=[^a-z])|\n\s*\n|\n(?=\|)", text)


def from_nowhere(name, used=None):
    """The numbers of a page's prose that no assert nearby has, no citation and no listed reason."""
    cells, found = cells_of(name), []
    patterns = [
        (place, entry, re.compile(entry["text"].replace(" ", r"\s+")))
        for place in ("everywhere", name)
        for entry in LISTED.get(place, [])
    ]
    for i, cell in enumerate(cells):
        known = set().union(*map(asserted, cells[max(0, i - NEAR) : i + NEAR + 1]))
        for sentence in sentences(prose_of(cell)):
            excused = []
            for place, entry, pattern in patterns:
                spans = [match.span() for match in pattern.finditer(sentence)]
                excused += spans
                if spans and used is not None:
                    used.add((place, entry["text"]))
            for number in NUMBER.finditer(sentence):
                if "{cite" in sentence or any(ways <= known for ways in meant(number[0])):
                    continue
                start, end = number.span()
                if not any(a <= start and end <= b for a, b in excused):
                    found.append(f"{number[0]!r} in: {' '.join(sentence.split())}")
    return found


@pytest.mark.parametrize("name", PAGES)
def test_each_number_of_the_prose_is_asserted_cited_or_listed_with_a_reason(name):
    assert from_nowhere(name) == []


def test_each_listed_number_is_needed_and_has_a_reason():
    used = set()
    for name in PAGES:
        from_nowhere(name, used)
    listed = {(place, entry["text"]) for place, entries in LISTED.items() for entry in entries}
    assert listed - used == set()
    assert all(entry["reason"] for entries in LISTED.values() for entry in entries)


def test_a_number_from_nowhere_is_found(monkeypatch):
    """Numbers stand beside an assert that has them, one that does not, a citation, or nothing."""
    code = "```{code-cell} ipython3\nassert 0.2 < x < 9 / 10\n```\n"
    head = "---\njupytext: {text_representation: {extension: .md, format_name: myst}}\n---\n"
    text = f"Now 20 %, 9 of 10, 0.3 and 0.2. So 40 % {{cite:p}}`a`. In `0.7` $0.8$ 60 %.\n\n{code}"
    cells = jupytext.reads(head + text, fmt="md:myst").cells
    monkeypatch.setitem(globals(), "cells_of", lambda name: cells)
    assert [found.split("'")[1] for found in from_nowhere("no page")] == ["0.3", "60 %"]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_short_and_so_are_its_cells(name):
    text = (BOOK / f"{name}.md").read_text(encoding="utf8")
    assert text.count("\n") <= (500 if name.startswith("05") else 550)
    code = [c for c in cells_of(name) if c.cell_type == "code"]
    seen = [c for c in code if "hidden-test" not in c.metadata.get("tags", [])]
    lines = [[*filter(str.strip, cell.source.split("\n"))] for cell in seen]
    long = sorted(((len(of), of[0]) for of in lines if len(of) > 8), reverse=True)
    assert len(long) <= 2, long
    assert [pair for pair in long if pair[0] > 16] == []


def test_each_entry_of_the_bibliography_is_cited():
    entries = re.findall(r"^@\w+\{(\w+),", (BOOK / "references.bib").read_text("utf8"), re.M)
    text = "\n".join(path.read_text(encoding="utf8") for path in BOOK.glob("*.md"))
    cited = {key for keys in re.findall(r"\{cite:[pt]\}`([^`]*)`", text) for key in keys.split(",")}
    assert set(entries) == cited
