"""Executed pages: where they are kept, by whoever ran them, nbval or the build of the book.

The cache is jupyter-cache's, which knows a page by its code cells; the folder it lies in is named
after what the cells compute with. Nothing here imports Sphinx.
"""

import hashlib
import json
from importlib.metadata import distributions
from math import ceil
from pathlib import Path

import jupytext
from contents import read_toc
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from nbformat import NotebookNode

KINDS = (".py", ".npz", ".pt", ".json")  # code, digits, networks and their index


def cache_key(root: Path) -> str:
    """A short hash of what cells compute with: the package, its files, the results, PyTorch."""
    digest = hashlib.sha256("".join(d.version for d in distributions(name="torch")).encode())
    package = [path for path in (root / "advlib").rglob("*") if path.suffix in KINDS]
    results = [*(root / "book").glob("*.json"), *(root / "benchmarks").rglob("*.json")]
    # build.json says how long all this took; no cell reads it
    for path in sorted(p for p in package + results if p.is_file() and p.name != "build.json"):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def cache_folder(root: Path) -> Path:
    """The folder of the cache that holds for the files as they are."""
    return root / "_build" / ".jupyter_cache" / cache_key(root)


def read(path: Path) -> NotebookNode:
    """A page as a notebook; the cache knows it from the one that myst-nb reads."""
    return jupytext.read(path, fmt="md:myst")


def find(cache: JupyterCacheAbstract, page: NotebookNode) -> tuple[NotebookNode, float] | None:
    """The execution of this page, its code cells only, and how many seconds it took, if kept."""
    try:
        record = cache.match_cache_notebook(page)
        return cache.get_cache_bundle(record.pk).nb, record.data["execution_seconds"]
    except KeyError:
        return None


def keep(folder: Path, path: Path, executed: NotebookNode, seconds: float) -> None:
    """Keep an execution of the page at `path`, as myst-nb would have."""
    bundle = CacheBundleIn(executed, str(path), data={"execution_seconds": seconds})
    get_cache(folder).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def seconds(root: Path) -> dict[str, float]:
    """How long each executed page took. Ask before a file is written that ends the cache."""
    cache = get_cache(cache_folder(root))
    found = {name: find(cache, read(root / f"{name}.md")) for name in read_toc(root)}
    return {name: result[1] for name, result in found.items() if result}


def running_time(root: Path, name: str) -> str:
    """The words of {chapter-badges} on a page's running time; "" if it has not been measured."""
    path = root / "benchmarks" / "results" / "build.json"
    rows = json.loads(path.read_text(encoding="utf8"))["rows"] if path.exists() else {}
    return f"Runs in {minutes(rows[name]['yardsticks'])} on two CPU cores." if name in rows else ""


def minutes(yardsticks: float) -> str:
    """How long that is, from the fastest to the slowest machine on which we took a yardstick."""
    low, high = int(yardsticks * 35 / 60), ceil(yardsticks * 75 / 60)
    if low:
        return f"{low} to {high} minutes"
    return f"under {high} minutes" if high > 1 else "under a minute"
