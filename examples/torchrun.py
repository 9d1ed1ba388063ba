"""Train and evaluate in several processes, on as many GPUs as there are, or on CPUs.

torchrun --nproc-per-node=2 examples/torchrun.py      (python examples/torchrun.py does it alone)

Killed, and started again with the same checkpoint, it goes on after the last finished epoch.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import advlib
from advlib.monitor import progress

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--images", type=int, default=5000)
parser.add_argument("--eps", type=float, default=0.1)
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--save", type=Path, help="a folder for each process's network and answers")
options = parser.parse_args()

# Who am I? torchrun says so in the environment.
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
if "RANK" in os.environ:
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

# Every process trains on its own part of every epoch; gradients are averaged. With a batch of
# 100 / world each, a step is one on 100 images.
train, test = advlib.load_data(device="cpu")
training_set = TensorDataset(train.x[: options.images], train.y[: options.images])
sampler = DistributedSampler(training_set, world, rank)
loader = DataLoader(training_set, batch_size=100 // world, sampler=sampler)
model = advlib.digit_net(generator=torch.Generator().manual_seed(0)).to(device)
eps = options.eps
attack = partial(advlib.fgsm, eps=eps, alpha=1.25 * eps, random_start=True)
advlib.fit(
    DistributedDataParallel(model) if dist.is_initialized() else model,
    loader,
    epochs=options.epochs,
    lr=0.01,
    attack=partial(attack, generator=torch.Generator().manual_seed(rank)),  # noise of its own
    device=device,
    monitor=progress() if rank == 0 else None,
    checkpoint=options.checkpoint,
)

# Every process answers for every world-th batch. The random starts of a batch depend on its number
# only, so the answers are those that one process gives.
x, y = test.x[: options.images], test.y[: options.images]
right = torch.zeros(len(x), dtype=torch.int32, device=device)
for i, rows in enumerate(torch.arange(len(x)).split(100)):
    if i % world == rank:
        pgd = partial(advlib.pgd, eps=eps, alpha=eps / 10, steps=20)
        pgd = partial(pgd, generator=torch.Generator().manual_seed(i))
        right[rows] = advlib.correct(model, [(x[rows], y[rows])], attack=pgd, device=device).int()
if dist.is_initialized():
    dist.all_reduce(right)
if rank == 0:
    print(f"accuracy under PGD: {right.float().mean():.4f}")
if options.save is not None:
    torch.save((model.state_dict(), right.bool().cpu()), options.save / f"{rank}.pt")
if dist.is_initialized():
    dist.destroy_process_group()
