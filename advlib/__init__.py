"""Adversarial attacks, adversarial training and robust evaluation, small enough to read."""

from advlib import collapse as collapse
from advlib import losses as losses
from advlib.attacks import (
    added,
    apgd,
    autoattack,
    bim,
    ddn,
    fgsm,
    fmn,
    input_gradient,
    moved,
    pasted,
    patch,
    pgd,
    segpgd,
    spatial,
    square,
    universal,
)
from advlib.data import Batches, Images, load_data
from advlib.evaluation import accuracy, correct, mean_iou, predict, robust_accuracy, wilson_interval
from advlib.masking import self_test
from advlib.models import Normalize, digit_net
from advlib.report import Report, robustness_report
from advlib.runtime import evaluation_mode, pick_device, seed_everything
from advlib.training import History, cyclic, fit, load_checkpoint
from advlib.verification import Verification, output_bounds, verify

__version__ = "0.2.0"

__all__ = [
    "Batches",
    "History",
    "Images",
    "Normalize",
    "Report",
    "Verification",
    "accuracy",
    "added",
    "apgd",
    "autoattack",
    "bim",
    "correct",
    "cyclic",
    "ddn",
    "digit_net",
    "evaluation_mode",
    "fgsm",
    "fit",
    "fmn",
    "input_gradient",
    "load_checkpoint",
    "load_data",
    "mean_iou",
    "moved",
    "output_bounds",
    "pasted",
    "patch",
    "pgd",
    "pick_device",
    "predict",
    "robust_accuracy",
    "robustness_report",
    "seed_everything",
    "segpgd",
    "self_test",
    "spatial",
    "square",
    "universal",
    "verify",
    "wilson_interval",
]
