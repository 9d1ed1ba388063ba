"""All that makes attacks and training fast, in one place.

The rest of advlib asks what the logits are, how the loss changes with the pixels, and how it
changes with the weights: `logits`, `gradient` and `logits_and_gradient`, `backward`. Autograd
answers for any module. For a plain `nn.Sequential` of convolutions, max-pooling, ReLU and linear
layers the pass forward and the pass back are written out in `engine.passes`. Time is won by this:

- a batch is worked through in blocks whose activations stay in the processor's cache;
- images lie channels-last from the first convolution to the last gradient, with no reordering;
- ReLU works in place, and after the pooling instead of before it; buffers are used again;
- a gradient for the pixels computes none for the weights;
- of an image that differs in a window only, what the window reaches is computed (`engine.local`);
- on CUDA the passes are recorded as a graph, once, and replayed (`engine.graphs`).

`off()` switches all of it off: results are the same up to rounding, only slower. Freed memory is
also kept for the next step instead of going back to the system, from the import on. Images must be
independent of each other in evaluation mode, as in any network that normalises by fixed statistics.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib.engine.graphs import replayed
from advlib.engine.local import Nearby
from advlib.engine.passes import Loss, Passes, written_out

# Input values in a block: 51 digits keep a CPU's cache warm, 2,551 fill a GPU in about a gigabyte.
_BLOCK_VALUES = {"cpu": 40_000, "cuda": 2_000_000}
_SMALLEST_BLOCK = 16

_enabled = True
_precision: torch.dtype | None = None

# glibc hands freed memory beyond a threshold back to the system, and pays for every page of it
# the next time. Freeing one large buffer raises the threshold (see mallopt(3)); nothing is ever
# written to that buffer, so it costs nothing.
torch.empty(31 * 2**20, dtype=torch.uint8)


@contextmanager
def off() -> Iterator[None]:
    """Compute plainly within this context: the model as it is, the batch as it comes."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


@contextmanager
def gradients_in(dtype: torch.dtype) -> Iterator[None]:
    """Compute the pixels' gradients in `dtype`, say torch.bfloat16, within this context.

    Attacks use the sign only. Logits, and with them every decision and accuracy, keep the model's
    own precision, and so does training. Models that only autograd can differentiate stay as they
    are.

    Raises:
        TypeError: `dtype` is not a floating-point dtype.
    """
    global _precision
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    before, _precision = _precision, dtype
    try:
        yield
    finally:
        _precision = before


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (n, classes) of images `x`, without gradients."""
    passes = _passes(model, x)
    with torch.no_grad():
        run = model if passes is None else passes.forward
        return _joined([run(part) for part in x.tensor_split(_blocks(x))])


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy with respect to its pixels, in the shape of `x`."""
    return _pixels(model, x, y)[1]


def logits_and_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) of `x` in full precision, and the gradient as `gradient` gives it.

    `loss(logits, y)`, one number for each image, takes the place of cross-entropy if given; `y`
    may then be any tensor of n rows.
    """
    scores, slopes = _pixels(model, x, y, loss)
    exact = _precision is None or _passes(model, x) is None
    return scores if exact else logits(model, x), slopes


def nearby(model: nn.Module, x: Tensor) -> Nearby:
    """Logits of images that differ from `x` in a small window, for a model that stays as it is.

    On CPUs those of a plain network cost as much less as the window is smaller than the image.
    """
    passes = _passes(model, x) if x.device.type == "cpu" else None
    return Nearby(x, partial(logits, model), passes)


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Add the weights' gradients of the mean cross-entropy to their `grad`; return that mean.

    It does what `F.cross_entropy(model(x), y).backward()` does.
    """
    passes = _passes(model, x)
    if passes is None:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()
    mean = x.new_zeros(())
    blocks = _blocks(x)
    for part, labels in zip(x.tensor_split(blocks), y.tensor_split(blocks), strict=True):
        share = len(part) / len(x)
        loss, *grads = replayed(model, passes, "weights", part, labels)
        mean.add_(loss, alpha=share)
        for parameter, grad in zip(passes.parameters, grads, strict=True):
            if parameter.grad is None:
                parameter.grad = grad.mul_(share)
            else:
                parameter.grad.add_(grad, alpha=share)
    return mean


def _pixels(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss | None = None
) -> tuple[Tensor, Tensor]:
    passes = _passes(model, x, _precision)
    blocks = _blocks(x)
    found = [
        _autograd(model, *part, loss)
        if passes is None
        else replayed(model, passes, "pixels", *part, loss)
        for part in zip(x.tensor_split(blocks), y.tensor_split(blocks), strict=True)
    ]
    scores, slopes = zip(*found, strict=True)
    return _joined(scores), _joined(slopes)


def _autograd(model: nn.Module, x: Tensor, y: Tensor, loss: Loss | None) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        # copies, because a tensor made in inference mode can take no part in a gradient
        x, y = x.detach().clone().requires_grad_(), y.clone()
        scores = model(x)
        # summed, so that a row does not depend on the batch it came in
        losses = F.cross_entropy(scores, y, reduction="sum") if loss is None else loss(scores, y)
        # grad, not backward: parameter gradients are neither computed nor touched
        return scores.detach(), torch.autograd.grad(losses.sum(), x)[0]


def _passes(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Passes | None:
    """The written-out passes of `model`, or None where only autograd will do."""
    return written_out(model, x, dtype or x.dtype) if _is_on(x) else None


def _is_on(x: Tensor) -> bool:
    return _enabled and x.device.type in _BLOCK_VALUES


def _blocks(x: Tensor) -> int:
    """In how many blocks of equal size to cut a batch."""
    if not _is_on(x):
        return 1
    size = max(_SMALLEST_BLOCK, _BLOCK_VALUES[x.device.type] // x[0].numel())
    return -(-len(x) // size)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
