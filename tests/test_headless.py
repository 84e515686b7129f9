"""What is measured of the mask lab in a browser, and its picture."""

import re

import headless
import numpy as np
import pytest
from PIL import Image

from simmim_lite.errors import UserError


def test_the_bench_says_what_it_measured(monkeypatch, browser) -> None:
    monkeypatch.setattr(headless, "_MOVES", 2)
    head, _, *lines = headless.bench(browser)
    assert "2 moves" in head and len(lines) == 4
    for line in lines:
        median, slowest = map(float, re.findall(r"([\d.]+) ms", line))
        assert 0 <= median <= slowest


def test_its_picture(tmp_path, browser, monkeypatch) -> None:
    picture = Image.open(headless.picture(tmp_path / "lab.png", 900, browser))
    assert picture.width > 1200 and len(np.unique(np.asarray(picture.convert("L")))) > 50
    monkeypatch.setattr(headless.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install chromium"), headless.chromium():
        pass
