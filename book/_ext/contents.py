"""What the book consists of, and where it is published: its pages, its repository, its site."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sphinx_external_toc.parsing import parse_toc_yaml

CODE_CELL = re.compile(r"^`{3,}\{code-cell", re.M)


@dataclass
class Book:
    """The pages that become notebooks, and the repository and commit that these install from."""

    root: Path
    chapters: list[str]
    slug: str | None = None
    commit: str = "HEAD"

    def address(self, name: str, place: str = "") -> str:
        """Where a page, or a place on it, is found from a notebook."""
        if name in self.chapters:
            return notebook_path(name).removeprefix("notebooks/")
        return f"{site_url(self.slug) or '../'}{name}.html{'#' * bool(place)}{place}"


def read_toc(root: Path) -> list[str]:
    """The names of all pages in order."""
    return list(parse_toc_yaml(root / "_toc.yml"))


def is_chapter(path: Path) -> bool:
    """Whether a source is executable: a notebook header and at least one code cell."""
    text = path.read_text(encoding="utf8") if path.suffix == ".md" and path.exists() else ""
    header = re.match(r"---\n(.*?)\n---\n", text, re.S)
    return header is not None and "kernelspec" in header[1] and bool(CODE_CELL.search(text))


def read_book(root: Path, environment: dict[str, str]) -> Book:
    """The book under `root`, published from where git or the environment of Actions says."""
    chapters = [name for name in read_toc(root) if is_chapter(root / f"{name}.md")]
    commit = git(root, "rev-parse", "HEAD") or environment.get("GITHUB_SHA", "HEAD")
    return Book(root, chapters, find_slug(root, environment), commit)


def notebook_path(name: str) -> str:
    """Where the chapter's notebook lies, relative to the site's top."""
    return f"notebooks/{name.rsplit('/', 1)[-1]}.ipynb"


def site_url(slug: str | None) -> str:
    """Where GitHub Pages serves the book of `slug`, with a slash at the end; "" without a slug."""
    owner, _, repo = (slug or "").lower().partition("/")
    host = f"{owner}.github.io"
    return f"https://{host}/" + f"{slug.split('/')[1]}/" * (repo != host) if slug else ""


def find_slug(root: Path, environment: dict[str, str]) -> str | None:
    """`owner/name` on GitHub, from the Actions environment or the remote `origin`; else None."""
    remote = git(root, "remote", "get-url", "origin")
    match = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", remote)
    return environment.get("GITHUB_REPOSITORY") or (match and match[1])


def git(root: Path, *command: str) -> str:
    """What git answers in `root`; "" where it does not or `root` is no repository of its own."""
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    run = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True)
    return run.stdout.strip()
