"""Draw the advlib scenes: 56x56 canvases of two to four digits on a textured ground, with masks.

The digits are written by the hands of `tools/make_digits.py`, each with an angle, a size and a
place of its own. Where a digit has more than INK of full ink, the mask holds its class: 0 is the
ground, 1 to 10 are the digits 0 to 9. No two digits overlap. The ground is a sum of a few waves.
Run from the repository:

    python tools/make_scenes.py [--out advlib/scenes.npz] [--sheet sheet.png]

All random choices come from SEED, and from make_digits' for the hands, so that a second run with
the same fonts and libraries writes the same bytes.
"""

import argparse
import hashlib
import math
from pathlib import Path

import numpy as np
from make_digits import HANDS, MAX_ANGLE, make_hand, sample
from PIL import Image

SEED = 16
SIDE = 56  # width and height of a canvas, in pixels
TRAIN, TEST = 900, 320  # canvases
INK = 0.3  # what a pixel of a digit must have to belong to its mask
LEVELS = 15  # grey levels above black: few, so that the file is small
BRIGHTEST_GROUND = 0.5

# pixel positions (x, y), from the centre of the canvas
X, Y = np.meshgrid(*2 * [np.arange(SIDE) - (SIDE - 1) / 2])


def draw_ground(rng):
    """Draw three waves, each 12 to 48 pixels long, that add up to at most `BRIGHTEST_GROUND`."""
    waves = np.zeros((SIDE, SIDE))
    for _ in range(3):
        turn, length, phase = rng.uniform(0, math.pi), rng.uniform(12, 48), rng.uniform(0, 1)
        along = (math.cos(turn) * X + math.sin(turn) * Y) / length
        waves += np.sin(2 * math.pi * (along + phase))
    return BRIGHTEST_GROUND * (waves / 3 + 1) / 2


def draw_digit(digit, taken, rng):
    """Draw one digit on an empty canvas, inside it and off what is `taken`; None if none fits."""
    hand = make_hand(digit, int(rng.integers(HANDS)))
    turn, size = math.radians(rng.uniform(-MAX_ANGLE, MAX_ANGLE)), rng.uniform(0.9, 1.15)
    cos, sin = math.cos(turn) / size, math.sin(turn) / size
    for _ in range(30):
        across, down = rng.uniform(-22, 22, size=2)
        x, y = X - across, Y - down
        ink = sample(hand, cos * x + sin * y, cos * y - sin * x)
        if not (taken & (ink > 0)).any():
            return ink
    return None


def make_scene(rng):
    """Make one canvas and its mask, both uint8 (SIDE, SIDE)."""
    image, mask = draw_ground(rng), np.zeros((SIDE, SIDE), np.uint8)
    taken = np.pad(np.zeros((SIDE - 2, SIDE - 2), bool), 1, constant_values=True)
    for _ in range(rng.integers(2, 5)):
        digit = int(rng.integers(10))
        ink = draw_digit(digit, taken, rng)
        if ink is None:  # no room left
            return make_scene(rng)
        image = image + ink * (1 - image)
        mask[ink > INK] = digit + 1
        taken |= ink > 0
    return np.rint(LEVELS * image).astype(np.uint8) * (255 // LEVELS), mask


def make_split(split, canvases):
    """Make all canvases of one split (0 is train, 1 is test)."""
    rng = np.random.default_rng([SEED, split])
    images, masks = zip(*(make_scene(rng) for _ in range(canvases)), strict=True)
    return np.stack(images), np.stack(masks)


def draw_sheet(images, masks, path, columns=16):
    """Write a contact sheet: rows of canvases, and below each row its masks."""
    rows = []
    for i in range(0, len(images), columns):
        rows += [np.hstack(images[i : i + columns]), np.hstack(masks[i : i + columns] * 25)]
    Image.fromarray(np.vstack(rows)).save(path)


def main():
    """Make both splits, write them, and print the checksum of the file."""
    parser = argparse.ArgumentParser(description="Draw the advlib scenes.")
    parser.add_argument("--out", type=Path, default=Path("advlib/scenes.npz"))
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of test canvases")
    options = parser.parse_args()

    arrays = {}
    for split, (name, canvases) in enumerate([("train", TRAIN), ("test", TEST)]):
        images, masks = make_split(split, canvases)
        arrays |= {f"{name}_images": images, f"{name}_labels": masks}
    np.savez_compressed(options.out, **arrays)
    if options.sheet:
        draw_sheet(arrays["test_images"][:64], arrays["test_labels"][:64], options.sheet)
    data = options.out.read_bytes()
    print(f"{hashlib.sha256(data).hexdigest()}  {options.out}  {len(data):,} bytes")


if __name__ == "__main__":
    main()
