"""What several processes of test_damage.py do at once; apart, as it has to be imported quickly."""

import os
import warnings
from dataclasses import replace

import torch

from advlib import recipes


def build(barrier, recipe, seeds, cache, out):
    """Train or load the same networks as the others, and put down what came out."""
    torch.set_num_threads(1)
    os.environ["ADVLIB_CACHE"] = str(cache)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in seeds:
            barrier.wait()
            net, history = recipes.train(replace(recipe, seed=seed), device="cpu")
            found.append((net.state_dict(), history.loss))
    torch.save(found, out)
