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


class Screen(io.StringIO):
    def __init__(self, tty):
        super().__init__()
        self.isatty = lambda: tty


def train(monitor, act=lambda iteration: None):
    """Two epochs of five iterations; `act` is called after each."""
    count = iter(range(1, 11))
    attack = lambda model, x, y: act(next(count)) or x  # noqa: E731
    batches = Batches(images(20), labels(20), batch_size=4)
    return fit(
        digit_net(size=4, classes=3), batches, epochs=2, lr=0.01, monitor=monitor, attack=attack
    )


LINE = r"epoch (\d) of 2, iteration (\d+) of 10, loss (\d\.\d{4}), \d+:\d\d elapsed, \d+:\d\d left"


def test_a_terminal_gets_one_line_rewritten_in_place_and_a_last_line_break():
    screen = Screen(tty=True)
    monitor = TerminalMonitor(screen)
    monitor.seconds_between_refreshes = 0
    history = train(monitor)
    text = screen.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    states = text.rstrip("\n").split("\r\x1b[K")
    assert states[0] == ""
    found = [re.fullmatch(LINE, state).groups() for state in states[1:]]
    assert [(int(epoch), int(i)) for epoch, i, _ in found[:10]] == [
        (1 + (i - 1) // 5, i) for i in range(1, 11)
    ]
    assert [float(loss) for _, _, loss in found[:10]] == pytest.approx(history.loss, abs=1e-4)
    assert found[10] == found[9]  # the state that stays


def test_a_log_file_gets_the_last_line_only():
    screen = Screen(tty=False)
    monitor = TerminalMonitor(screen)
    monitor.seconds_between_refreshes = 0
    train(monitor)
    assert re.fullmatch(LINE + "\n", screen.getvalue())


def test_the_line_says_when_training_was_stopped_and_where():
    screen = Screen(tty=False)
    monitor = TerminalMonitor(screen)
    history = train(monitor, lambda iteration: setattr(monitor, "stop_requested", iteration == 5))
    assert len(history.loss) == 5
    assert "epoch 1 of 2, iteration 5 of 10" in screen.getvalue()
    assert screen.getvalue().endswith("left, stopped\n")


def test_remaining_time_is_in_proportion(monkeypatch):
    monitor, now = TerminalMonitor(Screen(tty=True)), [100.0]
    monkeypatch.setattr("advlib.monitor.time.monotonic", lambda: now[0])
    monitor.start(10, 10)
    assert "epoch 1 of 10, iteration 0 of 100, loss -" in monitor.line()
    for _ in range(20):
        monitor.step(torch.tensor(1.0))
    now[0] += 30
    assert "epoch 2 of 10, iteration 20 of 100, loss 1.0000, 0:30 elapsed, 2:00 left" in (
        monitor.line()
    )


def test_a_monitor_can_be_used_again_after_a_stop():
    monitor = TerminalMonitor(Screen(tty=False))
    train(monitor, lambda iteration: setattr(monitor, "stop_requested", True))
    assert not train(monitor).stopped


def test_progress_is_the_terminal_line_outside_a_notebook(monkeypatch):
    assert type(progress()) is TerminalMonitor
    monkeypatch.setenv("ADVLIB_MONITOR", "static")
    assert type(progress()) is TerminalMonitor


# In a notebook

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
    shown = [output for output in notebook[cell] if output.output_type == "display_data"]
    assert len(shown) == 1
    assert shown[0].data["image/png"]
    assert not [kind for kind in shown[0].data if "widget" in kind]
    others = [o.output_type for o in notebook[cell] if o.output_type != "display_data"]
    assert others == {"failed": ["error"]}.get(
        cell, ["execute_result"] if cell in ("interrupt", "button") else []
    )


def test_closed_monitors_leave_no_widget_in_the_kernel(notebook):
    assert notebook["left"][0].text == "0\n"


@pytest.mark.parametrize(("cell", "iterations"), [("interrupt", 3), ("button", 4), ("click", 4)])
def test_a_notebooks_stop_keeps_the_network_after_the_iteration(notebook, cell, iterations):
    (result,) = [o for o in notebook[cell] if o.output_type == "execute_result"]
    text = result.data["text/plain"]
    assert "stopped=True" in text
    assert len(re.findall(r"\d\.\d+", text)) == iterations


ALONE = ("none", "To stop, press the notebook's own stop button: the network is kept.")
BESIDE = (None, "Or press the notebook's own stop button: the network is kept.")


@pytest.mark.parametrize(("cell", "alone"), [("silent", 10), ("heard", 3)])
def test_stop_is_shown_once_a_message_of_the_front_end_came_while_the_cell_ran(
    notebook, cell, alone
):
    (printed,) = [output.text for output in notebook[cell] if output.output_type == "stream"]
    assert ast.literal_eval(printed) == [ALONE] * alone + [BESIDE] * (10 - alone)


def test_a_page_that_asks_for_the_buttons_state_does_not_stop_training(notebook):
    (result,) = [o for o in notebook["reload"] if o.output_type == "execute_result"]
    assert result.data["text/plain"] == "False"


def test_progress_is_the_figure_in_a_static_page_and_the_widget_elsewhere(notebook):
    assert notebook["types"][0].text == "FigureMonitor NotebookMonitor\n"
