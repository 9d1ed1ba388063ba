"""What you have already: a DataLoader, AdamW, OneCycleLR, tqdm and TensorBoard.

python examples/dataloader.py [EPOCHS IMAGES]
"""

import sys
from contextlib import suppress
from functools import partial

import torch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import advlib

epochs, images = map(int, sys.argv[1:] or (3, 5000))
train, test = advlib.load_data()
training_set = TensorDataset(train.x[:images].cpu(), train.y[:images].cpu())
loader = DataLoader(training_set, batch_size=100, shuffle=True)  # workers: as anywhere in torch
model = advlib.digit_net().to(test.x.device)
steps, watching = epochs * len(loader), []

with suppress(ImportError):  # pip install tqdm
    bar = __import__("tqdm").tqdm(total=steps)
    watching.append(lambda iteration, loss: bar.update())
with suppress(ImportError):  # pip install tensorboard; see it with: tensorboard --logdir runs
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter()
    watching.append(lambda iteration, loss: writer.add_scalar("loss", loss, iteration))
history = advlib.fit(
    model,
    loader,
    epochs=epochs,
    optimizer=partial(torch.optim.AdamW, lr=1e-3),
    schedule=partial(OneCycleLR, max_lr=1e-3, total_steps=steps),
    device=test.x.device,
    monitor=watching,
)
print(f"loss: {history.loss[0]:.4f} to {history.loss[-1]:.4f}")
