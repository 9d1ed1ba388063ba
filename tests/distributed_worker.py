"""What test_distributed.py starts in several processes; apart, to be imported quickly."""

import os
import signal
from functools import partial

import torch
from conftest import images, labels
from torch import nn

from advlib import Batches, digit_net, distributed, fgsm, fit, pgd

IMAGES, BATCH, EPOCHS = 51, 12, 3  # the last batch holds 3: one image for each of 3 processes
EPS = 0.1


def data(n):
    """Images, and which of their first three rows is the brightest: something to learn."""
    x = images(n, dtype=torch.float64)
    return x, x[:, 0, :3].sum(2).argmax(1)


def train(seen, path=None, kill_at=None, **options):
    """Adversarial training in double precision, where rounding can't turn a sign of note."""
    generator = torch.Generator().manual_seed(2)
    model = digit_net(size=4, classes=3, generator=generator).double()
    batches = Batches(*data(IMAGES), batch_size=BATCH, shuffle=True, generator=generator)
    step = partial(fgsm, eps=EPS, alpha=1.25 * EPS, random_start=True, generator=generator)
    test = Batches(*data(29), batch_size=4)

    def attack(model, x, y):
        seen.extend(int((batches.x == image).flatten(1).all(1).nonzero()[0]) for image in x)
        if len(seen) > (kill_at or float("inf")) and is_first_life():
            os.kill(os.getpid(), signal.SIGKILL)
        return step(model, x, y)

    def evaluate(model):
        strong = partial(pgd, eps=EPS, alpha=0.03, steps=3, generator=torch.Generator())
        return {
            "clean": distributed.accuracy(model, test),
            "pgd": distributed.accuracy(model, test, attack=strong),
        }

    settings = {"epochs": EPOCHS, "lr": 0.3, "evaluate": evaluate, "attack": attack}
    # the generator stands in a closure, but it is the one of the batches
    history = fit(model, batches, checkpoint=path, save_steps=1, **settings | options)
    return model, history


def is_first_life():
    return os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"


def judged():
    """Which of some images a fixed network gets right under a PGD that draws much."""
    model = digit_net(size=4, classes=3, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(9)
    state = generator.get_state()
    attack = partial(pgd, eps=0.2, alpha=0.05, steps=4, restarts=3, generator=generator)
    found = distributed.correct(model, Batches(images(90), labels(90), batch_size=7), attack=attack)
    assert torch.equal(generator.get_state(), state)
    return found


def batchnorm():
    """Statistics of a network with BatchNorm must end the same in every process."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
    fit(model, Batches(images(48), labels(48), batch_size=12), epochs=1, lr=0.1)
    return model.state_dict()


def work(folder, kill=False):
    """Train and evaluate, and write folder/RANK.pt; with `kill` the last process dies, once."""
    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        rank = distributed.rank()
        seen = []
        kill_at = 20 if kill and rank == distributed.processes() - 1 else None
        model, history = train(seen, folder / "run.pt" if kill else None, kill_at)
        found = {"seen": seen, "history": vars(history), "weights": model.state_dict()}
        if not kill:
            found |= {"right": judged(), "batchnorm": batchnorm()}
        torch.save(found, folder / f"{rank}.pt")
