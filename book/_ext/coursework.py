"""The chapters' exercises as nbgrader assignments: python book/_ext/coursework.py coursework

Writes a course folder of nbgrader's: `source/` is the instructor's edition, with solutions and
hidden tests; `release/` is the students', which nbgrader makes from it. An assignment holds the
chapter's set-up, its cells tagged `coursework`, and its exercises. In a solution the cell tagged
`hidden-test` is what grades it; an exercise's stars are its points.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from nbgrader.apps import NbGraderAPI
from notebooks import METADATA, add_cell, cells, opening, write
from reading import read_pages
from sphinx_exercise.nodes import exercise_enumerable_node
from to_markdown import Page
from traitlets.config import Config

SOLUTION = "### BEGIN SOLUTION\n{}\n### END SOLUTION"
TEST = """\
# Your work is tested here when it is graded.
### BEGIN HIDDEN TESTS
{}
### END HIDDEN TESTS"""
INTRODUCTION = """\
# Exercises: {title}

These are the exercises of chapter {number}. First come the definitions they build on: run them, and leave them as they
are. Write each answer where it says *your code here*, under the names that the exercise asks for. What you define is
graded, not what you print."""  # noqa: E501 (a paragraph may be long)
TIMEOUT = 900  # seconds a cell may take: some exercises train a network
SETTINGS = f"""\
# nbgrader reads this file. `make coursework` writes it once; then it is yours.
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "advlib"
c.Execute.timeout = {TIMEOUT}  # seconds a cell may take: some exercises train a network
"""


def graded(key: str, points: int = 0, solution: bool = False) -> dict[str, Any]:
    """A cell's metadata for nbgrader: locked, or a solution, or, with points, a test."""
    note = {"schema_version": 3, "task": False, "locked": not solution, "solution": solution}
    note |= {"grade": points > 0, "grade_id": key} | ({"points": points} if points else {})
    return {"nbgrader": note}


def assignment(tree: nodes.document, page: Page) -> Any:
    """The instructor's edition of a chapter's exercises."""
    page = replace(page, book=replace(page.book, chapters=[]))  # their notebooks aren't beside it
    own = cells(tree, page)
    context, solving, code = opening(page.book, own), "", defaultdict(lambda: ([], []))
    before = len(context)
    for kind, text, metadata in own:
        tags = metadata.get("tags", [])
        if kind == "mark":
            solving = text
        elif kind == "code" and solving:
            code[solving]["hidden-test" in tags].append(text)
        elif kind == "code" and (len(context) == before or "coursework" in tags):
            context.append((kind, text, {}))
    nb = nbformat.v4.new_notebook(metadata=METADATA, nbformat_minor=5)
    title, number = page.env.titles[page.name].astext(), page.env.toc_secnumbers[page.name][""][0]
    add_cell(nb, page, "markdown", INTRODUCTION.format(title=title, number=number), {})
    for i, (kind, text, metadata) in enumerate(context):
        add_cell(nb, page, kind, text, metadata | graded(f"context-{i}"))
    for exercise in tree.findall(exercise_enumerable_node):
        number, points = page.number("exercise", exercise), exercise[0].astext().count("★")
        solution, test = code[exercise["label"]]
        if not solution or len(test) != 1 or not points:
            raise ValueError(f"{page.name}: exercise {number} needs stars, a solution and one test")
        key, text = f"exercise-{number.replace('.', '-')}", SOLUTION.format("\n\n".join(solution))
        add_cell(nb, page, *cells(exercise, page)[0])
        add_cell(nb, page, "code", text, graded(key, solution=True))
        add_cell(nb, page, "code", TEST.format(test[0]), graded(f"{key}-test", points))
    if page.faults:
        raise ValueError("\n".join(page.faults))
    nbformat.validate(nb)
    return nb


def write_course(pages: Iterable[tuple[nodes.document, Page]], folder: Path) -> NbGraderAPI:
    """Write both editions of every assignment into the course `folder`; returns its nbgrader."""
    config = folder / "nbgrader_config.py"
    folder.mkdir(parents=True, exist_ok=True)
    # nbgrader looks for its database tool on the PATH, also where its environment isn't activated
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not config.exists():
        config.write_text(SETTINGS, encoding="utf8")
    settings = {"CourseDirectory": {"root": str(folder.resolve())}, "Execute": {"timeout": TIMEOUT}}
    grader = NbGraderAPI(config=Config(settings))
    for tree, page in pages:
        short = page.name.rsplit("/", 1)[-1]
        write(assignment(tree, page), folder, f"source/{short}/{short}.ipynb")
        done = grader.generate_assignment(short)
        if not done["success"]:
            raise RuntimeError(f"nbgrader could not make the assignment {short}:\n{done['log']}")
    return grader


if __name__ == "__main__":
    course = Path(sys.argv[1])
    read = read_pages(Path(__file__).parents[2])
    numbered = [(tree, page) for tree, page in read if page.env.toc_secnumbers.get(page.name)]
    write_course(numbered, course)
    print(f"{len(numbered)} assignments: {course}/source (yours), {course}/release (students')")
