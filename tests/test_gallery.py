"""The gallery: what it draws and says, from the shipped records; the picture of the mask lab."""

import build_site as gallery
import headless
import numpy as np
import pytest
from PIL import Image

from simmim_lite.errors import UserError
from simmim_lite.evidence import tables


def test_captions_are_counted_from_the_rows() -> None:
    frame = tables.runs()
    ours = frame[frame.source == "shipped"]
    page = gallery.gallery_page(frame)
    assert "published runs: 63 runs" in page
    assert f"{len(ours)} runs of {ours.seed.nunique()} seeds on scenes" in page


def test_every_picture_is_drawn(tmp_path, monkeypatch) -> None:
    drawn = []

    def png(figure, path):
        drawn.append((path.name, len(figure.data)))
        return path

    monkeypatch.setattr(gallery, "_png", png)
    files = gallery.make_gallery(tmp_path)
    assert [file.name for file in files] == [*(f"{s}.png" for s in gallery.QUESTIONS), "readme.png", "gallery.md"]
    assert all(traces > 4 for _, traces in drawn)


def test_the_labs_picture(tmp_path, browser, monkeypatch) -> None:
    picture = Image.open(headless.picture(tmp_path / "lab.png", 900, browser))
    assert picture.width > 1200 and len(np.unique(np.asarray(picture.convert("L")))) > 50
    monkeypatch.setattr(headless.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt-get install chromium"), headless.chromium():
        pass
