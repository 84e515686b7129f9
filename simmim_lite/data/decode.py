"""One picture out of a file, of bytes or of a PIL image: upright by its EXIF block, RGB on white, 8 bits. No torch
here.

The one reader of every task. 16-bit grey is scaled; 32-bit integers and floating-point pixels have no known range and
are refused, as is what is not whole. Of several frames the first counts."""

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import UserError, first_line

_T = Image.Transpose
_TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE, 6: _T.ROTATE_270}
_TURNS |= {7: _T.TRANSVERSE, 8: _T.ROTATE_90}
_SIXTEEN_BITS = {"PNG", "PPM"}  # formats whose pictures of mode I hold 16 bits; other formats mean 32 by it

# a picture either can be read or is named with the reason; what Pillow says besides would come once a process
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

Source = str | Path | bytes | Image.Image


class Unreadable(UserError):
    """A picture that cannot be read; the text is the reason alone, for whoever knows the picture's name."""


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """A picture whose pixels may not be read yet; what Pillow raises in the `with` block becomes `Unreadable`."""
    try:
        if isinstance(source, Image.Image):
            yield source
        elif isinstance(source, (str, Path, bytes)):
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                yield image
        else:
            raise Unreadable(f"no picture, but a {type(source).__name__}")
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("not a picture of a known format") from None
    except Exception as error:  # decoders raise errors of many kinds
        raise Unreadable(getattr(error, "strerror", None) or first_line(error)) from error


def read(source: Source) -> Image.Image:
    """The picture at its own size, upright, RGB; `Unreadable` says why there is none."""
    with opened(source) as image:
        image.load()
        how = turn(image)
        return _rgb(image if how is None else image.transpose(how))


def read_square(source: Source, size: int) -> np.ndarray:
    """The picture's centre square, bicubic: uint8 (3, size, size). `Unreadable` when a side is below `size`."""
    with opened(source) as image:
        if min(image.size) < size:
            raise Unreadable(f"{image.width} x {image.height} px, smaller than the image size {size}")
        image.draft(None, (2 * size, 2 * size))  # lets the JPEG decoder skip detail that the resize would throw away
        image = read(image)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def read_stack(content: bytes) -> np.ndarray:
    """An array of 1 to 16 channels (H, W, C), of numpy's file or of a TIFF with as many samples or pages; the shortest
    side counts the channels. `Unreadable` for what is none."""
    try:
        if content[:6] == b"\x93NUMPY":
            stack = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            from tifffile import imread

            stack = imread(io.BytesIO(content))
    except ImportError:
        raise UserError('TIFF of several channels needs tifffile: pip install "simmim-lite[stacks]"') from None
    except Exception as error:  # decoders raise errors of many kinds
        raise Unreadable(first_line(error)) from error
    stack = stack[..., None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or not np.issubdtype(stack.dtype, np.number) or np.iscomplexobj(stack):
        raise Unreadable(f"an array {stack.dtype} of shape {stack.shape}: give numbers (H, W) or (H, W, channels)")
    stack = np.moveaxis(stack, int(np.argmin(stack.shape)), 2)
    if not 1 <= stack.shape[2] <= 16:
        raise Unreadable(f"{stack.shape[2]} channels: give 1 to 16")
    return stack


def stack_square(content: bytes, size: int, ends: np.ndarray) -> np.ndarray:
    """The centre square of a stack, bicubic, each channel alone: uint8 (C, size, size). ends: of each channel, (C, 2),
    the values that become 0 and 255; what is not a number becomes 0."""
    stack = read_stack(content)
    height, width, channels = stack.shape
    side, (low, high) = min(height, width), ends.T
    if channels != len(ends) or side < size:
        raise Unreadable(f"{height} x {width} px of {channels} channels: give {len(ends)} of {size} px")
    top, left = (height - side) // 2, (width - side) // 2
    part = np.nan_to_num((stack[top : top + side, left : left + side] - low) * (255 / (high - low))).astype(np.float32)
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in part.transpose(2, 0, 1))
    square = [np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)) for plane in planes]
    return (np.clip(square, 0, 255) + 0.5).astype(np.uint8)


def read_annotated(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The picture that annotations for `size` (height, width) belong to: uint8 (3, H, W).

    Annotations are read as of the upright picture. `UserError` names a file that cannot be read, or of another size.
    """
    try:
        picture = read(path)
    except Unreadable as error:
        raise UserError(f"{path}: not a readable picture ({error}); replace it, or remove its annotations") from error
    if picture.size != (size[1], size[0]):
        shown = f"{picture.width} x {picture.height} px, but its annotations are for {size[1]} x {size[0]}"
        raise UserError(f"{path}: {shown}; give both the same size, upright as its EXIF orientation turns it")
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def each(function: Callable, items: Iterable, threads: int) -> list:
    """What a function of a picture makes of each item, or its exception: by threads, as decoders let go of the
    interpreter."""

    def tried(item: object) -> object:
        try:
            return function(item)
        except Exception as error:  # decoders raise errors of many kinds
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(tried, items))


def turn(image: Image.Image) -> Image.Transpose | None:
    """What turns a picture upright by its EXIF block; None where nothing is to be done, or the block is broken."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a broken block raises errors of many kinds; the pixels are whole nevertheless
        return None


def _rgb(image: Image.Image) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        values = np.asarray(image).astype(np.int64)
        grey = (values.clip(0, 65535) // 257).astype(np.uint8)
        if isinstance(clear, int):
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point pixels"
        raise Unreadable(f"{kind} have no known range; save it with 8 or 16 bits")
    palette_alpha = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or clear is not None or palette_alpha:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
