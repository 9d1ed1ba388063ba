"""The chapters' exercises as nbgrader assignments: python book/_ext/coursework.py coursework

Writes a course folder of nbgrader's: `source/` is the instructor's edition, with solutions and
hidden tests; `release/` is the students', which nbgrader makes from it. An assignment holds the
chapter's set-up, its cells tagged `coursework`, and its exercises. In a solution the cell tagged
`hidden-test` is what grades it; an exercise's stars are its points.
"""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbgrader.apps import NbGraderAPI
from notebooks import (
    add_cell,
    cells,
    empty_notebook,
    find_commit,
    find_slug,
    inside,
    opening,
    read_book,
)
from plain_inline import Book, Page
from plain_markdown import FOLD
from traitlets.config import Config

EXERCISE = re.compile(r"^### Exercise ([\d.]+) \((★+) .*?(?=^#|\Z)", re.M | re.S)
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
EDITIONS = ("source", "release")
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


def assignment(name: str, book: Book) -> Any:
    """The instructor's edition of the exercises of chapter `name`."""
    source = jupytext.read(book.root / f"{name}.md", fmt="md:myst")
    context = opening(source, book)
    exercises: list[dict[str, Any]] = []
    solving, started = False, False
    for kind, text, metadata in cells(source, Page(name, replace(book, chapters=[]))):
        tags = metadata.get("tags", [])
        if kind == "mark":
            solving = text == FOLD
        elif kind == "markdown" and not solving:
            exercises += [
                {"text": m[0], "key": m[1], "points": len(m[2]), "code": [], "tests": []}
                for m in EXERCISE.finditer(text)
            ]
        elif kind == "code" and solving:
            exercises[-1]["tests" if "hidden-test" in tags else "code"].append(text)
        elif kind == "code" and (not started or "coursework" in tags):
            context.append(("code", text, {}))
            started = True
    nb = empty_notebook()
    words = INTRODUCTION.format(title=book.pages[name], number=book.numbers[name])
    add_cell(nb, name, "markdown", words, {})
    for i, (kind, text, metadata) in enumerate(context):
        add_cell(nb, name, kind, text, metadata | graded(f"context-{i}"))
    for exercise in exercises:
        if not exercise["code"] or len(exercise["tests"]) != 1:
            raise ValueError(f"{name}: exercise {exercise['key']} needs a solution and one test")
        key = "exercise-" + exercise["key"].replace(".", "-")
        add_cell(nb, name, "markdown", exercise["text"].strip(), {})
        solution = SOLUTION.format("\n\n".join(exercise["code"]))
        add_cell(nb, name, "code", solution, graded(key, solution=True))
        test = TEST.format(exercise["tests"][0])
        add_cell(nb, name, "code", test, graded(f"{key}-test", exercise["points"]))
    nbformat.validate(nb)
    return nb


def chapters(book: Book) -> list[str]:
    """The pages with exercises: the numbered ones that run."""
    return [name for name in book.chapters if name in book.numbers]


def write_course(book: Book, folder: Path) -> NbGraderAPI:
    """Write both editions of every assignment into the course `folder`; returns its nbgrader."""
    config, _ = (inside(folder, name) for name in ("nbgrader_config.py", "gradebook.db"))
    folder.mkdir(parents=True, exist_ok=True)
    # nbgrader looks for its database tool on the PATH, also where its environment isn't activated
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not config.exists():
        config.write_text(SETTINGS, encoding="utf8")
    settings = {"CourseDirectory": {"root": str(folder.resolve())}, "Execute": {"timeout": TIMEOUT}}
    grader = NbGraderAPI(config=Config(settings))
    for name in chapters(book):
        short = name.rsplit("/", 1)[-1]
        path, _ = (inside(folder, f"{part}/{short}/{short}.ipynb") for part in EDITIONS)
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(assignment(name, book), path)
        done = grader.generate_assignment(short)
        if not done["success"]:
            raise RuntimeError(f"nbgrader could not make the assignment {short}:\n{done['log']}")
    return grader


def main() -> int:
    """Write the course, and say where each edition is."""
    root, folder = Path(__file__).parents[2], Path(sys.argv[1])
    environment = dict(os.environ)
    book = read_book(root, find_slug(root, environment), find_commit(root, environment))
    write_course(book, folder)
    count = len(chapters(book))
    print(f"{count} assignments: {folder}/source (yours), {folder}/release (students')")
    return 0


if __name__ == "__main__":
    sys.exit(main())
