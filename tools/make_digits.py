"""Draw the advlib digits: 5,000 training and 5,000 test images of single digits.

Every image starts as one digit of one freely licensed font.  The digit is drawn large with
Pillow, bent, slanted, turned by a whole number of degrees, and averaged down to 28x28 pixels.

The fonts come from Debian packages (see FONTS) and are not shipped.  Run from the repository:

    python tools/make_digits.py [--out advlib/digits.npz] [--sheet sheet.png]

All random choices come from SEED, so a second run writes the same bytes.
"""

import argparse
import hashlib
import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SEED = 2024
DIFFICULTY = 0.57  # scales all distortions below except the rotation; chosen by clean accuracy only
PER_CLASS = 500  # images per digit, in each of the two splits
SIDE = 28  # width and height of an image, in pixels
FINE = 4  # the picture is first made FINE times finer, then averaged
FONT_SIZE = 120  # points; a digit is then about as tall as it is on the fine grid
MAX_ANGLE = 45  # degrees

# (Debian package, file below /usr/share/fonts, licence of the font)
FONTS = [
    ("fonts-averia-sans-gwf", "truetype/averia-gwf/AveriaSansGWF-Regular.ttf", "OFL 1.1"),
    ("fonts-bwht", "opentype/bwht/BecauseWeConnect-Regular.otf", "OFL 1.1"),
    ("fonts-bwht", "opentype/bwht/BecauseWeOrganize-Regular.otf", "OFL 1.1"),
    ("fonts-comfortaa", "truetype/comfortaa/Comfortaa-Bold.ttf", "OFL 1.1"),
    ("fonts-comic-neue", "opentype/comic-neue/ComicNeue-Bold.otf", "OFL 1.1"),
    ("fonts-comic-neue", "opentype/comic-neue/ComicNeue-Regular.otf", "OFL 1.1"),
    ("fonts-dejavu-core", "truetype/dejavu/DejaVuSans.ttf", "Bitstream Vera"),
    ("fonts-dejavu-core", "truetype/dejavu/DejaVuSerif.ttf", "Bitstream Vera"),
    ("fonts-karla", "truetype/karla/Karla-Regular.otf", "OFL 1.1"),
    ("fonts-kiloji", "truetype/kiloji/kiloji_b.ttf", "BSD 3-clause"),
    ("fonts-kiloji", "truetype/kiloji/kiloji_p.ttf", "BSD 3-clause"),
    ("fonts-klee", "truetype/klee/KleeOne-Regular.ttf", "OFL 1.1"),
    ("fonts-klee", "truetype/klee/KleeOne-SemiBold.ttf", "OFL 1.1"),
    ("fonts-lato", "truetype/lato/Lato-Regular.ttf", "OFL 1.1"),
    ("fonts-lobster", "opentype/lobster/lobster.otf", "OFL 1.1"),
    ("fonts-lobstertwo", "opentype/lobstertwo/LobsterTwo-Regular.otf", "OFL 1.1"),
    ("fonts-national-park", "opentype/national-park/NationalPark-Regular.otf", "OFL 1.1"),
    ("fonts-quicksand", "truetype/quicksand/Quicksand-Bold.ttf", "OFL 1.1"),
    ("fonts-sil-andika", "truetype/andika/Andika-Regular.ttf", "OFL 1.1"),
    ("fonts-tuffy", "truetype/tuffy/Tuffy.ttf", "public domain"),
]


@cache
def load_font(index):
    """Open font number `index`, or say which package to install."""
    package, name, _ = FONTS[index]
    path = Path("/usr/share/fonts") / name
    if not path.is_file():
        raise SystemExit(f"font file {path} is missing: run  apt-get install {package}")
    layout = ImageFont.Layout.BASIC
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=layout)


@cache
def draw_glyph(index, digit, thicken):
    """Draw a digit large, in the centre of a square; return it with its width and height."""
    font = load_font(index)
    left, top, right, bottom = font.getbbox(str(digit))
    side = 2 * FONT_SIZE
    picture = Image.new("L", (side, side))
    corner = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(picture).text(
        corner, str(digit), fill=255, font=font, stroke_width=thicken, anchor="la"
    )
    return np.asarray(picture, dtype=np.float32) / 255, right - left, bottom - top


def wobble(rng):
    """Return a smooth random displacement field, as a trembling hand would cause it."""
    fine = (SIDE * FINE, SIDE * FINE)
    coarse = rng.uniform(-1, 1, size=(2, 5, 5)).astype(np.float32)
    fields = [Image.fromarray(c).resize(fine, Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(f) for f in fields])


def sample(picture, x, y):
    """Read `picture` at the real-valued positions (x, y), by bilinear interpolation."""
    limit = picture.shape[0] - 2
    x, y = np.clip(x, 0, limit), np.clip(y, 0, limit)
    i, j = y.astype(int), x.astype(int)
    dy, dx = y - i, x - j
    top = picture[i, j] * (1 - dx) + picture[i, j + 1] * dx
    bottom = picture[i + 1, j] * (1 - dx) + picture[i + 1, j + 1] * dx
    return top * (1 - dy) + bottom * dy


def make_image(digit, rng):
    """Make one image of `digit`; return it with its angle (positive is counterclockwise)."""
    index = int(rng.integers(len(FONTS)))
    angle = int(rng.integers(-MAX_ANGLE, MAX_ANGLE + 1))
    thicken = int(rng.uniform(0, 1 + 2 * DIFFICULTY))
    height = rng.uniform(20 - 3 * DIFFICULTY, 20)  # in pixels of the final image
    aspect = math.exp(DIFFICULTY * rng.uniform(-0.1, 0.1))
    slant = DIFFICULTY * rng.uniform(-0.1, 0.1)
    shift = DIFFICULTY * rng.uniform(-0.7, 0.7, size=2)
    bend = DIFFICULTY * 0.6 * wobble(rng)
    level = 1 - DIFFICULTY * rng.uniform(0, 0.2)

    picture, glyph_width, glyph_height = draw_glyph(index, digit, thicken)
    scale = max(glyph_height, glyph_width / 0.9) / height

    # Go backwards, from each point of the fine grid to the point of the drawing it shows.
    ticks = (np.arange(SIDE * FINE) + 0.5) / FINE - SIDE / 2
    x, y = np.meshgrid(ticks - shift[0], ticks - shift[1])
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = cos * x - sin * y + bend[0], sin * x + cos * y + bend[1]
    x, y = (x + slant * y) / aspect, y * aspect
    centre = FONT_SIZE - 0.5
    fine = sample(picture, centre + scale * x, centre + scale * y)

    image = fine.reshape(SIDE, FINE, SIDE, FINE).mean(axis=(1, 3))
    return np.rint(255 * level * image).astype(np.uint8), angle


def make_split(split):
    """Make all images of one split (0 is train, 1 is test), in a shuffled order."""
    labels = np.repeat(np.arange(10, dtype=np.uint8), PER_CLASS)
    labels = np.random.default_rng([SEED, split]).permutation(labels)
    pairs = [
        make_image(digit, np.random.default_rng([SEED, split, number]))
        for number, digit in enumerate(labels)
    ]
    images = np.stack([image for image, _ in pairs])
    angles = np.array([angle for _, angle in pairs], dtype=np.int8)
    return images, labels, angles


def draw_sheet(images, labels, path, columns=25, zoom=2):
    """Write a contact sheet: each image enlarged, with its label below it."""
    cell, rows = SIDE * zoom, -(-len(images) // columns)
    sheet = Image.new("L", (columns * (cell + 4), rows * (cell + 16)), 90)
    pen = ImageDraw.Draw(sheet)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = number % columns * (cell + 4), number // columns * (cell + 16)
        sheet.paste(Image.fromarray(image).resize((cell, cell)), (x, y))
        pen.text((x + cell // 2, y + cell), str(label), fill=255)
    sheet.save(path)


def main():
    """Make both splits, write them, and print the checksum of the file."""
    parser = argparse.ArgumentParser(description="Draw the advlib digits.")
    parser.add_argument("--out", type=Path, default=Path("advlib/digits.npz"))
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of test images")
    options = parser.parse_args()

    arrays = {}
    for split, name in enumerate(["train", "test"]):
        images, labels, angles = make_split(split)
        arrays |= {f"{name}_images": images, f"{name}_labels": labels, f"{name}_angles": angles}
    np.savez_compressed(options.out, **arrays)
    if options.sheet:
        draw_sheet(arrays["test_images"][:400], arrays["test_labels"][:400], options.sheet)
    data = options.out.read_bytes()
    print(f"{hashlib.sha256(data).hexdigest()}  {options.out}  {len(data):,} bytes")


if __name__ == "__main__":
    main()
