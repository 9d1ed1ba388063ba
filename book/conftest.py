"""Collects the book's pages for pytest: `pytest book` runs every code cell in order.

nbval runs the cells but collects .ipynb files only; here it gets the notebook that jupytext reads
from the page. Pages store no outputs, so nothing is compared: a chapter's claims are its asserts.
After a cell that fails, the later cells of the page are skipped, for they build on it.

A page whose cells have all passed is kept for the build, which does not run it again; nor does
nbval while it is kept (`_ext/execution.py`).
"""

import copy
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_cache import get_cache
from nbclient import NotebookClient
from nbval.plugin import IPyNbCell, IPyNbFile, find_comment_markers, find_metadata_tags

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
import execution
from contents import is_chapter

ROOT = Path(__file__).resolve().parents[1]
CELL_TIMEOUT = 1200.0


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval_cell_timeout = min(config.option.nbval_cell_timeout, CELL_TIMEOUT)
    config.option.nbval_current_env = True  # this environment's own kernel
    os.environ.setdefault("ADVLIB_MONITOR", "static")  # the kernels inherit it


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not is_chapter(file_path):
        return None
    page, folder = execution.read(file_path), execution.cache_folder(ROOT)
    if found := execution.find(get_cache(folder), page):
        return Kept.from_parent(parent, path=file_path, executed=found[0], folder=folder)
    return Chapter.from_parent(parent, path=file_path, nb=page, folder=folder)


class Kept(pytest.File):
    """A page that has been executed."""

    def __init__(self, executed: Any, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.executed, self.folder = executed, folder

    def collect(self) -> Iterator["KeptExecution"]:
        yield KeptExecution.from_parent(self, name="Executed before")


class KeptExecution(pytest.Item):
    """What is kept must be a whole and faultless execution."""

    def runtest(self) -> None:
        for number, cell in enumerate(self.parent.executed.cells):
            faults = [output for output in cell.outputs if output.output_type == "error"]
            if cell.execution_count is None or faults:
                pytest.fail(f"Cell {number} failed or never ran: remove {self.parent.folder}")


class Chapter(IPyNbFile):
    """One page; its kernel runs in the page's own folder."""

    failed: int | None = None
    passed = 0

    def __init__(self, nb: Any, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.nb, self.folder = nb, folder
        self.indices = [i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]
        # nbclient never starts; it turns messages into outputs, as in a build
        self.client = NotebookClient(copy.deepcopy(nb), record_timing=False)

    def collect(self) -> Iterator["ChapterCell"]:
        for number, index in enumerate(self.indices):
            cell = self.nb.cells[index]
            options = defaultdict(bool, find_metadata_tags(cell.metadata))
            options.update(find_comment_markers(cell.source))
            options.setdefault("check", self.compare_outputs)
            yield ChapterCell.from_parent(
                self, name=f"Cell {number}", cell_num=number, cell=cell, options=options
            )

    def setup(self) -> None:
        self.began = time.perf_counter()
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("MPLBACKEND", raising=False)  # tests set it; pages show figures
            super().setup()
        self.kernel.execute_cell_input = self.execute

    def execute(self, source: str, allow_stdin: bool | None = None) -> str:
        """Run a cell with history, as nbclient: without, a final semicolon would hide nothing."""
        self.client.clear_before_next_output = False
        self.request = self.kernel.kc.execute(source, allow_stdin=False, stop_on_error=False)
        return self.request

    def get_kernel_message(self, timeout: float | None = None, stream: str = "iopub") -> Any:
        message = super().get_kernel_message(timeout, stream)
        ours = message["parent_header"].get("msg_id") == self.request
        if ours and message["msg_type"] != "status":
            self.client.process_message(message, self.client.nb.cells[self.cell], self.cell)
        return message

    def keep(self) -> None:
        """Keep what a page has said whose cells have all passed."""
        seconds = time.perf_counter() - self.began
        about = self.kernel.kc.kernel_info(reply=True, timeout=60)["content"]
        self.client.nb.metadata.language_info = about["language_info"]
        self.client.set_widgets_metadata()
        if execution.cache_folder(ROOT) == self.folder:  # nothing was edited meanwhile
            execution.keep(self.folder, self.path, self.client.nb, seconds)


class ChapterCell(IPyNbCell):
    """One code cell."""

    def setup(self) -> None:
        if self.parent.failed is not None:
            pytest.skip(f"Cell {self.parent.failed} of this chapter failed")
        super().setup()

    def runtest(self) -> None:
        self.parent.cell = self.parent.indices[self.cell_num]
        try:
            super().runtest()
        except Exception:
            self.parent.failed = self.cell_num
            raise
        self.parent.passed += 1
        if self.parent.passed == len(self.parent.indices):
            self.parent.keep()

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
        return f"{super().repr_failure(excinfo)}\nin {self.nodeid}"
