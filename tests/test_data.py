"""The shipped digits, data sets in their real on-disk formats, and batches."""

import hashlib
from importlib import resources

import pytest
import torch
from conftest import cuda, global_rng
from datasets import FILES, SETS, archives, point_at, serving, write
from hypothesis import given
from hypothesis import strategies as st

from advlib import Batches, data, load_data
from advlib.data import shifted

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


@pytest.mark.parametrize("name", SETS)
def test_download_fetches_checks_and_reads(name, tmp_path, monkeypatch):
    write(name, tmp_path / "made", monkeypatch)
    served = archives(tmp_path / "made", monkeypatch)
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


def test_an_unknown_data_set_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^name must be one of digits, mnist, fashion-mnist"):
        load_data("emnist")


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


# Augmentation


def test_shifted_moves_each_image_within_its_range_and_mirrors_some():
    x = torch.zeros(400, 1, 7, 9)
    x[:, :, 3, 4] = 1  # one white pixel in the middle
    x[:, :, 3, 5] = 0.5  # and a grey one to its right
    found = shifted(x, most=2, generator=torch.Generator().manual_seed(0))
    assert found.shape == x.shape
    places, mirrored = set(), 0
    for image in found[:, 0]:
        (row, column), (grey_row, grey) = (image == 1).nonzero()[0], (image == 0.5).nonzero()[0]
        assert image.sum() == 1.5
        assert grey_row == row
        assert abs(grey - column) == 1
        places.add((int(row) - 3, int(column) - 4))
        mirrored += int(grey < column)
    assert places == {(down, across) for down in range(-2, 3) for across in range(-2, 3)}
    assert 160 < mirrored < 240


def test_shifted_leaves_black_behind_and_draws_from_its_generator():
    x, before = torch.ones(50, 3, 6, 6), global_rng()
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    one, same, other = (shifted(x, most=3, generator=generator) for generator in generators)
    assert global_rng() == before
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    assert one[:, 0].sum((1, 2)).min() >= 9  # at most three rows and columns are lost
    assert torch.equal(shifted(x, most=0, generator=generators[0]), x)
