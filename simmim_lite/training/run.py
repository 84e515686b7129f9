"""A pretraining run as data: what defines it (Run), what came of it (Record), and the atomic write. No torch here."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, unknown
from ..model.masking import STRATEGIES, hidden_count
from ..model.sizes import SIZES, odd_quarter

#: Raised whenever the same Run would give other numbers; part of every key (a golden curve is tested).
RECIPE_VERSION = 1
#: Raised whenever a reader of records has to change.
SCHEMA_VERSION = 1

TARGETS = ("raw", "normalized")
PRECISIONS = ("fp32", "bf16")
AUGMENTATIONS = ("none", "flip", "crop+flip")
#: A crop of the picture at its own size, decoded as training goes; `crop+flip` crops what was decoded at `image_size`.
PICTURE_CROP = "picture-crop+flip"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pretraining run; equal runs give equal numbers (DESIGN 2).

    `steps=0` is the network at random initialisation: it is validated and probed, never trained, and is the reference
    that every transfer score is compared with. Recipe defaults follow FACTS 3 where a small run can.
    """

    model: str = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: str = "scenes"  # scenes | imagefolder:DIR | inaturalist:DIR | packed:DIR | torchvision:NAME | hf:NAME
    images: int | None = None  # unique training images; None = all there are
    steps: int = 1000  # optimiser steps (iterations)
    seed: int = 0  # initialisation, order, augmentation, training masks
    subset_seed: int | None = None  # draws the subset; None = seed
    batch_size: int = 64  # global: images per optimiser step over all processes
    image_size: int = 32  # pixels a side
    window_size: int = 4  # tokens a side
    mask_patch: int = 8  # pixels a side
    mask_ratio: float = 0.6  # share of cells hidden, in (0, 1)
    mask_strategy: str = "random"  # random | square | block
    target: str = "raw"  # raw | normalized
    target_window: int | None = None  # pixels, odd; None = the odd number nearest to image_size / 4
    augment: str = "flip"  # none | flip | crop+flip | picture-crop+flip (at full size, decoded as training goes)
    statistics: str = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    lr: float = 6e-3  # peak learning rate at this batch size
    warmup_steps: int = 50  # linear, from lr / 200
    weight_decay: float = 0.05  # AdamW, matrices only
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float = 5.0  # global gradient norm
    drop_path: float = 0.0  # rate of the last block; earlier blocks linear from 0
    precision: str = "fp32"  # fp32 | bf16 (autocast)
    eval_every: int = 250  # steps between validations on the curve
    val_images: int = 1024  # validation images
    val_masks: int = 4  # masks an image (K)
    probe_labels: int = 3000  # labelled images for the frozen-feature probes; 0 = no probes
    probe_test: int = 2000  # labelled test images for the probes
    recipe_version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "data", self.data.rstrip("/") or self.data)  # one folder, one key
        check_run(self)

    @property
    def draw(self) -> int:
        """Seed of the subset draw."""
        return self.seed if self.subset_seed is None else self.subset_seed

    @property
    def streamed(self) -> bool:
        """Whether its pictures are decoded as training goes."""
        return self.augment == PICTURE_CROP

    @property
    def norm_window(self) -> int:
        """Window of the normalised target, in pixels: as given, else the odd number nearest to side / 4."""
        return self.target_window or odd_quarter(self.image_size)

    @property
    def drop_step(self) -> int:
        """First step at a tenth of the learning rate: floor(7 T / 8). The trunk that lengths share ends here."""
        return 7 * self.steps // 8

    @property
    def key(self) -> str:
        """Readable, unique, and a function of every field: `pico-scenes-n64-t1000-s0-1f2e3d4c5b`."""
        n = "all" if self.images is None else self.images
        what = f"{self.model.removeprefix('swinv2_')}-{data_slug(self.data)}"
        return f"{what}-n{n}-t{self.steps}-s{self.seed}-{digest(self.to_dict())}"

    @property
    def trunk_key(self) -> str:
        """Equal for runs that differ in length alone: they share every step before `drop_step`."""
        shared = {k: v for k, v in self.to_dict().items() if k != "steps"}
        return f"{self.model.removeprefix('swinv2_')}-trunk-s{self.seed}-{digest(shared)}"

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, then x0.1 from `drop_step` on (FACTS 3)."""
        warm = self.lr / 200 + (self.lr - self.lr / 200) * min(1.0, step / max(1, self.warmup_steps))
        return warm * (0.1 if step >= self.drop_step else 1.0)

    def to_dict(self) -> dict:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, fields: dict) -> "Run":
        """The inverse of `to_dict`; a field this version does not know is an error that names it."""
        check_names(cls, fields, "run field")
        return cls(**fields)


def data_slug(spec: str) -> str:
    """A source's name as file names have it: `scenes`, `cifar10`, the last folder of `imagefolder:DIR`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", re.split(r"[:/\\]", spec.rstrip("/"))[-1])[:24]


def check_run(run: Run) -> None:
    """Raise `UserError` on the first field that cannot be run, naming field, value and remedy."""
    if run.model not in SIZES:
        raise unknown("model", run.model, SIZES)
    for name, known in (
        ("target", TARGETS),
        ("precision", PRECISIONS),
        ("augment", (*AUGMENTATIONS, PICTURE_CROP)),
        ("mask_strategy", STRATEGIES),
        ("statistics", ("dataset", "imagenet")),
    ):
        if getattr(run, name) not in known:
            raise unknown(name, getattr(run, name), known)
    whole = {
        "steps": 0,
        "seed": 0,
        "batch_size": 1,
        "warmup_steps": 0,
        "eval_every": 1,
        "val_images": 2,
        "val_masks": 1,
    }
    whole |= {"probe_labels": 0, "probe_test": 2, "image_size": 1, "window_size": 1, "mask_patch": 1}
    for name, least in whole.items():
        value = getattr(run, name)
        if not _whole(value, least):
            raise UserError(f"{name} is {value!r}: give a whole number from {least} to below 2**63")
    for name, least in (("images", 1), ("subset_seed", 0)):
        value = getattr(run, name)
        if value is not None and not _whole(value, least):
            raise UserError(f"{name} is {value!r}: give a whole number from {least} to below 2**63, or None")
    for name, low, high in (("mask_ratio", 0, 1), ("lr", 0, 10), ("clip_grad", 0, math.inf)):
        value = getattr(run, name)
        if not isinstance(value, (int, float)) or not low < value < high:
            raise UserError(f"{name} is {value!r}: give a number above {low} and below {high}")
    for name in ("drop_path", "weight_decay"):
        value = getattr(run, name)
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise UserError(f"{name} is {value!r}: give a number from 0 to below 1")
    if run.target_window is not None and (run.target_window < 3 or run.target_window % 2 == 0):
        raise UserError(f"target_window is {run.target_window}: give an odd number of at least 3")
    if run.streamed and run.probe_labels:
        raise UserError(
            f"probe_labels is {run.probe_labels}: with augment {PICTURE_CROP} no training image is decoded ahead to "
            "probe with; give probe_labels 0 and score the run with simmim-lite transfer"
        )
    SIZES[run.model].check_input(run.image_size, run.window_size, run.mask_patch)
    cells = (run.image_size // run.mask_patch) ** 2
    if hidden_count(cells, run.mask_ratio) >= cells:
        raise UserError(
            f"mask_ratio {run.mask_ratio} hides all {cells} cells of {run.mask_patch} px: nothing is left to see; "
            "use a lower ratio or a smaller mask_patch"
        )


def new_record(run: Run, *, status: str, reason: str | None = None, **parts: object) -> dict:
    """A Record: the run, its cost, curve, final numbers, transfer scores and where it ran; one JSON file when written.

    A failed run has a status and a reason, and never a number.
    """
    record = {"schema": SCHEMA_VERSION, "kind": "pretrain", "key": run.key, "status": status, "reason": reason}
    record["run"] = run.to_dict()
    return record | parts


def record_path(runs_dir: str | Path, run: Run) -> Path:
    """Where the record of a run lies: RUNS_DIR/records/KEY.json."""
    return Path(runs_dir) / "records" / f"{run.key}.json"


def transfer_path(runs_dir: str | Path, key: str) -> Path:
    """Where the record of a transfer lies: RUNS_DIR/transfer/KEY.json."""
    return Path(runs_dir) / "transfer" / f"{key}.json"


def read_record(path: str | Path) -> dict | None:
    """The record at a path, or None when there is none; one line when the file is not a record."""
    try:
        record = json.loads(Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable record ({error}); delete the file and run again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA_VERSION or "where" not in record:
        raise UserError(f"{path}: not a record of schema {SCHEMA_VERSION}; delete the file and run again")
    return record


def current_record(path: str | Path, data_digest: str) -> dict | None:
    """The record at a path if it was made from the images of this digest, else None."""
    record = read_record(path)
    return record if record is not None and record["where"]["data_digest"] == data_digest else None


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write a file whole or not at all: a temporary file beside it, flushed to disk, then renamed over it."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}"
        file = temporary.open("wb")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Delete what a killed write left beside a file, or in a whole folder. Call it under a lock."""
    for path in folder.glob(f".{name}*"):
        if _UNFINISHED.search(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


_UNFINISHED = re.compile(r"\.\d+\.\d+$")  # process and thread, as write_atomic names its temporary files


def write_record(path: str | Path, record: dict) -> None:
    """Write a record atomically. NaN and infinity are refused: a failed run carries no numbers."""
    write_atomic(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def cannot_write(path: Path, error: OSError) -> UserError:
    """One line for a full disk, a read-only folder, a file where a folder should be."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free some space or choose another --runs-dir "
        "(finished runs are kept)"
    )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def check_names(kind: type, fields: Iterable[str], what: str) -> None:
    """Raise `UserError` on the first name that is no field of a dataclass."""
    names = [f.name for f in dataclasses.fields(kind)]
    for name in fields:
        if name not in names:
            raise unknown(what, name, names)


def digest(fields: dict) -> str:
    """Ten hexadecimal digits of plain JSON types: the end of every key."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]
