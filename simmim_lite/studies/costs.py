"""What a study costs before it starts, on this machine and on GPUs, as tables; torch only to time.

How fast a machine trains each size is given or assumed for GPUs, here timed and kept in RUNS_DIR/machine.json, which
holds seconds of a step by "DEVICE batch B size S", then "MODEL PRECISION"."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ..errors import UserError, first_line
from ..evidence import records
from ..evidence.records import flops_text, millions
from ..files import intact, locked, parsed, sealed, write_atomic
from ..model.sizes import SIZES, full_name, short
from ..processes import tell_once
from ..training.run import PRECISIONS, Run, record_path
from ..training.specs import Part, Positive, checked, read, value
from ..training.tuning import Dense, Probe
from .grids import TransferSpec, images_of, left_out, planned, sources
from .tiers import RECIPE, TIERS, TRANSFER, TWO_SOURCES, StudyName, StudyOptions

_EVALUATION_STEPS = 60  # validation and probes of one run, in optimiser steps of its model
#: Seconds of a core an image, trained or tested, of a small network: most of it does not depend on the network.
_DENSE_SECONDS = {"detect": 0.004, "segment": 0.0015}
_PROBE_SECONDS = 4.0  # the probes and two passes over their images
_GFLOP_SECONDS = 1 / 45  # of a core for a GFLOP of a small model's training, where nothing was measured yet
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


def measured(runs_dir: str | Path, recipe: Run, device: str = "auto") -> tuple[str, dict[str, float]]:
    """The device, of `auto` the fastest, that `step_speeds` has measured here, and its speeds; {} of none."""
    end, kept = f" batch {recipe.batch_size} size {recipe.image_size}", _content(Path(runs_dir) / "machine.json")
    found = {name.removesuffix(end): speeds for name, speeds in kept.items() if name.endswith(end) and speeds}
    fit = [(name, speeds) for name, speeds in found.items() if device in ("auto", name, name.partition(":")[0])]
    return min(fit, key=lambda one: min(one[1].values()), default=("cpu" if device == "auto" else device, {}))


def known_speeds(runs_dir: str | Path, recipe: Run, device: str = "auto") -> dict[str, float]:
    """The speeds of `measured`."""
    return measured(runs_dir, recipe, device)[1]


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


# --- costs ------------------------------------------------------------------------------------------------------------


def cost_of(
    runs: Sequence[Run], runs_dir: str | Path = "runs", speeds: Mapping[str, float] | None = None
) -> Counter[str]:
    """What runs of one recipe cost as they will be trained, lengths off one trunk sharing its steps: runs, trunks,
    steps, images, flops, seconds of a core.

    speeds: seconds of a step by "MODEL PRECISION", by default those measured in `runs_dir`; others are guessed."""
    speeds = known_speeds(runs_dir, runs[0]) if speeds is None else speeds
    families, total = defaultdict(list), Counter()
    for run in runs:
        families[run.trunk_key].append(run)
    for family in families.values():
        run, longest = family[0], max(run.steps for run in family)
        steps = longest + sum(run.steps - run.drop_step for run in family if run.steps < longest)
        flops = flop_of(run.model, run) * run.batch_size
        second = speeds.get(f"{run.model} {run.precision}", flops / 1e9 * _GFLOP_SECONDS)
        evaluations = _EVALUATION_STEPS * (len(family) + longest // run.eval_every * 0.5)
        total.update(
            runs=len(family), trunks=int(longest > 0), steps=steps, images=steps * run.batch_size, flops=steps * flops,
            seconds=second * (steps + evaluations),
        )  # fmt: skip
    return total


def tuning_seconds(spec: TransferSpec, speeds: Mapping[str, float]) -> float:
    """Estimated core seconds of a fine-tuning, or of another transfer, and its test."""
    if isinstance(spec, Dense):
        return _DENSE_SECONDS[spec.task] * (spec.steps * spec.batch_size + (spec.test_images or 0))
    probe = _PROBE_SECONDS if isinstance(spec, Probe) else 0
    return probe + speeds.get(f"{spec.model} {spec.precision}", 0.1) * (spec.steps + _EVALUATION_STEPS)


def costs(
    runs: Sequence[Run],
    speeds: Mapping[str, float] | None = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
) -> pd.DataFrame:
    """What runs cost, a row a size and the last of all, in numbers: what `cost_of` counts on a device, as `measured`
    takes it, `done`, `hours` of one GPU (of training; NaN without a speed). speeds: images a second of one GPU by
    model."""
    lines, known = {}, known_speeds(runs_dir, runs[0], device)
    for model in models_of(runs):
        own = [run for run in runs if run.model == model]
        line = cost_of(own, speeds=known)
        # whichever precision this machine was found to be faster in
        records = [[record_path(runs_dir, replace(run, precision=p)) for p in PRECISIONS] for run in own]
        lines[f"{short(model)} ({millions(SIZES[model].parameters)})"] = dict(line) | {
            "done": sum(any(map(Path.exists, paths)) for paths in records),
            "hours": line["images"] / speeds[model] / 3600 if speeds else math.nan,
        }
    frame = pd.DataFrame(list(lines.values()), index=pd.Index(lines, name="model size"))
    frame.loc["all"] = frame.sum(min_count=1)
    return frame


def shown(frame: pd.DataFrame, gpus: int | None = None, place: str = "core") -> pd.DataFrame:
    """Costs as text, times in GPU hours or, by default, of one place, a core or a GPU."""
    counts = ("runs", "trunks", "steps", "images") if gpus else ("runs", "steps", "images")
    text = frame[list(counts)].map("{:,.0f}".format).rename(columns={"images": "images seen"})
    text["FLOPs"] = [flops_text(None if math.isnan(n) else n) for n in frame.flops]
    if gpus:
        text["GPU hours"] = frame.hours.map(_number)
        text[f"days on {gpus} GPU{'s' * (gpus > 1)}"] = (frame.hours / 24 / gpus).map(_number)
    else:
        text[f"time on one {place}"] = frame.seconds.map(clock)
    return text.assign(done=[f"{done:,.0f} of {n:,.0f}" for done, n in zip(frame.done, frame.runs, strict=True)])


def clock(seconds: float) -> str:
    """Seconds to read: `45 s`, `4 min`, `1.5 h`, `3.4 days`."""
    units = ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h"), (math.inf, 86_400, "days"))
    unit, name = next((unit, name) for below, unit, name in units if seconds < below)
    return f"{seconds / unit:.{0 if unit <= 60 else 1}f} {name}"


def _number(number: float) -> str:
    return "–" if math.isnan(number) else f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def table(
    runs: Sequence[Run], tier: str = "shipped", runs_dir: str | Path = "runs", device: str = "auto"
) -> pd.DataFrame:
    """Runs by size, a row each and one for all, as text: what they cost, and how many are done.

    Lengths off one trunk share its steps. Times are of one core, or one GPU if that is the device: measured on this
    machine where `runs_dir` has any, else a rough guess; at tier shipped as long as they took when they were made, at
    tier paper hours of one GPU."""
    if not runs:
        return pd.DataFrame()
    frame, (place, known) = costs(runs, None, runs_dir, device), measured(runs_dir, runs[0], device)
    made = {r["key"]: r["cost"]["core_seconds"] for r in _shipped()} if tier == "shipped" else {}
    if all(run.key in made for run in runs):
        seconds = [sum(made[run.key] for run in runs if run.model == model) for model in models_of(runs)]
        frame["seconds"], frame["done"], place = [*seconds, sum(seconds)], frame.runs, "cpu"
    full_size = tier != "shipped" and TIERS[tier].full_size
    return shown(frame, 1 if full_size else None, "GPU" if known and place != "cpu" else "core")


@checked
def preview(study: StudyName, **options: object) -> pd.DataFrame:
    """The table of what a study would pretrain, before it starts. The source is looked at, not opened; tier `shipped`,
    the default, shows the runs that are shipped. options: the fields of `tiers.StudyOptions`."""
    how = StudyOptions.from_dict({"tier": "shipped", **options})
    how.check_study(study)
    if how.tier == "shipped":
        return table([Run.from_dict(record["run"]) for record in _shipped(study)], runs_dir=how.runs_dir)
    runs = planned(study, how.axes, data=how.data, seeds=how.seeds)[0]
    return table(runs, how.tier, how.runs_dir, how.device)


def _shipped(study: str = "") -> list[dict]:
    """The pretraining records that are shipped: of the study of transfers, of the other four, or all there are."""
    sets = {TRANSFER: [records.TRANSFER], "": [*records.shipped_names(), records.TRANSFER, records.BEGINNINGS]}
    names = sets.get(study, records.shipped_names())
    return [record for name in names for record in records.shipped(name) if record["kind"] == "pretrain"]


def dry_run(study: str, how: StudyOptions, gpus: int = 1, **speed: object) -> str:
    """The table of `preview` for a terminal, and a line where its times are a guess; of GPU hours at tier
    paper, and wherever a GPU's speed is given. speed: options of `find_speed`."""
    axes = None if how.tier == "shipped" else how.axes
    if axes and (axes.full_size or any(speed.values())):
        runs = planned(study, axes, data=how.data, seeds=how.seeds)[0]
        return text(runs, how, gpus, find_speed(runs, **speed))
    if gpus != 1 or any(speed.values()):
        raise UserError("--gpus is about GPU hours: add a GPU's speed and a tier that trains, or leave it out")
    found = plain(preview(study, **vars(how))) + "\npretraining alone, without the tasks" * (study == TRANSFER)
    if how.tier == "shipped" or known_speeds(how.runs_dir, axes.recipe, how.device):
        return found
    return f"{found}\nthe times are a rough guess until a first study in {how.runs_dir} has measured this machine"


def plain(frame: pd.DataFrame) -> str:
    """A table for a terminal, the name of its index in its head."""
    return frame.rename_axis(index=None, columns=frame.index.name).to_string()


def text(runs: Sequence[Run], how: StudyOptions, gpus: int, known: Speed) -> str:
    """The table of GPU hours for a terminal, and under it what its numbers rest on."""
    models = models_of(runs)
    unknown = ", ".join(short(m) for m in models if m != RECIPE.model)
    said = [f"steps: lengths share their trunk; one by one they would be {sum(run.steps for run in runs):,}"]
    said += [f"GPU hours: {known.source}" + ("; validation and loading not counted" if known.images else "")]
    if known.images:
        said.append("images a second of one GPU: " + ", ".join(f"{short(m)} {known.images[m]:,.0f}" for m in models))
        said += [f"days: {gpus} GPUs are taken to be {gpus} times as fast as one, never idle"] * (gpus > 1)
    if how.axes.full_size:
        said.append(f"recipe: as released for base; what is unknown of {unknown} is our default (studies/tiers.py)")
    if how.axes.full_size and "scenes" in sources(how.data):
        said.append(f"data: none is given, and this is the published grid; a study needs --data {TWO_SOURCES}")
    elif line := left_out(how.axes, how.data, images_of(how.data)):
        said.append(f"data: {line}")
    return "\n".join([plain(shown(costs(runs, known.images, how.runs_dir), gpus)), *said])
