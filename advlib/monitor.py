"""Training progress: one updating line in a terminal, a live plot with Stop in a notebook.

Pass `monitor=progress()` to `advlib.fit`. With `ADVLIB_MONITOR=static` in the environment, as in a
book build, only the final figure is left.
"""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import torch
from torch import Tensor

from advlib.checks import check_function
from advlib.plots import loss_curve

if TYPE_CHECKING:
    from advlib.training import History

OWN_STOP = "press the notebook's own stop button: the network is kept."
MONITOR = ["start", "step", "finish", "stop_requested"]  # what a monitor must have


class TrainingMonitor(Protocol):
    """What `fit` reports to. Set `stop_requested` to end training after the present iteration."""

    stop_requested: bool

    def start(self, epochs: int, iterations: int) -> None:
        """Training begins: so many epochs of so many iterations, 0 if that is not known."""

    def step(self, loss: Tensor) -> None:
        """One iteration is done; `loss` is a detached scalar on the model's device."""

    def finish(self, history: "History") -> None:
        """Training is over: complete, stopped or, with what there is so far, failed."""


Watcher = TrainingMonitor | Callable[[int, Tensor], Any]


class Watchers:
    """All that `fit` reports to: monitors, and plain functions of the iteration and its loss."""

    def __init__(self, given: Any) -> None:
        """Take one, several in a list, or None."""
        self.asked, self.done = False, 0
        self.monitors: list[Any] = []
        self.functions: list[Any] = []
        for one in given if isinstance(given, (list, tuple)) else [given] * (given is not None):
            missing = [name for name in MONITOR if not hasattr(one, name)]
            if missing and not (callable(one) and missing == MONITOR):
                given = type(one).__name__
                raise TypeError(f"monitor must have {missing[0]}, or be a function, got {given}")
            if missing:
                check_function("monitor", one, "iteration", "loss")
            (self.functions if missing else self.monitors).append(one)

    @property
    def stop_requested(self) -> bool:
        """Whether one of them, or an interrupt, asked for the end."""
        return self.asked or any(one.stop_requested for one in self.monitors)

    def start(self, epochs: int, iterations: int) -> None:
        """Training begins."""
        for one in self.monitors:
            one.start(epochs, iterations)

    def step(self, loss: Tensor, *, now: bool = True) -> None:
        """One iteration is done; not `now`, but in an earlier call that is gone on with."""
        self.done += 1
        for one in self.monitors:
            one.step(loss)
        for one in self.functions if now else ():
            one(self.done, loss)

    def finish(self, history: "History") -> None:
        """Training is over."""
        for one in self.monitors:
            one.finish(history)


@contextmanager
def stop_on_interrupt(watchers: Watchers, *, alone: bool) -> Iterator[None]:
    """Turn the first SIGINT into a request to stop; the second one raises KeyboardInterrupt."""
    # only the main thread may set handlers; of processes that train together none can leave
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return

    def request_stop(signum: int, frame: FrameType | None) -> None:
        watchers.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, request_stop)
    try:
        yield
    finally:  # None: the handler before ours was not set from Python, and can't be put back
        signal.signal(signal.SIGINT, signal.default_int_handler if previous is None else previous)


def progress() -> TrainingMonitor:
    """Return the monitor that fits where the code runs: terminal, notebook or static page."""
    if not _in_notebook():
        return TerminalMonitor()
    if os.environ.get("ADVLIB_MONITOR") == "static":
        return FigureMonitor()
    try:
        return NotebookMonitor()
    except ImportError:  # no ipywidgets: a line is better than nothing
        return TerminalMonitor()


class FigureMonitor:
    """Counts and times iterations; leaves one figure in a notebook. The live monitors' base."""

    seconds_between_refreshes = float("inf")

    def __init__(self) -> None:
        """Start with nothing to report."""
        self.start(0, 0)

    def start(self, epochs: int, iterations: int) -> None:
        """Training begins: so many epochs of so many iterations."""
        self.stop_requested = False
        self.epochs, self.iterations, self.done = epochs, iterations, 0
        self.losses: list[Tensor] = []
        self.started = self.refreshed = time.monotonic()

    def step(self, loss: Tensor) -> None:
        """One iteration is done."""
        self.done += 1
        self.losses.append(loss)
        if time.monotonic() - self.refreshed >= self.seconds_between_refreshes:
            self.refresh()
            self.refreshed = time.monotonic()

    def refresh(self) -> None:
        """Show the present state."""

    def finish(self, history: "History") -> None:
        """Training is over: show what stays."""
        _display(loss_curve(history.loss, self.iterations))

    def line(self) -> str:
        """Describe the present state: epoch, iteration, loss, elapsed and remaining time."""
        total, elapsed = self.epochs * self.iterations, time.monotonic() - self.started
        remaining = elapsed / max(self.done, 1) * (total - self.done)
        epoch = max(1, -(-self.done // max(self.iterations, 1)))  # rounded up: the one under way
        loss = f"{self.losses[-1].item():.4f}" if self.losses else "-"
        return (
            f"epoch {epoch} of {self.epochs}, iteration {self.done} of {total}, loss {loss}, "
            f"{_clock(elapsed)} elapsed, {_clock(remaining)} left"
        )


class TerminalMonitor(FigureMonitor):
    """One line, rewritten in place in a terminal; only its last state in a file or a log."""

    seconds_between_refreshes = 0.2

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to `stream`, by default the standard error."""
        super().__init__()
        self.stream = stream or sys.stderr

    def refresh(self) -> None:
        """Rewrite the line."""
        if self.stream.isatty():
            self.stream.write(f"\r\x1b[K{self.line()}")
            self.stream.flush()

    def finish(self, history: "History") -> None:
        """Write the last line, and leave the cursor below it."""
        clear = "\r\x1b[K" if self.stream.isatty() else ""
        self.stream.write(f"{clear}{self.line()}{', stopped' if history.stopped else ''}\n")
        self.stream.flush()


class NotebookMonitor(FigureMonitor):
    """Live loss plot, progress bar and Stop button; replaced by the final figure at the end."""

    seconds_between_refreshes = 1.0

    def __init__(self) -> None:
        """Raises ImportError without ipywidgets."""
        import ipywidgets

        self.widgets = ipywidgets
        super().__init__()

    def start(self, epochs: int, iterations: int) -> None:
        """Show the widgets."""
        super().start(epochs, iterations)
        if not epochs:
            return
        self.heard, self.asks, make = False, 0, self.widgets
        self.bar, self.label = make.IntProgress(max=epochs * iterations), make.Label(self.line())
        self.plot, self.hint = make.Image(format="png"), make.Label(f"To stop, {OWN_STOP}")
        self.stop = make.Button(description="Stop", icon="stop")
        self.stop.layout.display = "none"  # until a message gets through to a busy kernel
        self.stop.on_click(self._request_stop)
        self.box = make.VBox([make.HBox([self.stop, self.bar, self.hint]), self.label, self.plot])
        self.hidden: list[Any] = []
        _on_message(self.stop, self._request_stop)
        self.handle = _display(self.box, display_id=True)
        self._ask()

    def refresh(self) -> None:
        """Redraw the plot, move the bar, and show Stop once it is known to work."""
        if self.heard and self.stop.layout.display:
            self.stop.layout.display = None
            self.hint.value = f"Or {OWN_STOP}"
        elif not self.heard:
            self.asks += 1
            if self.asks.bit_count() == 1:  # 1, 2, 4, ...
                self._ask()
        self.bar.value, self.label.value = self.done, self.line()
        losses, picture = torch.stack(self.losses).tolist(), io.BytesIO()
        loss_curve(losses, self.iterations).savefig(picture, format="png")
        self.plot.value = picture.getvalue()

    def finish(self, history: "History") -> None:
        """Put the final figure in the place of the widgets, so that none are left behind."""
        self.handle.update(loss_curve(history.loss, self.iterations))
        for widget in (*self.hidden, self.box):
            _close(widget)

    def _ask(self) -> None:
        """Have the front end copy the bar's length into a new widget, and so write to the kernel.

        The first message comes too early for JupyterLab's subshell, and waits for the cell's end.
        So does all else from that widget: the next question needs another one.
        """
        echo = self.widgets.IntText()
        _on_message(echo, self._hear)
        link = self.widgets.jsdlink((self.bar, "max"), (echo, "value"))
        self.hidden += [link, echo]

    def _hear(self, message: Any) -> None:
        self.heard = True

    def _request_stop(self, button: Any) -> None:
        self.stop_requested = True


def _on_message(widget: Any, act: Callable[[Any], None]) -> None:
    """Call `act` with what the front end sends to `widget`, while the cell runs if that can be.

    JupyterLab sends it to a subshell, a thread of ipykernel 7. Version 7.4 asks the widget's comm
    for another way, back to the busy cell: no answer. Usual handling would end the cell's plots.
    """
    usual = widget.comm.handle_msg

    def handle(message: Any) -> None:
        if message["content"]["data"].get("method") in ("custom", "update"):
            act(message)
        else:  # a page that was loaded again asks for the widget's state
            usual(message)

    widget.comm.handle_msg = handle
    widget.comm._reply_subshell_for = None


def _close(widget: Any) -> None:
    """Close a widget with its children, layout and style, so that none stays in the kernel."""
    for part in getattr(widget, "children", ()):
        _close(part)
    for name in ("layout", "style"):
        getattr(widget, name, widget).close()
    widget.close()


def _display(thing: Any, **options: Any) -> Any:
    from IPython.display import display

    return display(thing, **options)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _clock(seconds: float) -> str:
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"
