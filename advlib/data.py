"""The shipped digits, three torchvision data sets through the same call, and batches of tensors."""

import hashlib
import io
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advlib.runtime import (
    check_choice,
    check_count,
    check_device,
    check_flag,
    check_images,
    check_labels,
    check_path,
    source_of,
    uniform,
)

DIGITS_SHA256 = "14596fe8c2b98bf2f4c7dd91019d76943075087ed4407bec5bf423c46a4e8c74"
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}


class Images(NamedTuple):
    """One part of a data set, resident on one device.

    Attributes:
        x: images, float32 (n, c, h, w) in [0, 1].
        y: labels, int64 (n,).
        classes: the name of each label.
        angles: rotation of each image in whole degrees, positive clockwise, int64 (n,); None unless
            it is known.
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

    `name` is "digits" (shipped with advlib, see the book's data card), "mnist", "fashion-mnist" or
    "cifar10". The last three are read from the folder `root` by torchvision, and fetched into it
    first when `download=True`. `device` defaults to `pick_device()`.

    Raises:
        ValueError: the name is unknown, or the machine has no such device.
        FileNotFoundError: a file of the data set is missing; the message says which.
        OSError: a file is damaged, or the download failed; the message says what to do.
    """
    check_choice("name", name, ["digits", *TORCHVISION])
    root = check_path("root", root)
    check_flag("download", download)
    device = check_device("device", device)
    if name == "digits":
        parts = _read_digits()
    else:
        parts = [_read_torchvision(name, root, train, download) for train in (True, False)]
    train, test = (_to_device(part, device) for part in parts)
    return train, test


class Batches:
    """Pairs (x, y) cut from tensors that stay on their device; iterate as often as you like.

    With `shuffle=True` every pass over it draws a new order from `generator` (by default one of
    its own, seeded with 0). The last batch holds what is left. ::

        for x, y in Batches(train.x, train.y, batch_size=100, shuffle=True):
            ...
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
        """Take images (n, ...), labels (n,) and how to cut them.

        Raises:
            TypeError, ValueError: `x`, `y` or `batch_size` is of the wrong type, shape or range.
        """
        check_images(x)
        check_labels(y, x)
        self.x = x
        self.y = y
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
            yield from zip(
                self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True
            )


def shifted(x: Tensor, *, most: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Move each image by up to `most` pixels each way, and mirror every other one, at random.

    What an image leaves behind is black. It is how CIFAR-10 is usually augmented; digits should
    not be mirrored.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or range.
    """
    check_images(x)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (n, c, h, w), got {tuple(x.shape)}")
    check_count("most", most, minimum=0, maximum=1000)
    down, across, side = uniform(x[:, 0, 0, :1].expand(-1, 3), generator).unbind(1)
    n, _, height, width = x.shape

    def places(length: int, move: Tensor) -> Tensor:
        first = ((move + 1) / 2 * (2 * most + 1)).long().clamp(max=2 * most)
        return first.unsqueeze(1) + torch.arange(length, device=x.device)

    columns = places(width, across)
    columns = torch.where(side.unsqueeze(1) < 0, columns.flip(1), columns)
    padded = F.pad(x, [most] * 4).permute(0, 2, 3, 1)
    image = torch.arange(n, device=x.device).view(-1, 1, 1)
    moved = padded[image, places(height, down).unsqueeze(2), columns.unsqueeze(1)]
    return moved.permute(0, 3, 1, 2)


class _Raw(NamedTuple):
    """Images uint8 (n, h, w) or (n, h, w, 3), labels, class names, and angles where known."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    classes: tuple[str, ...]
    angles: np.ndarray[Any, Any] | None = None


def _to_device(raw: _Raw, device: torch.device) -> Images:
    images = torch.from_numpy(raw.images)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Images(
        x=images.to(device).float().div_(255).contiguous(),
        y=torch.from_numpy(raw.labels).to(device, torch.int64),
        classes=raw.classes,
        angles=None if raw.angles is None else torch.from_numpy(raw.angles).to(device, torch.int64),
    )


def _read_digits() -> list[_Raw]:
    source = resources.files("advlib") / "digits.npz"
    try:
        content = source.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source} is missing: install advlib again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != DIGITS_SHA256:
        raise OSError(f"{source} is damaged (SHA-256 {digest}): install advlib again")
    classes = tuple("0123456789")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return [
            _Raw(
                arrays[f"{part}_images"],
                arrays[f"{part}_labels"],
                classes,
                arrays[f"{part}_angles"],
            )
            for part in ("train", "test")
        ]


def _read_torchvision(name: str, root: Path, train: bool, download: bool) -> _Raw:
    from torchvision import datasets  # slow to import, and the digits do without

    cls = getattr(datasets, TORCHVISION[name])
    old = root / cls.__name__ / "processed"
    if old.exists():  # torchvision would take what is in there, older ones even run it
        raise OSError(f"{name}: {old} is an old torchvision's and can't be checked; delete it")
    try:
        _check_files(name, cls, root)
    except OSError:
        if not download:
            raise
        _download(name, cls, root, train)
        _check_files(name, cls, root)
    dataset = cls(root=str(root), train=train)
    return _Raw(np.asarray(dataset.data), np.asarray(dataset.targets), tuple(dataset.classes))


def _download(name: str, cls: Any, root: Path, train: bool) -> None:
    """Have torchvision fetch what is missing. It also reads the files, damaged ones or not."""
    try:
        cls(root=str(root), train=train, download=True)
    except Exception as error:
        raise OSError(
            f"{name}: the download into {root} failed: {str(error).strip()}; see that the network "
            f"can be reached and {root} written to, delete {_folder(cls, root)} if it is there, "
            f'and call load_data("{name}", download=True) again'
        ) from error


def _folder(cls: Any, root: Path) -> Path:
    """Where torchvision puts the files of a data set."""
    return root / getattr(cls, "base_folder", cls.__name__)


def _check_files(name: str, cls: Any, root: Path) -> None:
    """Compare every file of a torchvision data set with the checksum torchvision knows for it.

    For the MNIST family torchvision keeps the MD5 of the archives only, and reads the files
    extracted from them unchecked: those are compared with the CRC-32 that ends each archive.
    """
    from torchvision.datasets.utils import check_integrity

    folder = _folder(cls, root)
    advice = f'delete {folder} if it is there, then call load_data("{name}", download=True)'
    if name == "cifar10":
        checksums = [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]
    else:
        folder = folder / "raw"
        checksums = cls.resources
    for filename, md5 in checksums:
        path = folder / filename
        extracted = path.with_suffix("") if path.suffix == ".gz" else path
        for needed in (path, extracted):
            if not needed.exists():
                raise FileNotFoundError(f"{name}: {needed} is missing; {advice}")
        if not check_integrity(str(path), md5):
            raise OSError(f"{name}: {path} is damaged; {advice}")
        if path.suffix == ".gz":
            crc = int.from_bytes(path.read_bytes()[-8:-4], "little")
            if zlib.crc32(extracted.read_bytes()) != crc:
                raise OSError(f"{name}: {extracted} is damaged; {advice}")
