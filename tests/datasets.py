"""Data sets in torchvision's own on-disk formats, and a server to fetch them from."""

import gzip
import hashlib
import http.server
import pickle
import shutil
import struct
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from torchvision import datasets

PARTS = ("train", "t10k")
IDX = [f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1")]
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def md5(content):
    return hashlib.md5(content).hexdigest()


def write_idx(folder, monkeypatch, cls):
    """Write four idx files, packed and extracted, and make torchvision expect their MD5."""
    folder = folder / cls.__name__ / "raw"
    folder.mkdir(parents=True)
    sets = [(pixels(n, 28, 28), np.arange(n, dtype=np.uint8) % 10) for n in (12, 7)]
    checksums = []
    for name, array in zip(IDX, [array for pair in sets for array in pair], strict=True):
        header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
        packed = gzip.compress(header + array.tobytes(), mtime=0)
        (folder / name).write_bytes(header + array.tobytes())
        (folder / f"{name}.gz").write_bytes(packed)
        checksums.append((f"{name}.gz", md5(packed)))
    monkeypatch.setattr(cls, "resources", checksums)
    return [(images[:, None], labels) for images, labels in sets]


def write_cifar(folder, monkeypatch, cls):
    """Write six pickled batches and the names, and make torchvision expect their MD5."""
    folder = folder / cls.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        packed = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(packed)
        return [name, md5(packed)]

    rows, y = pixels(18, 3072), np.arange(18) % 10
    parts = zip(BATCHES, rows.reshape(6, 3, -1), y.reshape(6, 3).tolist(), strict=True)
    checksums = [write(name, {"data": data, "labels": labels}) for name, data, labels in parts]
    _, digest = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(cls, "train_list", checksums[:5])
    monkeypatch.setattr(cls, "test_list", checksums[5:])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": digest})
    images = rows.reshape(18, 3, 32, 32)  # a row holds all reds, then greens, then blues
    return [(images[:15], y[:15]), (images[15:], y[15:])]


SETS = {"mnist": (datasets.MNIST, write_idx), "fashion-mnist": (datasets.FashionMNIST, write_idx)}
SETS["cifar10"] = (datasets.CIFAR10, write_cifar)
IDX_FILES = [name + end for name in IDX for end in ("", ".gz")]
FILES = [(name, file) for name in ("mnist", "fashion-mnist") for file in IDX_FILES]
FILES += [("cifar10", file) for file in [*BATCHES, "batches.meta"]]


def write(name, root, monkeypatch):
    cls, writer = SETS[name]
    return writer(root, monkeypatch, cls)


@contextmanager
def serving(folder):
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": print})
    handler = partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield server.server_port
        server.shutdown()


def point_at(name, port, monkeypatch):
    cls = SETS[name][0]
    monkeypatch.setattr(cls, "mirrors", [f"http://127.0.0.1:{port}/"], raising=False)
    monkeypatch.setattr(cls, "url", f"http://127.0.0.1:{port}/cifar.tar.gz", raising=False)


def archives(made, monkeypatch):
    """A folder of what a server has of the sets written into `made`."""
    served = made.parent / "served"
    served.mkdir()
    for path in made.rglob("*.gz"):
        shutil.copy(path, served)
    archive = shutil.make_archive(str(served / "cifar"), "gztar", made)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(Path(archive).read_bytes()))
    return served
