"""Attacks. Each is a function `attack(model, x, y) -> x_adv` once its rest is fixed.

`x` is a floating tensor (n, c, h, w), or (n, features), inside `bounds`; `y` is int64 (n,): true
labels, or targets with `targeted=True`. For a model with logits (n, classes, h, w) `fgsm`, `bim`,
`pgd`, `segpgd` and `input_gradient` take labels (n, h, w), each of them a class: the losses of an
image's pixels are summed, and it counts as broken once no pixel is right any more, or all are on
target. `eps` and `alpha` are in pixel units: a number, or a tensor (n,) with one per image. `norm`
measures eps: "linf" by the largest change of any pixel, "l2" by the root of the sum of an image's
squared changes. The result is detached and has the shape, dtype, device and memory format of `x`.
The model's flags and gradients and torch's global random state stay as they were: without a
`generator`, random numbers come from advlib's own, seeded at import. `universal` and `patch` are no
attacks, but train the change that `added` and `pasted` put on images; `moved` turns and shifts. All
raise TypeError or ValueError naming the argument before any work is done.
"""

from advlib.attacks.apgd import apgd
from advlib.attacks.auto import autoattack
from advlib.attacks.gradient import bim, fgsm, input_gradient, pgd, segpgd
from advlib.attacks.minimum import ddn, fmn
from advlib.attacks.spatial import moved, spatial
from advlib.attacks.square import square
from advlib.attacks.universal import added, pasted, patch, universal

__all__ = [
    "added",
    "apgd",
    "autoattack",
    "bim",
    "ddn",
    "fgsm",
    "fmn",
    "input_gradient",
    "moved",
    "pasted",
    "patch",
    "pgd",
    "segpgd",
    "spatial",
    "square",
    "universal",
]
