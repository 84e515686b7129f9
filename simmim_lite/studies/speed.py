"""How fast a machine trains each size: given, assumed, timed, or left by a study in RUNS_DIR/machine.json, which holds
seconds of a step by "DEVICE batch B size S", then "MODEL PRECISION". Torch only to time."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

from filelock import FileLock

from ..errors import UserError
from ..evidence.records import short
from ..model.sizes import SIZES, full_name
from ..processes import waiting
from ..training.run import PRECISIONS, Run, write_atomic
from ..training.specs import Part, Positive, Range, read, value

Gpus = Annotated[int, Range(1, 2**63, remedy="no GPU is known by name, give its speed by --images-per-second")]
_FASTER = 1.1  # bf16 is taken where it is at least this much faster than fp32
#: Recipe of a timed step by image size: the published one (docs/facts.md, 3), else that of the laptop studies.
_AT = {192: {"window_size": 12, "mask_patch": 32, "target": "normalized"}}


def _content(path: str | Path) -> dict:
    try:
        found = json.loads(Path(path).read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


@contextmanager
def _machine(runs_dir: str | Path | None):
    """RUNS_DIR/machine.json as a dict whose changes are kept, under a lock: two studies go by the same numbers."""
    if runs_dir is None:
        yield {}
        return
    path = Path(runs_dir) / "machine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = f"{path}.lock"
    with waiting(f"measuring this machine, or waiting for the process that does (lock {lock})"), FileLock(lock):
        known = _content(path)
        before = json.dumps(known, indent=1)
        yield known
        if (after := json.dumps(known, indent=1)) != before:
            write_atomic(path, after + "\n")


def step_speeds(
    runs_dir: str | Path | None, models: Iterable[str], recipe: Run, device: str, name: str = "", **only: object
) -> dict[str, float]:
    """Seconds of an optimiser step by "MODEL PRECISION", measured once and kept in RUNS_DIR/machine.json.

    name: of the device there. only: precisions=…, of both; again=True, whatever is kept. A size that does not fit into
    the GPU's memory is left out."""
    from ..training.pretrain import step_seconds

    with _machine(runs_dir) as known:
        place = f"{name or device} batch {recipe.batch_size} size {recipe.image_size}"
        speeds = known[place] = {} if only.get("again") else known.get(place, {})
        wanted = [(m, p) for m in models for p in only.get("precisions", PRECISIONS) if f"{m} {p}" not in speeds]
        for model, precision in wanted:
            try:
                run = replace(recipe, model=model, precision=precision)
                speeds[f"{model} {precision}"] = step_seconds(run, device)
            except RuntimeError as error:  # torch's out of memory is one
                if "out of memory" not in str(error):
                    raise
    return speeds


def time_models(
    models: Sequence[str], image_size: int, device: str = "auto", runs_dir: str | Path | None = None
) -> tuple[dict[str, float], str]:
    """Images a second of a device of this machine by model, timed now and kept in a RUNS_DIR, and the device's name:
    bf16 on a GPU, fp32 elsewhere; on a CPU only the smallest size above 32 px."""
    from ..processes import device_name, one_thread, pick_device

    place = pick_device(device)
    slow, precision = place.type == "cpu" and image_size > 32, "bf16" if place.type == "cuda" else "fp32"
    run = Run(image_size=image_size, batch_size=4 if slow else 32, **_AT.get(image_size, {}))
    only = {"precisions": [precision], "again": True}
    with one_thread(place):
        found = step_speeds(runs_dir, models[: 1 if slow else None], run, str(place), device_name(place), **only)
    return {name.split(" ")[0]: run.batch_size / seconds for name, seconds in found.items()}, device_name(place)


def known_speeds(runs_dir: str | Path, recipe: Run) -> dict[str, float]:
    """The speeds that `step_speeds` has measured here, of the fastest device; {} where nothing was measured."""
    end, kept = f" batch {recipe.batch_size} size {recipe.image_size}", _content(Path(runs_dir) / "machine.json")
    found = [speeds for name, speeds in kept.items() if name.endswith(end)]
    return min(found, key=lambda speeds: sum(speeds.values()), default={})


def faster_precision(speeds: Mapping[str, float], model: str) -> str:
    """bf16 where it was measured clearly faster for a model, else fp32."""
    return "bf16" if speeds[f"{model} fp32"] > _FASTER * speeds[f"{model} bf16"] else "fp32"


def read_speeds(path: str | Path, image_size: int) -> tuple[dict[str, float], str]:
    """Images a second by model at an image size, and on which device, from a machine.json (the fastest device and
    precision count) or a bench's {"images_per_second": {"swinv2_base": 900}}; ({}, "") where it has none."""
    content, found = _content(path), []
    if "images_per_second" in content:
        if content.get("image_size", image_size) == image_size:
            found = [(speeds_of(content["images_per_second"]), str(content.get("device", path)))]
        content = {}
    for name, speeds in content.items():
        device, _, batch, _, size = name.rsplit(" ", 4)
        slowest_first = sorted(speeds.items(), key=lambda one: -one[1])  # of two precisions the faster one stays
        rates = {key.split(" ")[0]: int(batch) / seconds for key, seconds in slowest_first}
        found += [(rates, device)] if int(size) == image_size else []
    return max(found, key=lambda one: sum(one[0].values()), default=({}, ""))


def speeds_of(given: Mapping[str, object] | Iterable[str]) -> dict[str, float]:
    """Images a second by full model name, from names and numbers or from texts like `base=900`."""
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


class Speed(NamedTuple):
    """Images a second of training on one GPU by model; {} where they are unknown, and how they are known, to print."""

    images: Mapping[str, float]
    source: str


def one_speed(
    models: Iterable[str], image_size: int | None, given: Mapping | Sequence[str], measure: str | None, runs_dir: object
) -> Speed:
    """Images a second of some models, the first that there is of: given (or a FILE.json, see `read_speeds`), timed now
    on the device `measure`, kept in RUNS_DIR/machine.json."""
    if len(given) == 1 and str(*given).endswith(".json"):
        known, device = read_speeds(*given, image_size)
        if not known:
            raise UserError(f"{given[0]}: nothing was measured at {image_size} px there; give SIZE=NUMBER")
        return Speed(known, f"by the speed in {given[0]}, measured on {device}")
    if given:
        return Speed(speeds_of(given), "by the images a second that you gave")
    if measure:
        known, device = time_models(models, image_size, measure, runs_dir)
        return Speed(known, f"by the speed measured on {device} just now")
    known, device = read_speeds(f"{runs_dir}/machine.json", image_size)
    return Speed(known, f"by the speed measured on {device} ({runs_dir}/machine.json)")


def find_speed(
    runs: Sequence[Run],
    *,
    images_per_second: Sequence[str] = (),
    measure: str | None = None,
    assume: str | None = None,
    runs_dir: str | Path = "runs",
) -> Speed:
    """How fast one GPU trains each size of some runs of one recipe, by the way that is asked for (`one_speed`), or
    assume: `SHARE@TFLOPS`, a share of a peak, as in `0.4@989`. Sizes without a speed are scaled by their FLOPs."""
    run, models = runs[0], models_of(runs)
    if sum(map(bool, (images_per_second, measure, assume))) > 1:
        raise UserError("speed is given twice: give one of --images-per-second, --measure and --assume")
    if assume:
        share, _, peak = assume.partition("@")
        share, peak = read("--assume SHARE@TFLOPS: its share", Part, share), read("its TFLOPS", Positive, peak)
        said = f"assuming {100 * share:g} % of a stated peak of {peak:g} TFLOP/s; nothing was measured"
        return Speed({m: share * peak * 1e12 / flop_of(m, run) for m in models}, said)
    known, said = one_speed(models, run.image_size, images_per_second, measure, runs_dir)
    if not known:
        return Speed({}, "unknown; give --images-per-second base=NUMBER or a bench's FILE.json, --measure or --assume")
    guessed = ", ".join(short(m) for m in models if m not in known)
    found = scaled(known, {m: flop_of(m, run) for m in (*known, *models)})
    return Speed({m: found[m] for m in models}, said + (f"; {guessed} scaled by FLOPs" if guessed else ""))


def models_of(runs: Iterable[Run]) -> list[str]:
    """The sizes of runs, each once."""
    return list(dict.fromkeys(run.model for run in runs))


def flop_of(model: str, run: Run) -> float:
    """FLOPs of training a model on one image, at a run's input."""
    return 6e9 * SIZES[model].gmac(run.image_size, run.window_size, head=True)
