"""How fast a machine trains each size: given, timed as a training step, or left by a study in RUNS_DIR/machine.json.

Torch only to time.
"""

import contextlib
import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from filelock import FileLock

from ..errors import UserError
from ..evidence.records import short
from ..model.sizes import SIZES, full_name
from ..processes import waiting
from ..training.run import PRECISIONS, Run, write_atomic
from ..training.specs import Positive, Range, read, value

Gpus = Annotated[int, Range(1, 2**63, remedy="no GPU is known by name, give its speed by --images-per-second")]
_FASTER = 1.1  # bf16 is taken where it is at least this much faster than fp32
#: Recipe of a timed step by image size: the published one (docs/facts.md, 3), else that of the laptop studies.
_AT = {192: {"window_size": 12, "mask_patch": 32, "target": "normalized", "batch_size": 32}}


@contextlib.contextmanager
def _machine(runs_dir: str | Path) -> Iterator[dict]:
    """What RUNS_DIR/machine.json holds (seconds of a step by "DEVICE batch B size S", then "MODEL PRECISION"), under a
    lock, so that two studies go by the same numbers; changes are written."""
    path = Path(runs_dir) / "machine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = f"{path}.lock"
    with waiting(f"measuring this machine, or waiting for the process that does (lock {lock})"), FileLock(lock):
        known = _content(path)
        before = copy.deepcopy(known)
        yield known
        if known != before:
            write_atomic(path, json.dumps(known, indent=1) + "\n")


def _content(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _setting(recipe: Run) -> str:
    return f"batch {recipe.batch_size} size {recipe.image_size}"


def step_speeds(runs_dir: str | Path, models: Sequence[str], recipe: Run, device: str) -> dict[str, float]:
    """Seconds of an optimiser step by "MODEL PRECISION", measured once and kept in RUNS_DIR/machine.json."""
    with _machine(runs_dir) as known:
        speeds = known.setdefault(f"{device} {_setting(recipe)}", {})
        for model, precision in ((m, p) for m in models for p in PRECISIONS if f"{m} {p}" not in speeds):
            from ..training.pretrain import step_seconds

            speeds[f"{model} {precision}"] = step_seconds(replace(recipe, model=model, precision=precision), device)
    return speeds


def known_speeds(runs_dir: str | Path, recipe: Run) -> dict[str, float]:
    """The speeds that `step_speeds` has measured here, of the fastest device; {} where nothing was measured."""
    content = _content(Path(runs_dir) / "machine.json")
    found = [speeds for name, speeds in content.items() if name.endswith(f" {_setting(recipe)}")]
    return min(found, key=lambda speeds: sum(speeds.values()), default={})


def faster_precision(speeds: Mapping[str, float], model: str) -> str:
    """bf16 where it was measured clearly faster for a model, else fp32."""
    return "bf16" if speeds[f"{model} fp32"] > _FASTER * speeds[f"{model} bf16"] else "fp32"


def time_models(
    models: Iterable[str], image_size: int, device: str = "auto", runs_dir: str | Path | None = None
) -> tuple[dict[str, float], str]:
    """Images a second of one device by model, batches not counted, and the device's name; kept in RUNS_DIR/machine.json
    where that is given.

    bf16 on a GPU, fp32 elsewhere. A batch that does not fit is halved; a size that does not fit at all is left out, and
    on a CPU only the smallest size is timed above 32 px.
    """
    from ..training.machine import device_name, one_thread, pick_device
    from ..training.pretrain import step_seconds

    place, found = pick_device(device), {}
    slow = place.type == "cpu" and image_size > 32
    run = Run(image_size=image_size, precision="bf16" if place.type == "cuda" else "fp32", **_AT.get(image_size, {}))
    for model in list(models)[: 1 if slow else None]:
        batch = 4 if slow else run.batch_size
        while batch and model not in found:
            try:
                with one_thread(place):
                    found[model] = batch / step_seconds(replace(run, model=model, batch_size=batch), str(place))
            except RuntimeError as error:  # torch's out of memory is one
                if "out of memory" not in str(error):
                    raise
                batch //= 2
    if runs_dir is not None:
        with _machine(runs_dir) as known:
            seconds = {f"{model} {run.precision}": 32 / images for model, images in found.items()}
            known.setdefault(f"{device_name(place)} batch 32 size {image_size}", {}).update(seconds)
    return found, device_name(place)


def read_speeds(path: str | Path, image_size: int) -> tuple[dict[str, float], str]:
    """Images a second by model at an image size, and on which device, from a study's machine.json (the faster precision
    counts, of several devices the fastest), or from a bench's {"images_per_second": {"swinv2_base": 900}}.

    `UserError`, one line, for any other file, and where nothing was measured at this size.
    """
    best: tuple[dict[str, float], str] = ({}, "")
    try:
        content = json.loads(Path(path).read_text())
        if "images_per_second" in content:
            if content.get("image_size", image_size) == image_size:
                best = speeds_of(content["images_per_second"]), str(content.get("device", path))
            content = {}
        for name, speeds in content.items():
            device, _, batch, _, size = name.rsplit(" ", 4)
            found: dict[str, float] = {}
            for key, seconds in speeds.items():
                model = key.split(" ")[0]
                found[model] = max(found.get(model, 0), int(batch) / seconds)
            if int(size) == image_size and sum(found.values()) > sum(best[0].values()):
                best = found, device
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "not a JSON file of speeds"
        raise UserError(f"{path}: {reason}; give a machine.json, or images a second as base=NUMBER") from error
    if not best[0]:
        raise UserError(f"{path}: nothing was measured at {image_size} px; give images a second as base=NUMBER")
    return best


def measured(runs_dir: str | Path, image_size: int) -> tuple[dict[str, float], str]:
    """As `read_speeds`, of RUNS_DIR/machine.json; ({}, "") where nothing was measured at this size."""
    try:
        return read_speeds(Path(runs_dir) / "machine.json", image_size)
    except UserError:
        return {}, ""


def speeds_of(given: Mapping[str, object] | Iterable[str]) -> dict[str, float]:
    """Images a second by full model name, from names and numbers or from texts like `base=900`; `UserError` for a size
    that does not exist, or a number that is none."""
    pairs = given.items() if isinstance(given, Mapping) else (text.partition("=")[::2] for text in given)
    return {
        full_name(name): (read if isinstance(one, str) else value)(f"images_per_second of {name}", Positive, one)
        for name, one in pairs
    }


def scaled(known: Mapping[str, float], flop: Mapping[str, float]) -> dict[str, float]:
    """Images a second of every model in `flop` (FLOPs of training on an image): as known, else at the known ones' rate
    in FLOP a second, the geometric mean over the known models, all of which must be in `flop`."""
    rate = math.exp(sum(math.log(known[m] * flop[m]) for m in known) / len(known))
    return {m: known.get(m, rate / each) for m, each in flop.items()}


@dataclass(frozen=True)
class Speed:
    """Images a second of training on one GPU by model; {} where they are unknown, and how they are known, to print."""

    images: Mapping[str, float]
    source: str


def find_speed(
    runs: Sequence[Run],
    *,
    images_per_second: Sequence[str] = (),
    measure: str | None = None,
    assume: str | None = None,
    runs_dir: str | Path = "runs",
) -> Speed:
    """How fast one GPU trains each size of some runs of one recipe, by the way that is asked for.

    images_per_second: texts `base=900`, or one `FILE.json` (`read_speeds`). measure: a device of this machine, timed
    now and kept. assume: `SHARE@TFLOPS`, a share of a peak, as in `0.4@989`. Without any of them what RUNS_DIR's
    machine.json holds. Sizes without a speed are scaled by their FLOPs.
    """
    run, models = runs[0], models_of(runs)
    if sum(map(bool, (images_per_second, measure, assume))) > 1:
        raise UserError("speed is given twice: give one of --images-per-second, --measure and --assume")
    if assume:
        try:
            share, peak = map(float, assume.split("@"))
        except ValueError:
            share = peak = math.nan
        if not (0 < share <= 1 and peak > 0):
            raise UserError(f"--assume is '{assume}': give SHARE@TFLOPS, as in 0.4@989, a share above 0 and at most 1")
        said = f"assuming {100 * share:g} % of a stated peak of {peak:g} TFLOP/s; nothing was measured"
        return Speed({m: share * peak * 1e12 / flop_of(m, run) for m in models}, said)
    if len(images_per_second) == 1 and images_per_second[0].endswith(".json"):
        known, device = read_speeds(images_per_second[0], run.image_size)
        said = f"by the speed in {images_per_second[0]}, measured on {device}"
    elif images_per_second:
        known, said = speeds_of(images_per_second), "by the images a second that you gave"
    elif measure:
        known, device = time_models(models, run.image_size, measure, runs_dir)
        said = f"by the speed measured on {device} just now (kept in {Path(runs_dir) / 'machine.json'})"
    else:
        known, device = measured(runs_dir, run.image_size)
        said = f"by the speed measured on {device} ({Path(runs_dir) / 'machine.json'})"
    if not known:
        ways = "--images-per-second base=NUMBER or a bench's FILE.json, --measure cuda, or --assume SHARE@TFLOPS"
        return Speed({}, f"unknown; give {ways}")
    guessed = [short(m) for m in SIZES if m in models and m not in known]
    found = scaled(known, {m: flop_of(m, run) for m in (*known, *models)})
    return Speed({m: found[m] for m in models}, said + (f"; {', '.join(guessed)} scaled by FLOPs" if guessed else ""))


def models_of(runs: Iterable[Run]) -> list[str]:
    return list(dict.fromkeys(run.model for run in runs))


def flop_of(model: str, run: Run) -> float:
    """FLOPs of training a model on one image, at a run's input."""
    return 6e9 * SIZES[model].gmac(run.image_size, run.window_size, head=True)
