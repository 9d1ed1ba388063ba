"""The assignments made of the exercises, graded by nbgrader itself."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_book import CHAPTERS, ROOT, TOC, exercise, write_book

coursework = importlib.import_module("coursework")
reading = importlib.import_module("reading")

SHORT = [name.rsplit("/", 1)[-1] for name in CHAPTERS]
CHEAPEST = "02_build_network"  # graded in `make test`, the others in `make exercises`
GRADED = [pytest.param(name, marks=() if name == CHEAPEST else pytest.mark.slow) for name in SHORT]
KINDS = ("release", "source")
TEST = ":tags: [hidden-test]\n"
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
"""
ROOT_OF_SEVEN = exercise(
    "★★", "because", "root = math.sqrt(seven)", TEST + "assert abs(root**2 - 7) < 1e-9"
).replace("Do it.", "Call it $r$, in code `root`, and see [two](02_two.md).")
DOUBLE = exercise("★", "", "double = lambda x: 2 * x", TEST + "assert double(4) == 8")
TWO = "# A page that runs and has no number\n\n```{code-cell}\n1\n```\n"


def read_course(folder, chapter=ONE + ROOT_OF_SEVEN + DOUBLE):
    toc = TOC.replace(", {file: book/02_two}", "")
    toc = toc.replace("{file: book/notation}", "{file: book/notation}, {file: book/02_two}")
    return reading.read_pages(write_book(folder, chapter, TWO, toc))[:1]


def scores(grader, assignment, **submissions):
    """For each student the points that nbgrader gives to a notebook, and those it could give."""
    found = {}
    for student, path in submissions.items():
        folder = Path(grader.coursedir.root) / "submitted" / student / assignment
        folder.mkdir(parents=True)
        shutil.copy(path, folder / f"{assignment}.ipynb")
        done = grader.autograde(assignment, student)
        assert done["success"], done["log"]
        given = grader.get_submission(assignment, student)
        assert not given["needs_manual_grade"]
        found[student] = (given["score"], given["max_score"])
    return found


def edition(folder, kind, short):
    return folder / kind / short / f"{short}.ipynb"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    grader = coursework.write_course(read_course(folder / "book"), folder / "made")
    return grader, folder / "made"


def test_the_students_edition_has_neither_solutions_nor_tests(course):
    release, source = (nbformat.read(edition(course[1], k, "01_one"), 4).cells for k in KINDS)
    assert len(release) == len(source) == 10
    text = "\n".join(cell.source for cell in release)
    for part in ("raise NotImplementedError", "seven = 7", "$r$", "/book/02_two.html"):
        assert part in text  # the chapters' own notebooks are not beside it
    notes = [cell.metadata.nbgrader for cell in release if cell.cell_type == "code"]
    free = {note.grade_id for note in notes if not note.locked}
    assert free == {"exercise-1-1", "exercise-1-2"}
    for secret in ("math.sqrt", "2 * x", "assert", "because", "BEGIN", "not for the assignment"):
        assert secret not in text
    assert "math.sqrt" in "\n".join(cell.source for cell in source)


def test_nbgrader_gives_all_points_some_and_none(course, tmp_path):
    grader, folder = course
    right, blank = (edition(folder, kind, "01_one") for kind in ("source", "release"))
    half = nbformat.read(blank, 4)
    answers = {"exercise-1-1": "root = 7 ** 0.5", "exercise-1-2": "double = lambda x: x + 2"}
    answers["exercise-1-2-test"] = "pass  # a student who edits the test"
    for cell in half.cells:
        key = cell.metadata.get("nbgrader", {}).get("grade_id")
        cell.source = answers.get(key, cell.source)
    nbformat.write(half, tmp_path / "half.ipynb")
    found = scores(grader, "01_one", right=right, half=tmp_path / "half.ipynb", blank=blank)
    assert found == {"right": (3, 3), "half": (2, 3), "blank": (0, 3)}


def test_writing_again_keeps_the_lecturers_settings(course):
    _, folder = course
    settings, source = folder / "nbgrader_config.py", folder / "source/01_one/01_one.ipynb"
    assert compile(settings.read_text(), settings, "exec")
    settings.write_text("# mine\n")
    first = source.read_bytes()
    coursework.write_course(read_course(folder.parent / "book"), folder)
    assert settings.read_text() == "# mine\n"
    assert source.read_bytes() == first


def test_an_exercise_without_its_test_is_refused_by_number(tmp_path):
    pages = read_course(tmp_path, ONE + ROOT_OF_SEVEN + DOUBLE.replace(TEST, ""))
    with pytest.raises(ValueError, match=r"book/01_one: exercise 1\.2 needs"):
        coursework.write_course(pages, tmp_path / "made")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chapters") / "course"
    command = [sys.executable, ROOT / "book" / "_ext" / "coursework.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(CHAPTERS)} assignments")
    assert sorted(path.name for path in (folder / "source").iterdir()) == SHORT
    return folder


@pytest.mark.parametrize("name", SHORT)
def test_an_assignment_has_three_exercises_and_gives_no_answer_away(name, written):
    release, source = (nbformat.read(edition(written, k, name), 4).cells for k in KINDS)
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


@pytest.mark.parametrize("name", GRADED)
def test_solutions_of_a_chapter_get_full_marks_and_nothing_gets_none(name, written, monkeypatch):
    monkeypatch.setenv("ADVLIB_MONITOR", "static")
    grader = coursework.write_course([], written)  # what the command wrote is there
    solved, blank = (edition(written, kind, name) for kind in ("source", "release"))
    assert scores(grader, name, solved=solved, blank=blank) == {"solved": (6, 6), "blank": (0, 6)}
