"""The window view: windows, shift and merging over a mask, block after block. The page computes; no torch."""

from collections.abc import Sequence

import traitlets

from ..data import scenes
from ..errors import UserError, unknown
from ..model.masking import STRATEGIES
from .pictures import _uri
from .widget import Widget, module

TOKEN = 4  # pixels of a token
#: name: (pixels a side, tokens a side of a window, blocks a stage, mask patches in pixels); as in js/window_view.js
GEOMETRIES = {
    "192-12": (192, 12, (2, 2, 18, 2), (8, 16, 32, 64)),
    "192-6": (192, 6, (2, 2, 18, 2), (8, 16, 32, 64)),
    "32-4": (32, 4, (2, 2), (4, 8, 16)),
}


class WindowView(Widget):
    """Which windows see nothing, and after how many blocks each hidden token has heard of a visible one.

    `WindowView(geometry="192-12", mask_patch=32, ratio=0.6, strategy="random", seed=0)`; the mask is
    `hash_masks(grid, ratio, seed, [0], 0, strategy)`. tests/reach.py says the same in numpy.
    """

    _esm = module("core", "parts", "windows", "window_view")
    geometry = traitlets.Unicode("192-12").tag(sync=True)
    mask_patch = traitlets.Int(32).tag(sync=True)  # pixels
    ratio = traitlets.Float(0.6).tag(sync=True)
    strategy = traitlets.Unicode("random").tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    picture = traitlets.Unicode("").tag(sync=True)  # an address, `data:` here; stretched over the board

    def __init__(self, scene: int = 17, **settings: object) -> None:
        """`scene`: which scene lies under the mask."""
        geometry = str(settings.get("geometry", "192-12"))
        if geometry not in GEOMETRIES:
            raise unknown("geometry", geometry, GEOMETRIES)
        pixels, _, _, patches = GEOMETRIES[geometry]
        settings.setdefault("mask_patch", pixels // 6 if pixels == 192 else 8)
        given = {"ratio": 0.6, "strategy": "random"} | settings
        check_mask(pixels, settings["mask_patch"], given["ratio"], given["strategy"], patches)
        settings.setdefault("picture", _uri(scenes.render(0, [scene], 192).images[0].transpose(1, 2, 0)))
        super().__init__(**settings)


def check_mask(side: int, patch: int, ratio: float, strategy: str, patches: Sequence[int] = ()) -> None:
    """`UserError` for a mask that cannot be: the page says the same. patches: those to choose from, by default all that
    hold whole tokens and divide the side (pixels)."""
    if strategy not in STRATEGIES:
        raise unknown("mask_strategy", strategy, STRATEGIES)
    if not 0 <= ratio <= 1:
        raise UserError(f"ratio {ratio} is outside 0 to 1: it is the share of cells that are hidden")
    fit = patches or [p for p in range(TOKEN, side + 1, TOKEN) if side % p == 0]
    if patch not in fit:
        raise UserError(f"patch {patch} does not divide: at {side} px give one of {', '.join(map(str, fit))}")
