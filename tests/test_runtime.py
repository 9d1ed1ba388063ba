"""Device choice, seeding, evaluation mode, and what importing advlib costs."""

import random
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version

import numpy as np
import torch
from conftest import Breakdown, cuda, small_net, untouched

import advlib
from advlib import digit_net, evaluation_mode, pick_device, seed_everything


def test_import_needs_no_matplotlib_ipywidgets_torchvision_or_ipython():
    code = (
        "import sys, advlib; advlib.load_data(device='cpu');"
        "print([m for m in ('matplotlib', 'ipywidgets', 'torchvision', 'IPython', 'PIL')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_exists_and_has_a_docstring():
    for name in advlib.__all__:
        assert getattr(advlib, name).__doc__, name


def test_the_version_is_that_of_the_installed_package():
    assert advlib.__version__ == version("advlib")


def test_pick_device_returns_the_named_device_or_the_best_one():
    assert pick_device("cpu") == torch.device("cpu")
    best = pick_device()
    if torch.cuda.is_available():
        assert best.type == "cuda"
    else:
        assert best.type in ("mps", "cpu")


def test_evaluation_mode_restores_each_modules_flag_also_after_an_error():
    model = small_net()  # training, but with one frozen BatchNorm
    with untouched(model), suppress(Breakdown), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise Breakdown


def test_evaluation_mode_nests():
    model = small_net()
    with untouched(model), evaluation_mode(model):
        with evaluation_mode(model):
            pass
        assert not any(module.training for module in model.modules())


def test_seed_everything_decides_every_generator():
    def draws():
        seed_everything(7)
        numbers = [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
        return numbers + digit_net().linear.weight.flatten()[:3].tolist()

    first = draws()
    assert draws() == first
    seed_everything(8)
    assert random.random() != first[0]


@cuda
def test_cuda_is_picked_and_seeded():
    assert pick_device("cuda:0").index == 0
    seed_everything(3)
    first = torch.rand(3, device="cuda")
    seed_everything(3)
    assert torch.equal(first, torch.rand(3, device="cuda"))
