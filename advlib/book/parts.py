"""Parts of the book's recipes: two deeper networks, N-FGSM, and shifts and mirrors of images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from advlib import fast
from advlib.attacks.common import budget, check_attack_input
from advlib.checks import Bounds, check_count, check_number
from advlib.models import MOST, Normalize, glorot
from advlib.runtime import evaluation_mode, source_of, uniform


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


def n_fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: float | Tensor | None = None,
    noise: float = 2.0,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise of size `noise` times eps, then one signed step of `alpha` (default eps): N-FGSM.

    It is made for training, not for testing: nothing is clipped to the eps-ball, so that the
    change may reach `noise * eps + alpha`. With `bounds` pixels stay in their range.

    Reference: de Jorge et al., NeurIPS 2022, arXiv:2202.01181.
    """
    x, y = check_attack_input(model, x, y, bounds, generator=generator)
    noise = check_number("noise", noise)
    eps = budget("eps", eps, x)
    alpha = eps if alpha is None else budget("alpha", alpha, x)

    def inside(image: Tensor) -> Tensor:
        return image if bounds is None else image.clamp(*bounds)

    noisy = inside(x + noise * eps * uniform(x, generator))
    with evaluation_mode(model):
        slopes = fast.gradient(model, noisy, y)[1]
    return inside(noisy + alpha * slopes.sign().to(x.dtype))
