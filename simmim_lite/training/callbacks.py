"""What watches a run in training: its journal, JSON lines that anybody may follow (TensorBoard and Weights & Biases are
told the same), and its film, the same pictures under the same masks again and again. No torch until a film is made.

RUNS_DIR/running/KEY.jsonl has a line for every start of the run and one for every point, until there is a record."""

import contextlib
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from ..data.sources import Data
from ..errors import Everywhere, UserError, first_line, unknown
from ..model.masking import upsample
from ..processes import device_name, tell
from .run import Run, write_atomic

JOURNAL_VERSION, FILM_VERSION = 1, 1
EVERY = 1.0  # seconds between two points of the training loss, at least
PICTURES = 6  # of a film: the first ones of the validation images, nobody picks them
_CHUNK = "simmim-lite film"  # name of the text chunk


def journal_path(runs_dir: str | Path, key: str) -> Path:
    """Where the journal of a run in progress lies."""
    return Path(runs_dir) / "running" / f"{key}.jsonl"


def film_path(runs_dir: str | Path, run: Run) -> Path:
    """Where the film of a run lies."""
    return Path(runs_dir) / "films" / f"{run.key}.png"


def this_machine() -> str:
    """Eight hexadecimal digits that tell machines apart, and say nothing else about them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


class Journal(contextlib.AbstractContextManager):
    """The callback that tells the writers of a run, the journal and those named in `log`; the main process alone has
    one. A writer that fails is left out, which is said on stderr."""

    def __init__(self, runs_dir: str | Path, run: Run, log: Iterable[str] = ()):
        self.run, self.runs_dir, self.log, self.writers = run, Path(runs_dir), dict.fromkeys(("journal", *log)), {}

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._tell(1, kind is not None)

    def on_train_start(self, trainer) -> None:
        about = {"start": trainer.step, "curve": trainer.curve, "version": JOURNAL_VERSION, "run": self.run.to_dict()}
        about |= {"pid": os.getpid(), "machine": this_machine(), "device": device_name(trainer.group.device)}
        about["processes"] = trainer.group.size
        for name in self.log:
            with self._left_out_if_it_fails(name):
                self.writers[name] = WRITERS[name](self.runs_dir, self.run.key, about)
        self.last, self.clock = trainer.step, time.monotonic()  # the last point: its step, and when it was

    def on_step_end(self, trainer) -> None:
        if trainer.at_point() or (trainer.looks() and time.monotonic() - self.clock >= EVERY):
            self.point(trainer.step, train_loss=trainer.losses[self.last : trainer.step].mean().item())

    def on_validation_end(self, trainer, val_loss: float) -> None:
        self.point(trainer.step, val_loss=val_loss)

    def point(self, step: int, **numbers: float) -> None:
        """After `step` steps `train_loss`, the mean since the last point, or `val_loss`, whose time is not the
        training's."""
        now = time.monotonic()
        if "train_loss" in numbers:
            images = (step - self.last) * self.run.batch_size
            numbers["images_per_second"], self.last = images / max(1e-9, now - self.clock), step
        self.clock = now
        about = {"step": step, "images_seen": step * self.run.batch_size, "lr": self.run.lr_at(step - 1)}
        self._tell(0, about | numbers)

    def _tell(self, which: int, about: object) -> None:
        for name, functions in list(self.writers.items()):
            with self._left_out_if_it_fails(name):
                functions[which](about)

    @contextlib.contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever another library raises, the run is worth more
            self.writers.pop(name, None)
            tell(f"{name} is left out ({first_line(error)}); the run goes on")


def _journal(runs_dir: Path, key: str, about: dict) -> tuple[Callable, Callable]:
    path = journal_path(runs_dir, key)
    path.parent.mkdir(parents=True, exist_ok=True)

    def point(line: dict, torn: bool = False) -> None:
        with path.open("ab", buffering=0) as file:
            file.write(b"\n" * torn + json.dumps(line | {"time": time.time()}).encode() + b"\n")

    point(about, torn=path.exists())  # what was there may end in half a line
    return point, lambda failed: None


def _tensorboard(runs_dir: Path, key: str, about: dict) -> tuple[Callable, Callable]:
    """Scalars in RUNS_DIR/tensorboard/KEY, by step; a resumed run overwrites what it takes again."""
    from torch.utils.tensorboard import SummaryWriter

    folder = runs_dir / "tensorboard" / key
    first = not any(folder.glob("events*"))
    writer = SummaryWriter(str(folder), purge_step=None if first else about["start"] + 1, flush_secs=10)

    def point(line: dict) -> None:
        for name, value in _numbers(line).items():
            writer.add_scalar(name, value, line["step"])

    for line in about["curve"] if first else ():  # of the trunk that this run branches off
        point(line)
    return point, lambda failed: writer.close()


def _wandb(runs_dir: Path, key: str, about: dict) -> tuple[Callable, Callable]:
    """A run of project `simmim-lite` with the id KEY; WANDB_MODE, WANDB_DIR and the rest are the user's own. A run that
    was stopped goes on under the same id."""
    import wandb

    runs_dir.mkdir(parents=True, exist_ok=True)
    how = {"project": os.environ.get("WANDB_PROJECT", "simmim-lite"), "id": key, "name": key, "resume": "allow"}
    quiet = wandb.Settings(silent=True, console="off", init_timeout=60, login_timeout=10)
    session = wandb.init(**how, dir=os.environ.get("WANDB_DIR", str(runs_dir)), config=about["run"], settings=quiet)
    session.define_metric("*", step_metric="images_seen")  # runs of different batches compare

    def point(line: dict) -> None:
        session.log({"images_seen": line["images_seen"], "step": line["step"], **_numbers(line)})

    for line in () if session.resumed else about["curve"]:
        point(line)
    return point, lambda failed: session.finish(exit_code=int(failed))


#: Who is told of a run: (runs_dir, key, first line of the journal) -> what is called with every other line, and at the
#: end, with whether the run was stopped.
WRITERS = {"journal": _journal, "tensorboard": _tensorboard, "wandb": _wandb}


def _numbers(line: dict) -> dict[str, float]:
    """The numbers of a point, without what says where it lies; none that are missing."""
    return {k: v for k, v in line.items() if k not in ("step", "images_seen") and v is not None}


def check_writers(names: Sequence[str]) -> None:
    """`UserError` for a writer that is unknown or not installed."""
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise unknown("log", name, ("tensorboard", "wandb"))
        if importlib.util.find_spec(name) is None:
            raise Everywhere(f"log {name}: {name} is not installed; pip install {name} (or 'simmim-lite[log]')")


@dataclass
class InProgress:
    """What a journal says: the run, where it runs, and its points so far, by step."""

    run: Run
    start: int  # step that it last started after
    started: float  # when, seconds since 1970
    time: float  # of the last line
    machine: str
    points: list[dict]

    @property
    def step(self) -> int:
        """Steps done, as far as it was said."""
        return max([self.start, *(point["step"] for point in self.points)])


def read_journal(path: str | Path) -> InProgress | None:
    """What a journal says; None where there is none, or none that this version can read. Points beyond the step that a
    run went on from are dropped, those of its trunk are taken from its curve, and a torn line is passed over."""
    try:
        # what follows the last end of a line is torn
        lines = Path(path).read_bytes().split(b"\n")[:-1] if Path(path).is_file() else []
    except OSError:
        return None
    found = None
    for text in lines:
        # torn, or of another version
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            line = json.loads(text)
            said = line.get("curve", [line])  # points: all that they say is numbers, steps and time among them
            finite = all(map(math.isfinite, (line["time"], *(p["step"] for p in said))))
            if not (finite and all(one is None or isinstance(one, int | float) for p in said for one in p.values())):
                raise ValueError(line)
            if "start" not in line and found:
                found.time = line["time"]
                found.points.append(line)
            elif line["version"] == JOURNAL_VERSION:
                start = int(line["start"])
                points = [p for p in found.points if p["step"] <= start] if found else []
                known = {p["step"] for p in points if p.get("val_loss") is not None}
                points += [p for p in line["curve"] if p["step"] not in known]
                points.sort(key=lambda p: p["step"])
                now = line["time"]
                found = InProgress(Run.from_dict(line["run"]), start, now, now, line["machine"], points)
    return found


@dataclass(frozen=True)
class Film:
    """One PNG: the first row of the sheet holds the pictures, every other one a frame; the facts are a text chunk."""

    facts: dict  # plain JSON: kind (`run` or `grid`), run, cells (P, h, w), frames [{step, val_loss, each, …}], …
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


def read_film(path: str | Path) -> Film:
    """The film in a file; one line when there is none, or when it is something else or not whole."""
    try:
        with Image.open(path) as image:
            pixels, facts = np.asarray(image.convert("RGB")), json.loads(image.text[_CHUNK])
        side, columns = facts["side"], len(facts["cells"])
        sheet = np.ascontiguousarray(pixels.reshape(-1, side, columns, side, 3).transpose(0, 2, 4, 1, 3))
        if facts["version"] != FILM_VERSION or len(sheet) != len(facts["frames"]) + 1:
            raise ValueError("made by another version")
    except (OSError, ValueError, KeyError, SyntaxError, AttributeError) as error:  # pillow raises all of these
        why = first_line(error)[:120]
        raise UserError(f"{path}: no readable film ({why}); delete the file and film again, film=12") from error
    return Film(facts, sheet[0], sheet[1:])


def film_steps(run: Run, frames: int) -> tuple[int, ...]:
    """At which steps a film of about so many frames looks: dense at first, the drop of the learning rate, the end."""
    if frames < 3:
        raise UserError(f"film is {frames}: give a number of frames of at least 3, or 0 for no film")
    spread = (round(run.steps * (k / (frames - 2)) ** 2.5) for k in range(frames - 1))
    return tuple(sorted({*spread, run.drop_step}))


def filmed(run: Run, data: Data) -> tuple[np.ndarray, np.ndarray, dict]:
    """What is filmed: the first validation images uint8 (P, 3, S, S), their first masks, cells bool (P, h, w), and what
    the facts say of them."""
    from ..data.batches import validation_masks

    if run.target != "raw":
        raise UserError(f"target '{run.target}' is no colours, so there is nothing to film: use target='raw'")
    if run.channels != 3:
        raise UserError(f"channels is {run.channels}, and a film shows colours: leave it out")
    ids, grid = np.asarray(data.val.ids[:PICTURES]), (run.image_size // run.mask_patch,) * 2
    cells = validation_masks(grid, run.mask_ratio, run.mask_strategy, ids, 0)
    facts = {"version": FILM_VERSION, "side": run.image_size, "cells": cells.astype(int).tolist(), "run": run.to_dict()}
    return np.array(data.val.images[:PICTURES]), cells, facts


def fill_in(model, pictures: np.ndarray, cells: np.ndarray, mean: tuple, std: tuple) -> tuple[np.ndarray, list[float]]:
    """Pictures uint8 (P, 3, S, S) with hidden pixels as the model fills them in, and the loss of each. cells bool
    (P, h, w), True = hidden; mean, std: of the input, in 0..1 units. A normalised prediction becomes colours by the
    statistics of the visible pixels around. The model is left as it was."""
    import torch

    from ..data.batches import normalise
    from ..model.simmim import local_statistics

    device, was_training = next(model.parameters()).device, model.training
    x = normalise(pictures, mean, std, device)
    tokens = upsample(cells, x.shape[-1] // model.patch_size // cells.shape[-1])
    mask, hidden = torch.from_numpy(tokens).to(device), upsample(tokens, model.patch_size)[:, None]
    model.eval()
    with torch.inference_mode():
        guess = model.reconstruct(x, mask).float()
        each = model.loss(guess, x, mask, per_image=True).tolist()
        if model.target != "raw":
            level, variance = local_statistics(x, model.target_window, torch.from_numpy(~hidden).to(device).float())
            guess = guess * (variance + 1e-6).sqrt() + level
    model.train(was_training)
    colours = guess.cpu().numpy() * np.reshape(std, (1, -1, 1, 1)) + np.reshape(mean, (1, -1, 1, 1))
    colours = (np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.where(hidden, colours, pictures), each


class Camera:
    """Films a run, and writes the file after every frame; a resumed run goes on with those that are there. All
    processes have one, to validate together (`validate`), and the main one looks."""

    def __init__(self, path: Path, run: Run, data: Data, statistics: tuple, frames: int, validate: Callable, main=True):
        self.path, self.steps, self.validate, self.main = path, film_steps(run, frames), validate, main
        self.pictures, self.cells, facts = filmed(run, data)
        self.statistics, self.facts = statistics, {"kind": "run", "key": run.key, "data_digest": data.digest, **facts}
        self.frames: dict[int, tuple[dict, np.ndarray]] = {}
        with contextlib.suppress(UserError):  # none there, or it is made anew
            film = read_film(path)
            if (film.facts["key"], film.facts["data_digest"]) == (run.key, data.digest):
                self.frames = {f["step"]: (f, p) for f, p in zip(film.facts["frames"], film.frames, strict=True)}

    def on_step_start(self, trainer) -> None:
        if trainer.step in self.steps:
            self.look(trainer.net.whole(), trainer.step, self.validate()[0])

    def look(self, model, now: int, val_loss: float, **more: object) -> None:
        """Keep the frame after so many steps, and write what there is; more: facts that are known at the end."""
        self.facts |= more
        if not self.main:
            return
        frame, each = fill_in(model, self.pictures, self.cells, *self.statistics)
        if np.isfinite([val_loss, *each]).all():  # else the run is about to fail, and says so itself
            self.frames[now] = {"step": now, "val_loss": val_loss, "each": each}, frame
            facts, frames = zip(*(self.frames[step] for step in sorted(self.frames)), strict=True)
            facts = self.facts | {"frames": list(facts)}
            write_atomic(self.path, Film(facts, self.pictures, np.stack(frames)).png())
