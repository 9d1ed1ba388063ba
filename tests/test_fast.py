"""Whatever makes attacks fast changes nothing about what calling the model gives."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import labels, seeded, untouched
from torch import nn

from advlib import Batches, bim, digit_net, fast, fit
from advlib.checks import is_out_of_memory


def net():
    return digit_net(generator=seeded())


def digits(n):
    return torch.rand(n, 1, 28, 28, generator=seeded(1)), labels(n)


def plainly(model, x, y):
    leaf = x.clone().requires_grad_()
    scores = model(leaf)
    [slopes] = torch.autograd.grad(F.cross_entropy(scores, y, reduction="sum"), leaf)
    return scores.detach(), slopes


def test_blocks_and_the_order_of_bytes_do_not_show_in_what_is_computed(monkeypatch):
    model, (x, y), sizes = net().double(), digits(50), []
    x, wanted = x.double(), plainly(model, x.double(), y)
    monkeypatch.setattr(fast, "_BLOCK_BYTES", {"cpu": 0})
    model.register_forward_hook(lambda model, given, out: sizes.append(len(out)))
    with untouched(model), torch.inference_mode():  # where gradients are forbidden
        found = fast.gradient(model, x, y)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert sizes == [16, 16, 16, 2]
    with pytest.raises(ValueError, match="below the model's 10 classes"), fast.off():
        fast.gradient(model, x, y + 8)
    assert sizes.pop() == 50
    torch.testing.assert_close(fast.logits(model, x), wanted[0], rtol=1e-9, atol=1e-12)
    assert sizes == [16, 16, 16, 2] * 2


def test_images_lie_channels_last_only_where_the_models_own_convolutions_do():
    x, last = torch.rand(2, 3, 8, 8), torch.channels_last
    both = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3))  # 1x1 lies either way
    assert fast.ordered(both, x) is x
    assert fast.ordered(both.to(memory_format=last), x).is_contiguous(memory_format=last)
    assert fast.ordered(both.append(nn.Conv2d(8, 8, 3)), x) is x


def test_hooks_and_a_replaced_forward_are_what_is_computed():
    model, (x, y) = net(), digits(4)
    inner = model.forward
    model.forward = lambda x: -inner((x - 0.5) / 0.25)
    torch.testing.assert_close(fast.gradient(model, x, y), plainly(model, x, y))
    del model.forward
    model.conv2.register_forward_hook(lambda layer, given, out: out * 0)
    assert (fast.gradient(model, x, y)[1] == 0).all()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_flushes_no_gradient_to_zero(precision):
    model, (x, _) = net(), digits(60)
    model.linear.weight.data *= 300  # so sure of itself that gradients are tiny
    y = fast.logits(model, x).argmax(1)
    _, wanted = fast.gradient(model, x, y)
    with torch.autocast("cpu", precision):
        fast.logits(model, x)
        found, loss = fast.gradient(model, x, y), model(x).sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())  # none was cast without a gradient
    wanted, kept = wanted.flatten(1).abs().amax(1), found[1].flatten(1).abs().amax(1)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert (wanted[wanted > 0] < 1e-8).any()
    assert (kept[wanted > 0] > 0).all()


class Narrow(nn.Module):
    def __init__(self, model, most, error):
        super().__init__()
        self.model, self.most, self.error, self.seen = model, most, error, []
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        self.seen.append(len(x))
        scores = self.model(self.norm(x))
        if len(x) > self.most:
            raise self.error
        return scores


ERRORS = [torch.cuda.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("XPU out of memory")]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("most", [1, 30])
def test_a_block_that_does_not_fit_is_halved_until_it_does(most, error):
    (x, y), attack = digits(40), partial(bim, eps=0.1, alpha=0.05, steps=3)
    narrow, wide = (Narrow(net(), n, error).double().eval() for n in (most, 40))
    with pytest.warns(UserWarning, match="out of memory: going on with"):
        found = attack(narrow, x.double(), y)
    torch.testing.assert_close(found, attack(wide, x.double(), y))
    narrow.seen.clear()
    attack(narrow, x.double(), y)
    assert max(narrow.seen) <= most  # what did not fit is not tried again


def test_what_can_not_be_helped_is_raised_at_once():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)  # the allocator's own words
    one, broken = (Narrow(net(), 0, error) for error in (ERRORS[0], RuntimeError("no such layer")))
    with pytest.raises(torch.cuda.OutOfMemoryError), pytest.warns(UserWarning, match="with 1 im"):
        fast.gradient(one, *digits(2))
    with pytest.raises(ValueError, match="no such layer"):
        fast.logits(broken, digits(40)[0])
    assert broken.seen == [40]


def test_a_batch_too_large_to_train_on_is_an_error_that_leaves_all_as_it_was():
    model, generator = Narrow(net(), 7, ERRORS[-1]), seeded()
    augment = partial(torch.bernoulli, generator=generator)
    with untouched(model), pytest.raises(MemoryError, match="of 8 images does not fit"):
        fit(model, Batches(*digits(20), batch_size=8), epochs=1, lr=0.1, augment=augment)
    assert torch.equal(generator.get_state(), seeded().get_state())


ISSUE_A = """  # torch used to end this with a segmentation fault
import torch, torch.nn as nn, torch.nn.functional as F
from advlib import fit
from advlib.book.parts import preact_resnet18
strided = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10))
x, y = torch.rand(64, 3, 32, 32), torch.arange(64) % 10
for wanted, epochs in ((strided, 15), (preact_resnet18(width=4), 2)):
    model = __import__("copy").deepcopy(wanted)
    fit(model, [(x, y)], epochs=epochs, lr=0.01)
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.01, momentum=0.9)
    for _ in range(epochs):
        optimizer.zero_grad(), F.cross_entropy(wanted(x), y).backward(), optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(wanted.parameters()))
"""


def test_a_strided_1x1_convolution_of_few_channels_trains():
    subprocess.run([sys.executable, "-c", ISSUE_A], check=True)
