"""Another library's attack, an object called as atk(x, y), in accuracy and in fit.

python examples/other_library.py [IMAGES]
"""

import sys

import torch
import torch.nn.functional as F

import advlib

try:
    from torchattacks import FGSM
except ImportError:  # a class that is called in the same way

    class FGSM:
        def __init__(self, model, eps):
            self.model, self.eps = model, eps

        def __call__(self, x, y):
            x_adv = x.clone().requires_grad_()
            loss = F.cross_entropy(self.model(x_adv), y)
            [slope] = torch.autograd.grad(loss, x_adv)
            return (x + self.eps * slope.sign()).clamp(0, 1)


images = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
train, test = advlib.load_data()
batches = advlib.Batches(train.x[:images], train.y[:images], shuffle=True)
model = advlib.digit_net().to(test.x.device)
atk = FGSM(model, eps=0.1)
attack = lambda model, x, y: atk(x, y)  # noqa: E731 - the one line that wraps it

advlib.fit(model, batches, epochs=3, lr=0.01, attack=attack)
held_out = advlib.Batches(test.x[:images], test.y[:images])
for name, chosen in (("clean", None), ("FGSM", attack)):
    print(f"{name}: {advlib.accuracy(model, held_out, attack=chosen):.4f}")
