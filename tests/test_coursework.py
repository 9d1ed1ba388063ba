"""The assignments made of the exercises, graded by nbgrader itself."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_book import CHAPTERS, HEADER, ROOT, TOC

coursework = importlib.import_module("coursework")
notebooks = importlib.import_module("notebooks")

READERS_CACHE = os.environ.get("ADVLIB_CACHE")  # before a fixture hides it
ONE = """\
# One

```{code-cell}
import math
```

```{code-cell}
:tags: [coursework]
seven = 7
```

```{code-cell}
raise RuntimeError("not for the assignment")
```

## Exercises

```{exercise-start} ★★ Root
:label: ex-root
```
Call the square root of `seven` $r$, in code `root`.
See {ref}`the idea <ex-root>` and [two](index_two.md).
```{exercise-end}
```

```{solution-start} ex-root
:class: dropdown
```
So:
```{code-cell}
root = math.sqrt(seven)
```
```{code-cell}
:tags: [hidden-test]
assert abs(root**2 - 7) < 1e-9, "root"
```
because.
```{solution-end}
```

```{exercise-start} ★ Double
:label: ex-double
```
Write `double(x)`.
```{exercise-end}
```

```{solution-start} ex-double
```
```{code-cell}
def double(x):
    return 2 * x
```
```{code-cell}
:tags: [hidden-test]
assert double(4) == 8
```
```{solution-end}
```

## Key takeaways
"""
PLAIN_TOC = TOC.replace(", {file: book/02_two}", "").replace("book/notation", "book/index_two")


def read_course(folder: Path, chapter: str = ONE):
    for name, text in {
        "_toc.yml": PLAIN_TOC,
        "book/index.md": "# The book\n",
        "book/index_two.md": HEADER
        + "# A page that runs and has no number\n\n```{code-cell}\n1\n```\n",
        "book/01_one.md": HEADER + chapter,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    return notebooks.read_book(folder)


def scores(grader, assignment: str, submissions: dict[str, Path]) -> dict[str, tuple[float, float]]:
    """For each student the points that nbgrader gives to a notebook, and those it could give."""
    root = Path(grader.coursedir.root)
    found = {}
    for student, path in submissions.items():
        folder = root / "submitted" / student / assignment
        folder.mkdir(parents=True)
        shutil.copy(path, folder / f"{assignment}.ipynb")
        done = grader.autograde(assignment, student)
        assert done["success"], done["log"]
        given = grader.get_submission(assignment, student)
        assert not given["needs_manual_grade"]
        found[student] = (given["score"], given["max_score"])
    return found


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("course")
    grader = coursework.write_course(read_course(folder / "book"), folder / "made")
    return grader, folder / "made"


def test_the_students_edition_has_neither_solutions_nor_tests(course) -> None:
    _, folder = course
    release, source = (
        nbformat.read(folder / edition / "01_one" / "01_one.ipynb", 4).cells
        for edition in ("release", "source")
    )
    assert len(release) == len(source) == 10
    text = "\n".join(cell.source for cell in release)
    assert "raise NotImplementedError" in text
    assert "seven = 7" in text
    assert "$r$" in text
    assert "index_two.html" in text  # the chapters' own notebooks are not beside it
    free = {"exercise-1-1", "exercise-1-2"}
    notes = [cell.metadata.nbgrader for cell in release if cell.cell_type == "code"]
    assert {note.grade_id for note in notes if not note.locked} == free
    for secret in ("math.sqrt", "2 * x", "assert", "because", "BEGIN", "not for the assignment"):
        assert secret not in text
    assert "math.sqrt" in "\n".join(cell.source for cell in source)


def test_nbgrader_gives_all_points_some_and_none(course, tmp_path: Path) -> None:
    grader, folder = course
    blank = folder / "release" / "01_one" / "01_one.ipynb"
    half = nbformat.read(blank, 4)
    answers = {
        "exercise-1-1": "root = 7 ** 0.5",
        "exercise-1-2": "double = lambda x: x + 2",
        "exercise-1-2-test": "pass  # a student who edits the test",
    }
    for cell in half.cells:
        key = cell.metadata.get("nbgrader", {}).get("grade_id")
        cell.source = answers.get(key, cell.source)
    nbformat.write(half, tmp_path / "half.ipynb")
    right = folder / "source" / "01_one" / "01_one.ipynb"
    submissions = {"right": right, "half": tmp_path / "half.ipynb", "blank": blank}
    found = scores(grader, "01_one", submissions)
    assert found == {"right": (3, 3), "half": (2, 3), "blank": (0, 3)}


def test_writing_again_keeps_the_lecturers_settings(tmp_path: Path) -> None:
    book = read_course(tmp_path / "book")
    coursework.write_course(book, tmp_path / "made")
    settings = tmp_path / "made" / "nbgrader_config.py"
    assert compile(settings.read_text(), settings, "exec")
    settings.write_text("# mine\n")
    first = (tmp_path / "made" / "source" / "01_one" / "01_one.ipynb").read_bytes()
    coursework.write_course(book, tmp_path / "made")
    assert settings.read_text() == "# mine\n"
    assert (tmp_path / "made" / "source" / "01_one" / "01_one.ipynb").read_bytes() == first


def test_an_exercise_without_its_test_is_refused_by_number(tmp_path: Path) -> None:
    chapter = ONE.replace(":tags: [hidden-test]\nassert double", "assert double")
    with pytest.raises(ValueError, match=r"book/01_one: exercise 1\.2 needs"):
        coursework.assignment("book/01_one", read_course(tmp_path, chapter))


def test_the_command_writes_an_assignment_for_every_chapter(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "book" / "_ext" / "coursework.py", tmp_path / "course"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(CHAPTERS)} assignments")
    names = [name.rsplit("/", 1)[-1] for name in CHAPTERS]
    for edition in ("source", "release"):
        made = sorted(path.name for path in (tmp_path / "course" / edition).glob("*/*.ipynb"))
        assert made == [f"{name}.ipynb" for name in names]


@pytest.mark.built
@pytest.mark.parametrize("name", CHAPTERS)
def test_solutions_of_a_chapter_get_full_marks_and_nothing_gets_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADVLIB_CACHE")  # the networks that the chapters have trained
    if READERS_CACHE:
        monkeypatch.setenv("ADVLIB_CACHE", READERS_CACHE)
    monkeypatch.setenv("ADVLIB_MONITOR", "static")
    book = notebooks.read_book(ROOT)
    book.chapters = [name]
    grader = coursework.write_course(book, tmp_path)
    short = name.rsplit("/", 1)[-1]
    path = Path(short) / f"{short}.ipynb"
    submissions = {"solved": tmp_path / "source" / path, "blank": tmp_path / "release" / path}
    found = scores(grader, short, submissions)
    most = found["blank"][1]
    assert most == 6  # one, two and three stars
    assert found == {"solved": (most, most), "blank": (0, most)}
