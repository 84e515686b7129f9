"""What is measured of the mask lab in a browser, and its picture."""

import re

import headless
import numpy as np
import pytest
from PIL import Image

from simmim_lite.errors import UserError


def test_the_bench_says_what_it_measured(monkeypatch, browser) -> None:
    monkeypatch.setattr(headless, "_MOVES", 3)
    lines = list(headless.bench(browser))
    assert "3 moves" in lines[0]
    found = {line[:44].strip(): re.findall(r"([\d.]+) ms", line) for line in lines[2:]}
    assert [name.split(",")[0] for name in found] == [
        "slider to picture",
        "release to reconstruction",
        "slider to picture",
        "prediction in a kernel (its way not counted)",
    ]
    assert all(0 <= float(median) <= float(slowest) for median, slowest in found.values())


def test_its_picture(tmp_path, browser) -> None:
    picture = Image.open(headless.picture(tmp_path / "lab.png", 900, browser))
    assert picture.width > 1200 and len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_without_a_browser_one_line_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(headless.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install chromium"), headless.chromium():
        pass
