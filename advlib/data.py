"""The shipped sets, three torchvision data sets through the same call, and batches of tensors."""

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advlib.checks import (
    check_choice,
    check_count,
    check_device,
    check_flag,
    check_images,
    check_labels,
    check_path,
    check_tensor,
)
from advlib.runtime import source_of

DIGITS_SHA256 = "14596fe8c2b98bf2f4c7dd91019d76943075087ed4407bec5bf423c46a4e8c74"
LETTERS_SHA256 = "fa669ea13f0514458e9d9a0de16867dd0e3e4dce6fca6c7b6aaf114440398c7c"
# each is a file NAME.npz beside this module: its digest, and the names of its classes
SHIPPED = {
    "digits": (DIGITS_SHA256, "0123456789"),
    "letters": (LETTERS_SHA256, "CEFHKMNRUVWXY"),
    "scenes": (
        "7aadcd386c60b7f25bc17892e6edc1da5e30781cc8a96d47ceedb02c327624e9",
        ("ground", *"0123456789"),  # a label for each pixel: digit d is class d + 1
    ),
}
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
Pairs = Iterable[tuple[Tensor, Tensor]]


class Images(NamedTuple):
    """One part of a data set, resident on one device.

    Attributes:
        x: images, float32 (n, c, h, w) in [0, 1].
        y: labels, int64 (n,), or (n, h, w) for "scenes".
        classes: the name of each label.
        angles: rotation of each image in whole degrees, positive clockwise, int64 (n,), or None.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    angles: Tensor | None = None


def load_data(
    name: str = "digits",
    *,
    device: str | torch.device | None = None,
    root: str | Path = "data",
    download: bool = False,
) -> tuple[Images, Images]:
    """Return the training and the test part of a data set as tensors on `device`.

    `name` is "digits", "letters" or "scenes" (shipped with advlib, see the book's data card),
    "mnist", "fashion-mnist" or "cifar10". The last three are read from the folder `root` by
    torchvision, and fetched into it first when `download=True`. `device` defaults to
    `pick_device()`. In "scenes" each pixel has a label: 0 is the ground, and d + 1 the digit d.

    Raises:
        ValueError: the name is unknown, or the machine has no such device.
        OSError: a file is missing (FileNotFoundError) or damaged, or the download failed; the
            message says which, and what to do.
    """
    check_choice("name", name, [*SHIPPED, *TORCHVISION])
    root = check_path("root", root)
    check_flag("download", download)
    device = check_device("device", device)
    if name in SHIPPED:
        return _read_shipped(name, "train", device), _read_shipped(name, "test", device)
    train, test = (_read_torchvision(name, root, part, download, device) for part in (True, False))
    return train, test


class Batches:
    """Pairs (x, y) cut from tensors that stay on their device; iterate as often as you like.

    With `shuffle=True` every pass over it draws a new order from `generator` (by default one of
    its own, seeded with 0). The last batch holds what is left.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        batch_size: int = 100,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take images (n, ...), labels (n,) or (n, h, w). Others raise TypeError or ValueError."""
        self.x = check_images(x)
        self.y = check_labels(y, self.x, pixels=True)
        self.batch_size = check_count("batch_size", batch_size)
        check_flag("shuffle", shuffle)
        self.shuffle = shuffle
        own = torch.Generator().manual_seed(0)
        self.generator = source_of(own if generator is None else generator)

    def __len__(self) -> int:
        """Return the number of batches in one pass."""
        return -(-len(self.x) // self.batch_size)

    def order(self) -> list[Tensor]:
        """Return the row numbers of each batch of one pass, int64; drawn anew with `shuffle`."""
        if self.shuffle:
            device = self.generator.device
            rows = torch.randperm(len(self.x), generator=self.generator, device=device)
        else:
            rows = torch.arange(len(self.x))
        return list(rows.to(self.x.device).split(self.batch_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one pass."""
        if self.shuffle:
            for rows in self.order():
                yield self.x[rows], self.y[rows]
        else:  # views, not copies
            parts = (values.split(self.batch_size) for values in (self.x, self.y))
            yield from zip(*parts, strict=True)


def checked_pair(batch: Any, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """A batch as images and labels on `device`, or where they are."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError("batches must yield pairs (x, y): wrap x and y in advlib.Batches")
    x, y = check_images(batch[0]), batch[1]
    if device is not None:
        x = x.to(device)
        if isinstance(y, Tensor):
            check_tensor("y", y)
            y = y.to(device)
    return x, check_labels(y, x, pixels=True)


def checked_pairs(batches: Any, device: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of images and labels, each as `checked_pair` gives it, at least one."""
    place = None if device is None else check_device("device", device)
    if not isinstance(batches, Iterable):
        given = type(batches).__name__
        raise TypeError(f"batches must be an iterable of pairs (x, y), got {given}")
    batch = None
    for batch in batches:
        yield checked_pair(batch, place)
    if batch is None:
        raise ValueError("batches must hold at least one batch")


def _images(images: Any, labels: Any, classes: Any, angles: Any, device: torch.device) -> Images:
    """One part from arrays: images uint8 (n, h, w) or (n, h, w, 3), labels, angles if known."""
    images = torch.from_numpy(images)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    y = torch.from_numpy(labels).to(device, torch.int64)
    turned = None if angles is None else torch.from_numpy(angles).to(device, torch.int64)
    # divided on the CPU: the same bits on every device
    x = images.float().div_(255).contiguous().to(device)
    return Images(x, y, tuple(classes), turned)


def _read_shipped(name: str, part: str, device: torch.device) -> Images:
    known, classes = SHIPPED[name]
    source = resources.files("advlib") / f"{name}.npz"
    try:
        content = source.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source} is missing: install advlib again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != known:
        raise OSError(f"{source} is damaged (SHA-256 {digest}): install advlib again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels, angles = (
            arrays.get(f"{part}_{kind}") for kind in ("images", "labels", "angles")
        )
    return _images(images, labels, classes, angles, device)


def _read_torchvision(
    name: str, root: Path, train: bool, download: bool, device: torch.device
) -> Images:
    from torchvision import datasets  # slow to import, and shipped sets do without

    cls = getattr(datasets, TORCHVISION[name])
    folder = root / getattr(cls, "base_folder", cls.__name__)
    if (folder / "processed").exists():  # torchvision would take, or even run, what is in there
        raise OSError(f"{name}: {folder} is an old torchvision's and can't be checked; delete it")
    advice = f'delete {folder} if it is there, then call load_data("{name}", download=True)'
    problem = _problem(cls, folder)
    if problem and download:
        try:
            cls(root=str(root), train=train, download=True)
        except Exception as error:
            raise OSError(
                f"{name}: the download into {root} failed: {str(error).strip()}; see that the "
                f"network can be reached and {root} written to, {advice} again"
            ) from error
        problem = _problem(cls, folder)
    if problem:
        raise type(problem)(f"{name}: {problem}; {advice}")
    found = cls(root=str(root), train=train)
    return _images(np.asarray(found.data), np.asarray(found.targets), found.classes, None, device)


def _problem(cls: Any, folder: Path) -> OSError | None:
    """Say which file of a data set is missing, or has not the checksum that torchvision knows."""
    from torchvision.datasets.utils import check_integrity

    if hasattr(cls, "resources"):
        checksums, folder = cls.resources, folder / "raw"
    else:
        checksums = [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]
    for filename, md5 in checksums:
        path = folder / filename
        extracted = path.with_suffix("") if path.suffix == ".gz" else path
        for needed in (path, extracted):
            if not needed.exists():
                return FileNotFoundError(f"{needed} is missing")
        if not check_integrity(str(path), md5):
            return OSError(f"{path} is damaged")
        if path.suffix == ".gz":
            # torchvision reads what it extracted unchecked, but a CRC-32 ends the archive
            crc = int.from_bytes(path.read_bytes()[-8:-4], "little")
            if zlib.crc32(extracted.read_bytes()) != crc:
                return OSError(f"{extracted} is damaged")
    return None
