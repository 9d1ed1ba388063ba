"""Draw the advlib letters: 520 training and 520 test images of capitals.

No network of the book was trained on them.

They are drawn as the digits are: by the same steps, from the same fonts, with the same seed. Only
the glyphs differ. Run from the repository:

    python tools/make_letters.py [--out advlib/letters.npz] [--sheet sheet.png]

Left out are the letters that a person or a nearest neighbour may take for a digit, turned by up to
45 degrees: A (4), B (8), D (0), G (6), I (1), J (1, 3), L (1, 6), O (0), P (9), Q (0), S (5),
T (1, 7) and Z (2, 7).
"""

from make_digits import CLASSES, make_file

LETTERS = "CEFHKMNRUVWXY"
PER_CLASS = 40  # images per letter, in each of the two splits

if __name__ == "__main__":
    make_file("letters", [2, 3], [CLASSES.index(letter) for letter in LETTERS], PER_CLASS)
