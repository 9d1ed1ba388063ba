"""What each layer does to intervals, and to linear functions of its output.

Bounds are computed in float64, but they are bounds of the network as it runs, in float32. Each
affine layer computes W a + b with a rounding error, which no order of the additions makes larger
than `gamma * (|W| |a| + |b|)`, gamma = k u / (1 - k u) for k terms and unit roundoff u (Higham
2002, section 3.1), plus k times the smallest normal number where products underflow. So the output
lies in the interval of the formula, widened by that much; where it may overflow there is no bound.
The float64 arithmetic of the bounds themselves is finer by a factor of 2**29, and k is rounded up
by more. On CUDA the factors may be rounded to TF32 first, and that is always allowed for.

Convolutions by Fourier or Winograd transforms round otherwise and are not covered. PyTorch uses
none on CPUs with oneDNN, which is to say on nearly all; cuDNN may.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from advlib.engine.passes import flat_modules, is_plain, is_watched, pair
from advlib.models import Normalize


class Box(NamedTuple):
    """All values between `lower` and `upper`, each (n, ...).

    `slack` is how much of the width, on either side, is there for rounding in the layer before.
    """

    lower: Tensor
    upper: Tensor
    slack: Tensor | None = None


class Layer(Protocol):
    """One layer, as bounds see it."""

    def forward(self, box: Box) -> Box:
        """Bound the output over all inputs in `box`."""

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        """Bound linear functions of the output from below by linear functions of the input.

        `rows` (n, m, ...) holds the coefficients of m functions per image, `box` and `out` bound
        the layer's input and output. Returns the coefficients, and constants (n, m).
        """


class _Affine(ABC):
    """W a + b, in terms of what a kind of layer does with any W and b."""

    def __init__(self, terms: int, rounding: "Rounding | None") -> None:
        """Take the number of terms that are added up, and how they are rounded, if that counts."""
        self.gamma = self.least = 0.0
        self.most = torch.inf
        if rounding is None:
            return
        k = 1.01 * terms + 4  # more than are added: the rest covers the rounding of the bounds
        if k * rounding.sums >= 1:
            raise ValueError(f"model has a layer too wide for bounds: it adds up {terms} terms")
        of_sums = k * rounding.sums / (1 - k * rounding.sums)
        self.gamma = (1 + rounding.factors) ** 2 * (1 + of_sums) - 1
        self.least = k * rounding.limits.tiny
        self.most = rounding.limits.max

    @abstractmethod
    def apply(self, a: Tensor) -> Tensor:
        """W a + b."""

    @abstractmethod
    def widths(self, a: Tensor, *, bias: bool) -> Tensor:
        """|W| a, plus |b| if `bias`."""

    @abstractmethod
    def transposed(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Rows times W, for inputs of `shape`; the first dimension of `rows` counts them."""

    @abstractmethod
    def constants(self, rows: Tensor) -> Tensor:
        """Rows (n, m, ...) times b."""

    def forward(self, box: Box) -> Box:
        centre, radius = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
        middle, reach = self.apply(centre), self.widths(radius, bias=False)
        if self.gamma == 0:
            return Box(middle - reach, middle + reach)
        largest = self.widths(centre.abs() + radius, bias=True)
        slack = self.gamma * largest + self.least
        slack = torch.where(largest + slack < self.most, slack, torch.inf)
        return Box(middle - reach - slack, middle + reach + slack, slack)

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        constants = self.constants(rows)
        if out.slack is not None:
            constants = constants - _times(rows.abs(), out.slack)
        moved = self.transposed(rows.flatten(0, 1), tuple(box.lower.shape[1:]))
        return moved.unflatten(0, rows.shape[:2]), constants


class _Convolution(_Affine):
    """nn.Conv2d."""

    def __init__(self, layer: Any, dtype: torch.dtype, rounding: "Rounding | None") -> None:
        """Take the weights as they are, in `dtype`."""
        super().__init__(layer.weight[0].numel() + 1, rounding)
        self.weight = layer.weight.to(dtype)
        self.bias = None if layer.bias is None else layer.bias.to(dtype)
        self.settings = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def apply(self, a: Tensor) -> Tensor:
        return F.conv2d(a, self.weight, self.bias, *self.settings)

    def widths(self, a: Tensor, *, bias: bool) -> Tensor:
        shift = self.bias.abs() if bias and self.bias is not None else None
        return F.conv2d(a, self.weight.abs(), shift, *self.settings)

    def transposed(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = [len(rows), *shape]
        return conv2d_input(size, self.weight, rows, *self.settings)

    def constants(self, rows: Tensor) -> Tensor:
        over_pixels = rows.flatten(3).sum(3)
        none = over_pixels.new_zeros(over_pixels.shape[:2])
        return none if self.bias is None else over_pixels @ self.bias


class _Linear(_Affine):
    """nn.Linear."""

    def __init__(self, layer: Any, dtype: torch.dtype, rounding: "Rounding | None") -> None:
        """Take the weights as they are, in `dtype`."""
        super().__init__(layer.in_features + 1, rounding)
        self.weight = layer.weight.to(dtype)
        self.bias = None if layer.bias is None else layer.bias.to(dtype)

    def apply(self, a: Tensor) -> Tensor:
        return F.linear(a, self.weight, self.bias)

    def widths(self, a: Tensor, *, bias: bool) -> Tensor:
        shift = self.bias.abs() if bias and self.bias is not None else None
        return F.linear(a, self.weight.abs(), shift)

    def transposed(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        return rows @ self.weight

    def constants(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(rows.shape[:2]) if self.bias is None else rows @ self.bias


class _Normalisation(_Affine):
    """advlib's `Normalize`."""

    def __init__(self, layer: Any, dtype: torch.dtype, rounding: "Rounding | None") -> None:
        """Take mean and deviation in `dtype`."""
        super().__init__(2, rounding)
        self.mean, self.std = layer.mean.to(dtype), layer.std.to(dtype)

    def apply(self, a: Tensor) -> Tensor:
        return (a - self.mean) / self.std

    def widths(self, a: Tensor, *, bias: bool) -> Tensor:
        return (a + self.mean.abs() if bias else a) / self.std

    def transposed(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        # grey images in front of three means have their gradients added up
        return (rows / self.std).sum_to_size(len(rows), *shape)

    def constants(self, rows: Tensor) -> Tensor:
        return -(rows * self.mean / self.std).flatten(2).sum(2)


class _Flatten:
    """nn.Flatten."""

    def forward(self, box: Box) -> Box:
        return Box(box.lower.flatten(1), box.upper.flatten(1))

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        return rows.unflatten(2, box.lower.shape[1:]), rows.new_zeros(rows.shape[:2])


class _Relu:
    """nn.ReLU: between two lines where the input's sign is open (Zhang et al. 2018)."""

    def forward(self, box: Box) -> Box:
        return Box(box.lower.relu(), box.upper.relu())

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        lower, upper = box.lower, box.upper
        is_open = (lower < 0) & (upper > 0)
        # above: the line through (lower, 0) and (upper, upper); below: y = 0 or y = x
        chord = torch.where(is_open, upper / (upper - lower), (lower >= 0).to(lower))
        below = torch.where(is_open, (upper > -lower).to(lower), chord)
        constants = _times(rows.clamp(max=0), torch.where(is_open, -chord * lower, 0.0))
        return torch.where(rows > 0, rows * below[:, None], rows * chord[:, None]), constants


class _Pooling:
    """nn.MaxPool2d without padding.

    From below the maximum is any one of its window's values. From above, the values enter one by
    one: max(m, z) = m + relu(z - m), and that ReLU lies under its chord.
    """

    def __init__(self, layer: Any) -> None:
        """Take the layer's settings."""
        self.kernel, self.stride = pair(layer.kernel_size), pair(layer.stride)

    def forward(self, box: Box) -> Box:
        lower, upper = (F.max_pool2d(side, self.kernel, self.stride) for side in box[:2])
        return Box(lower, upper)

    def back(self, rows: Tensor, box: Box, out: Box) -> tuple[Tensor, Tensor]:
        lower, upper = self._windows(box.lower), self._windows(box.upper)
        one = F.one_hot((lower + upper).argmax(2), lower.shape[2]).movedim(3, 2).to(lower)
        weights, constant = self._chords(lower, upper)
        rows = rows.flatten(3).unsqueeze(3)  # (n, m, channels, 1, places)
        moved = torch.where(rows > 0, rows * one[:, None], rows * weights[:, None])
        constants = _times(rows.clamp(max=0).squeeze(3), constant)
        back = F.fold(
            moved.flatten(0, 1).flatten(1, 2), box.lower.shape[2:], self.kernel, stride=self.stride
        )
        return back.unflatten(0, rows.shape[:2]), constants

    def _windows(self, values: Tensor) -> Tensor:
        """The values of each window, (n, channels, size of the window, places)."""
        windows = F.unfold(values, self.kernel, stride=self.stride)
        return windows.unflatten(1, (values.shape[1], -1))

    def _chords(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and a constant, so that their sum with the values is above the maximum."""
        weights, constant = [torch.ones_like(lower[:, :, 0])], torch.zeros_like(lower[:, :, 0])
        low, high = lower[:, :, 0], upper[:, :, 0]
        for i in range(1, lower.shape[2]):
            least, most = lower[:, :, i] - high, upper[:, :, i] - low
            is_open = (least < 0) & (most > 0)
            chord = torch.where(is_open, most / (most - least), (least >= 0).to(least))
            weights = [weight * (1 - chord) for weight in weights] + [chord]
            constant = constant * (1 - chord) - torch.where(is_open, chord * least, 0.0)
            low, high = low.maximum(lower[:, :, i]), high.maximum(upper[:, :, i])
        return torch.stack(weights, 2), constant


def layers_of(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> list[Layer]:
    """The layers of `model`, computing bounds in float64 that allow for the rounding of `x`'s type.

    With a `dtype` they compute in that, and allow for no rounding: for training.

    Raises:
        ValueError: bounds are not known for a layer or for a way of computing it; the message
            names it.
    """
    rounding = None if dtype else _rounding(x)
    dtype = dtype or torch.float64
    found: list[Layer] = []
    flat = x.ndim == 2
    module: Any
    for module in flat_modules(model):
        kind = type(module)
        if is_watched(module):
            raise ValueError(f"model has a layer with hooks, which bounds don't know: {module}")
        if kind is nn.Sequential:
            continue
        if not flat and is_plain(module, nn.Conv2d):
            found.append(_Convolution(module, dtype, rounding))
        elif flat and kind is nn.Linear:
            found.append(_Linear(module, dtype, rounding))
        elif not flat and kind is Normalize:
            found.append(_Normalisation(module, dtype, rounding))
        elif kind is nn.ReLU:
            found.append(_Relu())
        elif not flat and is_plain(module, nn.MaxPool2d) and pair(module.padding) == (0, 0):
            found.append(_Pooling(module))
        elif kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            found.append(_Flatten())
            flat = True
        else:
            raise ValueError(f"model has a layer that bounds are not known for: {module}")
    return found


def propagate(layers: list[Layer], box: Box) -> list[Box]:
    """Bound the input of each layer, and last the output."""
    boxes = [box]
    for layer in layers:
        boxes.append(layer.forward(boxes[-1]))
    return boxes


def least(layers: list[Layer], boxes: list[Box], rows: Tensor) -> Tensor:
    """Lower bounds (n, m) of linear functions of the output, `rows` (n, m, classes).

    A function is carried back layer by layer as a linear one that is nowhere larger. Each layer's
    input has bounds of its own, and so gives one for the function; the best of them counts.
    """
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


class Rounding(NamedTuple):
    """How a network's arithmetic rounds: unit roundoff of factors and of sums, and its limits."""

    factors: float
    sums: float
    limits: torch.finfo


def _rounding(x: Tensor) -> Rounding:
    """The rounding of a network for images like `x`.

    Raises:
        ValueError: nothing is known of it.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be float32 or float64 for bounds to hold, got {x.dtype}")
    if torch.is_autocast_enabled(x.device.type):
        raise ValueError("x must not be bounded under autocast: the model computes in less")
    limits = torch.finfo(x.dtype)
    if x.is_cuda and x.dtype == torch.float32:  # tensor cores also cut off instead of rounding
        return Rounding(2.0**-10, 4 * limits.eps, limits)
    mkldnn: Any = torch.backends.mkldnn
    if hasattr(mkldnn, "matmul"):
        modes = [mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision]
    else:  # older versions of torch have one setting for all
        modes = [torch.get_float32_matmul_precision()]
    if not {"none", "ieee", "highest"}.issuperset(modes):
        raise ValueError(
            f"x must be bounded in full float32: torch's CPU kernels are set to "
            f"{' and '.join(modes)} (see torch.set_float32_matmul_precision)"
        )
    return Rounding(0.0, limits.eps / 2, limits)
