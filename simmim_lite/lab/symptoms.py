"""Is this normal? Eight things that go wrong, each made on purpose in seconds, and undone by its remedy.

Every function returns a `Symptom`: how it looks, why, what to do, one number before and after the remedy, and pictures.
The pictures are scenes; the healthy network is the one that ships for them, the sick ones are trained on the spot.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from ..model.simmim import create_model
from ..model.weights import load_weights
from ..training.machine import one_thread
from ..training.pretrain import pretrain
from ..training.probes import NEIGHBOURS, features, knn_probe
from .patients import RUN, SHOWN, colours, guess, healthy, mean_costs, off, paste, source, task, train, where
from .pictures import hide


@dataclass(frozen=True)
class Symptom:
    """One symptom, with its reproduction. `rows`: {name: uint8 (N, 3, 32, 32)}, the symptom in row `WRONG`."""

    name: str
    looks: str
    cause: str
    remedy: str
    measure: str  # what `before` and `after` are, with the unit
    before: float
    after: float
    rows: dict[str, np.ndarray]
    says: str = ""  # what the library prints, where it notices by itself


WRONG, RIGHT = "like this", "after the<br>remedy"


def rows(wrong: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """The usual four rows of pictures."""
    images, cells, _, _ = task()
    return {"picture": images, "what the<br>network sees": hide(images, cells), WRONG: wrong, RIGHT: right}


def noise() -> Symptom:
    """Weights that never arrived: `strict=False` passes over names that do not fit, and says nothing."""
    trained, about = healthy()
    file = {f"ema.{name}": tensor for name, tensor in trained.state_dict().items()}  # as some wrapper saved it
    deaf, fine = (create_model(about["model"], 32, about["window"], target="raw", seed=0) for _ in range(2))
    deaf.load_state_dict(file, strict=False)
    says = str(load_weights(fine, file))
    wrong, right = (colours(guess(model.eval())) for model in (deaf, fine))
    return Symptom(
        "noise",
        "coloured noise or a weave in every hidden cell, the same at every step of training",
        "the weights were not loaded: names in the file carry a prefix, and `strict=False` passed over all of them",
        "load strictly, or with `simmim_lite.load_weights`, which takes prefixes off and names what is missing",
        "distance from the true pixels (grey levels of 255)", off(wrong), off(right), rows(paste(wrong), paste(right)),
        says,
    )  # fmt: skip


def grey_mush() -> Symptom:
    """A locally normalised target, shown as if it were pixels: even the perfect answer would look like that."""
    model, _ = train(replace(RUN, target="normalized"))
    sound, _ = healthy()
    wrong, right = colours(guess(model)), colours(guess(sound))
    perfect = colours(model.make_target(task()[2]))
    shown = rows(paste(wrong), paste(right))
    shown["the perfect answer,<br>shown like this"] = paste(perfect)
    return Symptom(
        "grey mush",
        "flat grey, or edges without colours: a perfect answer shown this way is no better",
        "the target is each pixel against its own window, in standard deviations; that is no colour",
        "give the window's mean and deviation back (those of the true picture leak the answer), or use target='raw'",
        "colourfulness of the hidden part (largest minus smallest channel, grey levels)",
        _colourful(wrong), _colourful(right), shown,
    )  # fmt: skip


def _colourful(pictures: np.ndarray) -> float:
    spread = pictures.max(1).astype(float) - pictures.min(1)
    return float(spread[where()[:, 0]].mean())


def checkerboard() -> Symptom:
    """A head whose channels are read in another order than they were trained in."""
    _, _, x, tokens = task()
    model, _ = healthy()
    side = model.stride
    with torch.inference_mode():
        head = model.decoder[0](model.encode(x, tokens))  # (N, 3 * side^2, h, w)
        n, _, h, w = head.shape
        # trained colour-major (3, side, side), read as (side, side, 3)
        swapped = head.view(n, side, side, 3, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, 3, h * side, w * side)
    wrong, right = colours(swapped), colours(guess(model))
    return Symptom(
        "checkerboard",
        "a weave that repeats in every token, light and dark in the right places and all colour gone",
        "the head's channels are colour-major (3, s, s), and were read as (s, s, 3): weights of one code in another",
        "use the pixel shuffle that the weights were trained with; `load_weights` keeps the order",
        "difference of neighbouring pixels (grey levels)",
        _rough(wrong), _rough(right), rows(paste(wrong), paste(right)),
    )  # fmt: skip


def _rough(pictures: np.ndarray) -> float:
    inside = where()[..., 1:] & where()[..., :-1]
    return float(np.abs(np.diff(pictures.astype(float), axis=-1))[np.broadcast_to(inside, (SHOWN, 3, 32, 31))].mean())


def wrong_colours() -> Symptom:
    """Network units shown as if they were colours."""
    model, _ = healthy()
    predicted = guess(model)
    wrong, right = colours(predicted, (0.0,) * 3, (1.0,) * 3), colours(predicted)
    return Symptom(
        "wrong colours",
        "right shapes in glaring colours on black",
        "the input was normalised, so the output is in standard deviations: mean and deviation were not put back",
        "x * std + mean with the same numbers as the input: the data's own, or ImageNet's, never a mixture",
        "distance from the true pixels (grey levels of 255)", off(wrong), off(right), rows(paste(wrong), paste(right)),
    )  # fmt: skip


def loss_does_not_fall() -> Symptom:
    """A learning rate a thousand times too low; a mask that hides everything ends the same way, and is refused."""
    slow, before = train(replace(RUN, lr=RUN.lr / 1000))
    model, after = train()
    try:
        replace(RUN, mask_ratio=0.97)
        says = ""
    except UserError as error:
        says = str(error)
    return Symptom(
        "loss does not fall",
        f"a flat line near {mean_costs():.2f}, which is what predicting the mean costs; hidden cells keep the noise of "
        "the first step",
        "the learning rate is far too low (or frozen weights, or nothing visible to predict from)",
        "raise it until the first 50 steps fall clearly; check that a second batch gives another loss",
        "loss after 50 steps, of that at the start (1 = nothing learned)",
        np.mean(before[-5:]) / np.mean(before[:5]), np.mean(after[-5:]) / np.mean(after[:5]),
        rows(paste(colours(guess(slow))), paste(colours(guess(model)))), says,
    )  # fmt: skip


def not_a_number() -> Symptom:
    """A learning rate far too high: the library stops the run, says at which step, and keeps no number."""
    wild = replace(RUN, lr=9.0, clip_grad=1e9, warmup_steps=5)
    with tempfile.TemporaryDirectory() as folder:
        record = pretrain(wild, runs_dir=folder, device="cpu", data=source())
    broken, before = train(wild)
    model, after = train()
    wrong = np.nan_to_num(guess(broken).numpy(), nan=-1e9, posinf=-1e9, neginf=-1e9)  # black, as viewers show it
    counts = [float(np.isfinite(losses).sum()) for losses in (before, after)]
    return Symptom(
        "NaN",
        "the curve ends; the prediction is black, or no picture at all",
        "a learning rate far too high, gradients that are not clipped, or half precision where it overflows",
        "a lower peak learning rate, a warm-up, clip_grad=5; fp32 to tell rounding from divergence",
        f"steps with a finite loss, of {RUN.steps}", *counts,
        rows(paste(colours(wrong)), paste(colours(guess(model)))), record["reason"] or "",
    )  # fmt: skip


def too_good() -> Symptom:
    """The network is shown what it shall guess: the mask is in the loss, and not in the input."""
    (model, losses), (sound, honest) = train(RUN, hide_from_input=False), train()
    x, tokens = task()[2:]
    before, after = (float(m.loss(guess(m), x, tokens)) for m in (model, sound))
    return Symptom(
        "too good to be true",
        f"a training loss of {np.mean(losses[-5:]):.2f} after {RUN.steps} steps, where {np.mean(honest[-5:]):.2f} is "
        "usual; one and the same meaningless patch wherever pixels are really hidden",
        "the mask is applied in the loss alone: the network copies what it sees",
        "replace hidden tokens before the first block; change hidden pixels, and see that no output moves",
        "loss where the hidden part is really hidden (standard deviations)", before, after,
        rows(paste(colours(guess(model))), paste(colours(guess(sound)))),
    )  # fmt: skip


def low_knn() -> Symptom:
    """Features compared by dot product: a few long vectors are everybody's neighbours. Whitened ones tell more."""
    model, about = healthy()
    untrained = create_model(about["model"], 32, about["window"], target="raw", seed=0)
    data, many = source(), 2000
    labels, truth = data.train.labels[:many], data.val.labels
    with one_thread(torch.device("cpu")):
        (bank, asked), start = (
            [features(m, part.images[:many], data.mean, data.std)[0] for part in (data.train, data.val)]
            for m in (model, untrained)
        )
        near = (asked @ bank.T).topk(NEIGHBOURS, dim=1).indices
        votes = torch.zeros(len(asked), 10).scatter_add_(1, torch.as_tensor(labels)[near], torch.ones(near.shape))
        white, chance = whiten(bank, asked), whiten(*start)
        cosine, after, random = (knn_probe(a, labels, b, truth)["score"] for a, b in ((bank, asked), white, chance))
        by_angle = (F.normalize(white[1], dim=1) @ F.normalize(white[0], dim=1).T).topk(NEIGHBOURS, dim=1).indices
    popular = [100 * i.flatten().bincount().max().item() / len(asked) for i in (near, by_angle)]
    shown = {"query": data.val.images[:SHOWN]}
    for name, found in ((WRONG, near), (RIGHT, by_angle)):
        shown |= {f"{name}:<br>neighbour {k + 1}": data.train.images[found[:SHOWN, k].numpy()] for k in range(2)}
    return Symptom(
        "low kNN",
        f"near chance (10 %), and the same few pictures are everyone's neighbours: one is among the {NEIGHBOURS} "
        f"nearest of {popular[0]:.0f} % of all queries ({popular[1]:.0f} % after the remedy)",
        "features compared by dot product: the longest vectors win; by cosine, a few strong directions still do",
        f"cosine ({cosine:.2f} here), better of whitened features; judge it by the same network untrained "
        f"({random:.2f}, whitened too). Masked image modelling does not spread its features evenly: a low kNN beside a "
        "fair linear probe is normal",
        "kNN accuracy (share; chance is 0.1)", float((votes.argmax(1).numpy() == truth).mean()), after, shown,
    )  # fmt: skip


def whiten(bank: Tensor, asked: Tensor, keep: int = 64) -> tuple[Tensor, Tensor]:
    """Both sets of features (n, C) along the bank's `keep` strongest directions, each at unit variance."""
    mean, scale = bank.mean(0), bank.std(0).clamp_min(1e-6)
    z = (bank - mean) / scale
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    turn = vectors[:, -keep:] / values[-keep:].clamp_min(1e-6).sqrt()
    return z @ turn, ((asked - mean) / scale) @ turn


SYMPTOMS: dict[str, Callable[[], Symptom]] = {
    f.__name__: f
    for f in (noise, grey_mush, checkerboard, wrong_colours, loss_does_not_fall, not_a_number, too_good, low_knn)
}


def card(symptom: Symptom) -> str:
    """The symptom as a few lines of Markdown, with its numbers."""
    said = {"How it looks": symptom.looks, "Why": symptom.cause, "What to do": symptom.remedy}
    lines = [f"**{name}.** {_sentence(text)}." for name, text in said.items()]
    if symptom.says:
        lines.append(f"The library says: `{symptom.says}`.")
    numbers = f"**{symptom.before:.3g}** before, **{symptom.after:.3g}** after"
    return "\n\n".join([*lines, f"{_sentence(symptom.measure)}: {numbers}."])


def _sentence(text: str) -> str:
    """Begun with a capital, unless with a name that has its own writing (kNN, x)."""
    first = text.split()[0]
    return text if len(first) == 1 or any(c.isupper() for c in first[1:]) else text[0].upper() + text[1:]
