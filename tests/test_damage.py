"""Nothing damaged is ever used, and nothing is written where it doesn't belong.

`python -m pytest tests/test_damage.py -s` prints how many files were damaged, and how many of them
were used.
"""

import importlib
import os
import pickle
import random
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
import torch
from conftest import equal, small_net
from datasets import FILES, SETS, archives, point_at, serving, write
from test_book import write_book
from test_checkpoint import Evil, train
from test_coursework import read_course

from advlib import load_checkpoint, load_data, recipes, trained

coursework = importlib.import_module("coursework")
notebooks = importlib.import_module("notebooks")

NOBODY = 65534
DIGITS = resources.files("advlib") / "digits.npz"
ADVICE = re.compile(r"delete|install advlib again")
load_cpu = partial(load_data, device="cpu")


# Flipped bits and cut files


@dataclass(frozen=True)
class Victim:
    """A file that is going to be damaged, and what would use it."""

    path: Path
    use: Callable[[], object]
    flips: int

    def is_used(self):
        """Whether the file is taken for good: no error or warning names it and says what to do."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.use()
                told = [str(warning.message) for warning in caught]
            except OSError as error:
                told = [str(error)]
        return not any(self.path.name in words and ADVICE.search(words) for words in told)


@pytest.fixture
def victims(tmp_path, monkeypatch):
    """Every kind of file that advlib reads."""
    digits = tmp_path / "digits.npz"
    shutil.copy(DIGITS, digits)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    found = [Victim(digits, load_cpu, 20)]
    for name in SETS:
        write(name, tmp_path / name, monkeypatch)
    for name, file in FILES:
        (path,) = (tmp_path / name).rglob(file)
        found.append(Victim(path, partial(load_cpu, name, root=tmp_path / name), 8))
    shipped = shutil.copytree(trained.FOLDER, tmp_path / "trained")
    monkeypatch.setattr(trained, "FOLDER", shipped)
    found.append(Victim(shipped / "standard.pt", partial(trained.load, "standard"), 40))
    run = tmp_path / "run.pt"
    train(small_net(), run)
    found.append(Victim(run, lambda: train(small_net(), run), 20))
    found.append(Victim(run, lambda: load_checkpoint(run, small_net()), 20))
    for victim in found:
        victim.use()  # whole, it is good
    return found


def damaged(victims, damages):
    """Write each of `damages(victim, whole)`; how many there were, and which were used."""
    used, count = [], 0
    for victim in victims:
        whole = victim.path.read_bytes()
        for what, content in damages(victim, whole):
            count += 1
            victim.path.write_bytes(content)
            if victim.is_used():
                used.append((victim.path.name, what))
        victim.path.write_bytes(whole)
    return count, used


def test_no_file_with_a_flipped_bit_is_used(victims, capsys):
    chance, at_random = random.Random(0), 0

    def flips(victim, whole):
        nonlocal at_random
        last, header = 8 * len(whole) - 1, 8 * min(64, len(whole))
        places = [0, chance.randrange(header), last - chance.randrange(8)]
        places += [chance.randrange(last + 1) for _ in range(victim.flips)]
        at_random += victim.flips
        for place in places:
            content = bytearray(whole)
            content[place // 8] ^= 1 << place % 8
            yield f"bit {place}", content

    count, used = damaged(victims, flips)
    with capsys.disabled():
        print(f"\ndamaged files used: {len(used)} of {count}, each with one bit flipped")
    assert used == []
    assert at_random >= 200


def test_no_file_that_was_cut_or_lengthened_is_used(victims, capsys):
    def cuts(victim, whole):
        lengths = {0, 1, 31, 32, 33, 42, len(whole) // 2, len(whole) - 1}
        for length in sorted(length for length in lengths if length < len(whole)):
            yield f"{length} bytes", whole[:length]
        yield "zeros for its second half", whole[: len(whole) // 2].ljust(len(whole), b"\0")
        yield "a byte too many", whole + b"\0"

    count, used = damaged(victims, cuts)
    with capsys.disabled():
        print(f"\ndamaged files used: {len(used)} of {count}, cut or lengthened")
    assert used == []


def test_the_shipped_digits_missing_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"digits\.npz is missing: install advlib again"):
        load_data()


# Places that can't be written to


@contextmanager
def forbidden(folder, monkeypatch):
    """Inside, nobody writes into `folder`, the present one; root becomes someone else for that."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    monkeypatch.chdir(folder)
    for path in folder.rglob("*"):
        path.chmod(0o444 if path.is_file() else 0o555)
    folder.chmod(0o555)
    user = os.geteuid()
    if os.access(folder, os.W_OK):  # root may write anywhere
        os.seteuid(NOBODY)  # what is above the folder may be closed to it: use relative paths
    try:
        for path in folders:
            with pytest.raises(PermissionError):
                (path.relative_to(folder) / "probe").touch()
        yield
    finally:
        os.seteuid(user)
        for path in folders:
            path.chmod(0o755)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize("path", ["run.pt", "new/run.pt", "file/run.pt"])
def test_a_training_whose_checkpoint_can_not_be_written_loses_only_that(path, place, monkeypatch):
    (place / "file").touch()
    torch.manual_seed(1)
    expected, model = small_net(), small_net()
    history = train(expected, None)
    torch.manual_seed(1)
    with forbidden(place, monkeypatch), pytest.warns(UserWarning, match="training was not saved"):
        found = train(model, path)
    assert found == history
    assert equal(model, expected)
    assert list(place.iterdir()) == [place / "file"]


@pytest.mark.parametrize("name", SETS)
def test_a_read_only_data_folder_is_read_but_not_fetched_into(name, place, monkeypatch):
    write(name, place, monkeypatch)
    expected = load_cpu(name, root=place)
    with forbidden(place, monkeypatch):
        found = load_cpu(name, root=".", download=True)  # nothing is missing
        assert torch.equal(found[0].x, expected[0].x)
    shutil.rmtree(place)
    place.mkdir()
    point_at(name, 9, monkeypatch)  # nobody listens there
    with (
        forbidden(place, monkeypatch),
        pytest.raises(OSError, match=rf"(?s){name}: .* failed: .*(denied|refused).*\. written to"),
    ):
        load_data(name, root=".", download=True)
    assert list(place.iterdir()) == []


# No network


@pytest.fixture
def attempts(monkeypatch):
    """Every attempt at the network fails at once, and is noted."""
    made = []

    def fail(*arguments, **options):
        made.append(arguments)
        raise OSError("no network")

    for owner, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "getaddrinfo"),
        (time, "sleep"),
    ):
        monkeypatch.setattr(owner, name, fail)
    return made


def test_without_a_network_the_digits_and_their_recipes_work(attempts):
    _, history = recipes.train(recipes.Recipe(images=100, epochs=1), device="cpu")
    assert len(history.loss) == 1
    assert trained.network("standard")
    assert attempts == []


@pytest.mark.parametrize("name", SETS)
def test_without_a_network_the_other_sets_say_so_at_once(name, attempts, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^{name}: .* is missing; .*download=True"):
        load_data(name, root=tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^{name}: .* is missing"):
        recipes.train(recipes.Recipe(data=name), device="cpu")  # from the folder "data"
    assert attempts == []
    with pytest.raises(OSError, match=rf"(?s)^{name}: .* failed: .*no network.* see that"):
        load_data(name, root=tmp_path, download=True)
    assert 0 < len(attempts) < 9
    with pytest.raises(FileNotFoundError):
        load_data(name, root=tmp_path)


def test_a_set_that_is_there_needs_no_network(attempts, tmp_path, monkeypatch):
    for name in SETS:
        write(name, tmp_path, monkeypatch)
        load_data(name, root=tmp_path, download=True)
    assert attempts == []


# Downloads that failed


def states(name, made, root):
    """Bring `root` to each state that a killed download or a damage may leave; yields names."""
    packed = [(made.parent / "served" / "cifar.tar.gz", Path("cifar-10-python.tar.gz"))]
    files = packed if name == "cifar10" else []
    files += [
        (path, path.relative_to(made))
        for known, file in FILES
        for path in made.rglob(file)
        if known == name
    ]

    def copy(some):
        shutil.rmtree(root, ignore_errors=True)
        for path, place in some:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / place)

    for i, (path, place) in enumerate(files):
        whole = path.read_bytes()
        copy(files[: i + 1])
        (root / place).write_bytes(whole[: len(whole) // 2])
        yield f"killed at {place}"
        if (name, path) == ("cifar10", packed[0][0]):
            continue  # the archive is of no use once it is unpacked
        copy(files)
        (root / place).write_bytes(whole[: len(whole) // 2])
        yield f"cut {place}"
        (root / place).write_bytes(whole[:2] + bytes([whole[2] ^ 2]) + whole[3:])
        yield f"another type in {place}"
        (root / place).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        yield f"one bit at the end of {place}"


@pytest.mark.parametrize("name", SETS)
def test_after_a_failed_download_the_next_one_works_or_says_what_to_do(name, tmp_path, monkeypatch):
    made, root = tmp_path / "made", tmp_path / "new"
    write(name, made, monkeypatch)
    expected = load_cpu(name, root=made)
    told = 0
    with serving(archives(made, monkeypatch)) as port:
        point_at(name, port, monkeypatch)
        fetch = partial(load_cpu, name, root=root, download=True)
        for _ in states(name, made, root):
            with pytest.raises(OSError, match=rf"^{name}: .* is (missing|damaged); delete .* then"):
                load_data(name, root=root)
            try:
                found = fetch()
            except OSError as error:
                told += 1
                (folder,) = re.findall(r"delete (\S+) if it is there", str(error))
                shutil.rmtree(folder)
                found = fetch()
            for part, good in zip(found, expected, strict=True):
                assert torch.equal(part.x, good.x)
                assert torch.equal(part.y, good.y)
    assert told > 0 or name == "cifar10"  # which torchvision unpacks again by itself


@pytest.mark.parametrize("name", SETS)
def test_an_archive_that_arrives_damaged_is_refused_and_fetched_again(name, tmp_path, monkeypatch):
    write(name, tmp_path / "made", monkeypatch)
    served = archives(tmp_path / "made", monkeypatch)
    whole = {path: path.read_bytes() for path in served.iterdir()}
    root = tmp_path / "new"
    with serving(served) as port:
        point_at(name, port, monkeypatch)
        for path, content in whole.items():
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(OSError, match=rf"(?s)^{name}: the download into .* failed: .*again"):
            load_data(name, root=root, download=True)
        with pytest.raises(FileNotFoundError, match=rf"^{name}: .* is missing"):
            load_data(name, root=root)
        for path, content in whole.items():
            path.write_bytes(content)
        load_data(name, root=root, download=True)


@pytest.mark.parametrize("file", [file for name, file in FILES if name == "cifar10"])
def test_a_cifar_batch_with_code_is_refused_before_it_is_unpickled(
    file, tmp_path, monkeypatch, attempts
):
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
    with pytest.raises(OSError, match=rf"^{name}: .*processed is an old .* checked; delete it"):
        load_data(name, root=tmp_path, download=download)
    assert not ran.exists()
    shutil.rmtree(old)
    load_data(name, root=tmp_path, download=download)


# Notebooks and coursework stay in their folder

OUTSIDE = [
    "../x",
    "book/../../x",
    "book/..",
    "..",
    ".",
    "",
    "./x",
    "book/./x",
    "book//x",
    "book/",
    "/x",
    "C:/x",
    "C:x",
    "..\\x",
    "book\\..\\..\\x",
]


@pytest.mark.parametrize("entry", OUTSIDE)
@pytest.mark.parametrize("level", ["root", "chapter", "section"])
def test_a_page_outside_the_book_is_refused_by_name(level, entry, tmp_path):
    root = write_book(tmp_path / "a" / "b")
    toc = (root / "_toc.yml").read_text(encoding="utf8")
    if level == "root":
        toc = toc.replace("root: book/index", f"root: '{entry}'")
    elif level == "chapter":
        toc = toc.replace("{file: book/02_two}", f"{{file: '{entry}'}}")
    else:
        sections = f"{{file: book/02_two, sections: [{{file: '{entry}'}}]}}"
        toc = toc.replace("{file: book/02_two}", sections)
    (root / "_toc.yml").write_text(toc, encoding="utf8")
    with pytest.raises(ValueError, match=re.escape(f"_toc.yml: {entry!r} is no page under")):
        notebooks.read_book(root)


def test_an_absolute_page_is_refused_by_name(tmp_path):
    page = str(tmp_path / "x")
    root = write_book(tmp_path / "a")
    toc = (root / "_toc.yml").read_text(encoding="utf8")
    (root / "_toc.yml").write_text(toc.replace("book/02_two", page), encoding="utf8")
    with pytest.raises(ValueError, match=re.escape(f"_toc.yml: {page!r} is no page under")):
        notebooks.read_book(root)


def lead_out(link, elsewhere, is_file):
    """Make `link` lead elsewhere: to a folder, or to a file that isn't there yet."""
    elsewhere.mkdir()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere / "file" if is_file else elsewhere)


@pytest.mark.parametrize("name", ["notebooks", "notebooks/01_one.ipynb"])
def test_notebooks_are_not_written_through_links(name, tmp_path):
    book = notebooks.read_book(write_book(tmp_path / "book"))
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    lead_out(out / name, elsewhere, name.endswith("ipynb"))
    with pytest.raises(ValueError, match=r"01_one\.ipynb leads out of .*remove the link"):
        notebooks.write_notebooks(book, out)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "nbgrader_config.py",
        "gradebook.db",
        "source",
        "source/01_one",
        "source/01_one/01_one.ipynb",
        "release",
        "release/01_one",
        "release/01_one/01_one.ipynb",
    ],
)
def test_coursework_is_not_written_through_links(name, tmp_path):
    book = read_course(tmp_path / "book")
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    lead_out(out / name, elsewhere, "." in name)
    with pytest.raises(ValueError, match=rf"{name}.* leads out of .*remove the link"):
        coursework.write_course(book, out)
    assert list(elsewhere.iterdir()) == []


def test_the_output_folder_itself_may_be_a_link(tmp_path):
    book = notebooks.read_book(write_book(tmp_path / "book"))
    lead_out(tmp_path / "out", tmp_path / "elsewhere", is_file=False)
    assert len(notebooks.write_notebooks(book, tmp_path / "out")) == 2
    assert len(list((tmp_path / "elsewhere" / "notebooks").iterdir())) == 2
