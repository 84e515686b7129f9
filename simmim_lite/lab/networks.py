"""The networks of the mask lab: small ones that ship with the package, and any checkpoint.

A shipped network is one safetensors file in half precision; what it is and how it was trained is in its metadata.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import UserError, unknown
from ..model.sizes import SIZES, odd_quarter

FOLDER = Path(__file__).with_name("networks")


@dataclass(eq=False)
class Network:
    """A SimMIM and what a picture needs to know of it.

    about: name, title, text, model, side (pixels), patch_size, window, depths, target, target_window, mean, std (0 to
    1), mask_patch (pixels, of its training).
    """

    about: dict
    weights: bytes | None = field(default=None, repr=False)  # the safetensors file, where it is small enough for a page
    model: object = field(default=None, repr=False)

    def predict(self, pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """float32 (3, S, S) in the space of the target, from uint8 (3, S, S) and hidden tokens (S / 4, S / 4)."""
        import torch

        from ..data.batches import normalise
        from ..processes import one_thread

        side, tokens = self.about["side"], self.about["side"] // self.about["patch_size"]
        if pixels.shape != (3, side, side) or hidden.shape != (tokens, tokens):
            shapes = f"a picture of {pixels.shape} and a mask of {hidden.shape}"
            raise UserError(f"{shapes}: {self.about['name']} takes (3, {side}, {side}) and ({tokens}, {tokens})")
        images = normalise(pixels[None], tuple(self.about["mean"]), tuple(self.about["std"]))
        with torch.inference_mode(), one_thread(torch.device("cpu")):  # a small network loses by sharing its work
            mask = torch.from_numpy(np.asarray(hidden, bool)[None])
            return self.loaded().reconstruct(images, mask)[0].float().numpy()

    def loaded(self):
        """The SimMIM itself, in evaluation mode."""
        if self.model is None:
            from safetensors.torch import load

            from ..model.simmim import create_model

            about = self.about
            options = {"target": about["target"], "target_window": about["target_window"]}
            model = create_model(about["model"], about["side"], about["window"], **options)
            model.load_state_dict({name: value.float() for name, value in load(self.weights).items()})
            self.model = model.eval()
        return self.model


def names() -> list[str]:
    """The networks that ship: `scenes`, `photos`, `photos-normalised`."""
    return sorted((p.stem for p in FOLDER.glob("*.safetensors")), key=lambda n: (n != "scenes", n))


@cache
def shipped(name: str) -> Network:
    """A network of the package; `UserError` with the nearest name for an unknown one."""
    if name not in names():
        raise unknown("network", name, names())
    weights = (FOLDER / f"{name}.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    return Network(json.loads(header["__metadata__"]["about"]), weights)


def of_checkpoint(
    path: str | Path,
    model: str = "swinv2_base",
    img_size: int = 192,
    window_size: int = 12,
    *,
    target: str = "normalized",
    mask_patch: int = 32,
) -> Network:
    """Any checkpoint that `load_weights` reads, with its head, for `MaskLab(network=…)`.

    The defaults, and ImageNet's mean and standard deviation, are those of the released swinv2_base (docs/facts.md, 3).
    Sizes in pixels, the window in tokens.
    """
    from ..model.simmim import create_model
    from ..model.weights import load_weights
    from ..training.probes import IMAGENET_MEAN, IMAGENET_STD

    made = create_model(model, img_size, window_size, target=target)
    load_weights(made, path, head=True)
    name, size = Path(path).name, SIZES[model]
    about = {"name": Path(path).stem, "title": f"{name} ({model})", "text": f"{model} from {name}.", "model": model}
    about |= {"side": img_size, "window": window_size, "patch_size": size.patch_size, "depths": list(size.depths)}
    about |= {"target": target, "target_window": odd_quarter(img_size), "mask_patch": mask_patch}
    return Network(about | {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}, model=made.eval())
