"""Attacks. Each is a function `attack(model, x, y) -> x_adv` once its rest is fixed.

Shapes and units, the same for all: `x` is a floating tensor (n, c, h, w), or (n, features), with
pixels inside `bounds`; `y` is int64 (n,) and holds true labels, or target labels when
`targeted=True`; `eps` and `alpha` are in pixel units and take a number or a tensor (n,), one value
per image. `norm` says how eps is measured: "linf", the largest change of any pixel, or "l2", the
root of the sum of squared changes of an image. The result is detached and has the shape, dtype,
device and memory format of `x`. The model's training flags, its parameters' gradients and torch's
global random state stay as they were. Without a `generator`, random numbers come from a generator
of advlib's own, seeded at import.

All raise TypeError or ValueError naming the argument before any work is done.
"""

from advlib.attacks.apgd import apgd
from advlib.attacks.auto import autoattack
from advlib.attacks.gradient import bim, fgsm, input_gradient, n_fgsm, pgd
from advlib.attacks.square import square

__all__ = ["apgd", "autoattack", "bim", "fgsm", "input_gradient", "n_fgsm", "pgd", "square"]
