"""Networks, healthy and sick, and the pictures they are asked about: what the reproductions of `symptoms.py` share."""

import math
from functools import cache

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from ..data import scenes
from ..data.batches import normalise, validation_masks
from ..data.sources import Data, Split
from ..model.masking import upsample
from ..model.simmim import SimMIM, create_model
from ..training.machine import one_thread
from ..training.pretrain import build, build_optimiser, make_batches
from ..training.run import Run
from ..training.train import step as training_step
from . import networks

SHOWN = 6  # pictures, the first ones of the validation scenes
#: What is trained here: one or two seconds on one core.
RUN = Run(model="swinv2_atto", images=4096, steps=50, batch_size=32, warmup_steps=20, probe_labels=0, val_masks=1)


@cache
def source() -> Data:
    """4,096 scenes to learn from, 512 to look at, in memory: no store is built for a reproduction."""
    drawn, held = scenes.render(0, range(RUN.images)), scenes.render(1, range(512))
    parts = []
    for name, part, first in (("train", drawn, 0), ("val", held, 1 << 40)):
        ids = np.arange(len(part), dtype=np.uint64) + np.uint64(first)
        parts.append(Split(f"{name} of scenes", part.images, ids, part.labels, part.masks))
    about = healthy()[1]
    mean, std = tuple(about["mean"]), tuple(about["std"])
    return Data("scenes", "scenes", 32, *parts, None, None, scenes.CLASSES, mean, std, "symptoms", [])


@cache
def healthy() -> tuple[SimMIM, dict]:
    """The network that ships for scenes, and what is known of it: the picture of health."""
    network = networks.shipped("scenes")
    model = create_model(network.about["model"], 32, network.about["window"], target="raw")
    model.load_state_dict({name: value.float() for name, value in load(network.weights).items()})
    return model.eval(), network.about


@cache
def train(run: Run = RUN, hide_from_input: bool = True) -> tuple[SimMIM, list[float]]:
    """Train a run on `source()`, one thread; the network in evaluation mode, and the loss of each step."""
    data = source()
    batches = make_batches(run, data)
    losses = []
    with one_thread(torch.device("cpu")):
        model = build(run)
        optimiser = build_optimiser(model, run)
        encode = model.encoder.forward
        if not hide_from_input:
            model.encoder.forward = lambda x, mask=None, noise=None: encode(x, None, noise)
        for step in range(run.steps):
            images, mask, _ = batches.batch(step)
            losses.append(training_step(model, optimiser, (images, mask), run.lr_at(step), run).item())
            if not math.isfinite(losses[-1]):
                break
        model.encoder.forward = encode
    return model.eval(), losses


@cache
def task() -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    """The pictures uint8 (N, 3, 32, 32), their masks of cells (N, 4, 4), the normalised input, and masks of tokens."""
    data = source()
    images, cells = data.val.images[:SHOWN], validation_masks((4, 4), 0.6, "random", data.val.ids[:SHOWN], 0)
    return images, cells, normalise(images, data.mean, data.std), torch.from_numpy(upsample(cells, 2))


def mean_costs() -> float:
    """L1 of saying the mean colour everywhere, in standard deviations: of 256 validation pictures."""
    data = source()
    return normalise(data.val.images[:256], data.mean, data.std).abs().mean().item()


def colours(pixels: "Tensor | np.ndarray", mean=None, std=None) -> np.ndarray:
    """Network units back to a picture: x * std + mean, clipped; uint8 like its (N, 3, H, W)."""
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (mean or source().mean, std or source().std))
    return (np.clip(np.asarray(pixels) * std + mean, 0, 1) * 255 + 0.5).astype(np.uint8)


@torch.inference_mode()
def guess(model: SimMIM) -> Tensor:
    """What a network predicts for every pixel of the task: (N, 3, 32, 32), in network units."""
    _, _, x, tokens = task()
    return model.reconstruct(x, tokens)


def where() -> np.ndarray:
    """The hidden pixels of the task: bool (N, 1, 32, 32)."""
    return upsample(task()[1], 8)[:, None]


def paste(filled: np.ndarray) -> np.ndarray:
    """Hidden pixels from `filled`, visible ones from the pictures."""
    return np.where(where(), filled, task()[0])


def off(filled: np.ndarray) -> float:
    """Mean distance of the hidden pixels from the truth, in 0..255 grey levels."""
    return float(np.abs(filled.astype(float) - task()[0])[np.broadcast_to(where(), filled.shape)].mean())
