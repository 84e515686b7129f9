"""The networks of the mask lab: small ones that ship with the package, a run of yours, or any checkpoint.

A shipped network is one safetensors file in half precision; what it is and how it was trained is in its metadata.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import UserError, unknown
from ..model.sizes import SIZES, odd_quarter
from ..training.run import Run, read_record, record_path

FOLDER = Path(__file__).with_name("networks")
#: ImageNet's mean and standard deviation, in 0 to 1: what released checkpoints were trained with (docs/facts.md, 3).
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
STATISTICS = ("visible", "normalised", "true")


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
    return Network(json.loads(_metadata(weights)["about"]), weights)


def of_run(run: Run, runs_dir: str | Path = "runs", title: str = "") -> Network:
    """The network of a finished run; `UserError` where it has no record or no weights."""
    from ..data.sources import open_data
    from ..training.pretrain import build
    from ..training.probes import input_statistics
    from ..training.run import load_final

    model = build(run)
    model.load_state_dict(load_final(runs_dir, run))
    mean, std = input_statistics(open_data(run.data, run.image_size), run.statistics)
    record = read_record(record_path(runs_dir, run))
    about = {"name": run.key, "title": title or f"your run {run.key}", "mask_patch": run.mask_patch}
    about |= {"target": run.target, "target_window": run.norm_window, "mean": list(mean), "std": list(std)}
    data, loss = run.data.split(":")[-1].rstrip("/").split("/")[-1], record["final"]["val_loss"]
    about["text"] = f"{run.model}, {run.steps:,} steps on {data}; validation loss {loss:.3f}."
    return Network(about | _shape(run.model, run.image_size, run.window_size), model=model.eval())


def of_checkpoint(
    path: str | Path,
    model: str = "swinv2_base",
    img_size: int = 192,
    window_size: int = 12,
    *,
    target: str = "normalized",
    mask_patch: int = 32,
    mean: tuple[float, ...] = IMAGENET["mean"],
    std: tuple[float, ...] = IMAGENET["std"],
) -> Network:
    """Any checkpoint that `load_weights` reads (official, timm, transformers, our own), with its head.

    The defaults are those of the released swinv2_base (docs/facts.md, 3). Sizes in pixels, the window in tokens.
    """
    from ..model.simmim import create_model
    from ..model.weights import load_weights

    made = create_model(model, img_size, window_size, target=target)
    load_weights(made, path, head=True)
    name, stem = Path(path).name, Path(path).stem
    about = {"name": stem, "title": f"{name} ({model})", "text": f"{model} from {name}.", "mask_patch": mask_patch}
    about |= {"target": target, "target_window": odd_quarter(img_size), "mean": list(mean), "std": list(std)}
    return Network(about | _shape(model, img_size, window_size), model=made.eval())


def local_statistics(x: np.ndarray, window: int, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance (3, S, S) in an odd window around each pixel of x (3, S, S), over pixels of weight 1.

    weight (S, S), 1 = counted; all by default, which are the statistics of the normalised target (docs/facts.md, 5).
    Where fewer than two pixels count, those of the whole channel stand in.
    """
    side = x.shape[-1]
    counted = np.ones((side, side)) if weight is None else np.asarray(weight, float)
    at = np.arange(side)
    band = (np.abs(at[:, None] - at) <= window // 2).astype(float)
    total = counted.sum()
    level = (x * counted).sum((1, 2), keepdims=True) / max(total, 1)
    centred = (x - level) * counted
    count, first, second = (band @ v @ band for v in (counted, centred, centred**2))
    whole = (centred**2).sum((1, 2), keepdims=True) / (total - 1) if total > 1 else np.ones((3, 1, 1))
    few, n = count < 2, np.maximum(count, 2)
    variance = np.maximum(0, (second / n - (first / n) ** 2) * (n / (n - 1)))
    return np.where(few, level, level + first / n), np.where(few, whole, variance)


def target(pixels: np.ndarray, about: dict) -> np.ndarray:
    """What a network was to predict, (3, S, S), for uint8 pixels (3, S, S): normalised, each against its window too."""
    mean, std = (np.array(about[k], float)[:, None, None] for k in ("mean", "std"))
    x = (pixels / 255 - mean) / std
    if about["target"] == "raw":
        return x
    local, variance = local_statistics(x, about["target_window"])
    return (x - local) / np.sqrt(variance + 1e-6)


def to_pixels(
    prediction: np.ndarray, pixels: np.ndarray, hidden: np.ndarray, about: dict, statistics: str = "visible"
) -> np.ndarray:
    """A prediction (3, S, S) as uint8 (3, S, S), for the picture `pixels` uint8 (3, S, S) and hidden pixels (S, S).

    statistics, of a normalised target: `visible`, of what the network saw; `true`, of the hidden picture itself, which
    leaks the answer; `normalised`, the numbers themselves, 0 as mid-grey and 3 standard deviations as black and white.
    """
    if statistics not in STATISTICS:
        raise unknown("statistics", statistics, STATISTICS)
    mean, std = (np.array(about[k], float)[:, None, None] for k in ("mean", "std"))
    values = prediction.astype(float)
    if about["target"] != "raw":
        if statistics == "normalised":
            return np.clip(np.rint(127.5 + 42.5 * values), 0, 255).astype(np.uint8)
        seen = None if statistics == "true" else ~np.asarray(hidden, bool)
        local, variance = local_statistics((pixels / 255 - mean) / std, about["target_window"], seen)
        values = values * np.sqrt(variance + 1e-6) + local
    return np.clip(np.rint(255 * (values * std + mean)), 0, 255).astype(np.uint8)


def _shape(model: str, side: int, window: int) -> dict:
    size = SIZES[model]
    shape = {"patch_size": size.patch_size, "depths": list(size.depths)}
    return {"model": model, "side": side, "window": window} | shape


def _metadata(weights: bytes) -> dict:
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length])["__metadata__"]
