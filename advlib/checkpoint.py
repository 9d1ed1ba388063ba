"""Files that hold a network: written whole or not at all, and read without running what is in them.

A file is a SHA-256 digest, a line with the number of its format, and what torch.save made.
"""

import glob
import hashlib
import io
import os
import re
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advlib.checks import is_out_of_memory

FORMAT = 1
_STALE = 3600  # seconds after which what a killed process had half written is swept away


def write(path: Path, content: dict[str, Any]) -> None:
    """Put `content`, tensors and plain values, into a file in one atomic step.

    Raises OSError if the disk is full, or the folder can't be written to; the old content stays.
    """
    file = io.BytesIO()
    torch.save(content, file)
    signed = b"advlib %d\n" % FORMAT + file.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(".partial", f"{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.sha256(signed).digest() + signed)
            out.flush()
            os.fsync(handle)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):  # another process may sweep, too
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def read(path: Path) -> dict[str, Any]:
    """Return the content of a file that `write` made; its tensors are on the CPU.

    Raises:
        OSError: the file is missing or can't be read, or it is damaged.
        ValueError: it is none of advlib's, a newer one's, or holds more than a dict of tensors and
            plain values, which could run code.
    """
    whole = path.read_bytes()
    digest, signed = whole[:32], whole[32:]
    number = re.match(rb"advlib ([1-9]\d{0,8})\n", signed)
    if number is None:
        raise ValueError(f"{path} is no file of advlib's, or its beginning is lost: give another")
    if hashlib.sha256(signed).digest() != digest:
        raise OSError(f"{path} is damaged: delete it, or give another")
    if int(number[1]) > FORMAT:
        raise ValueError(
            f"{path} was written by a newer advlib, in format {int(number[1])}; this one reads "
            f"{FORMAT}: update advlib"
        )
    payload = signed[number.end() :]
    try:
        content = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as error:  # what was made to do harm may fail in any way
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path} was not loaded, as it could run code ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no network")
    return content


def fill(model: nn.Module, weights: Any, path: Path) -> None:
    """Load `weights`, found at `path`, into `model`, all or none; errors as in `check`."""
    check(model, weights, path)
    model.load_state_dict(weights)


def check(model: nn.Module, weights: Any, path: Path) -> None:
    """Raise ValueError if these are no weights, NaN, or those of another architecture."""
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no weights")
    own, found = (
        {(name, _kind(tensor)) for name, tensor in part.items()}
        for part in (model.state_dict(), weights)
    )
    if own != found:
        other = sorted({str(name) for name, _ in own ^ found})
        raise ValueError(
            f"model is of another architecture than the network in {path}; "
            f"they differ in {', '.join(other[:5])}{', ...' if len(other) > 5 else ''}"
        )
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.isnan().any():
            raise ValueError(f"{path} holds a network with NaN in {name}")


def _kind(value: Any) -> Any:
    """What two tensors must agree in for one to take the other's place."""
    if not isinstance(value, Tensor) or value.is_nested:
        return None  # a layer's extra state, which only the layer understands
    return value.shape, value.dtype, value.layout, value.is_meta


def words(value: Any) -> str:
    """Say what a setting is, the same in every process.

    Tensors go by digest, functions by name, partials by their settings, too, the rest by class.
    """
    if isinstance(value, partial):
        given = [words(argument) for argument in value.args]
        given += [f"{name}={words(part)}" for name, part in sorted(value.keywords.items())]
        return f"{words(value.func)}({', '.join(given)})"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(words, value))})"
    if isinstance(value, dict):
        return f"({', '.join(f'{name}={words(part)}' for name, part in sorted(value.items()))})"
    if isinstance(value, (Tensor, np.ndarray)):
        value = torch.as_tensor(value).detach().cpu()
        numbers = value.flatten().contiguous().view(torch.uint8).numpy()
        return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(numbers.data).hexdigest()[:8]}"
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))
