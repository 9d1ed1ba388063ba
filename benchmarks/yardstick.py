"""The unit of this project's costs: `python benchmarks/yardstick.py` prints its seconds here.

Ten BIM steps on 5,000 random images in batches of 100, by the source's network, in plain PyTorch,
with as many threads as torch takes. Frozen: it uses nothing of advlib's, and must not get faster.
"""

import time

import torch
from torch import nn
from torch.nn import functional


def yardstick() -> float:
    """Run it once, and return the seconds it took."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 10),
    )
    images, labels = torch.rand(5000, 1, 28, 28), torch.randint(10, (5000,))
    began = time.perf_counter()
    for x, y in zip(images.split(100), labels.split(100), strict=True):
        x_adv = x
        for _ in range(10):
            x_adv = x_adv.detach().requires_grad_()
            loss = functional.cross_entropy(net(x_adv), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv + 0.01 * gradient.sign()
            x_adv = (x + (x_adv - x).clamp(-0.1, 0.1)).clamp(0, 1)
    return time.perf_counter() - began


if __name__ == "__main__":
    print(f"{yardstick():.1f}")
