"""Films: the same pictures under the same masks through a run, or across runs, each film one PNG: the first row of the
sheet holds the pictures, every other row is a frame, and the facts travel in a text chunk."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from ..data.batches import normalise, validation_masks
from ..data.sources import Data
from ..errors import UserError, first_line
from ..model.masking import upsample
from ..model.simmim import SimMIM
from .run import Run, remove_unfinished, write_atomic
from .train import Training

FILM_VERSION = 1
PICTURES = 6  # the first ones of the validation images: nobody picks them
_CHUNK = "simmim-lite film"  # name of the text chunk


@dataclass(frozen=True)
class Film:
    """`facts` are plain JSON: kind (`run` or `grid`), run, cells (P, h, w), frames [{step, val_loss, each, …}], …"""

    facts: dict
    pictures: np.ndarray  # uint8 (P, 3, S, S)
    frames: np.ndarray  # uint8 (F, P, 3, S, S): hidden pixels filled in, visible ones as they are

    def png(self) -> bytes:
        sheet = np.concatenate([self.pictures[None], self.frames])  # (F + 1, P, 3, S, S)
        rows, columns, _, side, _ = sheet.shape
        pixels = sheet.transpose(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
        info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        info.add_text(_CHUNK, json.dumps(self.facts, allow_nan=False), zip=True)
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True, pnginfo=info)
        return buffer.getvalue()


def film_path(runs_dir: str | Path, run: Run) -> Path:
    """Where the film of a run lies."""
    return Path(runs_dir) / "films" / f"{run.key}.png"


def read_film(path: str | Path) -> Film:
    """The film in a file; one line when there is none, or when it is something else or not whole."""
    if not Path(path).exists():
        raise UserError(f"{path}: no film; make one with pretrain(run, film=12)")
    try:
        with Image.open(path) as image:
            pixels, facts = np.asarray(image.convert("RGB")), json.loads(image.text[_CHUNK])
        side, columns = facts["side"], len(facts["cells"])
        sheet = pixels.reshape(-1, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
        if facts["version"] != FILM_VERSION or len(sheet) != len(facts["frames"]) + 1:
            raise ValueError("made by another version")
    except (OSError, ValueError, KeyError, SyntaxError, AttributeError) as error:  # pillow raises all of these
        why = first_line(error)[:120]
        raise UserError(f"{path}: not a readable film ({why}); delete the file and film again, film=12") from error
    return Film(facts, np.ascontiguousarray(sheet[0]), np.ascontiguousarray(sheet[1:]))


def film_steps(run: Run, frames: int) -> tuple[int, ...]:
    """At which steps a film of about so many frames looks: dense at first, the drop of the learning rate, the end."""
    if frames < 3:
        raise UserError(f"film is {frames}: give a number of frames of at least 3, or 0 for no film")
    spread = (round(run.steps * (k / (frames - 2)) ** 2.5) for k in range(frames - 1))
    return tuple(sorted({*spread, run.drop_step}))


@dataclass(frozen=True)
class Shot:
    """What is filmed: some validation images of a run under their first validation masks, and its statistics."""

    pictures: np.ndarray  # uint8 (P, 3, S, S)
    cells: np.ndarray  # bool (P, h, w), True = hidden
    mean: tuple[float, float, float]  # in 0..1 units
    std: tuple[float, float, float]

    @classmethod
    def of(cls, run: Run, data: Data, mean: tuple, std: tuple) -> "Shot":
        if run.target != "raw":
            raise UserError(f"target '{run.target}' is no colours, so there is nothing to film: use target='raw'")
        ids, grid = np.asarray(data.val.ids[:PICTURES]), (run.image_size // run.mask_patch,) * 2
        cells = validation_masks(grid, run.mask_ratio, run.mask_strategy, ids, 0)
        return cls(np.array(data.val.images[:PICTURES]), cells, mean, std)

    @torch.inference_mode()
    def take(self, model: SimMIM) -> tuple[np.ndarray, list[float]]:
        """A frame, uint8 (P, 3, S, S), and the loss of each picture; the model is left as it was."""
        device, was_training = next(model.parameters()).device, model.training
        x = normalise(self.pictures, self.mean, self.std, device)
        tokens = upsample(self.cells, x.shape[-1] // model.patch_size // self.cells.shape[-1])
        mask = torch.from_numpy(tokens).to(device)
        model.eval()
        guess = model.reconstruct(x, mask).float()
        each = model.loss(guess, x, mask, per_image=True).tolist()
        model.train(was_training)
        colours = guess.cpu().numpy() * np.reshape(self.std, (1, 3, 1, 1)) + np.reshape(self.mean, (1, 3, 1, 1))
        colours = (np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8)
        return np.where(upsample(tokens, model.patch_size)[:, None], colours, self.pictures), each

    def film(self, facts: dict, frames: Sequence[np.ndarray]) -> Film:
        """Frames and what is known of them as a film."""
        about = {"version": FILM_VERSION, "side": self.pictures.shape[-1], "cells": self.cells.astype(int).tolist()}
        return Film({**about, **facts}, self.pictures, np.stack(frames))


class Camera:
    """Films a run while it is trained, and writes the file after every frame; a resumed run goes on with the frames
    that are there. All processes have one, to validate together (`validate`), and the main one looks."""

    def __init__(self, path: Path, run: Run, data: Data, statistics: tuple, frames: int, validate: Callable, main=True):
        self.path, self.steps, self.validate, self.main = path, film_steps(run, frames), validate, main
        self.shot = Shot.of(run, data, *statistics)
        self.facts = {"kind": "run", "key": run.key, "run": run.to_dict(), "data_digest": data.digest}
        self.frames: dict[int, tuple[dict, np.ndarray]] = {}
        if main:
            with contextlib.suppress(UserError):  # none there, or it is made anew
                film = read_film(path)
                if film.facts["data_digest"] == data.digest:
                    self.frames = {f["step"]: (f, p) for f, p in zip(film.facts["frames"], film.frames, strict=True)}
            remove_unfinished(path)

    def on_step_start(self, training: Training) -> None:
        if training.step in self.steps:
            self.look(training.net.whole(), training.step, self.validate()[0])

    def look(self, model: SimMIM, now: int, val_loss: float, **more: object) -> None:
        """Keep the frame after so many steps, and write what there is; more: facts that are known at the end."""
        self.facts |= more
        frame, each = self.shot.take(model) if self.main else (None, [np.nan])
        if np.isfinite([val_loss, *each]).all():  # else the run is about to fail, and says so itself
            self.frames[now] = {"step": now, "val_loss": val_loss, "each": each}, frame
            facts, frames = zip(*(self.frames[step] for step in sorted(self.frames)), strict=True)
            write_atomic(self.path, self.shot.film(self.facts | {"frames": list(facts)}, frames).png())
