"""What makes attacks fast, in one place: blocks, and the order of bytes.

The model is always called, so that hooks, a replaced forward or a compiled module behave here as
they do anywhere. Around the call stands what makes it fast and right:

- a batch is worked through in blocks whose activations stay in the processor's cache;
- images lie channels-last in memory where the model's own convolutions do;
- a gradient for the pixels computes none for the weights;
- where a block does not fit into memory it is halved until it does; a warning says so;
- half precision flushes no gradient to zero, as each image's is scaled on its way back.

`off()` switches the first two off: results are the same up to rounding, only slower. Images must
be independent of each other in evaluation mode, as where fixed statistics normalise them.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib.checks import called, check_classes, is_out_of_memory, pulled_back, refuse_nan

Loss = Callable[[Tensor, Tensor], Tensor]
"""Losses that are summed, from logits and labels, which may be any tensor of n rows."""

# A hundred digits of float32 keep a CPU's cache warm, 2,500 fill a GPU in about a gigabyte.
_BLOCK_BYTES = {"cpu": 320_000, "cuda": 8_000_000}
_SMALLEST_BLOCK = 16
_fitting: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Images in a block of these models, where the usual number did not fit into memory."""
_enabled = True


@contextmanager
def off() -> Iterator[None]:
    """Compute plainly within this context: the batch as it comes, in the order it lies in."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def ordered(model: nn.Module, x: Tensor) -> Tensor:
    """Return images in the order of bytes that all the model's convolutions lie in."""
    if not _enabled or x.ndim != 4:
        return x
    weights = [p for p in model.parameters() if p.ndim == 4]
    last = torch.channels_last
    # a 1x1 kernel, or one of a single channel, lies both ways at once
    if all(w.is_contiguous(memory_format=last) for w in weights) and not all(
        w.is_contiguous() for w in weights
    ):
        return x.contiguous(memory_format=last)
    return x


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (n, classes), or (n, classes, h, w), of images `x`, without gradients.

    Raises:
        FloatingPointError: a logit is NaN.
        ValueError: the model does not take such images, or does not return such logits.
    """

    def work(x: Tensor) -> tuple[Tensor]:
        return (called(model, x.clone()),)  # a layer may work in place

    with torch.no_grad(), _no_weights_kept():
        [scores] = _in_blocks(model, work, ordered(model, x))
    refuse_nan(scores)
    return scores


def gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss | None = None, *, check: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits of `x`, and each image's gradient of the sum of `loss`, by default cross-entropy.

    The gradient has the shape of `x`; for half precision both are float32. `check` looks for NaN
    and for labels beyond the classes, for which a GPU has to wait. Errors as in `logits`; also
    ValueError if the model does not pass gradients on to its images.
    """

    def work(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # copies, because a tensor made in inference mode can take no part in a gradient
        x, y = x.detach().clone().requires_grad_(), y.clone()
        scores = called(model, x)
        wide = scores.detach().to(torch.promote_types(scores.dtype, torch.float32)).requires_grad_()
        if loss is None and check:
            check_classes(scores, y)
        losses = F.cross_entropy(wide, y, reduction="none") if loss is None else loss(wide, y)
        # summed, so that a row does not depend on the batch it came in
        [slope] = torch.autograd.grad(losses.sum(), wide)
        # a power of two for each image, exact, which keeps its gradient in the range of float16
        scale = slope.flatten(1).abs().amax(1).clamp_min(torch.finfo(slope.dtype).tiny)
        scale = scale.log2().floor().exp2()
        down, up = (scale.view(-1, *[1] * (of.ndim - 1)) for of in (slope, x))
        back = pulled_back(scores, x, (slope / down).to(scores.dtype))
        return wide.detach(), back.to(slope.dtype) * up

    with torch.inference_mode(False), torch.enable_grad(), _no_weights_kept():
        scores, slopes = _in_blocks(model, work, ordered(model, x), y)
    if check:
        refuse_nan(scores)
        refuse_nan(slopes)
    return scores, slopes


@contextmanager
def _no_weights_kept() -> Iterator[None]:
    """Keep autocast from holding on to weights it casts here: they would carry no gradient."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _in_blocks(
    model: nn.Module, work: Callable[..., tuple[Tensor, ...]], *rows: Tensor
) -> list[Tensor]:
    """Apply `work` to a batch in blocks, and join what it returns for each."""
    n, values = len(rows[0]), rows[0][0].numel() * rows[0].element_size()
    while True:
        size = _fitting.get(model, n)
        if _enabled and rows[0].device.type in _BLOCK_BYTES:
            size = min(size, max(_SMALLEST_BLOCK, _BLOCK_BYTES[rows[0].device.type] // values))
        try:
            found = [work(*part) for part in zip(*(t.split(size) for t in rows), strict=True)]
            return [torch.cat(parts) for parts in zip(*found, strict=True)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or min(size, n) == 1:
                raise
        _fitting[model] = min(size, n) // 2
        warnings.warn(
            f"out of memory: going on with {_fitting[model]} images at a time", stacklevel=2
        )
