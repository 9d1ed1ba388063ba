"""What is installed, here and on GitHub: the lock file and the workflows' actions."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.common import code_lines

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf8")
ENTRIES = re.sub(r"\\\n *", "", re.sub(r"(?m)^ *#.*\n", "", LOCK)).splitlines()
WORKFLOWS = {
    path.name: path.read_text(encoding="utf8")
    for path in (ROOT / ".github" / "workflows").glob("*.y*ml")
}


def wanted(extra: str | None = "test") -> list[Requirement]:
    """What pyproject.toml names for `pip install -e .[extra]`, through the extras of our own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    named = [Requirement(line) for line in lines]
    ours = [e for r in named if r.name == project["name"] for e in sorted(r.extras)]
    return [r for r in named if r.name != project["name"]] + [r for e in ours for r in wanted(e)]


def test_every_requirement_is_pinned_and_hashed() -> None:
    form = r"[\w.-]+==[\w.+]+( ; [^#]*?)? ?( ?--hash=sha256:[0-9a-f]{64})+"
    assert len(ENTRIES) > 100
    assert [line for line in ENTRIES if not re.fullmatch(form, line)] == []


def test_the_lock_says_how_it_is_made_and_not_from_where() -> None:
    assert "make lock" in LOCK[:100]
    assert "/" not in LOCK  # neither an address nor a path


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_has_what_pyproject_names(python: str) -> None:
    system = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    locked: dict[str, list[str]] = {}
    for requirement in map(Requirement, (line.split("--hash")[0] for line in ENTRIES)):
        if not requirement.marker or requirement.marker.evaluate(system):
            version = str(requirement.specifier).removeprefix("==")
            locked.setdefault(canonicalize_name(requirement.name), []).append(version)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["build-system"]
    named = wanted(None) + wanted() + [Requirement(line) for line in build["requires"]]
    assert {"torch", "jupyter-book", "nbgrader", "pytest", "setuptools"} <= {r.name for r in named}
    for requirement in named:
        versions = locked.get(canonicalize_name(requirement.name), [])
        assert len(versions) == 1, requirement
        assert requirement.specifier.contains(versions[0], prereleases=True), requirement
    assert "advlib" not in locked  # a stranger's of that name must not come in


def test_make_installs_from_the_lock_if_asked(tmp_path: Path) -> None:
    def plan(*arguments: str) -> str:
        command = ["make", "-n", "lint", f"VENV={tmp_path}", *arguments]
        env = {"PATH": os.environ["PATH"]}  # without what the make around us was told
        return subprocess.run(
            command, cwd=ROOT, env=env, check=True, capture_output=True, text=True
        ).stdout

    locked, newest = plan("LOCKED=1"), plan()
    assert "--require-hashes -r requirements.lock" in locked
    assert "--no-deps --no-build-isolation -e ." in locked
    assert '-e ".[test]"' not in locked
    assert "requirements.lock" not in newest
    assert '-e ".[test]"' in newest


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_every_action_is_pinned(name: str) -> None:
    used = re.findall(r"\buses: *(.*)", WORKFLOWS[name])
    assert used
    assert [action for action in used if not re.search(r"@[0-9a-f]{40} # v[\d.]+$", action)] == []


def test_book_uses_the_lock_and_the_weekly_workflow_does_not() -> None:
    assert yaml.safe_load(WORKFLOWS["book.yml"])["jobs"]["check"]["env"]["LOCKED"] == "1"
    assert not re.search(r"LOCKED|requirements\.lock", WORKFLOWS["newest.yml"])
    newest = yaml.safe_load(WORKFLOWS["newest.yml"])
    (schedule,) = newest[True]["schedule"]  # YAML reads the key `on` as true
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", schedule["cron"])
    assert newest["permissions"] == {"contents": "read"}
    runs = set()
    for job in newest["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 120
        runs |= {step.get("run") for step in job["steps"]}
    assert {"make chromium", "make test", "python -m advlib networks --check"} <= runs


def test_the_library_can_be_read_in_an_afternoon():
    files = [p for p in (ROOT / "advlib").rglob("*.py") if "book" not in p.relative_to(ROOT).parts]
    lines = {path: path.read_text(encoding="utf8").count("\n") for path in files}
    assert len(files) <= 30
    assert max(lines.values()) <= 300
    assert lines[ROOT / "advlib" / "fast.py"] <= 150
    assert sum(lines.values()) <= 4900
    assert sum(map(code_lines, files)) <= 3600
