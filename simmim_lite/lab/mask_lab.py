"""The mask lab: hide cells of a picture, see what the mask does at once, and what a network makes of it.

    MaskLab()                                    # photographs and scenes, and the networks that ship
    MaskLab(picture="holiday.jpg", network=networks.of_checkpoint("swinv2_base.pth"))
    MaskLab().write_html("lab.html", "Mask lab")  # one file, live without a kernel or a network connection

The mask is drawn in the browser, by the same integers as `masking.hash_masks`; reconstructions come from the kernel, in
the static twin from the same network computed in the page.
"""

import base64
import sys
from collections.abc import Sequence

import numpy as np
import traitlets as t

from ..errors import UserError, unknown
from ..model.masking import average_distance, fully_masked_windows, hash_masks, upsample
from . import networks, photos
from .networks import Network
from .widget import Widget, module
from .windows import TOKEN, check_mask

TABS = ("explore", "guess", "windows")


class MaskLab(Widget):
    """An interactive picture of masked image modelling. Every trait can be set from Python, and follows the reader.

    picture: a file, bytes, PIL image or array shown first, beside those that ship. network: a name of
    `networks.names()`, a `Network`, or "" for masks alone at 192 px. offer: which shipped networks can be chosen, all
    by default; each makes the static twin 1.5 MB larger. `UserError` for a picture that cannot be read, a
    mask patch that does not divide, a ratio outside 0 to 1, an unknown strategy or network.
    """

    _esm = module("core", "net", "parts", "pixels", "windows", "mask_lab", "mask_lab_draw", "mask_lab_views")

    pictures = t.List(help="what can be chosen: `photos` makes the entries").tag(sync=True)
    picture = t.Int(0, help="number of the chosen picture").tag(sync=True)
    networks = t.List(help="what the page needs to know of each network").tag(sync=True)
    network = t.Unicode("", help="name of the chosen network, or '' for masks at 192 px").tag(sync=True)
    strategy = t.Unicode("random", help="random | square | block").tag(sync=True)
    ratio = t.Float(0.6, help="share of cells hidden, 0 to 1").tag(sync=True)
    patch = t.Int(8, help="side of a mask cell in pixels").tag(sync=True)
    seed = t.Int(0, help="of the mask").tag(sync=True)
    edits = t.List(t.Int(), help="cells flipped by hand, by number in rows").tag(sync=True)
    statistics = t.Unicode("visible", help="visible | normalised | true").tag(sync=True)
    tab = t.Unicode("explore", help="explore | guess | windows").tag(sync=True)

    def __init__(
        self,
        picture: object = None,
        network: str | Network | None = None,
        *,
        strategy: str = "random",
        ratio: float = 0.6,
        patch: int | None = None,
        seed: int = 0,
        tab: str = "explore",
        scenes: int = 12,
        offer: Sequence[str] | None = None,
    ) -> None:
        found = [networks.shipped(name) for name in (networks.names() if offer is None else offer)]
        chosen = network if isinstance(network, Network) else None
        if chosen is not None:
            found.append(chosen)
        self._networks: dict[str, Network] = {one.about["name"]: one for one in found}
        name = chosen.about["name"] if chosen else _default(found) if network is None else network
        if name and name not in self._networks:
            raise unknown("network", name, self._networks)
        about = self._networks[name].about if name else None
        patch = patch or (about["mask_patch"] if about else 32)
        check_mask(about["side"] if about else photos.SIDE, patch, ratio, strategy)
        if tab not in TABS:
            raise unknown("tab", tab, TABS)
        pictures = [*photos.photographs(), *photos.scene_pictures(0, scenes)]
        first = next((k for k, one in enumerate(pictures) if name == "scenes" and one["kind"] == "scene"), 0)
        if picture is not None:
            pictures.append(photos.own_picture(picture))
            first = len(pictures) - 1
        state = {"strategy": strategy, "ratio": float(ratio), "patch": patch, "seed": seed, "tab": tab}
        known = [one.about for one in self._networks.values()]
        super().__init__(pictures=pictures, picture=first, networks=known, network=name, **state)
        self.on_msg(self._answer)

    @t.validate("strategy", "ratio", "patch", "network", "statistics", "tab", "picture")
    def _checked(self, proposal: dict) -> object:
        """What is set from Python is as good as what the constructor takes; the page offers nothing else."""
        name, value = proposal["trait"].name, proposal["value"]
        known = {"network": ("", *self._networks), "statistics": networks.STATISTICS, "tab": TABS}
        if name in known and value not in known[name]:
            raise unknown(name, value, known[name])
        if name == "picture" and not 0 <= value < max(1, len(self.pictures)):
            raise UserError(f"picture {value}: there are {len(self.pictures)}, numbered from 0")
        if name in ("strategy", "ratio", "patch"):
            check_mask(
                self.side, **{"patch": self.patch, "ratio": self.ratio, "strategy": self.strategy} | {name: value}
            )
        return value

    @property
    def side(self) -> int:
        """Pixels a side at which the picture is shown: the network's, or 192 without one."""
        return self._networks[self.network].about["side"] if self.network else photos.SIDE

    @property
    def mask(self) -> np.ndarray:
        """bool (rows, columns) of cells, True = hidden: what the page shows."""
        check_mask(self.side, self.patch, self.ratio, self.strategy)
        grid = self.side // self.patch
        mask = hash_masks((grid, grid), self.ratio, self.seed, np.array([0]), strategy=self.strategy)[0]
        for cell in self.edits:
            if 0 <= cell < grid * grid:
                mask[divmod(cell, grid)] ^= True
        return mask

    @property
    def numbers(self) -> dict:
        """What the page says of the mask: hidden cells, their share, AvgDist (pixels), blind windows before and after
        the shift by half a window ({window: (before, after)})."""
        mask, across = self.mask, self.side // TOKEN
        tokens = upsample(mask, self.patch // TOKEN)
        sizes = [self._networks[self.network].about["window"]] if self.network else [12, 6]
        blind = {w: tuple(fully_masked_windows(tokens, w, s) for s in (0, w // 2)) for w in sizes if across % w == 0}
        far = average_distance(mask, self.patch)
        return {"hidden": int(mask.sum()), "share": float(mask.mean()), "distance": far, "blind": blind}

    def reconstruction(self, statistics: str | None = None) -> dict[str, np.ndarray]:
        """The chosen picture as the network has it: `picture`, `answer`, `filled` uint8 (3, S, S); `losses` (cells)."""
        if not self.network:
            raise UserError("no network is chosen: give network= one of " + ", ".join(self._networks))
        network = self._networks[self.network]
        pixels, mask = photos.pixels(self.pictures[self.picture], self.side), self.mask
        prediction = network.predict(pixels, upsample(mask, self.patch // TOKEN))
        hidden, about = upsample(mask, self.patch), network.about
        answer = networks.to_pixels(prediction, pixels, hidden, about, statistics or self.statistics)
        error = np.abs(prediction - networks.target(pixels, about)).mean(0)
        grid = self.side // self.patch
        losses = error.reshape(grid, self.patch, grid, self.patch).mean((1, 3))
        return {"picture": pixels, "answer": answer, "filled": np.where(hidden, answer, pixels), "losses": losses}

    def twin_state(self) -> dict:
        """The twin computes reconstructions itself: it gets the weights of the networks that are small enough."""
        held = {name: one.weights for name, one in self._networks.items() if one.weights is not None}
        state = super().twin_state() | {"weights": {k: base64.b64encode(v).decode() for k, v in held.items()}}
        state["networks"] = [about for about in self.networks if about["name"] in held]
        return state | ({} if self.network in held else {"network": ""})

    def _answer(self, _: object, message: dict, buffers: Sequence) -> None:
        """The page asks for a prediction; it gets one, or a sentence."""
        if message.get("kind") != "predict":
            return
        reply, data = {"id": message.get("id"), "loaded": "torch" in sys.modules}, []
        try:
            network = self._networks[message["network"]]
            side, tokens = network.about["side"], network.about["side"] // network.about["patch_size"]
            pixels = np.frombuffer(buffers[0], np.uint8).reshape(3, side, side)
            hidden = np.frombuffer(buffers[1], np.uint8).reshape(tokens, tokens)
            data = [network.predict(pixels, hidden).tobytes()]
            reply["kind"] = "predicted"
        except Exception as error:  # whatever a reader's checkpoint does, the widget must say it and live on
            what = str(error).strip().splitlines() or [""]
            reply |= {"kind": "problem", "text": f"no reconstruction: {type(error).__name__}: {what[0][:160]}"}
        self.send(reply, data)


def _default(found: list[Network]) -> str:
    names = [one.about["name"] for one in found]
    return "photos" if "photos" in names else names[0] if names else ""
