"""The assignments made of the exercises, graded by nbgrader itself."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_book import CHAPTERS, HEADER, ROOT, TOC

coursework = importlib.import_module("coursework")
notebooks = importlib.import_module("notebooks")

CHEAPEST = "book/02_build_network"  # graded in `make test`, the others in `make exercises`
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


def test_writing_again_keeps_the_lecturers_settings(course) -> None:
    _, folder = course
    settings, source = folder / "nbgrader_config.py", folder / "source/01_one/01_one.ipynb"
    assert compile(settings.read_text(), settings, "exec")
    settings.write_text("# mine\n")
    first = source.read_bytes()
    coursework.write_course(read_course(folder.parent / "book"), folder)
    assert settings.read_text() == "# mine\n"
    assert source.read_bytes() == first


def test_an_exercise_without_its_test_is_refused_by_number(tmp_path: Path) -> None:
    chapter = ONE.replace(":tags: [hidden-test]\nassert double", "assert double")
    with pytest.raises(ValueError, match=r"book/01_one: exercise 1\.2 needs"):
        coursework.assignment("book/01_one", read_course(tmp_path, chapter))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    folder = tmp_path_factory.mktemp("chapters") / "course"
    command = [sys.executable, ROOT / "book" / "_ext" / "coursework.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(CHAPTERS)} assignments")
    assert {path.name for path in (folder / "source").iterdir()} == set(map(short, CHAPTERS))
    return folder


def short(chapter: str) -> str:
    return chapter.rsplit("/", 1)[-1]


def edition(folder: Path, kind: str, chapter: str) -> Path:
    return folder / kind / short(chapter) / f"{short(chapter)}.ipynb"


@pytest.mark.parametrize("name", CHAPTERS)
def test_an_assignment_has_three_exercises_and_gives_no_answer_away(
    name: str, written: Path
) -> None:
    source, release = (
        nbformat.read(edition(written, kind, name), 4).cells for kind in ("source", "release")
    )
    points = []
    for mine, theirs in zip(source, release, strict=True):
        note = mine.metadata.get("nbgrader", {})
        if note.get("solution"):
            assert "### BEGIN SOLUTION" in mine.source
            assert theirs.source == "# YOUR CODE HERE\nraise NotImplementedError()"
        elif note.get("grade"):
            points.append(note.points)
            assert "### BEGIN HIDDEN TESTS" in mine.source
            assert theirs.source.strip() == coursework.TEST.splitlines()[0]
        else:
            assert theirs.source == mine.source
    assert points == [1, 2, 3]  # stars


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == CHEAPEST else pytest.mark.slow) for name in CHAPTERS],
)
def test_solutions_of_a_chapter_get_full_marks_and_nothing_gets_none(
    name: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVLIB_MONITOR", "static")
    book = notebooks.read_book(ROOT)
    book.chapters = []  # what the command wrote is there
    grader = coursework.write_course(book, written)
    submissions = {
        "solved": edition(written, "source", name),
        "blank": edition(written, "release", name),
    }
    assert scores(grader, short(name), submissions) == {"solved": (6, 6), "blank": (0, 6)}
