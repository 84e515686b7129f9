"""The mask lab as a visitor uses it: what the tests in a page, Voila and JupyterLab have in common."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from simmim_lite.data.batches import normalise

GREY = [128, 128, 128]
_DRAWN = """g => { const b = document.querySelector('.sl-main'), at = (k) => (k + .5) * b.width / g;
  const colour = (x, y) => [...b.getContext('2d').getImageData(x, y, 1, 1).data];
  return [...Array(g * g).keys()].map((i) => colour(at(i % g), at(Math.floor(i / g)))); }"""
_TILE = """name => { const t = document.querySelector(`[data-tile=${name}]`);
  return [t.width, [...t.getContext('2d').getImageData(0, 0, t.width, t.height).data]]; }"""


def pixels(entry: dict, side: int) -> np.ndarray:
    """uint8 (3, side, side) of an entry of the lab's pictures: its 192 px averaged down in blocks, as the page does."""
    picture = Image.open(io.BytesIO(base64.b64decode(entry["data"])))
    picture = picture.resize((side, side), Image.Resampling.BOX)
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy()


def predict(network, picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """What a network of the lab says by the library: float32 (3, S, S), of uint8 (3, S, S) and hidden tokens."""
    about = network.about
    with torch.inference_mode():
        x = normalise(picture[None], tuple(about["mean"]), tuple(about["std"]))
        return network.model.reconstruct(x, torch.from_numpy(hidden[None]))[0].numpy()


def opened(page, address: str):
    page.goto(address)
    page.wait_for_selector("[data-answered]")
    return page


def shown_mask(page, grid: int) -> np.ndarray:
    """Which cells are drawn grey on the large canvas, in their middle."""
    page.evaluate("() => document.activeElement.blur()")
    return (np.array(page.evaluate(_DRAWN, grid)).reshape(grid, grid, 4)[..., :3] == GREY).all(-1)


def tile(page, name: str) -> np.ndarray:
    """A small picture as (S, S, 3)."""
    side, flat = page.evaluate(_TILE, name)
    return np.array(flat).reshape(side, side, 4)[..., :3]


def settled(page) -> None:
    """Wait until the network has answered for what is shown now."""
    page.wait_for_function("() => document.querySelector('.sl-lab').lab.prediction")


def upload(page, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.locator(".sl-lab input[type=file]").set_input_files(file)


def picture_file(kind: str, mode: str, size: tuple[int, int], colour) -> bytes:
    held = io.BytesIO()
    Image.new(mode, size, colour).save(held, kind)
    return held.getvalue()


HOLIDAY = picture_file("JPEG", "RGB", (4000, 3000), (200, 30, 30))
OWN = "() => document.querySelector('.sl-lab').lab.entry.name === 'own'"
