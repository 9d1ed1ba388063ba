"""The shipped digits, data sets in their real on-disk formats, and batches."""

import gzip
import hashlib
import http.server
import pickle
import shutil
import struct
import threading
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cuda, global_rng
from hypothesis import given
from hypothesis import strategies as st
from torchvision import datasets

from advlib import Batches, data, load_data

# The shipped digits


@pytest.fixture(scope="module")
def digits():
    return load_data(device="cpu")


@pytest.mark.parametrize("part", [0, 1])
def test_shipped_digits_have_the_promised_shape_type_range_and_balance(digits, part):
    x, y, classes, angles = digits[part]
    assert (x.shape, x.dtype, y.dtype) == ((5000, 1, 28, 28), torch.float32, torch.int64)
    assert classes == tuple("0123456789")
    assert y.bincount().tolist() == [500] * 10
    assert x.min() == 0
    assert x.max() == 1
    assert torch.equal((x * 255).round() / 255, x)  # 8 bits a pixel
    assert (angles.shape, angles.dtype) == ((5000,), torch.int64)
    assert (angles.min(), angles.max()) == (-45, 45)
    assert len(angles.unique()) == 91
    ink = x.flatten(1).sum(1)
    assert ink.min() > 5  # no empty image
    assert ink.max() < 400  # and none full


def test_no_test_image_is_also_a_training_image(digits):
    train, test = ({image.numpy().tobytes() for image in part.x} for part in digits)
    assert not train & test


def test_shipped_file_is_small_and_safe_to_read():
    content = (resources.files("advlib") / "digits.npz").read_bytes()
    assert len(content) <= 3_000_000
    assert hashlib.sha256(content).hexdigest() == data.DIGITS_SHA256


def test_a_damaged_digits_file_is_refused_by_name(tmp_path, monkeypatch):
    content = bytearray((resources.files("advlib") / "digits.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "digits.npz").write_bytes(content)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(OSError, match=r"digits\.npz is damaged"):
        load_data()


# torchvision's data sets, written by us in their own formats


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_idx(folder, monkeypatch, cls):
    """Write four idx files, packed and extracted, and make torchvision expect their MD5."""
    folder = folder / cls.__name__ / "raw"
    folder.mkdir(parents=True)
    checksums, written = [], {}
    for part, n in (("train", 12), ("t10k", 7)):
        labels = np.arange(n, dtype=np.uint8) % 10
        arrays = {"images-idx3": pixels(n, 28, 28), "labels-idx1": labels}
        for kind, array in arrays.items():
            header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            name = f"{part}-{kind}-ubyte"
            packed = gzip.compress(header + array.tobytes(), mtime=0)
            (folder / name).write_bytes(header + array.tobytes())
            (folder / f"{name}.gz").write_bytes(packed)
            checksums.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
            written[part, kind] = array
    monkeypatch.setattr(cls, "resources", checksums)
    return [
        (written[part, "images-idx3"][:, None], written[part, "labels-idx1"])
        for part in ("train", "t10k")
    ]


def write_cifar(folder, monkeypatch, cls):
    """Write six pickled batches and the names, and make torchvision expect their MD5."""
    folder = folder / cls.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        packed = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(packed)
        return hashlib.md5(packed).hexdigest()

    rows, y = pixels(18, 3072), np.arange(18) % 10
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    checksums = []
    for i, name in enumerate(names):
        part = slice(3 * i, 3 * i + 3)
        digest = write(name, {"data": rows[part], "labels": y[part].tolist()})
        checksums.append([name, digest])
    classes = [f"class {i}" for i in range(10)]
    digest = write("batches.meta", {"label_names": classes})
    monkeypatch.setattr(cls, "train_list", checksums[:5])
    monkeypatch.setattr(cls, "test_list", checksums[5:])
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": digest})
    images = rows.reshape(18, 3, 32, 32)  # a row holds all reds, then greens, then blues
    return [(images[:15], y[:15]), (images[15:], y[15:])]


SETS = {
    "mnist": (datasets.MNIST, write_idx),
    "fashion-mnist": (datasets.FashionMNIST, write_idx),
    "cifar10": (datasets.CIFAR10, write_cifar),
}
IDX = [f"{p}-{k}-ubyte" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
IDX_FILES = [name + end for name in IDX for end in ("", ".gz")]
CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
FILES = [
    *((name, file) for name in ("mnist", "fashion-mnist") for file in IDX_FILES),
    *(("cifar10", file) for file in CIFAR_FILES),
]


def write(name, root, monkeypatch):
    cls, writer = SETS[name]
    return writer(root, monkeypatch, cls)


@pytest.mark.parametrize("name", SETS)
def test_a_set_in_torchvisions_format_arrives_pixel_by_pixel(name, tmp_path, monkeypatch):
    written = write(name, tmp_path, monkeypatch)
    for part, (images, labels) in zip(
        load_data(name, root=tmp_path, device="cpu"), written, strict=True
    ):
        assert part.x.dtype == torch.float32
        assert part.x.is_contiguous()
        assert torch.equal(part.x, torch.from_numpy(images).float() / 255)
        assert part.y.tolist() == labels.tolist()
        assert part.y.dtype == torch.int64
        assert len(part.classes) == 10
        assert part.angles is None


@pytest.mark.parametrize(("name", "file"), FILES)
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_a_missing_or_damaged_file_is_named_with_what_to_do(
    name, file, damage, tmp_path, monkeypatch
):
    write(name, tmp_path, monkeypatch)
    (path,) = tmp_path.rglob(file)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[-20 if len(content) > 40 else -1] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:-1])
    kind, word = (FileNotFoundError, "missing") if damage == "missing" else (OSError, "damaged")
    with pytest.raises(kind, match=rf"{file} is {word}.*download=True"):
        load_data(name, root=tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serving(folder):
    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield server.server_port
        server.shutdown()


def point_at(name, port, monkeypatch):
    cls = SETS[name][0]
    monkeypatch.setattr(cls, "mirrors", [f"http://127.0.0.1:{port}/"], raising=False)
    monkeypatch.setattr(cls, "url", f"http://127.0.0.1:{port}/cifar.tar.gz", raising=False)


@pytest.mark.parametrize("name", SETS)
def test_download_fetches_checks_and_reads(name, tmp_path, monkeypatch):
    write(name, tmp_path / "made", monkeypatch)
    served = tmp_path / "served"
    served.mkdir()
    for path in (tmp_path / "made").rglob("*.gz"):
        shutil.copy(path, served)
    archive = shutil.make_archive(str(served / "cifar"), "gztar", tmp_path / "made")
    digest = hashlib.md5(Path(archive).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", digest)
    with serving(served) as port:
        point_at(name, port, monkeypatch)
        train, test = load_data(name, root=tmp_path / "new", download=True, device="cpu")
    expected = load_data(name, root=tmp_path / "made", device="cpu")
    assert torch.equal(train.x, expected[0].x)
    assert torch.equal(test.y, expected[1].y)


@pytest.mark.parametrize("name", SETS)
def test_a_failed_download_is_an_os_error_that_names_the_set_and_folder(
    name, tmp_path, monkeypatch
):
    point_at(name, 9, monkeypatch)  # nobody listens there
    with pytest.raises(OSError, match=f"{name}: the download into {tmp_path} failed"):
        load_data(name, root=tmp_path, download=True)


@pytest.mark.parametrize("name", ["emnist", "MNIST", "", None, 3])
def test_an_unknown_data_set_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"^name must be one of digits, mnist, fashion-mnist"):
        load_data(name)


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="device"):
        load_data(device="abacus")


# Batches


def numbered(n):
    return torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1), torch.arange(n)


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), shuffle=st.booleans())
def test_every_pass_holds_every_image_once_with_its_label(n, batch_size, shuffle):
    x, y = numbered(n)
    batches = Batches(x, y, batch_size=batch_size, shuffle=shuffle)
    for _ in range(2):
        passed = list(batches)
        assert len(passed) == len(batches)
        sizes = [len(y) for _, y in passed]
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        assert all(torch.equal(x.flatten(), y.float()) for x, y in passed)
        seen = torch.cat([y for _, y in passed])
        assert torch.equal(seen.sort().values, y)
        if not shuffle:
            assert torch.equal(seen, y)


def order(batches):
    return torch.cat([y for _, y in batches]).tolist()


def test_shuffled_order_changes_every_pass_and_repeats_with_the_generators_seed():
    def passes(**options):
        batches = Batches(*numbered(50), batch_size=7, shuffle=True, **options)
        return [order(batches), order(batches)]

    def seeded(seed):
        return passes(generator=torch.Generator().manual_seed(seed))

    assert seeded(1) == seeded(1)
    assert seeded(1) != seeded(2)
    assert seeded(1)[0] != seeded(1)[1]
    assert passes() == passes()  # its own generator is seeded too


def test_batches_leave_the_global_rng_alone():
    before = global_rng()
    order(Batches(*numbered(20), shuffle=True))
    assert global_rng() == before


def test_batches_are_slices_of_the_tensors_not_copies():
    x, y = numbered(20)
    parts = list(Batches(x, y, batch_size=6))
    assert [part.data_ptr() for part, _ in parts] == [x[i:].data_ptr() for i in (0, 6, 12, 18)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", [1.0]),
        ("x", torch.zeros(4, 1, 2, 2, dtype=torch.uint8)),
        ("x", torch.zeros(4)),
        ("x", torch.zeros(0, 1, 2, 2)),
        ("x", torch.full((4, 1, 2, 2), float("nan"))),
        ("y", [0, 1, 2, 3]),
        ("y", torch.zeros(4)),
        ("y", torch.zeros(3, dtype=torch.int64)),
        ("y", torch.zeros(4, 1, dtype=torch.int64)),
        ("y", torch.tensor([0, 1, 2, -1])),
        *(("batch_size", value) for value in (0, -1, 2.0, True, "2", None)),
    ],
)
def test_batches_name_bad_input(name, value):
    arguments = dict(zip("xy", numbered(4), strict=True)) | {name: value}
    with pytest.raises((TypeError, ValueError), match=f"^{name} must"):
        Batches(**arguments)


@cuda
def test_batches_and_data_on_cuda_stay_there_in_the_cpus_order():
    train = load_data(device="cuda")[0]
    assert train.x.is_cuda
    assert train.angles.is_cuda
    x, y = numbered(50)
    device = list(Batches(x.cuda(), y.cuda(), batch_size=8, shuffle=True))
    host = list(Batches(x, y, batch_size=8, shuffle=True))
    assert all(
        a.is_cuda and torch.equal(b.cpu(), d) for (a, b), (_, d) in zip(device, host, strict=True)
    )
