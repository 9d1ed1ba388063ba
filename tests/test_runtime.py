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
    slow = ["matplotlib", "ipywidgets", "torchvision", "IPython", "PIL"]
    code = "import sys, advlib; advlib.load_data(device='cpu'); print([*sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'advlib.data'" in run.stdout
    assert [name for name in slow if f"'{name}'" in run.stdout] == []


def test_the_version_is_the_installed_one():
    assert advlib.__version__ == version("advlib")


def test_pick_device_returns_the_named_device_or_the_best_one():
    assert pick_device("cpu") == torch.device("cpu")
    best = ["cuda"] if torch.cuda.is_available() else ["mps", "cpu"]
    assert pick_device().type in best


def test_evaluation_mode_nests_and_restores_each_modules_flag_also_after_an_error():
    model = small_net()  # training, but with one frozen BatchNorm
    with untouched(model), suppress(Breakdown), evaluation_mode(model):
        with evaluation_mode(model):
            pass
        assert not any(module.training for module in model.modules())
        raise Breakdown


def test_seed_everything_decides_every_generator():
    def draws(seed):
        seed_everything(seed)
        numbers = [random.random(), np.random.rand(), torch.rand(1).item()]  # noqa: NPY002
        return [*numbers, digit_net().linear.weight[0, 0].item()]

    first = draws(7)
    assert draws(7) == first
    assert not set(draws(8)) & set(first)


@cuda
def test_cuda_is_picked_and_seeded():
    assert pick_device("cuda:0").index == 0
    seed_everything(3)
    first = torch.rand(3, device="cuda")
    seed_everything(3)
    assert torch.equal(first, torch.rand(3, device="cuda"))


def test_every_public_module_is_there_after_import_advlib():
    names = "collapse losses masking monitor plots report verification"
    code = f"import advlib; [getattr(advlib, name).__doc__ for name in '{names}'.split()]"
    subprocess.run([sys.executable, "-c", code], check=True)
