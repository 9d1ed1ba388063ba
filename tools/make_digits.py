"""Draw the advlib digits: 5,000 training and 5,000 test images of single digits.

Each class is written by HANDS hands. A hand is a digit of one freely licensed font, with a size,
a width, a slant, a shade and a place of its own, sampled at 28x28 pixels. An image is one of the
hands of its class, turned by a whole number of degrees, positive clockwise. Both splits share the
hands. Thin strokes break and fade on the way, as they do in the images that these are modelled
on: the book's data card names the figures.

The fonts come from Debian packages (see FONTS) and are not shipped.  Run from the repository:

    python tools/make_digits.py [--out advlib/digits.npz] [--sheet sheet.png]

All random choices come from SEED, so a second run writes the same bytes.
"""

import argparse
import hashlib
import math
import string
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLASSES = string.digits + string.ascii_uppercase  # as in EMNIST: 10 is A
SEED = 13
HANDS = 22  # of each class
PER_CLASS = 500  # images per digit, in each of the two splits
SIDE = 28  # width and height of an image, in pixels
MAX_ANGLE = 45  # degrees
LIGHT, BOLD = 0.42, 0.15  # shares of the hands with light and with bold fonts

# by weight: (Debian package, file below /usr/share/fonts, licence of the font)
FONTS = {
    "light": [
        ("fonts-averia-sans-gwf", "truetype/averia-gwf/AveriaSansGWF-Light.ttf", "OFL 1.1"),
        ("fonts-comfortaa", "truetype/comfortaa/Comfortaa-Light.ttf", "OFL 1.1"),
        ("fonts-comic-neue", "opentype/comic-neue/ComicNeue-Light.otf", "OFL 1.1"),
        ("fonts-karla", "truetype/karla/Karla-Light.otf", "OFL 1.1"),
        ("fonts-lato", "truetype/lato/Lato-Light.ttf", "OFL 1.1"),
        ("fonts-quicksand", "truetype/quicksand/Quicksand-Light.ttf", "OFL 1.1"),
    ],
    "regular": [
        ("fonts-averia-sans-gwf", "truetype/averia-gwf/AveriaSansGWF-Regular.ttf", "OFL 1.1"),
        ("fonts-bwht", "opentype/bwht/BecauseWeConnect-Regular.otf", "OFL 1.1"),
        ("fonts-bwht", "opentype/bwht/BecauseWeOrganize-Regular.otf", "OFL 1.1"),
        ("fonts-comic-neue", "opentype/comic-neue/ComicNeue-Regular.otf", "OFL 1.1"),
        ("fonts-dejavu-core", "truetype/dejavu/DejaVuSans.ttf", "Bitstream Vera"),
        ("fonts-karla", "truetype/karla/Karla-Regular.otf", "OFL 1.1"),
        ("fonts-kiloji", "truetype/kiloji/kiloji_p.ttf", "BSD 3-clause"),
        ("fonts-klee", "truetype/klee/KleeOne-Regular.ttf", "OFL 1.1"),
        ("fonts-lato", "truetype/lato/Lato-Regular.ttf", "OFL 1.1"),
        ("fonts-national-park", "opentype/national-park/NationalPark-Regular.otf", "OFL 1.1"),
        ("fonts-sil-andika", "truetype/andika/Andika-Regular.ttf", "OFL 1.1"),
        ("fonts-tuffy", "truetype/tuffy/Tuffy.ttf", "public domain"),
    ],
    "bold": [
        ("fonts-comfortaa", "truetype/comfortaa/Comfortaa-Bold.ttf", "OFL 1.1"),
        ("fonts-comic-neue", "opentype/comic-neue/ComicNeue-Bold.otf", "OFL 1.1"),
        ("fonts-dejavu-core", "truetype/dejavu/DejaVuSerif.ttf", "Bitstream Vera"),
        ("fonts-kiloji", "truetype/kiloji/kiloji_b.ttf", "BSD 3-clause"),
        ("fonts-klee", "truetype/klee/KleeOne-SemiBold.ttf", "OFL 1.1"),
        ("fonts-lobster", "opentype/lobster/lobster.otf", "OFL 1.1"),
        ("fonts-lobstertwo", "opentype/lobstertwo/LobsterTwo-Regular.otf", "OFL 1.1"),
        ("fonts-quicksand", "truetype/quicksand/Quicksand-Bold.ttf", "OFL 1.1"),
    ],
}

# pixel positions (x, y) of a SIDE x SIDE image, from its centre
X, Y = np.meshgrid(*2 * [np.arange(SIDE) - (SIDE - 1) / 2])


@cache
def draw_glyph(font, text, size):
    """Draw a text in a font of `size` pixels, with a black margin of one pixel."""
    package, name, _ = font
    path = Path("/usr/share/fonts") / name
    if not path.is_file():
        raise SystemExit(f"font file {path} is missing: run  apt-get install {package}")
    opened = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = opened.getbbox(text)
    picture = Image.new("L", (right - left + 2, bottom - top + 2))
    corner = (1 - left, 1 - top)
    ImageDraw.Draw(picture).text(corner, text, fill=255, font=opened, anchor="la")
    return np.asarray(picture, dtype=np.float32) / 255


def sample(picture, x, y):
    """Read `picture` at (x, y) from its centre, by bilinear interpolation; black outside."""
    height, width = picture.shape
    framed = np.pad(picture, 1)
    x = np.clip(x + (width + 1) / 2, 0, width + 0.999)
    y = np.clip(y + (height + 1) / 2, 0, height + 0.999)
    i, j = y.astype(int), x.astype(int)
    dy, dx = y - i, x - j
    top = framed[i, j] * (1 - dx) + framed[i, j + 1] * dx
    bottom = framed[i + 1, j] * (1 - dx) + framed[i + 1, j + 1] * dx
    return top * (1 - dy) + bottom * dy


@cache
def make_hand(label, number):
    """Make hand `number` of a class: its upright glyph, as a SIDE x SIDE image in [0, 1]."""
    rng = np.random.default_rng([SEED, label, number])
    weight = rng.choice(["light", "bold", "regular"], p=[LIGHT, BOLD, 1 - LIGHT - BOLD])
    font = FONTS[weight][rng.integers(len(FONTS[weight]))]
    height = np.clip(rng.normal(17.9, 2.6), 13.2, 22.8)  # pixels
    # width over height, slant included
    wide = rng.uniform(0.49, 0.85) if label == 1 else np.clip(rng.normal(0.95, 0.21), 0.66, 1.28)
    slant = rng.uniform(-0.12, 0.36)  # pixels to the left for each pixel down
    shade = rng.uniform(0.87, 1) if rng.random() < 0.37 else 1.0
    across, down = rng.normal([-0.27, 0.64], 1.24)  # pixels
    # The drawing is so many times finer than the image, and only looked at where a pixel's centre
    # falls: that is what breaks thin strokes.
    fineness = rng.uniform(4, 8) if weight == "light" else rng.uniform(1.1, 2.1)

    glyph = draw_glyph(font, CLASSES[label], round(1.35 * fineness * height))
    width = max(wide * height - 0.6 * abs(slant) * height, 0.22 * height)
    x, y = X - across, Y - down
    x = (x + slant * y) * (glyph.shape[1] - 2) / width
    return shade * sample(glyph, x, y * (glyph.shape[0] - 2) / height)


def make_image(label, rng):
    """Make one image of a class; return it with its angle in degrees, positive clockwise."""
    hand = make_hand(label, int(rng.integers(HANDS)))
    angle = int(rng.integers(-MAX_ANGLE, MAX_ANGLE + 1))
    across, down = rng.uniform(-0.45, 0.45, size=2)  # pixels
    # Go backwards, from each pixel to the point of the hand that it shows.
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = X - across, Y - down
    image = sample(hand, cos * x + sin * y, cos * y - sin * x)
    return np.rint(255 * image).astype(np.uint8), angle


def make_split(split, classes, per_class):
    """Make all images of one split, which is but a seed, in a shuffled order."""
    labels = np.repeat(np.array(classes, dtype=np.uint8), per_class)
    rng = np.random.default_rng([SEED, split])
    labels = rng.permutation(labels)
    pairs = [make_image(label, rng) for label in labels]
    images = np.stack([image for image, _ in pairs])
    angles = np.array([angle for _, angle in pairs], dtype=np.int8)
    return images, labels, angles


def draw_sheet(images, names, path, columns=25, zoom=2):
    """Write a contact sheet: each image enlarged, with its name below it."""
    cell, rows = SIDE * zoom, -(-len(images) // columns)
    sheet = Image.new("L", (columns * (cell + 4), rows * (cell + 16)), 90)
    pen = ImageDraw.Draw(sheet)
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        x, y = number % columns * (cell + 4), number // columns * (cell + 16)
        sheet.paste(Image.fromarray(image).resize((cell, cell)), (x, y))
        pen.text((x + cell // 2, y + cell), name, fill=255)
    sheet.save(path)


def make_file(what, splits, classes, per_class):
    """Make a train and a test split, write them, and print the checksum of the file."""
    parser = argparse.ArgumentParser(description=f"Draw the advlib {what}.")
    parser.add_argument("--out", type=Path, default=Path(f"advlib/{what}.npz"))
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of test images")
    options = parser.parse_args()

    arrays = {}
    for split, name in zip(splits, ["train", "test"], strict=True):
        images, labels, angles = make_split(split, classes, per_class)
        if options.sheet and name == "test":
            draw_sheet(images[:400], [CLASSES[label] for label in labels[:400]], options.sheet)
        numbers = np.searchsorted(classes, labels).astype(np.uint8)
        arrays |= {f"{name}_images": images, f"{name}_labels": numbers, f"{name}_angles": angles}
    np.savez_compressed(options.out, **arrays)
    data = options.out.read_bytes()
    print(f"{hashlib.sha256(data).hexdigest()}  {options.out}  {len(data):,} bytes")


if __name__ == "__main__":
    make_file("digits", [0, 1], range(10), PER_CLASS)
