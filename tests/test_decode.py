"""One reader of pictures: every task sees the same pixels of a file, and the same files are refused by all of them."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from picture_folders import fill, one_line, picture, root  # noqa: F401 (a data root of its own)
from PIL import Image, ImageOps, PngImagePlugin

from simmim_lite.data import decode
from simmim_lite.data.packs import pack
from simmim_lite.data.sources import listing, open_data, open_pictures

SIDE = 24
RGB = picture(1, (SIDE, SIDE))
PIXELS = np.asarray(RGB)
GREY = np.asarray(RGB.convert("L"))
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[4:9, 3:17] = True
WITH_HOLE = np.where(HOLE[..., None], 255, PIXELS)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def of_array(values: np.ndarray, kind: str = "PNG", **options) -> bytes:
    return saved(Image.fromarray(values), kind, **options)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2)


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def with_app1(content: bytes) -> bytes:
    """A JPEG with an EXIF segment of one's own."""
    jpeg = saved(RGB, "JPEG", quality=95)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def png_with(chunk: bytes, content: bytes) -> bytes:
    """A PNG with a chunk more, behind its header."""
    png = saved(RGB, "PNG")
    part = struct.pack(">I", len(content)) + chunk + content + struct.pack(">I", zlib.crc32(chunk + content))
    return png[:33] + part + png[33:]


def text_chunk() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 10), zip=True)
    return saved(RGB, "PNG", pnginfo=info)


def see_through(palette: Image.Image) -> np.ndarray:
    return np.where((np.asarray(palette) == 0)[..., None], 255, np.asarray(palette.convert("RGB")))


ALPHA = np.dstack([PIXELS, np.where(HOLE, 0, 255).astype(np.uint8)])
DEEP = GREY.astype(np.uint16) * 257
PALETTE = RGB.quantize(16)
ONE_BIT = RGB.convert("1")
CMYK = RGB.convert("CMYK")
LAB = Image.merge("LAB", RGB.split())
JPEG = np.asarray(Image.open(io.BytesIO(saved(RGB, "JPEG", quality=95))))
TIFF_6 = {274: 6}
#: Name -> (bytes of a file, uint8 (24, 24, 3) that every task is to see).
GOOD = {
    "plain.png": (saved(RGB, "PNG"), PIXELS),
    "named_wrongly.jpg": (saved(RGB, "PNG"), PIXELS),
    "bits.png": (saved(ONE_BIT, "PNG"), np.asarray(ONE_BIT.convert("RGB"))),
    "grey.png": (of_array(GREY), grey(GREY)),
    "grey_hole.png": (of_array(np.where(HOLE, 7, GREY | 8), transparency=7), grey(np.where(HOLE, 255, GREY | 8))),
    "la.png": (of_array(np.dstack([GREY, ALPHA[..., 3]])), grey(np.where(HOLE, 255, GREY))),
    "rgba.png": (of_array(ALPHA), WITH_HOLE),
    "rgba.tif": (of_array(ALPHA, "TIFF"), WITH_HOLE),
    "rgba.webp": (of_array(ALPHA, "WEBP", lossless=True, exact=True), WITH_HOLE),
    "rgb_hole.png": (of_array(np.where(HOLE[..., None], 3, PIXELS | 4), transparency=(3, 3, 3)),
                     np.where(HOLE[..., None], 255, PIXELS | 4)),
    "deep.png": (of_array(DEEP), grey(GREY)),
    "deep_hole.png": (of_array(np.where(HOLE, 5, DEEP | 2).astype(np.uint16), transparency=5),
                      grey(np.where(HOLE, 255, GREY))),
    "deep.tif": (of_array(DEEP, "TIFF"), grey(GREY)),
    "deep.pgm": (b"P5 24 24 65535\n" + DEEP.astype(">u2").tobytes(), grey(GREY)),
    "palette.png": (saved(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "palette_hole.png": (saved(PALETTE, "PNG", transparency=0), see_through(PALETTE)),
    "palette_holes.png": (saved(PALETTE, "PNG", transparency=b"\0" + b"\xff" * 15), see_through(PALETTE)),
    "frames.gif": (saved(PALETTE, "GIF", save_all=True, append_images=[picture(2, (SIDE, SIDE))]),
                   np.asarray(PALETTE.convert("RGB"))),
    "cmyk.tif": (saved(CMYK, "TIFF"), np.asarray(CMYK.convert("RGB"))),
    "lab.tif": (saved(LAB, "TIFF"), np.asarray(LAB.convert("RGB"))),
    "turned_3.png": (saved(RGB, "PNG", exif=exif(3)), PIXELS[::-1, ::-1]),
    "turned_6.png": (saved(RGB, "PNG", exif=exif(6)), np.rot90(PIXELS, -1)),
    "turned_6.tif": (saved(RGB, "TIFF", tiffinfo=TIFF_6), np.rot90(PIXELS, -1)),
    "turned_6_deep.png": (of_array(DEEP, exif=exif(6)), grey(np.rot90(GREY, -1))),
    "exif_blank.jpg": (with_app1(b"Exif\0\0"), JPEG),
    "exif_cut.jpg": (with_app1(b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06\0"), JPEG),
    "exif_cut.png": (png_with(b"eXIf", b"MM\0*"), PIXELS),
    "xmp.png": (png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe tiff:Orientation"), PIXELS),
}  # fmt: skip
TURNED_JPEGS = [saved(RGB.resize((60, 40)), "JPEG", exif=exif(k), quality=95) for k in range(1, 9)]
#: Name -> (bytes, why every task refuses them).
BAD = {
    "int32.tif": (of_array(GREY.astype(np.int32), "TIFF"), "32-bit integers have no known range"),
    "int16.tif": (of_array(DEEP.astype(np.int32), "TIFF"), "32-bit integers have no known range"),
    "float.tif": (of_array((GREY / 255).astype(np.float32), "TIFF"), "floating-point pixels have no known range"),
    "text.png": (text_chunk(), "MAX_TEXT"),
    "profile.png": (saved(RGB, "PNG", icc_profile=bytes(PngImagePlugin.MAX_TEXT_CHUNK + 10)), "MAX_TEXT"),
    "cut.png": (saved(RGB, "PNG")[:300], ""),
    "cut.jpg": (saved(RGB, "JPEG", quality=95)[:-200], "truncated"),
    "cut.tif": (saved(RGB, "TIFF")[:700], ""),
    "cut.gif": (saved(PALETTE, "GIF")[:120], ""),
    "empty.jpg": (b"", "not a picture of a known format"),
    "html.jpg": (b"<html>404</html>", "not a picture of a known format"),
    "bomb.pgm": (b"P5 30000 30000 255\n" + bytes(99), "exceeds limit"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_file_is_read_as_it_is_meant(name, tmp_path):
    content, expected = GOOD[name]
    (tmp_path / name).write_bytes(content)
    for source in (content, tmp_path / name, str(tmp_path / name), Image.open(io.BytesIO(content))):
        found = decode.read(source)
        assert found.mode == "RGB" and np.array_equal(np.asarray(found), expected)
    assert np.array_equal(decode.read_square(content, SIDE), expected.transpose(2, 0, 1))


def test_jpegs_are_turned_as_every_viewer_turns_them(tmp_path):
    """And annotations belong to the upright picture."""
    for k, content in enumerate(TURNED_JPEGS, 1):
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
        assert np.array_equal(np.asarray(decode.read(content)), expected), k
        (tmp_path / "turned.jpg").write_bytes(content)
        upright = expected.shape[:2]
        assert decode.read_annotated(tmp_path / "turned.jpg", upright).shape == (3, *upright)
        one_line("turned.jpg: .*as its EXIF", decode.read_annotated, tmp_path / "turned.jpg", upright[::-1])


def test_resize_takes_the_centre_square(tmp_path):
    x = np.linspace(0, 255, 300)
    wide = np.stack([np.broadcast_to(x, (120, 300))] * 3, -1).astype(np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.jpg", quality=95)
    out = decode.read_square(tmp_path / "wide.jpg", 30)
    expected = Image.fromarray(wide[:, 90:210]).resize((30, 30), Image.Resampling.BICUBIC)
    assert out.shape == (3, 30, 30) and np.abs(out[0].astype(int) - np.asarray(expected)[..., 0]).max() <= 4


def test_every_task_sees_the_same_pixels(tmp_path):
    """At the pictures' own size, in the store and in a pack; what is bad is left out with the reason."""
    for k, (name, (content, _)) in enumerate((GOOD | BAD).items()):
        place = tmp_path / "photos" / "train" / "ab"[k % 2] / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for label in "ab":
        fill(tmp_path / "photos" / "val" / label, 4, (SIDE, SIDE))
    spec, own = f"imagefolder:{tmp_path / 'photos'}", open_pictures(f"imagefolder:{tmp_path / 'photos'}").train
    held = pack(listing(spec), tmp_path / "pack", short_side=64)
    names = {int(i): Path(own.title(k)).name for k, i in enumerate(own.ids)}
    packed = open_pictures(f"packed:{tmp_path / 'pack'}").train
    stored, of_pack = open_data(spec, SIDE).train, open_data(f"packed:{tmp_path / 'pack'}", SIDE).train
    for split in (packed, stored, of_pack):
        assert {names[int(i)] for i in split.ids} == {*GOOD}
        for k, i in enumerate(split.ids):
            assert np.array_equal(np.asarray(split.picture(k)), GOOD[names[int(i)]][1]), names[int(i)]
    indices = (tmp_path / "root" / "stores").glob("photos-*/index.json")
    [skipped] = (json.loads(index.read_text())["skipped"] for index in indices)
    for left_out in (skipped, held.info["left_out"]):
        reasons = {Path(name).name: reason for name, reason in left_out}
        assert reasons.keys() == BAD.keys() and all(words in reasons[name] for name, (_, words) in BAD.items())
    for k, i in enumerate(own.ids):
        if names[int(i)] in GOOD:
            assert np.array_equal(np.asarray(own.picture(k)), GOOD[names[int(i)]][1])
