"""How fast a machine trains each size: given or assumed for GPUs, here timed and kept in RUNS_DIR/machine.json, which
holds seconds of a step by "DEVICE batch B size S", then "MODEL PRECISION". Torch only to time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, first_line
from ..files import intact, locked, parsed, sealed, write_atomic
from ..model.sizes import SIZES, full_name, short
from ..processes import tell_once
from ..training.run import PRECISIONS, Run
from ..training.specs import Part, Positive, read, value

_FASTER = 1.1  # bf16 is taken where it is at least this much faster than fp32


def _content(path: Path) -> dict[str, dict[str, float]]:
    try:
        kept = intact(parsed(path))
        return {name: {one: value(one, Positive, s) for one, s in dict(some).items()} for name, some in kept.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        tell_once(f"{path} is passed over ({first_line(error)}): this machine is measured anew")
        return {}


def step_speeds(runs_dir: str | Path, models: Iterable[str], recipe: Run, device: str) -> dict[str, float]:
    """Seconds of an optimiser step by "MODEL PRECISION", measured once and kept in RUNS_DIR/machine.json, under a lock:
    two studies go by the same numbers. A size that does not fit into the GPU's memory is left out."""
    from ..training.pretrain import step_seconds

    path = Path(runs_dir) / "machine.json"
    with locked(Path(f"{path}.lock"), "the process that measures this machine", first=3):
        known = _content(path)
        speeds = known.setdefault(f"{device} batch {recipe.batch_size} size {recipe.image_size}", {})
        for model, precision in ((m, p) for m in models for p in PRECISIONS if f"{m} {p}" not in speeds):
            try:
                run = replace(recipe, model=model, precision=precision)
                speeds[f"{model} {precision}"] = step_seconds(run, device)
            except RuntimeError as error:  # torch's out of memory is one
                if "out of memory" not in str(error):
                    raise
        write_atomic(path, sealed(known))
    return speeds


def known_speeds(runs_dir: str | Path, recipe: Run) -> dict[str, float]:
    """The speeds that `step_speeds` has measured here, of the fastest device; {} where nothing was measured."""
    end, kept = f" batch {recipe.batch_size} size {recipe.image_size}", _content(Path(runs_dir) / "machine.json")
    found = [speeds for name, speeds in kept.items() if name.endswith(end)]
    return min(found, key=lambda speeds: sum(speeds.values()), default={})


def faster_precision(speeds: Mapping[str, float], model: str) -> str:
    """bf16 where it was measured clearly faster for a model, else fp32."""
    return "bf16" if speeds[f"{model} fp32"] > _FASTER * speeds[f"{model} bf16"] else "fp32"


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


def find_speed(runs: Sequence[Run], *, images_per_second: Sequence[str] = (), assume: str | None = None) -> Speed:
    """How fast one GPU trains each size of some runs of one recipe: given, or assumed as `SHARE@TFLOPS`, a share of a
    peak, as in `0.4@989`. Sizes without a speed are scaled by their FLOPs."""
    run, models = runs[0], models_of(runs)
    if images_per_second and assume:
        raise UserError("speed is given twice: give one of --images-per-second and --assume")
    if assume:
        share, _, peak = assume.partition("@")
        share, peak = read("--assume SHARE@TFLOPS: its share", Part, share), read("its TFLOPS", Positive, peak)
        said = f"assuming {100 * share:g} % of a stated peak of {peak:g} TFLOP/s; nothing was measured"
        return Speed({m: share * peak * 1e12 / flop_of(m, run) for m in models}, said)
    if not images_per_second:
        return Speed({}, "unknown; give --images-per-second base=NUMBER or --assume")
    known = speeds_of(images_per_second)
    guessed = ", ".join(short(m) for m in models if m not in known)
    found, said = scaled(known, {m: flop_of(m, run) for m in (*known, *models)}), "by the images a second that you gave"
    return Speed({m: found[m] for m in models}, said + (f"; {guessed} scaled by FLOPs" if guessed else ""))


def models_of(runs: Iterable[Run]) -> list[str]:
    """The sizes of runs, each once."""
    return list(dict.fromkeys(run.model for run in runs))


def flop_of(model: str, run: Run) -> float:
    """FLOPs of training a model on one image, at a run's input."""
    return 6e9 * replace(SIZES[model], channels=run.channels).gmac(run.image_size, run.window_size, head=True)
