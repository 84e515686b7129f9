"""A pretraining run as data: what defines it (Run), how it is executed (Runtime), and the files of a runs folder:
where each lies, records and weights as they are written. No torch here.

The trunk of a run is its steps before the learning rate drops, which runs that differ in length alone share: it is
trained once, and each length branches off with a tail of its own."""

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import UserError, check_writable
from ..files import digest, entries, sealed, write_atomic
from ..model.masking import STRATEGIES, hidden_count
from ..model.sizes import SIZES, nearest_size, short
from ..processes import tell_once
from .specs import Count, OneOf, Positive, Range, Share, Side, Source, Spec, Text, Whole

#: Raised whenever the same Run would give other numbers (part of every key), and whenever a reader of records changes.
RECIPE_VERSION, SCHEMA_VERSION = 1, 1
PRECISIONS = ("fp32", "bf16")
AUGMENTATIONS = ("none", "flip", "crop+flip")
#: A crop of the picture at its own size, decoded as training goes; `crop+flip` crops what was decoded at `image_size`.
PICTURE_CROP = "picture-crop+flip"

Model = Annotated[str, OneOf(SIZES, nearest_size)]
LearningRate = Annotated[float, Range(0, 10, "()")]
Precision = Annotated[str, OneOf(PRECISIONS)]
Statistics = Annotated[str, OneOf(("dataset", "imagenet"))]
_Init = Annotated[str, Text(r"\S(.*\S)?", "a file of weights, hf://OWNER/REPO/PATH, or the key of a finished run")]
#: Weights to begin with whose content is known.
PINNED = re.compile(r"@[0-9a-f]{12}$|-[0-9a-f]{10}$")  # a file with its digest, or a key
AtLeastTwo = Annotated[int, Range(2, 2**63)]


@dataclass(frozen=True, kw_only=True)
class Run(Spec):
    """One pretraining run; equal runs give equal numbers. `steps=0` is the network at random initialisation, which
    every transfer score is compared with. Defaults follow docs/facts.md, 3, where a small run can."""

    model: Model = "swinv2_atto"  # a name in simmim_lite.SIZES
    data: Source = "scenes"  # a source, see `data.sources.FORMATS`
    images: Count | None = None  # unique training images; None = all there are
    steps: Whole = 1000  # optimiser steps (iterations)
    seed: Whole = 0  # initialisation, order, augmentation, training masks
    subset_seed: Whole | None = None  # draws the subset; None = seed
    batch_size: Count = 64  # global: images per optimiser step over all processes
    image_size: Side = 32  # pixels a side
    window_size: Side = 4  # tokens a side
    mask_patch: Side = 8  # pixels a side
    mask_ratio: Annotated[float, Range(0, 1, "()")] = 0.6  # share of cells hidden, in (0, 1)
    mask_strategy: Annotated[str, OneOf(STRATEGIES)] = "random"  # random | square | block
    target: Annotated[str, OneOf(("raw", "normalized"))] = "raw"  # raw | normalized
    target_window: Annotated[int, Range(3, 2**15, odd=True)] | None = None  # pixels; None = nearest to image_size / 4
    augment: Annotated[str, OneOf((*AUGMENTATIONS, PICTURE_CROP))] = "flip"  # picture-crop+flip: as training goes
    statistics: Statistics = "dataset"  # dataset | imagenet: mean and standard deviation of the input
    lr: LearningRate = 6e-3  # peak learning rate at this batch size
    warmup_steps: Whole = 50  # linear, from lr / 200
    weight_decay: Share = 0.05  # AdamW, matrices only
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip_grad: Positive = 5.0  # global gradient norm
    drop_path: Share = 0.0  # rate of the last block; earlier blocks linear from 0
    precision: Precision = "fp32"  # fp32 | bf16 (autocast)
    eval_every: Count = 250  # steps between validations on the curve
    val_images: AtLeastTwo = 1024  # validation images
    val_masks: Count = 4  # masks an image (K)
    probe_labels: Whole = 3000  # labelled images for the frozen-feature probes; 0 = no probes
    probe_test: AtLeastTwo = 2000  # labelled test images for the probes
    recipe_version: Count = RECIPE_VERSION
    init: _Init | None = None  # weights to begin with: a file, hf://OWNER/REPO/PATH or a run's key; None = random
    init_windows: tuple[Count, ...] | None = None  # of each stage of `init`, where they are others; found if it tells

    channels: Annotated[int, Range(1, 16, "[]")] = 3  # of a picture; others than 3 are those of data stacks:DIR

    LATER = ("init", "init_windows", "channels")

    def check(self) -> None:
        """What fields say of each other; a file is known by the digest of its tensors from here on (torch reads it)."""
        if self.init and not PINNED.search(self.init):
            from ..model.weights import pinned

            name, _, windows = pinned(self.init)
            object.__setattr__(self, "init", name)
            if windows and windows != self.windows and self.init_windows is None:
                object.__setattr__(self, "init_windows", windows)
        if self.init_windows and (self.init is None or len(self.init_windows) != len(SIZES[self.model].depths)):
            stages = f"one of {len(SIZES[self.model].depths)} stages each, and init"
            raise UserError(f"init_windows is {self.init_windows}: give {stages}, or leave it out")
        if self.channels != 3 and (self.streamed or self.statistics == "imagenet"):
            raise UserError(f"channels is {self.channels}: augment {PICTURE_CROP} and statistics imagenet are about 3")
        if self.streamed and self.probe_labels:
            why = f"with augment {PICTURE_CROP} no image is decoded ahead to probe with"
            raise UserError(f"probe_labels is {self.probe_labels}: {why}; give 0, and score with simmim-lite transfer")
        SIZES[self.model].check_input(self.image_size, self.window_size, self.mask_patch)
        cells = (self.image_size // self.mask_patch) ** 2
        if hidden_count(cells, self.mask_ratio) >= cells:
            all_of_it = f"mask_ratio {self.mask_ratio} hides all {cells} cells of {self.mask_patch} px"
            raise UserError(f"{all_of_it}: use a lower ratio or a smaller mask_patch")

    @property
    def streamed(self) -> bool:
        """Whether its pictures are decoded as training goes."""
        return self.augment == PICTURE_CROP

    @property
    def windows(self) -> tuple[int, ...]:
        """Tokens a side of the windows that each stage has learnt its positions in."""
        own = (min(self.window_size, grid) for grid in SIZES[self.model].stage_grids(self.image_size))
        return self.init_windows or tuple(own)

    @property
    def drop_step(self) -> int:
        """First step at a tenth of the learning rate: floor(7 T / 8). Here the trunk ends."""
        return 7 * self.steps // 8

    @property
    def identity(self) -> dict:
        """What a key is made of: every field, of `init` the content and not the place."""
        return self.to_dict() | ({"init": self.init.rpartition("@")[2]} if self.init else {})

    @property
    def random(self) -> bool:
        """Whether it is a network at random initialisation, from which scores count."""
        return self.steps == 0 and self.init is None

    @property
    def key(self) -> str:
        """Readable, unique, and a function of every field: `pico-scenes-n64-t1000-s0-1f2e3d4c5b`."""
        n = "all" if self.images is None else self.images
        what = f"{short(self.model)}-{data_slug(self.data)}"
        return f"{what}-n{n}-t{self.steps}-s{self.seed}-{digest(self.identity)}"

    @property
    def trunk_key(self) -> str:
        """Equal for runs that differ in length alone: they share every step before `drop_step`."""
        shared = {k: v for k, v in self.identity.items() if k != "steps"}
        return f"{short(self.model)}-trunk-s{self.seed}-{digest(shared)}"

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, then x0.1 from `drop_step` on (docs/facts.md, 3)."""
        warm = self.lr / 200 + (self.lr - self.lr / 200) * min(1.0, step / max(1, self.warmup_steps))
        return warm * (0.1 if step >= self.drop_step else 1.0)


@dataclass(frozen=True, kw_only=True)
class Runtime(Spec):
    """Options that change speed and memory, and a run's numbers by rounding alone: no part of its key."""

    parallel: Annotated[str, OneOf(("ddp", "fsdp"))] = "ddp"  # ddp, a whole model in each process; fsdp, a part of it
    accumulate: Count = 1  # parts, one after the other, of a process's share of the batch: gradients add up
    checkpointing: bool = False  # recompute blocks in the backward pass: less memory, about a third more time
    compile: bool = False  # torch.compile, block by block


def data_slug(spec: str) -> str:
    """A source's name as file names have it: `scenes`, `cifar10`, the last folder of `imagefolder:DIR`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", re.split(r"[:/\\]", spec.rstrip("/"))[-1])[:24]


def new_record(of: Spec, kind: str = "pretrain", *, status: str, reason: str | None = None, **parts: object) -> dict:
    """A Record: the run (and the spec of a transfer) and what came of it; of a failed one status and reason, and never
    a number."""
    record = {"schema": SCHEMA_VERSION, "kind": kind, "key": of.key, "status": status, "reason": reason}
    fields = of.to_dict()
    return record | ({"run": fields} if kind == "pretrain" else {"run": fields.pop("run"), "spec": fields}) | parts


def check_runs_dir(runs_dir: str | Path, remedy: str = "choose another --runs-dir") -> None:
    """`UserError` where nothing can be written; where something is finished, that is shown all the same."""
    if not any(entries(Path(runs_dir, "records"), "*.json")):
        check_writable(runs_dir, remedy)


def record_path(runs_dir: str | Path, spec: Spec) -> Path:
    """Where the record of a run or a transfer lies."""
    return Path(runs_dir) / ("records" if isinstance(spec, Run) else "transfer") / f"{spec.key}.json"


def transfer_path(runs_dir: str | Path, key: str) -> Path:
    """The same for a transfer of which the key alone is known."""
    return Path(runs_dir) / "transfer" / f"{key}.json"


def weights_path(runs_dir: str | Path, spec: Spec) -> Path:
    """Final weights of a run or a transfer."""
    return Path(runs_dir) / "weights" / f"{spec.key}.safetensors"


def checkpoints(runs_dir: str | Path, key: str) -> Path:
    """The folder of a training's checkpoints: key of a transfer, of a run's tail, or of the trunk that runs share."""
    return Path(runs_dir) / "checkpoints" / key


def write_record(path: str | Path, record: dict) -> None:
    """Write a record atomically. NaN and infinity are refused: a failed run carries no numbers."""
    write_atomic(path, sealed(record))


def save_final(runs_dir: str | Path, spec: Spec, weights: dict) -> None:
    """Write the final weights of a run or a transfer, tensors by name, as safetensors that say whose they are."""
    from safetensors.torch import save

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = f"{spec.key} {zlib.crc32(save(weights)):08x}"  # one text: of several, safetensors draws the order
    write_atomic(weights_path(runs_dir, spec), save(weights, {"of": about}))


def load_final(runs_dir: str | Path, spec: Spec) -> dict:
    """The final weights of a finished run, tensors by name; one line when the file is missing, not whole or not its."""
    from safetensors.torch import load, save

    path = weights_path(runs_dir, spec)
    try:
        weights = load(content := path.read_bytes())
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
        if about is None:
            tell_once(f"{path.parent}: weights of an earlier version, without a checksum, are taken as they are")
        elif about != {"of": f"{spec.key} {zlib.crc32(save(weights)):08x}"}:
            raise ValueError(f"it was changed since it was written, or is of {about.get('of')}")
    except Exception as error:  # a short file fails in many ways
        raise UserError(f"{path}: no readable weights ({error}); delete the run's record, and run again") from error
    return weights
