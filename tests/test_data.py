"""The shipped digits, data sets in their real on-disk formats, and batches."""

from importlib import resources

import pytest
import torch
from conftest import cuda, global_rng, seeded
from datasets import FILES, SETS, write
from hypothesis import given
from hypothesis import strategies as st
from test_digits import clockwise

from advlib import Batches, load_data
from advlib.data import SHIPPED


def test_shipped_digits_have_the_promised_shape_type_range_and_balance():
    for x, y, classes, angles in load_data(device="cpu"):
        assert (x.shape, x.dtype, y.dtype) == ((5000, 1, 28, 28), torch.float32, torch.int64)
        assert classes == tuple("0123456789")
        assert y.bincount().tolist() == [500] * 10
        assert (x.min(), x.max()) == (0, 1)
        assert torch.equal((x * 255).round() / 255, x)  # 8 bits a pixel
        assert (angles.shape, angles.dtype) == ((5000,), torch.int64)
        assert (angles.min(), angles.max(), len(angles.unique())) == (-45, 45, 91)
        ink = x.flatten(1).sum(1)
        assert ink.min() > 5  # no empty image
        assert ink.max() < 400  # and none full
    assert len((resources.files("advlib") / "digits.npz").read_bytes()) <= 3_000_000


def test_shipped_letters_have_the_promised_shape_type_range_and_balance():
    for x, y, classes, angles in load_data("letters", device="cpu"):
        assert (x.shape, x.dtype, y.dtype) == ((520, 1, 28, 28), torch.float32, torch.int64)
        assert classes == tuple("CEFHKMNRUVWXY")
        assert y.bincount().tolist() == [40] * 13
        assert torch.equal((x * 255).round() / 255, x)
        assert x.flatten(1).amax(1).min() > 0.6  # no empty image
        ink = x.flatten(1).sum(1)
        assert (ink.min() > 5, ink.max() < 400) == (True, True)
        assert (angles.shape, angles.min(), angles.max()) == ((520,), -45, 45)
    assert len((resources.files("advlib") / "letters.npz").read_bytes()) <= 350_000


def test_the_nearest_neighbour_tells_each_kind_of_letter_from_digits():
    train, test = load_data(device="cpu")
    first, second = load_data("letters", device="cpu")
    few = torch.cat([(train.y == digit).nonzero()[:40, 0] for digit in range(10)])
    known = torch.cat([train.x[few], first.x]).flatten(1)  # as many of each digit and letter

    def taken_for_a_letter(x):
        return (torch.cdist(x.flatten(1), known).argmin(1) >= len(few)).float().mean()

    assert taken_for_a_letter(test.x[:1000]) < 0.15
    for kind, letter in enumerate(second.classes):
        assert taken_for_a_letter(second.x[second.y == kind]) > 0.65, letter


def test_letters_are_turned_by_their_angles_as_the_digits_are():
    train, test = load_data("letters", device="cpu")
    x, angles = (torch.cat([a, b]) for a, b in ((train.x, test.x), (train.angles, test.angles)))
    which = torch.cat([train.y, test.y]) == train.classes.index("E")
    assert clockwise(x[which, 0].numpy(), angles[which].numpy()) > 0.7


def test_shipped_scenes_have_a_label_for_each_pixel_and_the_promised_shape_type_and_range():
    for part, n in zip(load_data("scenes", device="cpu"), (900, 320), strict=True):
        x, y, classes, angles = part
        assert (x.shape, x.dtype, x.min(), x.max()) == ((n, 1, 56, 56), torch.float32, 0, 1)
        assert (y.shape, y.dtype, angles) == ((n, 56, 56), torch.int64, None)
        assert torch.equal((x * 15).round() / 15, x)  # 16 grey levels
        assert classes == ("ground", *"0123456789")
        assert len(y.unique()) == len(classes)
        of_each = [sum((y == c).flatten(1).any(1)) for c in range(11)]
        assert of_each[0] == n
        assert min(of_each[1:]) > 0.15 * n  # every digit is on many canvases
        assert 0.9 < (y == 0).float().mean() < 0.93
    assert len((resources.files("advlib") / "scenes.npz").read_bytes()) <= 1_100_000


def test_a_scenes_mask_lies_on_its_ink():
    for x, y, *_ in load_data("scenes", device="cpu"):
        ink, x = y > 0, x[:, 0]
        assert x[ink].min() > 0.25
        for image, where in zip(x, ink, strict=True):  # brighter than the ground between the digits
            assert image[where].mean() > image[~where].mean() + 0.2
        assert not y[:, [0, -1]].any()
        assert not y[:, :, [0, -1]].any()


def test_no_test_image_is_also_a_training_image():
    for name in SHIPPED:
        parts = load_data(name, device="cpu")
        train, test = ({image.numpy().tobytes() for image in part.x} for part in parts)
        assert not train & test


@pytest.mark.parametrize("name", SETS)
def test_a_set_in_torchvisions_format_arrives_pixel_by_pixel(name, tmp_path, monkeypatch):
    written = write(name, tmp_path, monkeypatch)
    parts = load_data(name, root=tmp_path, device="cpu")
    for part, (images, labels) in zip(parts, written, strict=True):
        assert (part.x.dtype, part.y.dtype) == (torch.float32, torch.int64)
        assert part.x.is_contiguous()
        assert torch.equal(part.x, torch.from_numpy(images).float() / 255)
        assert part.y.tolist() == labels.tolist()
        assert len(part.classes) == 10
        assert part.angles is None


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_missing_file_is_named_with_what_to_do(name, file, tmp_path, monkeypatch):
    write(name, tmp_path, monkeypatch)
    (path,) = tmp_path.rglob(file)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing.*download=True"):
        load_data(name, root=tmp_path)


def numbered(n):
    return torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1), torch.arange(n)


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), shuffle=st.booleans())
def test_every_pass_holds_every_image_once_with_its_label(n, batch_size, shuffle):
    x, y = numbered(n)
    batches = Batches(x, y, batch_size=batch_size, shuffle=shuffle)
    for _ in range(2):
        parts, labels = zip(*batches, strict=True)
        assert [len(part) for part in parts[:-1]] == [batch_size] * (len(batches) - 1)
        assert torch.equal(torch.cat(parts).flatten(), torch.cat(labels).float())
        assert torch.equal(torch.cat(labels).sort().values if shuffle else torch.cat(labels), y)


def test_shuffled_order_changes_every_pass_and_repeats_with_the_generators_seed():
    def passes(**options):
        batches = Batches(*numbered(50), batch_size=7, shuffle=True, **options)
        return [torch.cat([y for _, y in batches]).tolist() for _ in range(2)]

    before = global_rng()
    one, same, other = (passes(generator=seeded(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert one[0] != one[1]
    assert passes() == passes()  # its own generator is seeded too
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
    assert all(a.is_cuda and torch.equal(a.cpu(), b) for (a, _), (b, _) in zip(device, host))  # noqa: B905
