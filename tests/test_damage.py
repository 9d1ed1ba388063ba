"""Nothing damaged is ever used, and neither a full folder nor a dead network does damage."""

import os
import pickle
import random
import re
import shutil
import socket
import time
import warnings
from functools import partial
from importlib import resources
from unittest import mock

import pytest
import torch
from conftest import small_net
from datasets import FILES, SETS, archives, point_at, serving, write
from test_checkpoint import Evil, train

from advlib import load_checkpoint, load_data
from advlib.book import recipes, trained
from advlib.data import SHIPPED

PACKAGE = resources.files("advlib")
ADVICE = re.compile(r"delete|give another|install advlib again")
load_cpu = partial(load_data, device="cpu")


def is_used(name, use):
    """Whether the file is taken for good: no error or warning names it and says what to do."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            use()
            told = [str(warning.message) for warning in caught]
        except (OSError, ValueError) as error:
            told = [str(error)]
    return not any(name in words and ADVICE.search(words) for words in told)


@pytest.fixture
def victims(tmp_path, monkeypatch):
    """Every kind of file that advlib reads, and what would use it."""
    found = []
    for name in SHIPPED:
        shutil.copy(PACKAGE / f"{name}.npz", tmp_path)
        found.append((tmp_path / f"{name}.npz", partial(load_cpu, name)))
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    for name in SETS:
        write(name, tmp_path / name, monkeypatch)
    for name, file in FILES:
        (path,) = (tmp_path / name).rglob(file)
        found.append((path, partial(load_cpu, name, root=tmp_path / name)))
    shipped = shutil.copytree(trained.FOLDER, tmp_path / "trained")
    monkeypatch.setattr(trained, "FOLDER", shipped)
    found.append((shipped / "standard.pt", partial(trained.load, "standard")))
    run = tmp_path / "run.pt"
    train(small_net(), run)
    found.append((run, lambda: train(small_net(), run)))
    found.append((run, lambda: load_checkpoint(run, small_net())))
    for _, use in found:
        use()  # whole, it is good
    return found


def damages(whole, chance, times):
    """One bit flipped, at the ends and anywhere; cut; and lengthened."""
    last, header = 8 * len(whole) - 1, 8 * min(64, len(whole))
    places = [0, chance.randrange(header), last - chance.randrange(8)]
    for place in places + [chance.randrange(last + 1) for _ in range(times)]:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        yield f"bit {place}", content
    lengths = [0, 1, 31, 32, 33, 42, len(whole) // 2, len(whole) - 1]
    lengths += [chance.randrange(len(whole)) for _ in range(times)]
    for length in (length for length in lengths if length < len(whole)):
        yield f"{length} bytes", whole[:length]
    yield "zeros for its second half", whole[: len(whole) // 2].ljust(len(whole), b"\0")
    yield "a byte too many", whole + b"\0"


@pytest.mark.parametrize("times", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_no_damaged_file_is_used(times, victims, capsys):
    chance, used, count = random.Random(times), [], 0
    for path, use in victims:
        whole = path.read_bytes()
        for what, content in damages(whole, chance, times):
            count += 1
            path.write_bytes(content)
            if is_used(path.name, use):
                used.append((path.name, what))
        path.write_bytes(whole)
    with capsys.disabled():
        print(f"\ndamaged files used: {len(used)} of {count}")
    assert used == []


@pytest.fixture
def attempts(monkeypatch):
    """Every attempt at the network fails at once, and is noted."""
    made = mock.Mock(side_effect=OSError("no network"))
    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (time, "sleep")):
        monkeypatch.setattr(owner, name, made)
    return made


def test_without_a_network_all_works_that_is_there_and_the_rest_says_so(attempts, tmp_path):
    _, history = recipes.train(recipes.Recipe(images=100, epochs=1), device="cpu")
    assert len(history.loss) == 1
    assert trained.network("standard")
    for name in SETS:
        with pytest.raises(FileNotFoundError, match=rf"^{name}: .* is missing; .*download=True"):
            load_data(name, root=tmp_path)
    attempts.assert_not_called()
    for name in SETS:
        told = rf"(?s)^{name}: the download into {tmp_path} failed: .*no network.* see that"
        with pytest.raises(OSError, match=told):
            load_data(name, root=tmp_path, download=True)
        with pytest.raises(FileNotFoundError):
            load_data(name, root=tmp_path)


def spoiled(name, made, root):
    """Bring `root` to each state before a download, or that a killed one or a damage may leave."""
    yield
    paths = [path for kind, file in FILES if kind == name for path in made.rglob(file)]
    files = [(path, path.relative_to(made)) for path in paths]
    for i, (path, place) in enumerate(files):
        whole = path.read_bytes()
        cut, bit = whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])
        for there, content in ((files[: i + 1], cut), (files, cut), (files, bit)):
            shutil.rmtree(root, ignore_errors=True)
            for source, target in there:
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, root / target)
            (root / place).write_bytes(content)
            yield


@pytest.mark.parametrize("name", SETS)
def test_after_a_failed_download_the_next_one_works_or_says_what_to_do(name, tmp_path, monkeypatch):
    made, root = tmp_path / "made", tmp_path / "new"
    write(name, made, monkeypatch)
    expected, served = load_cpu(name, root=made), archives(made, monkeypatch)
    with serving(served) as port:
        point_at(name, port, monkeypatch)
        fetch = partial(load_cpu, name, root=root, download=True)
        for _ in spoiled(name, made, root):
            with pytest.raises(OSError, match=rf"^{name}: .* is (missing|damaged); delete .* then"):
                load_data(name, root=root)
            try:
                found = fetch()
            except OSError as error:
                (folder,) = re.findall(r"delete (\S+) if it is there", str(error))
                shutil.rmtree(folder)
                found = fetch()
            for part, good in zip(found, expected, strict=True):
                assert torch.equal(part.x, good.x)
                assert torch.equal(part.y, good.y)
        for path in served.iterdir():  # an archive that arrives damaged
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        shutil.rmtree(root)
        with pytest.raises(OSError, match=rf"(?s)^{name}: the download into .* failed: .*again"):
            fetch()
        with pytest.raises(FileNotFoundError, match=rf"^{name}: .* is missing"):
            load_data(name, root=root)


@pytest.mark.parametrize("file", [file for name, file in FILES if name == "cifar10"])
def test_a_cifar_batch_with_code_is_refused_unread(file, tmp_path, monkeypatch, attempts):
    write("cifar10", tmp_path, monkeypatch)
    ran = tmp_path / "ran"
    payload = pickle.dumps(Evil(os.mkdir, str(ran)))
    pickle.loads(payload)
    ran.rmdir()
    (path,) = tmp_path.rglob(file)
    path.write_bytes(payload)
    for download in (False, True):
        with pytest.raises(OSError, match=r"^cifar10: .*delete"):
            load_data("cifar10", root=tmp_path, download=download)
    assert not ran.exists()


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_files_of_an_old_torchvision_are_refused_unread(name, download, tmp_path, monkeypatch):
    write(name, tmp_path, monkeypatch)
    cls = SETS[name][0]
    old, ran = tmp_path / cls.__name__ / "processed", tmp_path / "ran"
    old.mkdir()
    for file in (cls.training_file, cls.test_file):
        torch.save(Evil(os.mkdir, str(ran)), old / file)
    torch.load(old / file, weights_only=False)
    ran.rmdir()
    with pytest.raises(OSError, match=rf"^{name}: .*is an old .* checked; delete it"):
        load_data(name, root=tmp_path, download=download)
    assert not ran.exists()
    shutil.rmtree(old)
    load_data(name, root=tmp_path, download=download)
