"""All that makes attacks and training fast, in one place.

The rest of advlib asks what the logits are, how the loss changes with the pixels, and how it
changes with the weights: `logits`, `gradient` and `logits_and_gradient`, `mean_loss`. Autograd
answers for any module. For a plain `nn.Sequential` of convolutions, max-pooling, ReLU and linear
layers the pass forward and the pass back are written out in `engine.passes`. Time is won by this:

- a batch is worked through in blocks whose activations stay in the processor's cache;
- images lie channels-last from the first convolution to the last gradient, with no reordering;
- ReLU works in place, and after the pooling instead of before it; buffers are used again;
- a gradient for the pixels computes none for the weights;
- of an image that differs in a window only, what the window reaches is computed (`engine.local`);
- on CUDA the passes are recorded as a graph, once, and replayed (`engine.graphs`).

`off()` switches all of it off: results are the same up to rounding, only slower. Freed memory is
also kept for the next step instead of going back to the system, from the import on. Where a block
does not fit into memory, it is halved until it does; a warning says so once. Images must be
independent of each other in evaluation mode, as in any network that normalises by fixed statistics.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from advlib.engine.graphs import replayed
from advlib.engine.local import Nearby
from advlib.engine.passes import Loss, Passes, written_out
from advlib.runtime import is_out_of_memory

Found = TypeVar("Found")

# Input values in a block: 51 digits keep a CPU's cache warm, 2,551 fill a GPU in about a gigabyte.
_BLOCK_VALUES = {"cpu": 40_000, "cuda": 2_000_000}
_SMALLEST_BLOCK = 16

# input values in a block of these models, where the usual number did not fit into memory
_fitting: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

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
    run = model if passes is None else passes.forward

    def in_blocks(blocks: int) -> Tensor:
        return _joined([run(part) for part in x.tensor_split(blocks)])

    with torch.no_grad():
        return _fitted(model, x, in_blocks)


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


def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy, a scalar whose `backward` gives the weights their gradients.

    It is what `F.cross_entropy(model(x), y)` is, but can be differentiated once only.
    """
    passes = _passes(model, x)
    if passes is None:
        return F.cross_entropy(model(x), y)
    return _MeanLoss.apply(model, passes, x, y, *passes.parameters)


class _MeanLoss(torch.autograd.Function):
    """A written-out pass back as a step of autograd, and so of DistributedDataParallel."""

    @staticmethod
    def forward(
        ctx: Any, model: nn.Module, passes: Passes, x: Tensor, y: Tensor, *parameters: Tensor
    ) -> Tensor:
        def in_blocks(blocks: int) -> list[Tensor]:
            total: list[Tensor] = []
            for part, labels in zip(x.tensor_split(blocks), y.tensor_split(blocks), strict=True):
                share = len(part) / len(x)
                found = replayed(model, passes, "weights", part, labels)
                if total:
                    for tensor, more in zip(total, found, strict=True):
                        tensor.add_(more, alpha=share)
                else:
                    total = [tensor.mul_(share) for tensor in found]
            return total

        mean, *ctx.grads = _fitted(model, x, in_blocks)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        return None, None, None, None, *(grad.mul_(slope) for grad in grads)


def _pixels(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss | None = None
) -> tuple[Tensor, Tensor]:
    passes = _passes(model, x, _precision)

    def in_blocks(blocks: int) -> tuple[Tensor, Tensor]:
        found = [
            _autograd(model, *part, loss)
            if passes is None
            else replayed(model, passes, "pixels", *part, loss)
            for part in zip(x.tensor_split(blocks), y.tensor_split(blocks), strict=True)
        ]
        scores, slopes = zip(*found, strict=True)
        return _joined(scores), _joined(slopes)

    return _fitted(model, x, in_blocks)


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


def _blocks(model: nn.Module, x: Tensor) -> int:
    """In how many blocks of equal size to cut a batch."""
    values = _fitting.get(model)
    if values is not None:
        size = max(1, values // x[0].numel())
    elif _is_on(x):
        size = max(_SMALLEST_BLOCK, _BLOCK_VALUES[x.device.type] // x[0].numel())
    else:
        size = len(x)
    return -(-len(x) // size)


def _fitted(model: nn.Module, x: Tensor, compute: Callable[[int], Found]) -> Found:
    """Return `compute(blocks)`, with as many blocks as it takes for each to fit into memory."""
    shrunk = False
    while True:
        blocks = _blocks(model, x)
        size = -(-len(x) // blocks)
        try:
            found = compute(blocks)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            _fitting[model] = size // 2 * x[0].numel()
            shrunk = True
        else:
            if shrunk:
                warnings.warn(f"out of memory: went on with {size} images at a time", stacklevel=2)
            return found


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
