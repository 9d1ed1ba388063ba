"""CUDA graphs: a step is recorded once and then replayed with one launch."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from advlib.engine.passes import Loss, Passes

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
_MOST_GRAPHS = 64


def replayed(
    model: nn.Module, passes: Passes, kind: str, x: Tensor, y: Tensor, loss: Loss | None = None
) -> list[Tensor]:
    """Take the step `passes.pixels` or `passes.weights`; on CUDA by a graph, from the second on.

    Another `loss` than cross-entropy is not recorded: it may do what a graph can't hold.
    """
    step: Step = getattr(passes, kind)
    with torch.inference_mode(False), torch.no_grad():
        if loss is not None:
            return list(passes.pixels(x, y, loss))
        if not x.is_cuda:
            return list(step(x, y))
        with torch.cuda.device(x.device):
            # images stand alone, so a graph for somewhat more of them will do; a mean does not
            size = len(x) if kind == "weights" else _rounded_up(len(x))
            key = (kind, size, x.shape[1:], x.dtype, passes.key)
            graphs = _graphs.setdefault(model, {})
            if key not in graphs:  # it may not come again: recording costs several steps
                if len(graphs) >= _MOST_GRAPHS:
                    graphs.clear()
                graphs[key] = None
                return list(step(x, y))
            graph = graphs[key]
            if graph is None:
                graph = graphs[key] = _Graph(passes, step, x, y, size)
            found = graph(x, y)
            return found if kind == "weights" else [tensor[: len(x)] for tensor in found]


_graphs: WeakKeyDictionary[nn.Module, dict[Any, "_Graph | None"]] = WeakKeyDictionary()


class _Graph:
    """A step recorded for `size` images like `x`."""

    def __init__(self, passes: Passes, step: Step, x: Tensor, y: Tensor, size: int) -> None:
        self.x, self.y = x.new_zeros(size, *x.shape[1:]), y.new_zeros(size)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # the libraries choose their kernels before the recording
            for _ in range(3):
                step(self.x, self.y)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=_memory()):
            passes.prepare()  # part of the graph: the weights change between replays
            self.found = step(self.x, self.y)
        _alive.add(self)
        passes.prepare()  # for steps without a graph: the above was recorded, not done

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self.x[: len(x)].copy_(x)
        self.y[: len(y)].copy_(y)
        self.graph.replay()
        return [tensor.clone() for tensor in self.found]


_alive: WeakSet[_Graph] = WeakSet()
_pool: Any = None


def _memory() -> Any:
    """Memory that all graphs share: no two run at a time, and their results are copied out.

    With the last graph the memory goes, and its handle can't be used again.
    """
    global _pool
    if not _alive:
        _pool = torch.cuda.graph_pool_handle()
    return _pool


def _rounded_up(n: int) -> int:
    """The next size worth a graph of its own, at most an eighth (or 7 images) above `n`."""
    unit = max(8, 2 ** (n.bit_length() - 4))
    return -(-n // unit) * unit
