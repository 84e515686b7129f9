"""The pictures of the mask lab: freely licensed photographs that scikit-image ships, and scenes. No torch here."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..data import decode, scenes
from ..errors import UserError

SIDE = 192  # pixels a side of every picture as it is kept; smaller networks get it averaged down
TOKENS = 48  # tokens of 4 px a side at that size
_FOLDER = Path(__file__).with_name("photos")


@dataclass(frozen=True)
class Photo:
    """A photograph that comes with the package as photos/NAME.jpg: its centre, at 192 px."""

    name: str
    title: str
    source: str  # in scikit-image's data
    licence: str

    @property
    def path(self) -> Path:
        return _FOLDER / f"{self.name}.jpg"


#: All colour and grey photographs of scikit-image's wheel that show a thing and whose licence is stated there.
PHOTOS = (
    Photo("astronaut", "astronaut", "skimage.data.astronaut", "NASA, public domain"),
    Photo("camera", "cameraman", "skimage.data.camera", "Lav Varshney, CC0"),
    Photo("cat", "cat", "skimage.data.chelsea", "Stéfan van der Walt, CC0"),
    Photo("coffee", "cup of coffee", "skimage.data.coffee", "Rachel Michetti, CC0"),
    Photo("coins", "coins", "skimage.data.coins", "Brooklyn Museum, no known copyright restrictions"),
    Photo("retina", "retina", "skimage.data.retina", "Mikael Häggström, CC0"),
    Photo("rocket", "rocket", "skimage.data.rocket", "SpaceX, public domain"),
)


def photographs() -> list[dict]:
    """Every photograph, in the order of PHOTOS, as the widget takes pictures (see `entry`)."""
    return [_entry(p.name, p.title, "photograph", p.path.read_bytes(), note=p.licence) for p in PHOTOS]


def scene_pictures(seed: int = 0, count: int = 12) -> list[dict]:
    """The first `count` scenes of a seed, drawn and never picked, with the outline of the large object."""
    drawn = scenes.render(seed, range(count), SIDE)
    found = []
    for k in range(count):
        covered = np.asarray(drawn.masks[k], bool).reshape(TOKENS, SIDE // TOKENS, TOKENS, -1).any((1, 3))
        title = f"scene {k}: {scenes.CLASSES[int(drawn.labels[k])]}"
        picture = Image.fromarray(np.ascontiguousarray(drawn.images[k].transpose(1, 2, 0)))
        found.append(_entry(f"scene-{k}", title, "scene", _jpeg(picture), np.packbits(covered).tobytes()))
    return found


def own_picture(source: "str | Path | bytes | np.ndarray | Image.Image", title: str = "your picture") -> dict:
    """Any picture as an entry: its centre square at 192 px, read as `data.decode` reads every picture.

    source: a file, its bytes, a PIL image, or an array (H, W), (H, W, 3) or (3, H, W) of uint8, uint16, bool or floats
    from 0 to 1. `UserError` in one line for what holds no picture, or numbers of no known range.
    """
    name = f"{source}" if isinstance(source, (str, Path)) else f"the {type(source).__name__}"
    try:
        picture = _of_array(source) if isinstance(source, np.ndarray) else decode.read(source)
    except decode.Unreadable as error:
        raise UserError(f"{name}: no picture that can be read ({error}); give a JPEG or PNG") from error
    return _entry("own", title, "own", _jpeg(ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)))


def _of_array(values: np.ndarray) -> Image.Image:
    from .pictures import as_rgb

    if values.dtype == np.uint16:
        values = (values // 257).astype(np.uint8)
    floats = values.dtype.kind == "f" and values.size > 0 and values.min() >= 0 and values.max() <= 1
    if not floats and values.dtype not in (np.uint8, bool):
        raise decode.Unreadable(f"an array of {values.dtype} has no known range: give uint8, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(as_rgb(values)))


def pixels(entry: dict, side: int) -> np.ndarray:
    """uint8 (3, side, side) of an entry: its 192 px averaged down in blocks (`side` a divisor), else resampled."""
    picture = Image.open(io.BytesIO(base64.b64decode(entry["data"])))
    if side != picture.width:
        how = Image.Resampling.BOX if picture.width % side == 0 else Image.Resampling.LANCZOS
        picture = picture.resize((side, side), how)
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy()


def _jpeg(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.convert("RGB").save(held, "JPEG", quality=90)
    return held.getvalue()


def _entry(name: str, title: str, kind: str, jpeg: bytes, outline: bytes = b"", note: str = "") -> dict:
    """A picture for the widget: data a JPEG in base64; outline the object's tokens (48 x 48 bits) in base64 or ''."""
    held = {"data": base64.b64encode(jpeg).decode(), "outline": base64.b64encode(outline).decode()}
    return {"name": name, "title": title, "kind": kind, "note": note, **held}
