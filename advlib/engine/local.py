"""Logits of images that differ from known ones in a small window, as black-box attacks try them.

Only what the window can reach is computed again: it grows in a convolution and shrinks in a
pooling. From the first linear layer on everything is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advlib.engine.passes import Passes, _Convolution, _Normalisation, _Pooling

ONE = (1, 1)
# a window that needs more than this part of an image costs more than it saves
_WIDEST = 0.5

_MOST_VALUES = 2**27  # in all maps together, which is half a gigabyte
_BLOCK = 50  # images mapped at a time

Place = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Window:
    """A rectangle in each image or map: first row and column, int64 (n, 2), and the size."""

    first: Tensor
    size: tuple[int, ...]


class Nearby:
    """Known images `x`, and logits of others that differ from them in a window.

    `try_` computes logits of changed images, and `keep` makes some of those the known ones.
    """

    def __init__(
        self, x: Tensor, logits: Callable[[Tensor], Tensor], passes: Passes | None
    ) -> None:
        """Take what computes logits of any images, and the passes if the network has them."""
        self.x = x
        self._logits = logits
        self._spatial, self._head = ([], []) if passes is None else _split(passes)
        self._sizes = _sizes(self._spatial, x.shape[2:])
        channels = [len(layer.weight) for layer in self._spatial if layer.has_weights]
        self._values = prod(self._sizes[-1]) * (channels or [x.shape[1]])[-1]
        self._maps: Tensor | None = None
        self._place: Place | None = None
        self._routes: dict[int, list[_Span] | None] = {}

    def try_(self, x: Tensor, first: Tensor, side: int) -> Tensor:
        """Logits of `x`, which is as the known images outside the squares that begin at `first`."""
        self._take_back()
        self._tried = x
        route = self._route(side) if len(self.x) * self._values <= _MOST_VALUES else None
        if route is None:
            self._maps = None
            return self._logits(x)
        if self._maps is None:
            self._maps = torch.cat([self._whole(part) for part in self.x.split(_BLOCK)])
        down, across = first.unbind(1)
        place = route[0].place(down, across)
        piece = x.permute(0, 2, 3, 1)[place].permute(0, 3, 1, 2)
        for layer, span in zip(self._spatial, route, strict=False):
            piece = _through(layer, piece, span, down, across)
        self._place = route[-1].place(down, across)
        self._before = self._maps[self._place]
        self._maps[self._place] = piece.permute(0, 2, 3, 1)
        scores = self._maps.permute(0, 3, 1, 2)
        for layer in self._head:
            scores = layer.forward(scores)
        return scores

    def keep(self, which: Tensor) -> None:
        """Of the images last tried, take some, bool (n,), for the known ones."""
        self.x = torch.where(which.view(-1, 1, 1, 1), self._tried, self.x)
        self._take_back(~which)

    def only(self, which: Tensor) -> None:
        """Forget the other images, and what was last tried."""
        self._take_back()
        if which.all():
            return
        self.x = self.x[which]
        if self._maps is not None:
            self._maps = self._maps[which]

    def _take_back(self, which: Tensor | slice = slice(None)) -> None:
        """Put the maps of some images back to before the last try; the others stay."""
        if self._maps is not None and self._place is not None:
            place = tuple(index[which] for index in self._place)
            self._maps[place] = self._before[which]
        self._place = None

    def _whole(self, x: Tensor) -> Tensor:
        for layer in self._spatial:
            x = layer.forward(x)
        return x.permute(0, 2, 3, 1)

    def _route(self, side: int) -> list["_Span"] | None:
        """What is needed of each map, images first, for all that a square reaches in the last one.

        None if the network is not known, or if that is too much.
        """
        if side not in self._routes:
            self._routes[side] = self._new_route(side)
        return self._routes[side]

    def _new_route(self, side: int) -> list["_Span"] | None:
        if not self._spatial:
            return None
        sizes = self._sizes
        starts = torch.arange(max(sizes[0]), device=self.x.device)
        window = Window(torch.stack([starts, starts], 1), (side, side))
        for layer in self._spatial:
            window = _reached(layer, window)
        if any(part > whole for part, whole in zip(window.size, sizes[-1], strict=True)):
            return None
        # moved inside the map, it still holds all of the map that is reached
        last = [whole - part for part, whole in zip(window.size, sizes[-1], strict=True)]
        first = window.first.clamp(min=0).minimum(window.first.new_tensor(last))
        windows = [Window(first, window.size)]
        for layer in reversed(self._spatial):
            windows.append(_needed(layer, windows[-1]))
        pixels = windows[-1].size[0] * windows[-1].size[1]
        if pixels > _WIDEST * sizes[0][0] * sizes[0][1]:
            return None
        return [_span(*pair) for pair in zip(windows[::-1], sizes, strict=True)]


@dataclass(frozen=True)
class _Span:
    """The rows and columns of one map that are needed, for each row and column a square begins in.

    Two of each: the number of the row or column, the nearest one for those beyond an edge, int64
    (starts, size); and which lie inside the map, bool of the same shape.
    """

    numbers: tuple[Tensor, Tensor]
    inside: tuple[Tensor, Tensor]

    def place(self, down: Tensor, across: Tensor) -> Place:
        """Index into maps (n, h, w, c), for squares that begin at these rows and columns."""
        images = torch.arange(len(down), device=down.device).view(-1, 1, 1)
        return images, self.numbers[0][down].unsqueeze(2), self.numbers[1][across].unsqueeze(1)

    def mask(self, down: Tensor, across: Tensor) -> Tensor:
        """What lies inside the map, bool (n, 1, height, width)."""
        rows, columns = self.inside[0][down], self.inside[1][across]
        return rows[:, None, :, None] & columns[:, None, None, :]


def _span(window: Window, size: tuple[int, ...]) -> _Span:
    numbers, inside = [], []
    for first, part, whole in zip(window.first.unbind(1), window.size, size, strict=True):
        index = first.unsqueeze(1) + torch.arange(part, device=first.device)
        numbers.append(index.clamp(0, whole - 1))
        inside.append((index >= 0) & (index < whole))
    return _Span((numbers[0], numbers[1]), (inside[0], inside[1]))


def _split(passes: Passes) -> tuple[list[Any], list[Any]]:
    """The layers that work on images, and the rest; empty if one of them is not known here."""
    count = 0
    for layer in passes.layers:
        if not isinstance(layer, _Convolution | _Pooling | _Normalisation):
            break
        if isinstance(layer, _Convolution) and (layer.settings[0], layer.settings[2]) != (ONE, ONE):
            return [], []
        if isinstance(layer, _Pooling) and (layer.settings[0], (0, 0)) != layer.settings[1:]:
            return [], []
        count += 1
    return passes.layers[:count], passes.layers[count:]


def _steps(layer: Any) -> Any:
    """Kernel, stride and padding."""
    if isinstance(layer, _Convolution):
        return tuple(layer.weight.shape[2:]), ONE, layer.settings[1]
    if isinstance(layer, _Pooling):
        return layer.settings
    return ONE, ONE, (0, 0)


def _sizes(spatial: list[Any], size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The size of the images, and of the map that each layer makes."""
    sizes = [size]
    for layer in spatial:
        size = tuple(
            (whole + 2 * p - k) // step + 1
            for whole, k, step, p in zip(size, *_steps(layer), strict=True)
        )
        sizes.append(size)
    return sizes


def _reached(layer: Any, window: Window) -> Window:
    """What of the layer's output depends on `window` of its input."""
    kernel, stride, padding = (window.first.new_tensor(pair) for pair in _steps(layer))
    first = (window.first + padding - kernel + stride).div(stride, rounding_mode="floor")
    # the most that may be reached: it depends on where in a stride the window begins
    size = tuple(
        (part + k - 2) // step + 1
        for part, k, step in zip(window.size, *_steps(layer)[:2], strict=True)
    )
    return Window(first, size)


def _needed(layer: Any, window: Window) -> Window:
    """What of the layer's input `window` of its output is made of."""
    _, stride, padding = (window.first.new_tensor(pair) for pair in _steps(layer))
    size = tuple(
        (part - 1) * step + k for part, k, step in zip(window.size, *_steps(layer)[:2], strict=True)
    )
    return Window(window.first * stride - padding, size)


def _through(layer: Any, piece: Tensor, span: _Span, down: Tensor, across: Tensor) -> Tensor:
    """A layer's output for a piece of its input, cut where `span` says for these squares."""
    if isinstance(layer, _Normalisation):
        return (piece - layer.mean) / layer.std
    if isinstance(layer, _Pooling):
        out = F.max_pool2d(piece, layer.settings[0])
    else:
        if layer.settings[1] != (0, 0):
            piece = piece * span.mask(down, across)
        out = F.conv2d(piece, layer.weight, layer.bias, groups=layer.settings[3])
    return out.relu_() if layer.relu else out
