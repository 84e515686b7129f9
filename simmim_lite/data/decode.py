"""One picture out of a file or of bytes: upright, RGB, 8 bits. The one reader of every task. No torch here."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ORIENTATION = 0x0112  # EXIF tag


class TooSmall(ValueError):
    """An image whose shorter side is below the size asked for."""

    def __init__(self, width: int, height: int, size: int) -> None:
        super().__init__(f"{width} x {height} px, smaller than the image size {size}")
        self.side = min(width, height)


def decode(path: str | Path) -> Image.Image:
    """The picture in a file at its own size, upright, RGB; see `prepare`. Raises whatever the decoder raises."""
    with Image.open(path) as image:
        return upright(image)


def opened(content: bytes) -> Image.Image:
    """The picture in some bytes, as `Image.open` has it; `ValueError` where they are none."""
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError("not a picture of a known format") from None


def upright(image: Image.Image) -> Image.Image:
    """A picture at its own size, turned as its camera says, RGB as `prepare` has it."""
    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return _rgb(image)


def load(path: Path, size: int) -> np.ndarray:
    """Decode an image file to uint8 (3, size, size); see `prepare`. Raises whatever the decoder raises."""
    with Image.open(path) as image:
        return prepare(image, size)


def prepare(image: Image.Image, size: int) -> np.ndarray:
    """A picture as uint8 (3, size, size): upright, RGB, centre square, bicubic. `TooSmall` when a side is below `size`.

    Grey, palette and CMYK become RGB, transparency is laid on white, 16-bit grey is scaled to 8 bits.
    """
    if min(image.size) < size:
        raise TooSmall(*image.size, size)
    turned = image.getexif().get(ORIENTATION, 1) != 1
    image.draft(None, (2 * size, 2 * size))  # lets the JPEG decoder skip detail that the resize would throw away
    image.load()
    if turned:
        image = ImageOps.exif_transpose(image)
    image = _rgb(image)
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
