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

from ..errors import UserError, first_line, unknown
from ..model.masking import hash_masks
from . import networks, pictures
from .networks import Network
from .widgets import Widget, check_mask, module

TABS = ("explore", "guess", "windows")
STATISTICS = ("visible", "normalised", "true")


class MaskLab(Widget):
    """An interactive picture of masked image modelling. Every trait can be set from Python, and follows the reader.

    picture: a file, bytes, PIL image or array shown first, beside those that ship. network: a name of
    `networks.names()`, a `Network`, or "" for masks alone at 192 px. offer: which shipped networks can be chosen, all
    by default; each makes the static twin 1.5 MB larger. `UserError` for a picture that cannot be read, a
    mask patch that does not divide, a ratio outside 0 to 1, an unknown strategy or network.
    """

    _esm = module("core", "net", "parts", "pixels", "windows", "mask_lab", "mask_lab_draw", "mask_lab_views")

    pictures = t.List(help="what can be chosen: `pictures` makes the entries").tag(sync=True)
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
        patch: int | None = None,
        scenes: int = 12,
        offer: Sequence[str] | None = None,
        **state: object,
    ) -> None:
        found = [networks.shipped(name) for name in (networks.names() if offer is None else offer)]
        if isinstance(network, Network):
            found, network = [*found, network], network.about["name"]
        self._networks: dict[str, Network] = {one.about["name"]: one for one in found}
        if network is None:
            network = "photos" if "photos" in self._networks else next(iter(self._networks), "")
        if network and network not in self._networks:
            raise unknown("network", network, self._networks)
        about = self._networks[network].about if network else {"side": pictures.SIDE, "mask_patch": 32}
        patch = patch or about["mask_patch"]
        check_mask(about["side"], patch, state.get("ratio", 0.6), state.get("strategy", "random"))
        entries = [*pictures.photographs(), *pictures.scene_pictures(0, scenes)]
        first = next((k for k, one in enumerate(entries) if network == "scenes" and one["kind"] == "scene"), 0)
        if picture is not None:
            first = len(entries)
            entries.append(pictures.own_picture(picture))
        known = [one.about for one in found]
        super().__init__(pictures=entries, picture=first, networks=known, network=network, patch=patch, **state)
        self.on_msg(self._answer)

    @t.validate("strategy", "ratio", "patch", "network", "statistics", "tab", "picture")
    def _checked(self, proposal: dict) -> object:
        """What is set from Python is as good as what the constructor takes; the page offers nothing else."""
        name, value = proposal["trait"].name, proposal["value"]
        known = {"network": ("", *self._networks), "statistics": STATISTICS, "tab": TABS}
        if name in known and value not in known[name]:
            raise unknown(name, value, known[name])
        if name == "picture" and not 0 <= value < max(1, len(self.pictures)):
            raise UserError(f"picture {value}: there are {len(self.pictures)}, numbered from 0")
        if name in ("strategy", "ratio", "patch"):
            mask = {"patch": self.patch, "ratio": self.ratio, "strategy": self.strategy} | {name: value}
            check_mask(self.side, **mask)
        return value

    @property
    def side(self) -> int:
        """Pixels a side at which the picture is shown: the network's, or 192 without one."""
        return self._networks[self.network].about["side"] if self.network else pictures.SIDE

    @property
    def mask(self) -> np.ndarray:
        """bool (rows, columns) of cells, True = hidden: what the page shows."""
        grid = self.side // self.patch
        mask = hash_masks((grid, grid), self.ratio, self.seed, np.array([0]), strategy=self.strategy)[0]
        for cell in self.edits:
            if 0 <= cell < grid * grid:
                mask[divmod(cell, grid)] ^= True
        return mask

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
            reply |= {"kind": "problem", "text": f"no reconstruction: {first_line(error)}"}
        self.send(reply, data)
