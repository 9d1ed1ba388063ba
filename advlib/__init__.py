"""Adversarial attacks, adversarial training and robust evaluation, small enough to read."""

from advlib.attacks import bim, fgsm, input_gradient, pgd
from advlib.data import Batches, Images, load_data
from advlib.evaluation import accuracy, correct, predict, robust_accuracy, wilson_interval
from advlib.models import Normalize, digit_net
from advlib.runtime import evaluation_mode, pick_device, seed_everything
from advlib.training import History, cyclic, fit

__version__ = "0.1.0"

__all__ = [
    "Batches",
    "History",
    "Images",
    "Normalize",
    "accuracy",
    "bim",
    "correct",
    "cyclic",
    "digit_net",
    "evaluation_mode",
    "fgsm",
    "fit",
    "input_gradient",
    "load_data",
    "pgd",
    "pick_device",
    "predict",
    "robust_accuracy",
    "seed_everything",
    "wilson_interval",
]
