"""The progress line, and the figure that is left in a notebook run by a real kernel."""

import ast
import io
import re

import nbformat
import pytest
import torch
from conftest import images, labels
from nbclient import NotebookClient

from advlib import Batches, digit_net, fit
from advlib.monitor import TerminalMonitor, progress

LINE = r"epoch (\d) of 2, iteration (\d+) of 10, loss (\d\.\d{4}), \d+:\d\d elapsed, \d+:\d\d left"


def terminal(tty):
    screen = io.StringIO()
    screen.isatty = lambda: tty
    monitor = TerminalMonitor(screen)
    monitor.seconds_between_refreshes = 0
    return monitor


def train(monitor, act=lambda iteration: None):
    """Two epochs of five iterations; `act` is called after each."""
    count = iter(range(1, 11))
    attack = lambda model, x, y: act(next(count)) or x  # noqa: E731
    net, batches = digit_net(size=4, classes=3), Batches(images(20), labels(20), batch_size=4)
    return fit(net, batches, epochs=2, lr=0.01, monitor=monitor, attack=attack)


def test_a_terminal_gets_one_line_rewritten_in_place_and_a_last_line_break():
    monitor = terminal(tty=True)
    history = train(monitor)
    first, *states, last = re.split("\r\x1b\\[K|\n", monitor.stream.getvalue())
    assert first == last == ""
    found = [re.fullmatch(LINE, state).groups() for state in states]
    where = [(str(1 + (i - 1) // 5), str(i)) for i in range(1, 11)]
    assert [(epoch, i) for epoch, i, _ in found[:10]] == where
    assert [float(loss) for _, _, loss in found[:10]] == pytest.approx(history.loss, abs=1e-4)
    assert found[10:] == found[9:10]  # the state that stays


def test_a_log_file_gets_the_last_line_only_which_says_where_training_was_stopped():
    monitor = terminal(tty=False)
    history = train(monitor, lambda iteration: setattr(monitor, "stop_requested", iteration == 5))
    assert len(history.loss) == 5
    assert re.fullmatch(LINE + ", stopped\n", monitor.stream.getvalue()).groups()[:2] == ("1", "5")
    assert not train(monitor).stopped  # it can be used again


def test_remaining_time_is_in_proportion(monkeypatch):
    monitor, now = terminal(tty=True), [100.0]
    monkeypatch.setattr("advlib.monitor.time.monotonic", lambda: now[0])
    monitor.start(10, 10)
    assert "epoch 1 of 10, iteration 0 of 100, loss -" in monitor.line()
    for _ in range(20):
        monitor.step(torch.tensor(1.0))
    now[0] += 30
    line = "epoch 2 of 10, iteration 20 of 100, loss 1.0000, 0:30 elapsed, 2:00 left"
    assert monitor.line() == line


SETUP = """
import os, signal
import torch, advlib
from advlib import monitor
torch.set_num_threads(1)
x, y = torch.rand(20, 1, 4, 4), torch.arange(20) % 3

def run(monitor, act=lambda iteration: None, pause=60):
    monitor.seconds_between_refreshes = pause
    count = iter(range(1, 11))
    attack = lambda model, x, y: act(next(count)) or x
    net = advlib.digit_net(size=4, classes=3)
    batches = advlib.Batches(x, y, batch_size=4)
    return advlib.fit(net, batches, epochs=2, lr=0.01, monitor=monitor, attack=attack)
"""
# what the front end would send, and what a reader sees after each iteration
MESSAGES = """
seen = []
def send(widget, method):
    widget.comm.handle_msg({"content": {"data": {"method": method}}})

def look(act=lambda iteration: None):
    seen.clear()
    shown = lambda i: seen.append((live.stop.layout.display, live.hint.value)) or act(i)
    run(live, shown, pause=0)
    return seen
"""
CELLS = {
    "static": "static = monitor.progress(); run(static);",
    "live": "del os.environ['ADVLIB_MONITOR']; live = monitor.progress(); run(live, pause=0);",
    "interrupt": "run(live, lambda i: os.kill(os.getpid(), signal.SIGINT) if i == 3 else None)",
    "button": "run(live, lambda i: live.stop.click() if i == 4 else None)",
    "failed": "run(live, lambda i: 1 / 0 if i == 7 else None)",
    "messages": MESSAGES,
    "silent": "print(look())",
    "heard": "print(look(lambda i: i == 3 and send(live.hidden[1], 'update')))",
    "click": "run(live, lambda i: send(live.stop, 'custom') if i == 4 else None)",
    "reload": "run(live, lambda i: send(live.stop, 'request_state')).stopped",
    "left": "from ipywidgets.widgets.widget import _instances; print(len(_instances))",
    "types": "print(type(static).__name__, type(live).__name__)",
}


@pytest.fixture(scope="module")
def notebook():
    """Outputs of the cells above, from one kernel that began with ADVLIB_MONITOR=static."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_MONITOR", "static")
        patch.delenv("MPLBACKEND")  # the kernel's own shows figures
        cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *CELLS.values())]
        book = nbformat.v4.new_notebook(cells=cells)
        NotebookClient(book, timeout=120, allow_errors=True, kernel_name="python3").execute()
    assert cells[0].outputs == []
    return dict(zip(CELLS, [cell.outputs for cell in cells[1:]], strict=True))


@pytest.mark.parametrize("cell", ["static", "live", "interrupt", "button", "failed"])
def test_a_notebook_is_left_with_one_picture_and_no_widget(notebook, cell):
    (shown,) = [output for output in notebook[cell] if output.output_type == "display_data"]
    assert shown.data["image/png"]
    assert not [kind for kind in shown.data if "widget" in kind]
    others = {output.output_type for output in notebook[cell]} - {"display_data"}
    results = {"failed": {"error"}, "static": set(), "live": set()}
    assert others == results.get(cell, {"execute_result"})
    assert notebook["left"][0].text == "0\n"  # in the kernel


def value(outputs):
    (result,) = [output for output in outputs if output.output_type == "execute_result"]
    return result.data["text/plain"]


@pytest.mark.parametrize(("cell", "iterations"), [("interrupt", 3), ("button", 4), ("click", 4)])
def test_a_notebooks_stop_keeps_the_network_after_the_iteration(notebook, cell, iterations):
    text = value(notebook[cell])
    assert "stopped=True" in text
    assert len(re.findall(r"\d\.\d+", text)) == iterations
    assert value(notebook["reload"]) == "False"  # the page only asked for the button's state


OWN = "press the notebook's own stop button: the network is kept."


@pytest.mark.parametrize(("cell", "alone"), [("silent", 10), ("heard", 3)])
def test_stop_is_shown_once_the_front_end_wrote_while_the_cell_ran(notebook, cell, alone):
    (printed,) = [output.text for output in notebook[cell] if output.output_type == "stream"]
    states = [("none", f"To stop, {OWN}")] * alone + [(None, f"Or {OWN}")] * (10 - alone)
    assert ast.literal_eval(printed) == states


def test_progress_is_the_terminal_line_the_figure_in_a_static_page_and_else_the_widget(notebook):
    assert type(progress()) is TerminalMonitor
    assert notebook["types"][0].text == "FigureMonitor NotebookMonitor\n"
