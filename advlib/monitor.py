"""Training progress: one updating line in a terminal, a live plot with Stop in a notebook.

Pass `monitor=progress()` to `advlib.fit`. Where nobody watches, as in a book build or a test
(`ADVLIB_MONITOR=static` in the environment), only the final figure is left.
"""

import io
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from advlib.runtime import check_count

if TYPE_CHECKING:
    from advlib.training import History, TrainingMonitor

OWN_STOP = "press the notebook's own stop button: the network is kept."


def progress() -> "TrainingMonitor":
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
    """Counts and times iterations; leaves one figure of the loss in a notebook.

    The base of the live monitors, which override `refresh` and `finish`.
    """

    seconds_between_refreshes = float("inf")

    def __init__(self) -> None:
        """Start with nothing to report."""
        self.stop_requested = False
        self.start(0, 0)

    def start(self, epochs: int, iterations: int) -> None:
        """Training begins: so many epochs of so many iterations."""
        check_count("epochs", epochs, minimum=0)
        check_count("iterations", iterations, minimum=0)
        self.stop_requested = False
        self.epochs = epochs
        self.iterations = iterations
        self.done = 0
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
        _display(_figure(history.loss, self.iterations))

    def line(self) -> str:
        """Describe the present state: epoch, iteration, loss, elapsed and remaining time."""
        total = self.epochs * self.iterations
        elapsed = time.monotonic() - self.started
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
        if stream is not None and not hasattr(stream, "isatty"):
            raise TypeError(f"stream must be a text stream, got {type(stream).__name__}")
        self.stream = stream or sys.stderr
        super().__init__()

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
    """Live loss plot, progress bar and Stop button; replaced by the final figure at the end.

    A button works only where the front end's messages reach the kernel while a cell runs. So Stop
    stays hidden until one has: the monitor asks the front end for one, now and then. The
    notebook's own stop button always works, and the monitor says so.
    """

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
        self.heard, self.asks = False, 0
        self.bar = self.widgets.IntProgress(max=epochs * iterations)
        self.label = self.widgets.Label(self.line())
        self.plot = self.widgets.Image(format="png")
        self.stop = self.widgets.Button(description="Stop", icon="stop")
        self.stop.layout.display = "none"
        self.stop.on_click(self._request_stop)
        self.hint = self.widgets.Label(f"To stop, {OWN_STOP}")
        controls = self.widgets.HBox([self.stop, self.bar, self.hint])
        self.box = self.widgets.VBox([controls, self.label, self.plot])
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
        self.bar.value = self.done
        self.label.value = self.line()
        picture = io.BytesIO()
        figure = _figure(torch.stack(self.losses).tolist(), self.iterations)
        figure.savefig(picture, format="png")
        self.plot.value = picture.getvalue()

    def finish(self, history: "History") -> None:
        """Put the final figure in the place of the widgets, so that none are left behind."""
        self.handle.update(_figure(history.loss, self.iterations))
        for widget in (*self.hidden, self.box):
            _close(widget)

    def _ask(self) -> None:
        """Have the front end copy the bar's length into a new widget, and so write to the kernel.

        The very first message comes too early for JupyterLab to have a subshell, and waits for the
        end of the cell. So does all else from that widget: the next question needs another one.
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

    JupyterLab sends messages of widgets to a subshell, a thread of ipykernel 7. But ipykernel 7.4
    asks the widget's comm for a better way, which is back to the busy cell; without an answer it
    keeps to the subshell. No other version asks. And the usual handling would end the cell's
    plots, as if the cell were over.
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
    parts = [getattr(widget, name, None) for name in ("layout", "style")]
    for part in (*getattr(widget, "children", ()), *filter(None, parts)):
        _close(part)
    widget.close()


def _figure(losses: list[float], iterations: int) -> Any:
    from advlib.plots import loss_curve

    return loss_curve(losses, iterations)


def _display(thing: Any, **options: Any) -> Any:
    from IPython.display import display

    return display(thing, **options)


def _in_notebook() -> bool:
    """Tell whether a Jupyter kernel runs this code."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
