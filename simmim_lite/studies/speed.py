"""How fast a machine trains each size: given, timed as `bench` times a step, left by a study (RUNS_DIR/machine.json).

Torch only to time.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from filelock import FileLock

from ..errors import UserError
from ..model.sizes import full_name
from ..processes import waiting
from ..training.run import PRECISIONS, Run, write_atomic
from ..training.specs import Positive, Range, number, value

#: bf16 is taken where it is at least this much faster than fp32.
_FASTER = 1.1
_NO_NAMES = "no GPU is known by name, its speed is given by --images-per-second SIZE=NUMBER"
Gpus = Annotated[int, Range(1, 2**63, remedy=_NO_NAMES)]
#: Recipe of a timed step by image size: the published one (docs/facts.md, 3), else that of the laptop studies.
_AT = {192: {"window_size": 12, "mask_patch": 32, "target": "normalized", "batch_size": 32}}


def measure(models: Iterable[str], image_size: int, device: str = "auto") -> tuple[dict[str, float], str]:
    """Images a second of one device by model, batches not counted, and the device's name.

    bf16 on a GPU, fp32 elsewhere. A batch that does not fit is halved; a size that does not fit at all is left out, and
    on a CPU only the smallest size is timed above 32 px: others are scaled by their FLOPs.
    """
    from ..processes import device_name, one_thread, pick_device
    from ..training.pretrain import step_seconds

    try:
        place, found = pick_device(device), {}
    except UserError as error:
        raise UserError(
            f"--measure {device}: not on this machine; give --measure cpu, or --images-per-second"
        ) from error
    run = Run(image_size=image_size, precision="bf16" if place.type == "cuda" else "fp32", **_AT.get(image_size, {}))
    for model in list(models)[: 1 if place.type == "cpu" and image_size > 32 else None]:
        batch = run.batch_size if place.type != "cpu" or image_size <= 32 else 4
        while batch and model not in found:
            try:
                with one_thread(place):
                    seconds = step_seconds(replace(run, model=model, batch_size=batch), str(place))
                found[model] = batch / seconds
            except RuntimeError as error:  # torch's out of memory is one
                if "out of memory" not in str(error):
                    raise
                batch //= 2
    return found, device_name(place)


def measured(runs_dir: str | Path, image_size: int) -> tuple[dict[str, float], str]:
    """Images a second by model that this machine was measured at (RUNS_DIR/machine.json), and on which device.

    The faster precision counts; of several devices the fastest. ({}, "") where nothing was measured at this size.
    """
    try:
        return _fastest(machine(Path(runs_dir) / "machine.json"), image_size)
    except (ValueError, AttributeError):
        return {}, ""


def keep(runs_dir: str | Path, speeds: Mapping[str, float], device: str, image_size: int, precision: str) -> Path:
    """Put images a second by model beside what RUNS_DIR/machine.json holds, where `measured` finds them."""
    path, batch = Path(runs_dir) / "machine.json", 32
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = {f"{model} {precision}": batch / images for model, images in speeds.items()}
    with FileLock(f"{path}.lock"):
        known = machine(path)
        known.setdefault(f"{device} batch {batch} size {image_size}", {}).update(seconds)
        write_atomic(path, json.dumps(known, indent=1) + "\n")
    return path


def read(path: str | Path, image_size: int) -> tuple[dict[str, float], str]:
    """Images a second by model from a JSON file, and on which device.

    The file is a study's machine.json, or {"images_per_second": {"swinv2_base": 900}, "device": NAME}, as a bench
    leaves it, where an `image_size` that is given must be this one. `UserError`, one line, for any other.
    """
    try:
        content = json.loads(Path(path).read_text())
        if "images_per_second" in content:
            if content.get("image_size", image_size) == image_size:
                return checked(content["images_per_second"]), str(content.get("device", path))
        elif (found := _fastest(content, image_size))[0]:
            return found
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "not a JSON file of speeds"
        raise UserError(f"{path}: {reason}; give a machine.json, or images a second as base=NUMBER") from error
    raise UserError(f"{path}: nothing was measured at {image_size} px; give images a second as base=NUMBER")


def _fastest(known: Mapping[str, Mapping[str, float]], image_size: int) -> tuple[dict[str, float], str]:
    best: tuple[dict[str, float], str] = ({}, "")
    for name, speeds in known.items():
        device, _, batch, _, size = name.rsplit(" ", 4)
        if int(size) != image_size:
            continue
        found: dict[str, float] = {}
        for key, seconds in speeds.items():
            model = key.split(" ")[0]
            found[model] = max(found.get(model, 0), int(batch) / seconds)
        if sum(found.values()) > sum(best[0].values()):
            best = found, device
    return best


def parse(texts: Iterable[str]) -> dict[str, float]:
    """Texts like `base=900` as images a second by size; `UserError` for a text that is none."""
    found = {}
    for text in texts:
        name, _, figure = text.partition("=")
        try:
            found[name] = number(figure)
        except ValueError:
            raise UserError(f"--images-per-second is '{text}': give SIZE=NUMBER, as in base=900") from None
    return found


def checked(given: Mapping[str, float]) -> dict[str, float]:
    """Images a second by full model name; `UserError` for a size that does not exist, or a number that is none."""
    found = {}
    for name, images in given.items():
        found[full_name(name)] = value(f"images_per_second of {name}", Positive, images)
    return found


def scaled(known: Mapping[str, float], flop: Mapping[str, float]) -> dict[str, float]:
    """Images a second of every model in `flop` (FLOPs of training on an image): as known, else at the known ones' rate.

    The rate, FLOP a second, is the geometric mean over the known models, all of which must be in `flop`.
    """
    rate = math.exp(sum(math.log(known[m] * flop[m]) for m in known) / len(known))
    return {m: known.get(m, rate / each) for m, each in flop.items()}


def step_speeds(runs_dir: Path, models: Sequence[str], recipe: Run, device: str) -> dict[str, float]:
    """Seconds of an optimiser step by "MODEL PRECISION", measured once and kept in RUNS_DIR/machine.json.

    Under a lock, so that two studies started together go by the same numbers.
    """
    path = Path(runs_dir) / "machine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = f"{path}.lock"
    with waiting(f"measuring this machine, or waiting for the process that does (lock {lock})"), FileLock(lock):
        known = machine(path)
        speeds = known.setdefault(f"{device} {_setting(recipe)}", {})
        if missing := [(m, p) for m in models for p in PRECISIONS if f"{m} {p}" not in speeds]:
            from ..training.pretrain import step_seconds

            for model, precision in missing:
                run = replace(recipe, model=model, precision=precision)
                speeds[f"{model} {precision}"] = step_seconds(run, device)
            write_atomic(path, json.dumps(known, indent=1) + "\n")
    return speeds


def known_speeds(runs_dir: Path, recipe: Run) -> dict[str, float]:
    """The speeds that `step_speeds` has measured here, of the fastest device; {} where nothing was measured."""
    found = [v for k, v in machine(runs_dir / "machine.json").items() if k.endswith(f" {_setting(recipe)}")]
    return min(found, key=lambda speeds: sum(speeds.values()), default={})


def _setting(recipe: Run) -> str:
    return f"batch {recipe.batch_size} size {recipe.image_size}"


def machine(path: Path) -> dict:
    """What a machine.json holds: seconds of a step by device, batch and size, then model and precision; {} = none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def faster_precision(speeds: dict[str, float], model: str) -> str:
    """bf16 where it was measured clearly faster for a model, else fp32."""
    return "bf16" if speeds[f"{model} fp32"] > _FASTER * speeds[f"{model} bf16"] else "fp32"
