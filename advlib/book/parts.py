"""Parts of the book's recipes: two deeper networks, GradAlign, and what is done to images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from advlib.attacks import bim
from advlib.attacks.common import check_attack_input, scaled
from advlib.checks import (
    Attack,
    called,
    check_attack,
    check_attacked,
    check_classes,
    check_count,
    check_number,
    pulled_back,
    refuse_nan,
)
from advlib.models import MOST, Normalize, glorot
from advlib.runtime import draw, source_of, uniform


class _Block(nn.Module):
    """Two convolutions beside a shortcut, each after a normalisation and a ReLU."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = skip_init(nn.Conv2d, before, after, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = skip_init(nn.Conv2d, after, after, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or before != after:
            self.shortcut = skip_init(nn.Conv2d, before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.norm2(self.conv1(out)))) + beside


def preact_resnet18(
    *,
    classes: int = 10,
    mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
    std: Sequence[float] = (0.2471, 0.2435, 0.2616),
    width: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the pre-activation ResNet-18 of the CIFAR-10 literature, 11 million weights.

    Maps images (n, c, h, w) in [0, 1], usually 3 x 32 x 32, to logits (n, classes); it has as many
    input channels as `mean` has values, which normalise them. The defaults are CIFAR-10's. `width`
    is the number of channels of the first quarter. Weights are drawn as He et al. do, from
    `generator` (by default advlib's own).

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range.

    References: He et al., ECCV 2016, arXiv:1603.05027, and ICCV 2015, arXiv:1502.01852.
    """
    check_count("classes", classes, minimum=2, maximum=MOST)
    check_count("width", width, maximum=MOST)
    source = source_of(generator)
    normalize = Normalize(mean, std)
    layers: list[nn.Module] = [skip_init(nn.Conv2d, len(mean), width, 3, padding=1, bias=False)]
    before = width
    for after, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [_Block(before, after, stride), _Block(after, after, 1)]
        before = after
    layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(normalize, *layers, skip_init(nn.Linear, before, classes))
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, generator=source)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    # torch's 1x1 convolution with a stride crashes on a few channels that lie last
    return net.to(memory_format=torch.channels_last) if width > 6 else net


def deep_net(*, generator: torch.Generator) -> nn.Sequential:
    """Build a deeper network for the digits: four convolutions and two linear layers.

    Maps images (n, 1, 28, 28) in [0, 1] to logits (n, 10). Weights are drawn Glorot-uniform from
    `generator`, biases are zero.
    """
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers += [skip_init(nn.Conv2d, before, after, 3, padding=1), nn.ReLU()]
        # a maximum of ReLUs is the ReLU of the maximum, which costs a quarter
        layers += [skip_init(nn.Conv2d, after, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Flatten(), skip_init(nn.Linear, 32 * 7 * 7, 128), nn.ReLU()]
    return glorot(nn.Sequential(*layers, skip_init(nn.Linear, 128, 10)), generator)


def shifted(x: Tensor, *, generator: torch.Generator, most: int = 4) -> Tensor:
    """Move images (n, c, h, w) by up to `most` pixels each way, and mirror every other one.

    Each image is moved at random, and what it leaves behind is black. It is how CIFAR-10 is usually
    augmented; digits should not be mirrored.
    """
    n, _, height, width = x.shape
    random = torch.rand(n, 3, generator=generator, device=generator.device).to(x.device)
    down, across, side = random.unbind(1)

    def places(length: int, move: Tensor) -> Tensor:
        first = (move * (2 * most + 1)).long().clamp(max=2 * most)
        return first.unsqueeze(1) + torch.arange(length, device=x.device)

    columns = places(width, across)
    columns = torch.where(side.unsqueeze(1) < 0.5, columns.flip(1), columns)
    padded = F.pad(x, [most] * 4).permute(0, 2, 3, 1)
    image = torch.arange(n, device=x.device).view(-1, 1, 1)
    moved = padded[image, places(height, down).unsqueeze(2), columns.unsqueeze(1)]
    return moved.permute(0, 3, 1, 2)


def with_noise(
    model: nn.Module, x: Tensor, y: Tensor, *, sigma: float, generator: torch.Generator
) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma` to images (n, ...), and clip nothing.

    It stands where an attack would, in training for randomized smoothing.
    Reference: Cohen et al., ICML 2019, arXiv:1902.02918.
    """
    return x + sigma * draw(torch.randn, x, generator)


def relabelled(
    net: nn.Module, x: Tensor, y: Tensor, *, eps: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Turn images (n, c, h, w) into training images for random labels, by an attack on `net`.

    Each image gets a label drawn at random, whatever it shows, and twenty steps of targeted BIM
    towards it. What it shows then says nothing about its label; what was added does.
    Reference: Ilyas et al., NeurIPS 2019, arXiv:1905.02175.
    """
    labels = torch.randint(0, 10, y.shape, generator=generator, device=generator.device).to(y)
    changed = bim(net, x, labels, eps=eps, alpha=eps / 8, steps=20, targeted=True)
    return changed, labels


def grad_align_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    progress: float = 0.0,
    *,
    attack: Attack,
    eps: float,
    weight: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy of attacked images, plus `weight` times how much the gradient turns nearby.

    That is one minus the cosine between the loss gradient at `x` and at a random point of its
    eps-ball. Where the two agree, one step of FGSM does what many would, and FGSM training does not
    collapse. `attack` is usually a partial of `fgsm`.
    Reference: Andriushchenko and Flammarion, NeurIPS 2020, arXiv:2007.02617.
    """
    check_attack("attack", attack)
    check_number("progress", progress, maximum=1)
    for name, value in (("eps", eps), ("weight", weight)):
        check_number(name, value)
    x, y = check_attack_input(model, x, y, generator=generator)
    # the gradient at x is the reference: only the one nearby is asked to turn
    here = _slope(model, x, y)
    there = _slope(model, x + eps * uniform(x, generator), y, create_graph=True)
    # tinier ones overflow when what scales them is differentiated: such an image is left out
    steep = there.detach().flatten(1).abs().amax(1) > torch.finfo(there.dtype).tiny ** 0.75
    # scaled, because cosine_similarity takes tiny vectors for zero
    here, there = scaled(here[steep]).flatten(1), scaled(there[steep]).flatten(1)
    turned = 1 - F.cosine_similarity(here, there, dim=1)
    x_adv = check_attacked("attack", attack(model, x.clone(), y), x)
    return F.cross_entropy(model(x_adv), y) + weight * turned.sum() / len(x)


def _slope(model: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    x = x.detach().requires_grad_()
    scores = called(model, x)
    check_classes(scores, y)
    refuse_nan(scores)
    loss = F.cross_entropy(scores, y, reduction="sum")
    return pulled_back(loss, x, create_graph=create_graph)
