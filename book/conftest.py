"""Collects the book's chapters for pytest: `pytest book` runs every code cell in order.

nbval runs the cells but collects .ipynb files only; here it gets the notebook that jupytext reads
from the chapter. Chapters store no outputs, so nothing is compared: a chapter's claims are its
asserts. After a cell that fails, the later cells of the chapter are skipped, for they build on it.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile, find_comment_markers, find_metadata_tags

CELL_TIMEOUT = 1200.0


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval_cell_timeout = min(config.option.nbval_cell_timeout, CELL_TIMEOUT)
    config.option.nbval_current_env = True  # this environment's own kernel
    os.environ.setdefault("ADVLIB_MONITOR", "static")  # the kernels inherit it


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix != ".md":
        return None
    header = re.match(r"---\n(.*?)\n---\n", file_path.read_text(encoding="utf8"), re.S)
    if header and "kernelspec" in header[1]:
        return Chapter.from_parent(parent, path=file_path)
    return None


class Chapter(IPyNbFile):
    """One chapter; its kernel runs in the chapter's own folder."""

    failed: int | None = None

    def collect(self) -> Iterator["ChapterCell"]:
        self.nb = jupytext.read(self.path, fmt="md:myst")
        code = [cell for cell in self.nb.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code):
            options = defaultdict(bool, find_metadata_tags(cell.metadata))
            options.update(find_comment_markers(cell.source))
            options.setdefault("check", self.compare_outputs)
            yield ChapterCell.from_parent(
                self, name=f"Cell {number}", cell_num=number, cell=cell, options=options
            )


class ChapterCell(IPyNbCell):
    """One code cell."""

    def setup(self) -> None:
        if self.parent.failed is not None:
            pytest.skip(f"Cell {self.parent.failed} of this chapter failed")
        super().setup()

    def runtest(self) -> None:
        try:
            super().runtest()
        except Exception:
            self.parent.failed = self.cell_num
            raise

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
        return f"{super().repr_failure(excinfo)}\nin {self.nodeid}"
