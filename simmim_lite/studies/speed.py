"""How fast a machine trains each size: given, timed as a training step, or left by a study in RUNS_DIR/machine.json,
which holds seconds of a step by "DEVICE batch B size S", then "MODEL PRECISION". Torch only to time.
"""

import copy
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
_AT = {192: {"window_size": 12, "mask_patch": 32, "target": "normalized", "batch_size": 32}}


def _content(path: str | Path) -> dict:
    try:
        found = json.loads(Path(path).read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


@contextmanager
def _machine(runs_dir: str | Path):
    """RUNS_DIR/machine.json as a dict whose changes are kept, under a lock: two studies go by the same numbers."""
    path = Path(runs_dir) / "machine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = f"{path}.lock"
    with waiting(f"measuring this machine, or waiting for the process that does (lock {lock})"), FileLock(lock):
        known = _content(path)
        before = copy.deepcopy(known)
        yield known
        if known != before:
            write_atomic(path, json.dumps(known, indent=1) + "\n")


def step_speeds(runs_dir: str | Path, models: Sequence[str], recipe: Run, device: str) -> dict[str, float]:
    """Seconds of an optimiser step by "MODEL PRECISION", measured once and kept in RUNS_DIR/machine.json."""
    with _machine(runs_dir) as known:
        speeds = known.setdefault(f"{device} batch {recipe.batch_size} size {recipe.image_size}", {})
        for model, precision in ((m, p) for m in models for p in PRECISIONS if f"{m} {p}" not in speeds):
            from ..training.pretrain import step_seconds

            speeds[f"{model} {precision}"] = step_seconds(replace(recipe, model=model, precision=precision), device)
    return speeds


def known_speeds(runs_dir: str | Path, recipe: Run) -> dict[str, float]:
    """The speeds that `step_speeds` has measured here, of the fastest device; {} where nothing was measured."""
    end = f" batch {recipe.batch_size} size {recipe.image_size}"
    found = [speeds for name, speeds in _content(Path(runs_dir) / "machine.json").items() if name.endswith(end)]
    return min(found, key=lambda speeds: sum(speeds.values()), default={})


def faster_precision(speeds: Mapping[str, float], model: str) -> str:
    """bf16 where it was measured clearly faster for a model, else fp32."""
    return "bf16" if speeds[f"{model} fp32"] > _FASTER * speeds[f"{model} bf16"] else "fp32"


def time_models(
    models: Iterable[str], image_size: int, device: str = "auto", runs_dir: str | Path | None = None
) -> tuple[dict[str, float], str]:
    """Images a second of one device by model, batches not counted, and its name; kept in a RUNS_DIR.

    bf16 on a GPU, fp32 elsewhere. A batch that does not fit is halved; a size that does not fit at all is left out, and
    on a CPU only the smallest size is timed above 32 px.
    """
    from ..processes import device_name, one_thread, pick_device
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
    and the fastest device count) or a bench's {"images_per_second": {"swinv2_base": 900}}; ({}, "") where it has none.
    """
    content, best = _content(path), ({}, "")
    if "images_per_second" in content:
        same = content.get("image_size", image_size) == image_size
        return (speeds_of(content["images_per_second"]), str(content.get("device", path))) if same else best
    for name, speeds in content.items():
        device, _, batch, _, size = name.rsplit(" ", 4)
        found: dict[str, float] = {}
        for key, seconds in speeds.items():
            model = key.split(" ")[0]
            found[model] = max(found.get(model, 0), int(batch) / seconds)
        if int(size) == image_size and sum(found.values()) > sum(best[0].values()):
            best = found, device
    return best


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
    run, models, kept = runs[0], models_of(runs), Path(runs_dir) / "machine.json"
    if sum(map(bool, (images_per_second, measure, assume))) > 1:
        raise UserError("speed is given twice: give one of --images-per-second, --measure and --assume")
    if assume:
        share, _, peak = assume.partition("@")
        share, peak = read("--assume SHARE@TFLOPS: its share", Part, share), read("its TFLOPS", Positive, peak)
        said = f"assuming {100 * share:g} % of a stated peak of {peak:g} TFLOP/s; nothing was measured"
        return Speed({m: share * peak * 1e12 / flop_of(m, run) for m in models}, said)
    if len(images_per_second) == 1 and images_per_second[0].endswith(".json"):
        known, device = read_speeds(images_per_second[0], run.image_size)
        said = f"by the speed in {images_per_second[0]}, measured on {device}"
        if not known:
            raise UserError(
                f"{images_per_second[0]}: nothing was measured at {run.image_size} px there; give SIZE=NUMBER"
            )
    elif images_per_second:
        known, said = speeds_of(images_per_second), "by the images a second that you gave"
    elif measure:
        known, device = time_models(models, run.image_size, measure, runs_dir)
        said = f"by the speed measured on {device} just now (kept in {kept})"
    else:
        known, device = read_speeds(kept, run.image_size)
        said = f"by the speed measured on {device} ({kept})"
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
