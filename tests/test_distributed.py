"""Several processes, started by torchrun, do what one does; here with Gloo, on the CPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import global_rng, images, labels, small_net
from distributed_worker import BATCH, EPOCHS, IMAGES

from advlib import Batches, accuracy, digit_net, distributed, evaluation, fit, load_checkpoint

WORKER = Path(__file__).parent / "distributed_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def run(folder, processes, *options, launcher=TORCHRUN):
    """Run the worker by so many processes; what each of them wrote."""
    start = [*launcher, f"--nproc-per-node={processes}"] if processes else [sys.executable]
    if "--kill" in options:
        start.append("--max-restarts=2")
    done = subprocess.run(
        [*start, WORKER, folder, *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes or 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"), 0)[0]


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    return run(tmp_path_factory.mktemp("together"), request.param)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-12)


def test_every_image_is_trained_on_once_an_epoch_and_in_the_same_batch(alone, together):
    for epoch in range(EPOCHS):
        part = alone["seen"][epoch * IMAGES : (epoch + 1) * IMAGES]
        assert sorted(part) == list(range(IMAGES))
    shares = [iter(found["seen"]) for found in together]
    order = []
    for _ in range(EPOCHS):
        for rows in torch.arange(IMAGES).split(BATCH):
            for share, mine in zip(shares, rows.tensor_split(len(together)), strict=True):
                order += [next(share) for _ in mine]
    assert order == alone["seen"]
    assert [list(share) for share in shares] == [[]] * len(together)


def test_metrics_and_weights_are_those_of_one_process(alone, together):
    for found in together:
        close(torch.tensor(found["history"]["loss"]), torch.tensor(alone["history"]["loss"]))
        assert found["history"]["metrics"] == alone["history"]["metrics"]
        for name, weight in alone["weights"].items():
            close(found["weights"][name], weight)
    metrics = alone["history"]["metrics"]
    assert len(set(metrics["clean"] + metrics["pgd"])) > 2  # they say something


def test_all_processes_end_with_the_same_network(together):
    for found in together[1:]:
        for kind in ("weights", "batchnorm"):
            for name, weight in together[0][kind].items():
                if "running" not in name and "tracked" not in name:
                    assert torch.equal(found[kind][name], weight), name


def test_a_shared_evaluation_counts_what_one_process_counts(alone, together):
    assert 0 < alone["right"].sum() < 90
    for found in together:
        assert torch.equal(found["right"], alone["right"])


@pytest.mark.parametrize("processes", [2, 3])
def test_a_killed_process_is_started_again_and_the_training_completed(processes, alone, tmp_path):
    for found in run(tmp_path, processes, "--kill"):
        assert len(found["seen"]) < len(alone["seen"]) / processes  # it did not begin again
        close(torch.tensor(found["history"]["loss"]), torch.tensor(alone["history"]["loss"]))
        for name, weight in alone["weights"].items():
            close(found["weights"][name], weight)


# In one process


@pytest.fixture
def joined():
    with distributed.joined("cpu") as device:
        yield device
    assert not distributed.is_joined()


def test_one_process_is_a_group_of_its_own(joined):
    assert (distributed.rank(), distributed.processes()) == (0, 1)
    assert joined == torch.device("cpu")
    assert distributed.share(torch.arange(5))[1].tolist() == list(range(5))


def test_without_a_group_evaluation_is_advlibs(tmp_path):
    batches, before = Batches(images(30), labels(30), batch_size=7), global_rng()
    model = small_net()
    expected = evaluation.correct(model, batches)
    assert torch.equal(distributed.correct(model, batches), expected)
    assert distributed.accuracy(model, batches) == accuracy(model, batches)
    assert global_rng() == before


def test_a_shuffled_evaluation_is_refused():
    shuffled = Batches(images(30), labels(30), shuffle=True)
    with pytest.raises(ValueError, match=r"^batches must not be shuffled"):
        distributed.correct(small_net(), shuffled)
    with pytest.raises(TypeError, match=r"^batches"):
        distributed.correct(small_net(), [(images(), labels())])


def test_a_batch_needs_an_image_for_each_process(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: 3)
    batches = Batches(images(10), labels(10), batch_size=4)
    with pytest.raises(ValueError, match=r"^batches must hold an image for each of 3 processes"):
        fit(digit_net(size=4, classes=3), batches, epochs=1, lr=0.1)


# The command


def command(folder, *options, processes=2):
    start = [*TORCHRUN, f"--nproc-per-node={processes}", "-m", "advlib"]
    if not processes:
        start = [sys.executable, "-m", "advlib"]
    options = ["train", "--device", "cpu", *options]
    done = subprocess.run(
        [*start, *options], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_trains_and_goes_on_from_its_checkpoint(tmp_path):
    options = ["--recipe", "standard", "--images", "100", "--epochs", "1", "--lr", "0.1"]
    found = [command(tmp_path, *options, processes=n) for n in (2, 0)]  # then it has ended
    assert load_checkpoint(tmp_path / "standard.pt", digit_net()).loss
    assert re.search(r"clean: \d+ of 5000 right, 0\.\d+ to 0\.\d+", found[0])
    assert found[0] == found[1]
