"""JupyterLab in headless Chromium: Stop, the toolbar's stop, and the attack lab's widgets."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from browser import need
from playwright.sync_api import expect

expect.set_options(timeout=60_000)

TRAINING = """
import matplotlib.pyplot as plt
plt.plot([1, 2])
import json, time, torch, advlib
from advlib.monitor import progress
torch.set_num_threads(1)
x, y = torch.rand(80, 1, 28, 28), torch.arange(80) % 10
net, begun = advlib.digit_net(), []
first = net[-1].weight.detach().clone()

def attack(model, x, y):
    begun.append(time.time())
    time.sleep(0.9)  # as if there were much to do
    return advlib.bim(model, x, y, eps=0.1, alpha=0.01, steps=5)

batches = advlib.Batches(x, y, batch_size=20)
history = advlib.fit(net, batches, epochs=1000, lr=0.01, attack=attack, monitor=progress())
ended = time.time()
"""
AFTERWARDS = """
trained = not torch.equal(first, net[-1].weight)
print(json.dumps([history.stopped, trained, len(history.loss), begun, ended]))
"""
ATTACK_LAB = """
import torch, advlib
from advlib.book.lab import attack_lab
torch.set_num_threads(1)
test = advlib.load_data(device="cpu")[1]
nets = {"standard": advlib.digit_net(), "robust": advlib.digit_net()}
attack_lab(nets, test.x[:10], test.y[:10], steps=4)
"""
CELLS = (TRAINING, AFTERWARDS, ATTACK_LAB)
FOLDERS = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")


class Lab:
    """A JupyterLab server and a browser; `open` makes a notebook with the cells above."""

    def __init__(self, server, folder, browser):
        self.url, self.token, self.folder = server["url"], server["token"], folder
        self.context = browser.new_context(viewport={"width": 1280, "height": 1000})
        self.context.set_default_timeout(60_000)

    def open(self):
        path = self.folder / f"{len(list(self.folder.iterdir()))}.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
        page = self.context.new_page()
        page.goto(f"{self.url}lab/workspaces/{path.stem}/tree/{path.name}?token={self.token}")
        # the notebook's own indicator says idle before there is a kernel
        page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        return Notebook(page)

    def set(self, plugin, **settings):
        address = f"{self.url}lab/api/settings/@jupyterlab/apputils-extension:{plugin}"
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        body = json.dumps({"raw": json.dumps(settings)}).encode()
        request = urllib.request.Request(address, body, headers, method="PUT")
        urllib.request.urlopen(request, timeout=60).close()


class Notebook:
    """A page with a notebook; counts what has been run."""

    def __init__(self, page):
        self.page, self.count = page, 0

    def run(self, number):
        """Start the cell with this number, from 0, and return it."""
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")
        self.count += 1
        return cell

    def finished(self, cell):
        """Wait until `cell`, run last, has ended without an error."""
        expect(cell.locator(".jp-InputPrompt").first).to_have_text(f"[{self.count}]:")
        errors = cell.locator("[data-mime-type$='jupyter.error'], [data-mime-type$=stderr]")
        assert errors.all_inner_texts() == []


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """A JupyterLab that knows nothing of its user's settings, in that browser."""
    need(importlib.util.find_spec("jupyterlab"), "needs JupyterLab")
    home, notebooks = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    others = ("JUPYTER", "IPYTHON", "ADVLIB", "MPLBACKEND")  # the kernel's own shows figures
    environment = {k: value for k, value in os.environ.items() if not k.startswith(others)}
    environment |= {"JUPYTER" + ("" if f[:3] == "LAB" else "_") + f: str(home / f) for f in FOLDERS}
    environment |= {"HOME": str(home), "IPYTHONDIR": str(home), "OMP_NUM_THREADS": "1"}
    options = ["--no-browser", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={notebooks}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    with (home / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        runtime = home / "RUNTIME_DIR" / f"jpserver-{process.pid}.json"
        written = lambda: runtime.exists() and runtime.read_text().strip().endswith("}")  # noqa: E731
        while not written():
            assert process.poll() is None, (home / "log").read_text()
            time.sleep(0.05)
        lab = Lab(json.loads(runtime.read_text()), notebooks, browser)
        lab.set("notification", fetchNews="false")  # no question that covers the page
        yield lab
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def opened(server):
    """The notebook that most tests share, and the errors of any page."""
    faults = []
    server.context.on("weberror", lambda error: faults.append(str(error.error)))
    return server.open(), faults


@pytest.fixture
def notebook(opened):
    notebook, faults = opened
    yield notebook
    assert faults == []


def press_and_check(notebook, cell, button):
    """Press a button that ends the training in `cell`, the first, and see what it left."""
    button.evaluate(
        "node => node.addEventListener('click', () => { window.pressed = Date.now() / 1000; })"
    )
    button.click()
    notebook.finished(cell)
    expect(cell.locator(".jp-OutputArea-output img")).to_have_count(2)  # the cell's own plot, too
    assert cell.locator(".jupyter-widgets").count() == 0
    pressed = notebook.page.evaluate("window.pressed")
    after = notebook.run(1)
    notebook.finished(after)
    stopped, trained, count, begun, ended = json.loads(after.locator("pre").last.inner_text())
    assert (stopped, trained, count) == (True, True, len(begun))
    assert begun[0] < pressed < ended < pressed + 10
    assert sum(moment > pressed for moment in begun) <= 2


TOOLBARS_STOP = "[data-command='notebook:interrupt-kernel']"


@pytest.mark.parametrize("stop", ["the cell's", "the toolbar's"])
def test_a_stop_button_ends_training_and_keeps_the_network_and_the_cells_own_plots(stop, notebook):
    cell = notebook.run(0)
    button = cell.get_by_role("button", name="Stop")
    button.wait_for()
    expect(cell.get_by_text("Or press the notebook's own stop button")).to_be_visible()
    toolbars = notebook.page.locator(TOOLBARS_STOP)
    press_and_check(notebook, cell, button if stop == "the cell's" else toolbars)


def test_the_attack_lab_answers_to_keyboard_and_buttons(notebook):
    cell = notebook.run(2)
    notebook.finished(cell)
    picture = cell.locator("img")
    clean = picture.get_attribute("src")
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    cell.get_by_role("slider").press("ArrowRight")
    expect(picture).to_have_attribute("alt", re.compile(r"Step 0 of 4, eps 0\.11\."))
    cell.get_by_role("button", name="Attack").click()
    expect(cell.get_by_text(re.compile(r"Step 4 of 4, eps 0\.11\."))).to_be_visible()
    attacked = picture.get_attribute("src")
    assert attacked != clean
    cell.get_by_role("button", name="Reset").click()
    expect(cell.get_by_text(re.compile("Step 0 of 4"))).to_be_visible()
    expect(picture).not_to_have_attribute("src", attacked)


def test_without_a_way_for_the_button_the_monitor_names_the_toolbars_stop(server, notebook):
    """Messages of widgets wait for the end of the cell, as in ipykernel 6, VS Code and Colab."""
    server.set("kernels-settings", commsOverSubshells="disabled")
    try:
        other = server.open()
        cell = other.run(0)
        # several refreshes, of a second each, went by
        cell.get_by_text(re.compile(r"iteration ([5-9]|\d\d+) of 4000")).wait_for()
        expect(cell.get_by_text("To stop, press the notebook's own stop button")).to_be_visible()
        expect(cell.get_by_role("button", name="Stop")).to_be_hidden()
        press_and_check(other, cell, other.page.locator(TOOLBARS_STOP))
    finally:
        server.set("kernels-settings")
