"""Several processes, started by torchrun, do what one does; here with Gloo, on the CPU."""

import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
from conftest import Breakdown, global_rng, images, labels, small_net
from datasets import write
from distributed_worker import BATCH, EPOCHS, IMAGES, work
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from advlib import (
    Batches,
    accuracy,
    digit_net,
    distributed,
    evaluation,
    fit,
    load_checkpoint,
    preact_resnet18,
    recipes,
)
from advlib.__main__ import main


@pytest.fixture(scope="module")
def run(processes):
    """Have torchrun's launcher start so many workers; what each of them wrote."""

    def run(folder, count, kill=False):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="test",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=2 * kill,
            start_method=processes.get_start_method(),
        )
        elastic_launch(config, work)(folder, kill)
        return [torch.load(folder / f"{rank}.pt") for rank in range(count)]

    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    work(folder)
    return torch.load(folder / "0.pt")


@pytest.fixture(scope="module", params=[2, 3])
def together(request, run, tmp_path_factory):
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
                assert torch.equal(found[kind][name], weight), name


def test_a_shared_evaluation_counts_what_one_process_counts(alone, together):
    assert 0 < alone["right"].sum() < 90
    for found in together:
        assert torch.equal(found["right"], alone["right"])


def test_a_killed_process_is_started_again_and_the_training_completed(alone, run, tmp_path):
    for found in run(tmp_path, 2, kill=True):
        assert len(found["seen"]) < len(alone["seen"]) / 2  # it did not begin again
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


def test_one_process_stops_when_it_is_asked_to(joined):
    class Monitor:
        stop_requested = False

        def start(self, epochs, iterations):
            self.handler = signal.getsignal(signal.SIGINT)

        def step(self, loss):
            self.stop_requested = True

        def finish(self, history):
            pass

    monitor, before = Monitor(), signal.getsignal(signal.SIGINT)
    history = fit(
        small_net(), Batches(images(8), labels(8), batch_size=4), epochs=2, lr=0.1, monitor=monitor
    )
    assert history.stopped
    assert len(history.loss) == 1
    assert monitor.handler is not before


def test_one_process_may_leave_parameters_unused(joined):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    before = model[1].weight.clone()
    fit(model, Batches(images(8), labels(8), batch_size=4), epochs=2, lr=0.1)
    assert model.unused.tolist() == [0, 0, 0]
    assert not torch.equal(model[1].weight, before)


def test_every_batch_of_an_evaluation_has_random_numbers_of_its_own():
    drawn = []

    def attack(model, x, y, generator):
        drawn.append(torch.rand(4, generator=generator).tolist())
        return x

    for seed in (0, 1, 0):
        noisy = partial(attack, generator=torch.Generator())
        batches = Batches(images(12), labels(12), batch_size=4)
        distributed.correct(small_net(), batches, attack=noisy, seed=seed)
    assert drawn[:3] == drawn[6:]
    assert len(set(map(tuple, drawn[:6]))) == 6


def test_an_error_leaves_no_group_behind():
    with pytest.raises(Breakdown), distributed.joined("cpu"):
        raise Breakdown
    assert not distributed.is_joined()
    with distributed.joined("cpu"):
        assert distributed.is_joined()


@pytest.mark.parametrize("device", ["meta", "abacus", "cpu:0"])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match=r"^(device|name)"), distributed.joined(device):
        pass


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


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `python -m advlib` in this process; what it printed."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["advlib", *options])
        main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


def test_the_command_trains_and_goes_on_from_its_checkpoint(command, tmp_path):
    options = ["train", "--device=cpu", "--recipe=standard", "--images=100", "--epochs=1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "advlib", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"clean: \d+ of 5000 right, 0\.\d+ to 0\.\d+", done.stdout)
    assert command(*options) == done.stdout  # it has ended
    assert len(load_checkpoint(tmp_path / "standard.pt", digit_net()).loss) == 1


def test_the_command_trains_on_cifar10(command, tmp_path, monkeypatch):
    """All of the recipe after Wong et al., on 15 images and 3 test images in the real format."""
    write("cifar10", tmp_path, monkeypatch)
    options = ["--device=cpu", "--recipe=cifar10", "--epochs=1", "--batch-size=5", "--data=."]
    found = command("train", *options)
    assert re.search(r"clean: [0-3] of 3 right.*\npgd: [0-3] of 3 right", found)
    history = load_checkpoint(tmp_path / "cifar10.pt", preact_resnet18())
    assert len(history.loss) == 3
    assert len(history.metrics["pgd"]) == 1


def test_the_cifar10_recipe_is_the_papers():
    recipe = recipes.CIFAR10
    assert (recipe.data, recipe.network, recipe.images) == ("cifar10", "preact-resnet18", 50_000)
    assert (recipe.eps, recipe.alpha, recipe.random_start) == (8 / 255, 10 / 255, True)
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.cyclic) == (15, 128, 0.2, True)
    assert (recipe.momentum, recipe.weight_decay) == (0.9, 5e-4)
    assert (recipe.augment, recipe.precision, recipe.method) == (True, "mixed", "fgsm")


def test_restarts_on_several_machines_need_a_store_of_their_own(monkeypatch):
    """torchrun hands out the store of the dead group; see `distributed._meeting_point`."""
    given = {
        "TORCHELASTIC_RUN_ID": "x",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "GROUP_WORLD_SIZE": "2",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(None, 0, 2)]))
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE must be 1"):
        distributed._meeting_point()
