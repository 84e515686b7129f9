"""Is this normal? Eight things that go wrong, each made on purpose in seconds, and undone by its remedy. Every function
returns a `Symptom`; the healthy network is the one that ships for scenes, the sick ones are trained on the spot."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from ..data import scenes
from ..data.batches import normalise, validation_masks
from ..data.sources import Data, Split
from ..errors import UserError
from ..lab.mask_lab import shipped_network
from ..lab.pictures import hide
from ..model.masking import upsample
from ..model.simmim import SimMIM, create_model
from ..model.weights import load_weights
from ..processes import one_thread
from ..training.pretrain import build, build_optimiser, make_batches, pretrain
from ..training.probes import NEIGHBOURS, features, knn_probe
from ..training.run import Run
from ..training.train import step as training_step

SHOWN = 6  # pictures, the first ones of the validation scenes
WRONG, RIGHT = "like this", "after the<br>remedy"  # names of rows of pictures
#: What is trained here: one or two seconds on one core.
RUN = Run(model="swinv2_atto", images=4096, steps=50, batch_size=32, warmup_steps=20, probe_labels=0, val_masks=1)
_TEXTS = yaml.safe_load(files(__package__).joinpath("symptoms.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Symptom:
    """One symptom, with its reproduction. `rows`: {name: uint8 (N, 3, 32, 32)}, the symptom in row `WRONG`."""

    name: str
    before: float
    after: float
    rows: dict[str, np.ndarray]
    says: str  # what the library prints, where it notices by itself
    texts: dict[str, str]  # looks, cause, remedy; measure: what `before` and `after` are, with the unit


def _symptom(name: str, shown: dict, numbers: "Sequence | Callable", says: str = "", **facts: object) -> Symptom:
    """numbers: before and after, or a function of pictures whose mean over hidden pixels they are."""
    if callable(numbers):
        found, hidden = [numbers(shown[row].astype(float)) for row in (WRONG, RIGHT)], task()[1]
        numbers = [of[np.broadcast_to(hidden[..., : of.shape[-1]], of.shape)].mean() for of in found]
    texts = {part: text.format(**facts) for part, text in _TEXTS[name].items()}
    return Symptom(name, *map(float, numbers), shown, says, texts)


@cache
def source() -> Data:
    """4,096 scenes to learn from, 512 to look at, in memory: no store is built for a reproduction."""
    parts = []
    for name, seed, count, first in (("train", 0, RUN.images, 0), ("val", 1, 512, 1 << 40)):
        drawn, ids = scenes.render(seed, range(count)), np.arange(count, dtype=np.uint64) + np.uint64(first)
        parts.append(Split(f"{name} of scenes", drawn.images, ids, drawn.labels, drawn.masks))
    mean, std = (tuple(shipped_network("scenes").about[name]) for name in ("mean", "std"))
    return Data("scenes", *parts, None, None, scenes.CLASSES, mean, std, "symptoms")


def scenes_network() -> SimMIM:
    """The network that ships for scenes, which is the picture of health."""
    return shipped_network("scenes").model


@cache
def train(run: Run = RUN, hide_from_input: bool = True) -> tuple[SimMIM, list[float]]:
    """Train a run on `source()`, one thread; the network in evaluation mode, and the loss of each step."""
    batches, losses = make_batches(run, source()), []
    with one_thread(torch.device("cpu")):
        model = build(run)
        optimiser, encode = build_optimiser(model, run), model.encoder.forward
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
    """The pictures uint8 (N, 3, 32, 32), hidden pixels (N, 1, 32, 32), normalised input, hidden tokens."""
    data = source()
    images, cells = data.val.images[:SHOWN], validation_masks((4, 4), 0.6, "random", data.val.ids[:SHOWN], 0)
    tokens = torch.from_numpy(upsample(cells, 2))
    return images, upsample(cells, 8)[:, None], normalise(images, data.mean, data.std), tokens


@torch.inference_mode()
def guess(model: SimMIM) -> Tensor:
    """What a network predicts for every pixel of the task: (N, 3, 32, 32), in network units."""
    return model.reconstruct(*task()[2:])


def colours(pixels: "Tensor | np.ndarray", mean: tuple | None = None, std: tuple | None = None) -> np.ndarray:
    """Network units back to a picture: x * std + mean, clipped; uint8 like its (N, 3, H, W)."""
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (mean or source().mean, std or source().std))
    return (np.clip(np.asarray(pixels) * std + mean, 0, 1) * 255 + 0.5).astype(np.uint8)


def rows(wrong: "np.ndarray | SimMIM", right: "np.ndarray | SimMIM") -> dict[str, np.ndarray]:
    """The usual four rows of pictures; the last two are what networks make (or pictures), where pixels are hidden."""
    images, hidden, _, _ = task()
    found = {WRONG: wrong, RIGHT: right}
    found = {name: colours(guess(one)) if isinstance(one, SimMIM) else one for name, one in found.items()}
    pasted = {name: np.where(hidden, one, images) for name, one in found.items()}
    return {"picture": images, "what the<br>network sees": hide(images, hidden[:, 0])} | pasted


def _distance(pictures: np.ndarray) -> np.ndarray:
    """From the truth, in 0..255 grey levels."""
    return np.abs(pictures - task()[0])


def noise() -> Symptom:
    """Weights that never arrived: `strict=False` passes over names that do not fit, and says nothing."""
    file = {f"ema.{name}": tensor for name, tensor in scenes_network().state_dict().items()}  # as some wrapper saved it
    about = shipped_network("scenes").about
    deaf, fine = (create_model(about["model"], 32, about["window"], target="raw", seed=0).eval() for _ in range(2))
    deaf.load_state_dict(file, strict=False)
    says = str(load_weights(fine, file))
    return _symptom("noise", rows(deaf, fine), _distance, says)


def grey_mush() -> Symptom:
    """A locally normalised target, shown as if it were pixels: even the perfect answer would look like that."""
    model, _ = train(replace(RUN, target="normalized"))
    images, hidden, x, _ = task()
    perfect = np.where(hidden, colours(model.make_target(x)), images)
    shown = rows(model, scenes_network()) | {"the perfect answer,<br>shown like this": perfect}
    return _symptom("grey mush", shown, lambda pictures: np.ptp(pictures, 1, keepdims=True))


def checkerboard() -> Symptom:
    """A head whose channels are read in another order than they were trained in."""
    (_, _, x, tokens), model = task(), scenes_network()
    side = model.stride
    with torch.inference_mode():
        head = model.decoder[0](model.encode(x, tokens))  # (N, 3 * side^2, h, w)
        n, _, h, w = head.shape
        # trained colour-major (3, side, side), read as (side, side, 3)
        swapped = head.view(n, side, side, 3, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, 3, h * side, w * side)
    shown = rows(colours(swapped), model)
    return _symptom("checkerboard", shown, lambda pictures: np.abs(np.diff(pictures, axis=-1)))


def wrong_colours() -> Symptom:
    """Network units shown as if they were colours."""
    shown = rows(colours(guess(scenes_network()), (0.0,) * 3, (1.0,) * 3), scenes_network())
    return _symptom("wrong colours", shown, _distance)


def loss_does_not_fall() -> Symptom:
    """A learning rate a thousand times too low; a mask that hides everything ends the same way, and is refused."""
    (slow, before), (model, after) = train(replace(RUN, lr=RUN.lr / 1000)), train()
    data = source()
    try:
        replace(RUN, mask_ratio=0.97)
    except UserError as error:
        says = str(error)
    left = [np.mean(losses[-5:]) / np.mean(losses[:5]) for losses in (before, after)]
    mean = normalise(data.val.images[:256], data.mean, data.std).abs().mean().item()
    return _symptom("loss does not fall", rows(slow, model), left, says, mean=mean)


def not_a_number() -> Symptom:
    """A learning rate far too high: the library stops the run, says at which step, and keeps no number."""
    wild = replace(RUN, lr=9.0, clip_grad=1e9, warmup_steps=5)
    with tempfile.TemporaryDirectory() as folder:
        record = pretrain(wild, runs_dir=folder, device="cpu", data=source())
    (broken, before), (model, after) = train(wild), train()
    wrong = np.nan_to_num(guess(broken).numpy(), nan=-1e9, posinf=-1e9, neginf=-1e9)  # black, as viewers show it
    counts = [np.isfinite(losses).sum() for losses in (before, after)]
    return _symptom("NaN", rows(colours(wrong), model), counts, record["reason"] or "", steps=RUN.steps)


def too_good() -> Symptom:
    """The network is shown what it shall guess: the mask is in the loss, and not in the input."""
    (model, losses), (sound, honest) = train(RUN, hide_from_input=False), train()
    hidden = [m.loss(guess(m), *task()[2:]) for m in (model, sound)]
    facts = {"wrong": np.mean(losses[-5:]), "usual": np.mean(honest[-5:]), "steps": RUN.steps}
    return _symptom("too good to be true", rows(model, sound), hidden, **facts)


def low_knn() -> Symptom:
    """Features compared by dot product: a few long vectors are everybody's neighbours."""
    data, many = source(), 2000
    labels, truth = data.train.labels[:many], data.val.labels
    with one_thread(torch.device("cpu")):
        sets = (data.train.images[:many], data.val.images)
        bank, asked = (features(scenes_network(), images, data.mean, data.std)[0] for images in sets)
        angles = F.normalize(asked, dim=1) @ F.normalize(bank, dim=1).T
        by_dot, by_angle = (near.topk(NEIGHBOURS, dim=1).indices for near in (asked @ bank.T, angles))
        after = knn_probe(bank, labels, asked, truth)["score"]
    before = (torch.as_tensor(labels)[by_dot].mode(dim=1).values.numpy() == truth).mean()
    popular = [100 * near.flatten().bincount().max().item() / len(asked) for near in (by_dot, by_angle)]
    shown = {"query": data.val.images[:SHOWN]}
    for name, near in ((WRONG, by_dot), (RIGHT, by_angle)):
        shown |= {f"{name}:<br>neighbour {k + 1}": data.train.images[near[:SHOWN, k].numpy()] for k in range(2)}
    return _symptom("low kNN", shown, (before, after), neighbours=NEIGHBOURS, wrong=popular[0], right=popular[1])


_ALL = (noise, grey_mush, checkerboard, wrong_colours, loss_does_not_fall, not_a_number, too_good, low_knn)
SYMPTOMS: dict[str, Callable[[], Symptom]] = {make.__name__: make for make in _ALL}


def card(symptom: Symptom) -> str:
    """The symptom as a few lines of Markdown, with its numbers."""
    heads = {"looks": "How it looks", "cause": "Why", "remedy": "What to do"}
    lines = [f"**{head}.** {symptom.texts[part]}." for part, head in heads.items()]
    lines += [f"The library says: `{symptom.says}`."] if symptom.says else []
    numbers = f"**{symptom.before:.3g}** before, **{symptom.after:.3g}** after"
    return "\n\n".join([*lines, f"{symptom.texts['measure']}: {numbers}."])
