"""Each example, run as a user would run it."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import equal

from advlib import correct, digit_net, fgsm, fit, load_checkpoint, load_data, pgd

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
EPS = 0.01


def run(name, *arguments, cwd, before=()):
    """What an example prints; it finds what lies in `cwd`."""
    path = os.pathsep.join([str(cwd), *sys.path])
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *before, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_two(folder, epochs):
    options = ["--images", 230, "--eps", EPS, "--epochs", epochs]
    options += ["--save", folder, "--checkpoint", folder / "run.pt"]
    return run("torchrun.py", *options, before=TORCHRUN, cwd=folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, run_two(folder, epochs=1)


def evaluate(model, images=230):
    right, (_, test) = [], load_data(device="cpu")
    for i, rows in enumerate(torch.arange(images).split(100)):
        attack = partial(pgd, eps=EPS, alpha=EPS / 10, steps=20)
        attack = partial(attack, generator=torch.Generator().manual_seed(i))
        right.append(correct(model, [(test.x[rows], test.y[rows])], attack=attack))
    return torch.cat(right)


def test_two_processes_end_with_one_network_and_the_answers_of_one(two):
    folder, printed = two
    nets, saved = [digit_net(), digit_net()], digit_net()
    for rank in range(2):
        weights, right = torch.load(folder / f"{rank}.pt")
        nets[rank].load_state_dict(weights)
        assert torch.equal(right, evaluate(nets[rank]))
    assert equal(*nets)
    assert printed == f"accuracy under PGD: {right.float().mean():.4f}\n"
    assert 0 < right.sum() < 230
    history = load_checkpoint(folder / "run.pt", saved)
    assert equal(saved, nets[0])
    assert len(history.loss) == 3  # 115 images each, 50 at a time


def test_two_processes_train_as_one_on_all_their_images(two):
    folder, _ = two
    train, _ = load_data(device="cpu")
    order = torch.randperm(230, generator=torch.Generator().manual_seed(0))  # DistributedSampler's
    noise = [torch.Generator().manual_seed(rank) for rank in range(2)]

    def attack(model, x, y):
        step = partial(fgsm, eps=EPS, alpha=1.25 * EPS, random_start=True)
        halves = zip(x.chunk(2), y.chunk(2), noise, strict=True)
        return torch.cat([step(model, a, b, generator=g) for a, b, g in halves])

    parts = [order[rank::2].split(50) for rank in range(2)]
    rows = [torch.cat(both) for both in zip(*parts, strict=True)]
    alone = digit_net(generator=torch.Generator().manual_seed(0))
    fit(alone, [(train.x[r], train.y[r]) for r in rows], epochs=1, lr=0.01, attack=attack)
    weights, _ = torch.load(folder / "0.pt")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=2e-4, rtol=1e-3)


def test_two_processes_go_on_where_they_were(two):
    folder, _ = two
    run_two(folder, epochs=2)
    assert len(load_checkpoint(folder / "run.pt", digit_net()).loss) == 6


def test_alone_it_needs_no_launcher(tmp_path):
    printed = run("torchrun.py", "--images", 100, "--epochs", 1, cwd=tmp_path)
    assert re.fullmatch(r"accuracy under PGD: 0\.\d{4}\n", printed)


def test_a_dataloader_and_what_else_one_has(tmp_path):
    fake = "import types\ntqdm = lambda total: types.SimpleNamespace(update=lambda: print('.'))\n"
    (tmp_path / "tqdm.py").write_text(fake)
    told = run("dataloader.py", 2, 300, cwd=tmp_path).split()
    assert told[:6] == [*"......"]
    assert float(told[-1]) < float(told[-3])


def test_another_librarys_attack(tmp_path):
    clean, attacked = map(float, re.findall(r": (\S+)", run("other_library.py", 400, cwd=tmp_path)))
    assert attacked < clean
