"""Attacks. Each is a function `attack(model, x, y) -> x_adv` once its rest is fixed.

`x` is a floating tensor (n, c, h, w), or (n, features), inside `bounds`; `y` is int64 (n,): true
labels, or targets with `targeted=True`; `eps` and `alpha` are in pixel units: a number, or a tensor
(n,) with one per image. `norm` measures eps: "linf" by the largest change of any pixel, "l2" by the
root of the sum of an image's squared changes. The result is detached and has the shape, dtype,
device and memory format of `x`. The model's flags and gradients and torch's global random state
stay as they were: without a `generator`, random numbers come from advlib's own, seeded at import.
All raise TypeError or ValueError naming the argument before any work is done.
"""

from advlib.attacks.apgd import apgd
from advlib.attacks.auto import autoattack
from advlib.attacks.gradient import bim, fgsm, input_gradient, pgd
from advlib.attacks.square import square

__all__ = ["apgd", "autoattack", "bim", "fgsm", "input_gradient", "pgd", "square"]
