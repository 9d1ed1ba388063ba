"""The pass forward and the pass back of a plain network, written out layer by layer.

A layer's `forward` keeps what its way back needs, and `back` lets go of it. `back` may overwrite
the gradient it is handed, which no one else holds.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advlib.models import Normalize

aten = torch.ops.aten
Grads = dict[nn.Parameter, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of each image, from logits (n, classes) and labels, which may be any tensor of n rows."""


class Layer(Protocol):
    """One step of the passes: a layer, with the ReLU that belongs to it."""

    relu: bool
    settings: tuple[Any, ...]
    has_weights: bool

    def prepare(self, dtype: torch.dtype) -> None:
        """Take the weights as they are now, in the order and dtype of the passes."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""

    def back(self, g: Tensor, grads: Grads | None, first: bool) -> Tensor:
        """Turn the output's gradient into the input's, which `first` makes optional in training.

        The weights' gradients are added to `grads`, unless that is None.
        """


class _Convolution:
    """A convolution, and the ReLU after it if `relu`."""

    has_weights = True

    def __init__(self, layer: Any, relu: bool) -> None:
        self.layer, self.relu = layer, relu
        self.settings = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def prepare(self, dtype: torch.dtype) -> None:
        weight, self.bias = _cast(self.layer, dtype)
        self.weight = weight.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        out = F.conv2d(x, self.weight, self.bias, *self.settings)
        if self.relu:
            out.relu_()
        self.kept = x, out
        return out

    def back(self, g: Tensor, grads: Grads | None, first: bool) -> Tensor:
        x, out = self.kept
        del self.kept
        if self.relu:
            g = _through_relu(g, out)
        if grads is None and self._is_narrow() and g.device.type == "cpu":
            return self._shifted_sum(g, x)
        to_x, to_weight, to_bias = aten.convolution_backward(
            g,
            x,
            self.weight,
            [len(self.weight)],
            *self.settings[:3],
            False,
            [0, 0],
            self.layer.groups,
            [grads is None or not first, grads is not None, grads is not None],
        )
        if grads is not None:
            _add(grads, self.layer, to_weight, to_bias)
        return to_x

    def _is_narrow(self) -> bool:
        """Whether the input has so few channels that a matrix product is the better way back."""
        stride, _, dilation, groups = self.settings
        plain = stride == dilation == (1, 1) and groups == 1
        return plain and self.weight[0].numel() <= len(self.weight)

    def _shifted_sum(self, g: Tensor, x: Tensor) -> Tensor:
        """Gradient for few input channels: one matrix product, then a sum of shifted planes.

        torch's own kernel is made for many channels and takes more than twice as long.
        """
        channels, height, width = self.weight.shape[1:]
        n, _, rows, columns = g.shape
        planes = self.weight.flatten(1).t() @ g.permute(0, 2, 3, 1).flatten(0, 2).t()
        planes = planes.view(channels, height, width, n, rows, columns)
        padded = g.new_zeros(channels, n, rows + height - 1, columns + width - 1)
        for i in range(height):
            for j in range(width):
                padded[:, :, i : i + rows, j : j + columns] += planes[:, i, j]
        top, left = self.layer.padding
        inner = padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        return inner.transpose(0, 1)


class _Pooling:
    """A max-pooling, and the ReLU beside it if `relu`: the order of these two does not matter."""

    has_weights = False

    def __init__(self, layer: Any, relu: bool, reuse: bool) -> None:
        self.relu = relu
        self.reuse = reuse  # the input is of no further use: its gradient may take its place
        self.settings = tuple(map(pair, (layer.kernel_size, layer.stride, layer.padding)))

    def prepare(self, dtype: torch.dtype) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        out, indices = aten.max_pool2d_with_indices(x, *self.settings)
        if self.relu:
            out.relu_()
        self.kept = x, out, indices
        return out

    def back(self, g: Tensor, grads: Grads | None, first: bool) -> Tensor:
        x, out, indices = self.kept
        del self.kept
        if self.relu:
            g = _through_relu(g, out)
        space = x if self.reuse else torch.empty_like(x)
        return aten.max_pool2d_with_indices_backward.grad_input(
            g, x, *self.settings, (1, 1), False, indices, grad_input=space
        )


class _Linear:
    """A linear layer, with the flattening of images before it and the ReLU after it if `relu`."""

    has_weights = True

    def __init__(self, layer: Any, relu: bool) -> None:
        self.layer, self.relu = layer, relu
        self.settings = ()

    def prepare(self, dtype: torch.dtype) -> None:
        self.weight, self.bias = _cast(self.layer, dtype)
        self.image: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            if self.image is None:  # bring the weights into the order in which the pixels lie
                self.image = tuple(x.shape[1:])
                self.weight = self.weight.unflatten(1, self.image).permute(0, 2, 3, 1).flatten(1)
            x = x.permute(0, 2, 3, 1).flatten(1)
        out = F.linear(x, self.weight, self.bias)
        if self.relu:
            out.relu_()
        self.kept = x, out
        return out

    def back(self, g: Tensor, grads: Grads | None, first: bool) -> Tensor:
        x, out = self.kept
        del self.kept
        if self.relu:
            g = _through_relu(g, out)
        if grads is not None:
            _add(grads, self.layer, self._as_images(g.t() @ x).flatten(1), g.sum(0))
        return self._as_images(g @ self.weight)

    def _as_images(self, rows: Tensor) -> Tensor:
        if self.image is None:
            return rows
        channels, height, width = self.image
        return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)


class _Normalisation:
    """advlib's `Normalize`."""

    relu = False
    settings = ()
    has_weights = False

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def prepare(self, dtype: torch.dtype) -> None:
        self.mean, self.std = self.layer.mean.to(dtype), self.layer.std.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        self.shape = x.shape
        return (x - self.mean) / self.std

    def back(self, g: Tensor, grads: Grads | None, first: bool) -> Tensor:
        return (g / self.std).sum_to_size(self.shape)  # grey images in front of three means


class Passes:
    """Both passes of a whole network, computed in `dtype`."""

    def __init__(self, model: nn.Module, layers: list[Layer], dtype: torch.dtype) -> None:
        """Take the weights as they are now."""
        self.layers, self.dtype = layers, dtype
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        tensors = [*model.parameters(), *model.buffers()]
        # where the weights lie and what is done with them: all that a recorded graph depends on
        self.key = (
            dtype,
            *((t.data_ptr(), t.shape, t.stride(), t.requires_grad) for t in tensors),
            *((type(layer), layer.relu, layer.settings) for layer in layers),
        )
        self.prepare()

    def prepare(self) -> None:
        """Take the weights as they are now."""
        for layer in self.layers:
            layer.prepare(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def pixels(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> tuple[Tensor, ...]:
        """Logits, and the gradient of the summed loss (cross-entropy) for the pixels."""
        scores = self.forward(x.to(self.dtype))
        g = _loss(scores, y)[1] if loss is None else slope(loss, scores, y)
        return scores.to(x.dtype), self._back(g, None).to(x.dtype)

    def weights(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Mean cross-entropy, and its gradient for each of `parameters`."""
        losses, g = _loss(self.forward(x), y)
        grads: Grads = {}
        self._back(g / len(x), grads)
        return losses.mean(), *(grads[parameter] for parameter in self.parameters)

    def _back(self, g: Tensor, grads: Grads | None) -> Tensor:
        layers = self.layers
        if grads is not None:  # nothing before the first layer with weights wants a gradient
            layers = layers[next(i for i, layer in enumerate(layers) if layer.has_weights) :]
        for layer in reversed(layers):
            g = layer.back(g, grads, first=layer is layers[0])
        return g


def written_out(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Passes | None:
    """Return the passes of `model` for images like `x`, or None where only autograd will do."""
    if x.ndim not in (2, 4):
        return None
    modules = flat_modules(model)
    if torch.is_autocast_enabled(x.device.type) or any(map(is_watched, modules)):
        return None
    if any(m._parameters for m in modules if type(m) is nn.Sequential):  # of no layer
        return None
    if any(p.dtype != x.dtype or p.device != x.device for p in model.parameters()):
        return None
    layers = _translate([m for m in modules if type(m) is not nn.Sequential], flat=x.ndim == 2)
    return None if layers is None else Passes(model, layers, dtype)


def flat_modules(module: nn.Module) -> list[nn.Module]:
    """A module and, if it is a Sequential, all that is in it, in the order in which it runs."""
    if type(module) is not nn.Sequential:
        return [module]
    return [module, *(inner for child in module for inner in flat_modules(child))]


def is_watched(module: nn.Module) -> bool:
    """Whether hooks wait for a call that the written-out passes would not make."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(
            p._backward_hooks or p._post_accumulate_grad_hooks
            for p in module.parameters(recurse=False)
        )
    )


def _translate(modules: list[nn.Module], *, flat: bool) -> list[Layer] | None:
    """Give each module its written-out form; None if one is not known, or stands out of place."""
    layers: list[Layer] = []
    todo = list(modules)
    while todo:
        module = todo.pop(0)
        relu = bool(todo) and type(todo[0]) is nn.ReLU
        if is_plain(module, nn.Conv2d) and not flat:
            if relu and len(todo) > 1 and is_plain(todo[1], nn.MaxPool2d):
                todo[:2] = todo[1], todo[0]  # pool first: a quarter of the values is left
                relu = False
            layers.append(_Convolution(module, relu))
        elif is_plain(module, nn.MaxPool2d) and not flat:
            reuse = bool(layers) and isinstance(layers[-1], _Convolution)
            layers.append(_Pooling(module, relu, reuse))
        elif type(module) is nn.Linear and flat:
            layers.append(_Linear(module, relu))
        elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            flat, relu = True, False
        elif type(module) is Normalize and not flat:
            layers.append(_Normalisation(module))
            relu = False
        else:
            return None
        if relu:
            todo.pop(0)
    return layers if layers and isinstance(layers[-1], _Linear) else None


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of this kind, with no setting that the passes do not know."""
    if type(module) is not kind:
        return False
    if kind is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return not (module.ceil_mode or module.return_indices) and pair(module.dilation) == (1, 1)


def _loss(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row, and its gradient: probabilities minus the one-hot label."""
    log_p = scores.log_softmax(1)
    rows = y.unsqueeze(1)
    return -log_p.gather(1, rows), log_p.exp().scatter_(1, rows, log_p.gather(1, rows).expm1())


def slope(loss: Loss, scores: Tensor, y: Tensor) -> Tensor:
    """Gradient of the summed `loss` for the logits."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = scores.detach().clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, y).sum(), leaf)[0]


def _through_relu(g: Tensor, out: Tensor) -> Tensor:
    return aten.threshold_backward.grad_input(g, out, 0, grad_input=g)


def _cast(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return layer.weight.detach().to(dtype), bias


def _add(grads: Grads, layer: Any, to_weight: Tensor, to_bias: Tensor) -> None:
    """Add to the gradients of a layer's parameters; a layer may stand in a network twice."""
    for parameter, grad in ((layer.weight, to_weight), (layer.bias, to_bias)):
        if parameter is not None:
            grads[parameter] = grads[parameter] + grad if parameter in grads else grad


def pair(value: Any) -> tuple[int, int]:
    """A setting that torch takes as a number or as two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
