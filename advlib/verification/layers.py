"""What each layer does to intervals, and to linear functions of its output.

Bounds are computed in float64, but they are bounds of the network as it runs, in float32. An affine
layer computes W a + b with a rounding error that no order of the additions makes larger than
`gamma * (|W| |a| + |b|)`, gamma = k u / (1 - k u) for k terms and unit roundoff u (Higham 2002,
section 3.1), plus k times the smallest normal number where products underflow: the formula's
interval is widened by that much; where it may overflow there is no bound. The bounds' own float64
is finer by a factor of 2**29, and k is rounded up by more. On CUDA rounding to TF32 is allowed for.
Not covered are convolutions by Fourier or Winograd transforms: cuDNN may use them, oneDNN does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib import models


class Box(NamedTuple):
    """All values between `lower` and `upper` (n, ...); `slack` of it is for the last rounding."""

    lower: Tensor
    upper: Tensor
    slack: Tensor | None = None


class Rounding(NamedTuple):
    """How a network's arithmetic rounds: unit roundoff of factors and of sums, and its limits."""

    factors: float
    sums: float
    limits: torch.finfo


# A layer's `forward` bounds its output over all inputs in a box. Its `back` bounds m linear
# functions of the output, with coefficients `rows` (n, m, ...), from below by linear functions of
# the input, where `box` and `out` bound input and output: coefficients, and constants (n, m).
@dataclass(frozen=True)
class _Affine:
    """W a + b, as `function(a, w, b)` computes it; without b it is W a."""

    function: Callable[..., Tensor]
    weights: tuple[Any, Any]  # w and b
    sizes: tuple[Any, Any]  # |w| and |b|, or more where larger terms are added up
    terms: int
    rounding: Rounding | None

    def forward(self, box: Box) -> Box:
        centre, radius = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
        middle = self.function(centre, *self.weights)
        reach = self.function(radius, self.sizes[0])
        if self.rounding is None:
            return Box(middle - reach, middle + reach)
        k = 1.01 * self.terms + 4  # more than are added: the rest is for rounding of the bounds
        ku = k * self.rounding.sums
        if ku >= 1:
            raise ValueError(f"model has a layer too wide for bounds: it adds {self.terms} terms")
        gamma = (1 + self.rounding.factors) ** 2 * (1 + ku / (1 - ku)) - 1
        largest = self.function(centre.abs() + radius, *self.sizes)
        slack = gamma * largest + k * self.rounding.limits.tiny
        slack = torch.where(largest + slack < self.rounding.limits.max**0.5, slack, torch.inf)
        return Box(middle - reach - slack, middle + reach + slack, slack)

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(box.lower[:1])
        # one image goes forward, and all rows go back: a third of the time of vjp for a batch
        shift, transposed = torch.func.vjp(lambda a: self.function(a, *self.weights), zero)[:2]
        moved = torch.vmap(transposed)(rows.flatten(0, 1).unsqueeze(1))[0]
        constants = rows.flatten(2) @ shift.flatten()
        if out.slack is not None:
            constants = constants - _times(rows.abs(), out.slack)
        return moved.view(*rows.shape[:2], *zero.shape[1:]), constants


class _Flatten:
    def forward(self, box: Box) -> Box:
        return Box(box.lower.flatten(1), box.upper.flatten(1))

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        return rows.unflatten(2, box.lower.shape[1:]), rows.new_zeros(rows.shape[:2])


def _chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a ReLU's input may have either sign; slope and height at 0 of a line above the ReLU."""
    is_open = (lower < 0) & (upper > 0)
    slope = torch.where(is_open, upper / (upper - lower), (lower >= 0).to(lower))
    return is_open, slope, torch.where(is_open, -slope * lower, 0.0)


class _Relu:
    """nn.ReLU: between two lines where the input's sign is open (Zhang et al. 2018)."""

    def forward(self, box: Box) -> Box:
        return Box(box.lower.relu(), box.upper.relu())

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        is_open, above, height = _chord(box.lower, box.upper)
        below = torch.where(is_open, (box.upper > -box.lower).to(above), above)  # y = 0 or y = x
        moved = torch.where(rows > 0, rows * below[:, None], rows * above[:, None])
        return moved, _times(rows.clamp(max=0), height)


class _Pooling:
    # From below the maximum is any one of its window's values. From above they enter one by one:
    # max(m, z) = m + relu(z - m), and a ReLU is under its chord.

    def __init__(self, layer: Any) -> None:
        self.size = {"kernel_size": layer.kernel_size, "stride": layer.stride}

    def forward(self, box: Box) -> Box:
        return Box(F.max_pool2d(box.lower, **self.size), F.max_pool2d(box.upper, **self.size))

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        channels = box.lower.shape[1], -1  # of windows (n, channels, size of the window, places)
        lower = F.unfold(box.lower, **self.size).unflatten(1, channels)
        upper = F.unfold(box.upper, **self.size).unflatten(1, channels)
        one = F.one_hot((lower + upper).argmax(2), lower.shape[2]).movedim(3, 2).to(lower)
        low, high, height = lower[:, :, 0], upper[:, :, 0], torch.zeros_like(lower[:, :, 0])
        weights = [torch.ones_like(low)]
        for z_low, z_high in zip(lower.unbind(2)[1:], upper.unbind(2)[1:], strict=True):
            _, slope, more = _chord(z_low - high, z_high - low)
            weights = [weight * (1 - slope) for weight in weights] + [slope]
            height = height * (1 - slope) + more
            low, high = low.maximum(z_low), high.maximum(z_high)
        above = torch.stack(weights, 2)
        rows = rows.flatten(3).unsqueeze(3)  # (n, m, channels, 1, places)
        moved = torch.where(rows > 0, rows * one[:, None], rows * above[:, None])
        moved = F.fold(moved.flatten(0, 1).flatten(1, 2), box.lower.shape[2:], **self.size)
        constants = _times(rows.clamp(max=0), height)
        return moved.unflatten(0, rows.shape[:2]), constants


Layer = _Affine | _Flatten | _Relu | _Pooling
_NO_LAYERS = (nn.Sequential, nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode


def layers_of(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> list[Layer]:
    """The layers of `model` in evaluation mode, in float64 and allowing for rounding in x's type.

    With a `dtype` they compute in that, without rounding. Raises ValueError for an unknown layer.
    """
    rounding = None if dtype else _rounding(x)
    found, ndim = list[Layer](), x.ndim
    for name, module in model.named_modules(remove_duplicate=False):
        reason, layer = _changed(module), None
        if not reason and type(module) not in _NO_LAYERS:
            layer = _layer(module, ndim, dtype or torch.float64, rounding)
            reason = "" if layer else "a layer that bounds are not known for"
        if reason:
            raise ValueError(f"model has {reason}: {name or 'itself'}, {module}")
        found += [layer] if layer else []
        ndim = 2 if type(module) is nn.Flatten else ndim
    return found


def _changed(module: nn.Module) -> str:
    """Why calling `module` may give something else than its type and settings say, or nothing."""
    own, every = vars(module), vars(nn.modules.module)
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    if any(own[f"_{kind}"] or every[f"_global_{kind}"] for kind in kinds):
        return "a layer with hooks"
    mine = [n for n in own if n == "_compiled_call_impl" or callable(getattr(type(module), n, 0))]
    if mine:
        return f"a layer with a {mine[0]} of its own"
    if own["_buffers"].get("running_var", own) is None:
        return "a layer that normalises by the statistics of its batch"
    if type(module) is nn.Sequential:
        return "weights outside its layers" if own["_parameters"] or own["_buffers"] else ""
    return "a layer with others inside" if own["_modules"] else ""


def _layer(module: Any, ndim: int, dtype: torch.dtype, rounding: Rounding | None) -> Layer | None:
    """A layer as bounds see it, for inputs of `ndim` dimensions; None if they are not known."""

    def affine(function: Any, weight: Any, bias: Any, terms: int) -> _Affine:
        weight, bias = (None if w is None else w.to(dtype) for w in (weight, bias))
        sizes = [None if w is None else w.abs() for w in (weight, bias)]
        return _Affine(function, (weight, bias), (sizes[0], sizes[1]), terms, rounding)

    def pixelwise(mean: Any, scale: Any, weight: Any, bias: Any, terms: int) -> _Affine:
        """(a - mean) * scale * weight + bias, in whatever order that is computed."""
        mean, scale, weight, bias = (
            torch.as_tensor(w).to(mean.device, dtype).reshape(-1, *[1] * (ndim - 2))
            for w in (mean, scale, 1 if weight is None else weight, 0 if bias is None else bias)
        )
        w, spare = scale * weight, 2.0**-60  # for over- and underflow on the way to the result
        size = w.abs() + spare
        shift = mean.abs() * size + bias.abs() + spare * (w.abs() + scale)
        weights = w, bias - mean * w
        return _Affine(lambda a, w, b=0: a * w + b, weights, (size, shift), terms, rounding)

    match type(module), ndim:
        case nn.ReLU, _:
            return _Relu()
        case nn.Flatten, _ if (module.start_dim, module.end_dim) == (1, -1):
            return _Flatten()
        case nn.Linear, 2:
            return affine(F.linear, module.weight, module.bias, module.in_features + 1)
        case nn.Conv2d, 4 if module.padding_mode == "zeros":
            names = ("stride", "padding", "dilation", "groups")
            function = partial(F.conv2d, **{name: getattr(module, name) for name in names})
            return affine(function, module.weight, module.bias, module.weight[0].numel() + 1)
        case nn.MaxPool2d, 4 if module.padding in (0, (0, 0)) and module.dilation in (1, (1, 1)):
            return None if module.ceil_mode or module.return_indices else _Pooling(module)
        case nn.AvgPool2d, 4 if not module.ceil_mode and module.divisor_override is None:
            size = module.kernel_size, module.stride, module.padding, False
            terms = int(torch.tensor(module.kernel_size).expand(2).prod())
            padded = module.count_include_pad
            return affine(lambda a, *_: F.avg_pool2d(a, *size, padded), None, None, terms)
        case models.Normalize, 4:
            return pixelwise(module.mean, 1 / module.std.to(dtype), None, None, 2)
        case (nn.BatchNorm1d, 2) | (nn.BatchNorm2d, 4):
            scale = (module.running_var.to(dtype) + module.eps).rsqrt()
            return pixelwise(module.running_mean, scale, module.weight, module.bias, 12)
    return None


def propagate(layers: list[Layer], box: Box) -> list[Box]:
    """Bound the input of each layer, and last the output."""
    boxes = [box]
    for layer in layers:
        boxes.append(layer.forward(boxes[-1]))
    return boxes


def least(layers: list[Layer], boxes: list[Box], rows: Tensor) -> Tensor:
    """The best lower bounds (n, m) of linear functions of the output, `rows` (n, m, classes)."""
    # they go back layer by layer as functions that are nowhere larger
    constants = rows.new_zeros(rows.shape[:2])
    best = _smallest(rows, boxes[-1])
    for layer, box, out in zip(layers[::-1], boxes[-2::-1], boxes[:0:-1], strict=True):
        rows, more = layer.back(rows, box, out)
        constants = constants + more
        best = best.maximum(constants + _smallest(rows, box))
    return best


def _smallest(rows: Tensor, box: Box) -> Tensor:
    return _times(rows.clamp(min=0), box.lower) + _times(rows.clamp(max=0), box.upper)


def _times(rows: Tensor, values: Tensor) -> Tensor:
    """Sum of each row's products with its image's values, (n, m)."""
    return torch.bmm(rows.flatten(2), values.flatten(1).unsqueeze(2)).squeeze(2)


def _rounding(x: Tensor) -> Rounding:
    """The rounding of a network for images like `x`; ValueError where nothing is known of it."""
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64 for bounds to hold, got {x.dtype}")
    if x.device.type == "mps":
        raise ValueError("x must not be on MPS, which has no float64: verify on the CPU")
    if torch.is_autocast_enabled(x.device.type):
        raise ValueError("x must not be bounded under autocast: the model computes in less")
    limits = torch.finfo(x.dtype)
    if x.is_cuda and x.dtype == torch.float32:  # tensor cores also cut off instead of rounding
        return Rounding(2.0**-10, 4 * limits.eps, limits)
    mkldnn: Any = torch.backends.mkldnn
    if hasattr(mkldnn, "matmul"):
        modes = {mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision}
    else:  # older versions of torch have one setting for all
        modes = {torch.get_float32_matmul_precision()}
    if not modes <= {"none", "ieee", "highest"}:
        given = " and ".join(modes) + " (see torch.set_float32_matmul_precision)"
        raise ValueError(f"x must be bounded in full float32: torch's CPU kernels use {given}")
    return Rounding(0.0, limits.eps / 2, limits)
