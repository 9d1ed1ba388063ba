"""`python -m advlib ...`, with CIFAR-10 in its real format but 18 images: cifar_worker.py OPTIONS.

Every process writes files of its own, of the same content, as torchvision reads them.
"""

import sys
import tempfile
from pathlib import Path

import pytest
from datasets import write

from advlib.__main__ import main

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        write("cifar10", Path(folder), patch)
        sys.argv = ["advlib", *sys.argv[1:], "--data", folder]
        main()
