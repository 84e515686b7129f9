"""The mask lab: hide cells of a picture, see what the mask does at once, and what a network makes of it.

    MaskLab()                                    # photographs and scenes, and the networks that ship
    MaskLab(picture="holiday.jpg", network="photos-normalised")
    MaskLab().write_html("lab.html", "Mask lab")  # one file, live without a kernel or a network connection

The mask is drawn in the browser, by the same integers as `masking.hash_masks`; reconstructions and attention are
computed there, too. A kernel only sends the weights of a network, once; the static twin holds them.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import traitlets as t
from PIL import Image

from ..errors import UserError, unknown
from ..model.masking import STRATEGIES, hash_masks
from . import pictures
from .widgets import Widget, check_patch, module

STATISTICS = ("visible", "normalised", "true")
FOLDER = Path(__file__).with_name("networks")
#: Small networks that ship, FOLDER/NAME.safetensors in half precision; what each is, is in its metadata.
NETWORKS = ("scenes", "photos", "photos-normalised")


@dataclass(eq=False)
class Network:
    """A SimMIM and what a picture needs to know of it.

    about: name, title, text, model, side (pixels), patch_size, window, depths, target, target_window, mean, std (0 to
    1), mask_patch (pixels, of its training).
    """

    about: dict
    weights: bytes = field(repr=False)  # the safetensors file

    @cached_property
    def model(self):
        """The SimMIM itself, in evaluation mode."""
        from safetensors.torch import load

        from ..model.simmim import create_model

        about = self.about
        options = {"target": about["target"], "target_window": about["target_window"]}
        model = create_model(about["model"], about["side"], about["window"], **options)
        model.load_state_dict({name: value.float() for name, value in load(self.weights).items()})
        return model.eval()


@cache
def shipped_network(name: str) -> Network:
    """A network of the package; `UserError` with the nearest name for an unknown one."""
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    weights = (FOLDER / f"{name}.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    return Network(json.loads(header["__metadata__"]["about"]), weights)


class MaskLab(Widget):
    """An interactive picture of masked image modelling. Every trait can be set from Python, and follows the reader.

    picture: a file, bytes, PIL image or array shown first, beside those that ship. network: a name of NETWORKS, or ""
    for masks alone at 192 px. offer: which networks can be chosen; each makes the static twin 1.5 MB larger.
    `UserError` for what cannot be: a picture that is none, a mask patch that does not divide, an unknown strategy.
    """

    _esm = module("core", "net", "parts", "pixels", "windows", "mask_lab", "mask_lab_draw", "mask_lab_views")

    pictures = t.List(help="what can be chosen: `pictures` makes the entries").tag(sync=True)
    picture = t.Int(0, help="number of the chosen picture").tag(sync=True)
    networks = t.List(help="what the page needs to know of each network").tag(sync=True)
    network = t.Unicode("", help="name of the chosen network, or '' for masks at 192 px").tag(sync=True)
    strategy = t.Enum(list(STRATEGIES), "random").tag(sync=True)
    ratio = t.Float(0.6, min=0, max=1, help="share of cells hidden").tag(sync=True)
    patch = t.Int(8, help="side of a mask cell in pixels").tag(sync=True)
    seed = t.Int(0, help="of the mask").tag(sync=True)
    edits = t.List(t.Int(), help="cells flipped by hand, by number in rows").tag(sync=True)
    statistics = t.Enum(STATISTICS, "visible").tag(sync=True)
    tab = t.Enum(("explore", "guess", "windows", "attention"), "explore").tag(sync=True)
    size = t.Int(0, help="pixels at which a network sees the picture: as it was trained (0), or twice that").tag(
        sync=True
    )

    def __init__(
        self,
        picture: object = None,
        network: str | None = None,
        *,
        scenes: int = 12,
        offer: Sequence[str] | None = None,
        **state: object,
    ) -> None:
        self._networks = {name: shipped_network(name) for name in (NETWORKS if offer is None else offer)}
        if network is None:
            network = "photos" if "photos" in self._networks else next(iter(self._networks), "")
        if network and network not in self._networks:
            raise unknown("network", network, self._networks)
        about = self._networks[network].about if network else {"side": pictures.SIDE, "mask_patch": 32}
        state.setdefault("patch", about["mask_patch"])
        check_patch(about["side"], state["patch"])
        entries = [*pictures.photographs(), *pictures.scene_pictures(0, scenes)]
        first = next((k for k, one in enumerate(entries) if network == "scenes" and one["kind"] == "scene"), 0)
        if picture is not None:
            first = len(entries)
            entries.append(pictures.own_picture(picture))
        known = [one.about for one in self._networks.values()]
        super().__init__(pictures=entries, picture=first, networks=known, network=network, **state)
        self.on_msg(self._answer)

    @t.validate("patch", "network", "picture", "size")
    def _checked(self, proposal: dict) -> object:
        """What is set from Python is as good as what the constructor takes; the page offers nothing else."""
        name, value = proposal["trait"].name, proposal["value"]
        if name == "network" and value and value not in self._networks:
            raise unknown(name, value, self._networks)
        if name == "picture" and not 0 <= value < max(1, len(self.pictures)):
            raise UserError(f"picture {value}: there are {len(self.pictures)}, numbered from 0")
        if name == "size" and value:
            trained = self._networks[self.network].about["side"] if self.network else 0
            if value not in (trained, 2 * trained):
                raise UserError(f"size {value}: give {trained or 0} or {2 * trained} px, or 0")
        if name == "patch":
            check_patch(self.side, value)
        return value

    @t.observe("network", "size")
    def _fitted(self, _: object) -> None:
        """In place of a size or a patch that is not for a new network or size, the network's own is taken."""
        about = self._networks[self.network].about if self.network else {"side": 0, "mask_patch": 32}
        if self.size not in (about["side"], 2 * about["side"]):
            self.size = 0
        if self.side % self.patch:
            self.patch = about["mask_patch"]

    @property
    def side(self) -> int:
        """Pixels a side at which the picture is shown: the chosen size or the network's, or 192 without one."""
        return (self.size or self._networks[self.network].about["side"]) if self.network else pictures.SIDE

    @property
    def mask(self) -> np.ndarray:
        """bool (rows, columns) of cells, True = hidden: what the page shows."""
        grid = self.side // self.patch
        mask = hash_masks((grid, grid), self.ratio, self.seed, np.array([0]), strategy=self.strategy)[0]
        for cell in self.edits:
            if 0 <= cell < mask.size:
                mask.flat[cell] ^= True
        return mask

    def still(self) -> go.Figure:
        """The picture, its mask, and what the network sees."""
        entry, mask = self.pictures[self.picture], self.mask
        picture = Image.open(io.BytesIO(base64.b64decode(entry["data"]))).convert("RGB")
        shown = np.asarray(picture.resize((self.side,) * 2, Image.Resampling.BOX)).transpose(2, 0, 1)
        row = [shown, pictures.mask_picture(mask), pictures.hide(shown, mask)]
        title = f"{entry['title'].capitalize()}: {mask.sum()} of {mask.size} cells of {self.patch} px are hidden"
        return pictures.sheet({"": row}, ("picture", "mask", "what the<br>network sees"), title=title, side=176)

    def twin_state(self) -> dict:
        """The twin computes reconstructions itself: it gets the networks' weights."""
        held = {name: base64.b64encode(one.weights).decode() for name, one in self._networks.items()}
        return super().twin_state() | {"weights": held}

    def _answer(self, _: object, message: dict, __: object) -> None:
        """The page asks for the weights of a network that is offered."""
        if message.get("kind") == "weights" and message.get("name") in self._networks:
            self.send(message, [self._networks[message["name"]].weights])
