"""Bad options of the commands, and the parts of recipes."""

import sys

import pytest
import torch
from conftest import global_rng
from torch import nn

from advlib.book import commands, recipes, trained
from advlib.book.parts import deep_net, shifted

BAD = "report --images -5, report --images 0, report --images 5001, sandwich --images word"
BAD += ", results --seeds -1, results --seeds 0 1.5, networks --device abacus, report --out ."
BAD += ", smoothing --images 0, minimum --images 0"
BAD += ", results --out no/such/file.json, networks --only nobody, train"


@pytest.mark.parametrize("options", [*BAD.split(", "), ""])
def test_a_bad_option_is_one_line_before_any_work(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["advlib", *options.split()])
    for owner, name in ((commands, "load_data"), (recipes, "results"), (trained, "make")):
        monkeypatch.setattr(owner, name, None)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert (options.split() or ["COMMAND"])[-1] in said.err


def test_deep_net_computes_what_it_does_with_relu_before_the_pool():
    net = deep_net(generator=torch.Generator().manual_seed(0))
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    convolutions = [(16, 1, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3)]
    assert shapes == [*convolutions, (128, 32 * 7 * 7), (10, 128)]
    a, b, c, d, e, f = (layer for layer in net if hasattr(layer, "weight"))
    relu, pool, flat = nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    x, usual = torch.rand(3, 1, 28, 28), (a, relu, b, relu, pool, c, relu, d, relu, pool, flat)
    assert torch.equal(net(x), nn.Sequential(*usual, e, relu, f)(x))


def test_shifted_moves_each_image_within_its_range_and_mirrors_some():
    x = torch.ones(400, 1, 7, 9)
    x[:, :, 3, 4], x[:, :, 3, 5] = 3, 2  # a mark in the middle, and another to its right
    before, draw = global_rng(), lambda: torch.Generator().manual_seed(0)
    found = shifted(x, most=2, generator=draw())
    assert global_rng() == before
    assert torch.equal(found, shifted(x, most=2, generator=draw()))
    places, mirrored = set(), 0
    for image in found[:, 0]:
        (row, column), (other_row, other) = (image == 3).nonzero()[0], (image == 2).nonzero()[0]
        assert (other_row, abs(other - column)) == (row, 1)
        down, across = int(row) - 3, int(column) - 4
        assert (image > 0).sum() == (7 - abs(down)) * (9 - abs(across))  # black is left behind
        places.add((down, across))
        mirrored += int(other < column)
    assert places == {(down, across) for down in range(-2, 3) for across in range(-2, 3)}
    assert 160 < mirrored < 240
