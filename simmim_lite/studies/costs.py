"""What a study costs before it starts, on this machine and on GPUs, as tables. No torch here."""

import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..errors import UserError
from ..evidence import records as evidence
from ..evidence.records import flops_text, millions, short
from ..model.sizes import SIZES
from ..training.run import PRECISIONS, Run, record_path, transfer_path
from ..training.specs import checked
from ..training.tuning import Dense, Probe
from .grids import Spec, images_of, left_out, planned, sources
from .parameters import Study, StudyOptions
from .speed import Speed, find_speed, flop_of, known_speeds, models_of, time_models
from .tiers import RECIPE, TIERS, TRANSFER, TWO_SOURCES

if TYPE_CHECKING:
    from .cluster import Cluster

_EVALUATION_STEPS = 60  # validation and probes of one run, in optimiser steps of its model
#: Seconds of a core an image, trained or tested, of a small network: most of it does not depend on the network.
_DENSE_SECONDS = {"detect": 0.004, "segment": 0.0015}
_PROBE_SECONDS = 4.0  # the probes and two passes over their images
_GFLOP_SECONDS = 1 / 45  # of a core for a GFLOP of a small model's training, where nothing was measured yet
_FORWARD = 1 / 3  # a validated image against a trained one
_STATE, _WEIGHT = 12, 4  # bytes a parameter, fp32: weight and AdamW's two moments of a checkpoint; final weights
#: Beside the one that each trunk leaves where the rate drops: the one before it, the one that the run went on from, and
#: the newest two of its tail.
_IN_TRAINING = 4
_PACKED = 30_000  # bytes of an image as JPEG at short side 256: an assumption, and printed as one
_YEAR = 365 * 86400


def cost_of(
    runs: Sequence[Run], runs_dir: str | Path = "runs", speeds: Mapping[str, float] | None = None
) -> Counter[str]:
    """What runs of one recipe cost as they will be trained, lengths off one trunk sharing its steps: runs, trunks,
    steps, images, validated images (masks counted), flops, seconds of a core.

    speeds: seconds of a step by "MODEL PRECISION", by default those measured in `runs_dir`; what is not known is
    guessed.
    """
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
        points = len(family)  # of validation: at the end of each run, on the curves of the trunk and of each tail
        for one in family:
            before = 0 if one.steps == longest else one.drop_step
            points += max(0, one.steps - 1) // run.eval_every - before // run.eval_every
        total.update(
            runs=len(family), trunks=int(longest > 0), steps=steps, images=steps * run.batch_size, flops=steps * flops,
            seconds=second * (steps + evaluations), validated=points * run.val_images * run.val_masks,
        )  # fmt: skip
    return total


def tuning_seconds(spec: Spec, speeds: Mapping[str, float]) -> float:
    """Estimated core seconds of a fine-tuning, or of another transfer, and its test."""
    if isinstance(spec, Dense):
        return _DENSE_SECONDS[spec.task] * (spec.steps * spec.batch_size + (spec.test_images or 0))
    probe = _PROBE_SECONDS if isinstance(spec, Probe) else 0
    return probe + speeds.get(f"{spec.model} {spec.precision}", 0.1) * (spec.steps + _EVALUATION_STEPS)


def costs(
    runs: Sequence[Run], speeds: Mapping[str, float] | None = None, runs_dir: str | Path = "runs"
) -> pd.DataFrame:
    """What runs cost, a row a size and the last of all, in numbers: what `cost_of` counts, `done`, `hours` of one GPU
    (validation counted; NaN without a speed), bytes of `checkpoints` (at most: one trunk in training at a time) and of
    `weights`. speeds: images a second of one GPU by model."""
    lines, states = {}, []
    for model in models_of(runs):
        own, size = [run for run in runs if run.model == model], SIZES[model]
        line = cost_of(own, runs_dir)
        states.append(_STATE * size.simmim_parameters)
        lines[f"{short(model)} ({millions(size.parameters)})"] = dict(line) | {
            "done": sum(_done(run, runs_dir) for run in own),
            "hours": (line["images"] + _FORWARD * line["validated"]) / speeds[model] / 3600 if speeds else math.nan,
            "checkpoints": (line["trunks"] + _IN_TRAINING) * states[-1],
            "weights": len(own) * _WEIGHT * size.simmim_parameters,
        }
    frame = pd.DataFrame(list(lines.values()), index=pd.Index(lines, name="model size"))
    frame.loc["all"] = frame.sum(min_count=1)
    frame.loc["all", "checkpoints"] -= _IN_TRAINING * (sum(states) - max(states))  # trunks end one after the other
    return frame


def _done(item: Run | Spec, runs_dir: str | Path) -> bool:
    """Whether a run or a transfer is finished, in whatever precision this machine was found to be faster."""
    paths = []
    for each in ({"precision": p} for p in PRECISIONS):
        if isinstance(item, Run):
            paths.append(record_path(runs_dir, replace(item, **each)))
        else:
            same = replace(item, run=item.run and replace(item.run, **each), **({} if item.task == "probe" else each))
            paths.append(transfer_path(runs_dir, same.key))
    return any(path.exists() for path in paths)


def shown(frame: pd.DataFrame, gpus: int | None = None) -> pd.DataFrame:
    """Costs as text, times in GPU hours or, by default, of one core."""
    counts = ("runs", "trunks", "steps", "images") if gpus else ("runs", "steps", "images")
    text = frame[list(counts)].map("{:,.0f}".format).rename(columns={"images": "images seen"})
    text["FLOPs"] = [flops_text(None if math.isnan(n) else n) for n in frame.flops]
    if gpus:
        text["GPU hours"] = frame.hours.map(_number)
        text[f"days on {gpus} GPU{'s' * (gpus > 1)}"] = (frame.hours / 24 / gpus).map(_number)
        text[["checkpoints", "weights"]] = frame[["checkpoints", "weights"]].map(bytes_text)
    else:
        text["time on one core"] = frame.seconds.map(clock)
    return text.assign(done=[f"{done:,.0f} of {n:,.0f}" for done, n in zip(frame.done, frame.runs, strict=True)])


def preview_text(table: pd.DataFrame | list[dict]) -> str:
    """A table for a terminal: its first column, or index, to the left, numbers to the right."""
    table = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table).pipe(lambda t: t.set_index(t.columns[0]))
    return table.rename_axis(index=None, columns=table.index.name).to_string()


def clock(seconds: float) -> str:
    """Seconds to read: `45 s`, `4 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def bytes_text(count: float) -> str:
    """Bytes to read: `197 MB`, `1.57 TB`, in powers of 1,000."""
    power = max(0, min(5, int(math.log10(max(count, 1)) // 3)))
    return f"{count / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB', 'PB'][power]}"


def _number(number: float) -> str:
    return "–" if math.isnan(number) else f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def table(runs: Sequence[Run], tier: str = "shipped", runs_dir: str | Path = "runs") -> pd.DataFrame:
    """Runs by size, a row each and one for all, as text: what they cost, and how many are done.

    Lengths off one trunk share its steps. Times are of one core: of steps measured on this machine where `runs_dir` has
    any, else a rough guess; at tier shipped what was measured when they were made, at tier paper hours of one GPU.
    """
    if not runs:
        return pd.DataFrame()
    if tier != "shipped" and TIERS[tier].full_size:
        return shown(costs(runs, find_speed(runs, runs_dir=runs_dir).images, runs_dir), 1)
    frame = costs(runs, None, runs_dir)
    made = {r["key"]: r["cost"]["core_seconds"] for r in evidence.beside(runs[0].data) if r["kind"] == "pretrain"}
    if tier == "shipped" and all(run.key in made for run in runs):
        seconds = [sum(made[run.key] for run in runs if run.model == model) for model in models_of(runs)]
        frame["seconds"], frame["done"] = [*seconds, sum(seconds)], frame.runs
    return shown(frame)


@checked
def preview(study: Study, **options: object) -> pd.DataFrame:
    """What a study would run, a row a size (or task) and all together, as text: a table of cost before it starts.

    Times as in `table`. The source is looked at, not opened. Tier `shipped`, the default, shows what the shipped runs
    took when they were made. options: the fields of `parameters.StudyOptions`.
    """
    how = StudyOptions.from_dict({"tier": "shipped", **options})
    if how.tier == "shipped":
        return shown(_shipped(study))
    runs, tasks = planned(study, how.tier, data=how.data, seeds=how.seeds)
    if study != TRANSFER or TIERS[how.tier].full_size:
        return table(runs, how.tier, how.runs_dir)
    frame = costs(runs, None, how.runs_dir)[:-1].rename("pretraining, {}".format).rename_axis("task")
    for task in sorted({spec.task for spec in tasks}, key=("probe", "classify", "segment", "detect").index):
        frame.loc[task] = _transfer_cost(task, [spec for spec in tasks if spec.task == task], how.runs_dir)
    return shown(frame)


def _transfer_cost(task: str, specs: Sequence[Spec], runs_dir: str | Path) -> dict[str, float]:
    """The line of a task: images are trained on, FLOPs known where all images have one size."""
    images = sum(spec.labels if task == "probe" else spec.steps * spec.batch_size for spec in specs)
    flop = {s.model: 6e9 * SIZES[s.model].gmac((s.run or s).image_size, (s.run or s).window_size) for s in specs}
    flops = sum(flop[s.model] * s.steps * s.batch_size for s in specs) if task == "classify" else math.nan
    speeds = {f"{m} {p}": each / 1e9 * 64 * _GFLOP_SECONDS for m, each in flop.items() for p in PRECISIONS}
    speeds |= known_speeds(runs_dir, TIERS["quick"].recipe)
    return {
        "runs": len(specs), "steps": sum(spec.steps for spec in specs), "images": images, "flops": flops,
        "seconds": sum(tuning_seconds(spec, speeds) for spec in specs),
        "done": sum(_done(spec, runs_dir) for spec in specs),
    }  # fmt: skip


def _shipped(study: str) -> pd.DataFrame:
    """What the shipped runs, or transfers, took when they were made."""
    kinds = {"pretrain": "", "finetune": ": classify", "segment": ": segment", "detect": ": detect"}
    found = pd.DataFrame(
        {
            "name": name + kinds[r["kind"]], "steps": r["run" if r["kind"] == "pretrain" else "spec"]["steps"],
            "images": r["cost"]["images_seen"], "flops": r["cost"]["flops"], "seconds": r["cost"]["core_seconds"],
        }
        for name in ([evidence.TRANSFER] if study == TRANSFER else evidence.shipped_names())
        for r in evidence.shipped(name)
        if r["kind"] in (kinds if study == TRANSFER else ("pretrain",))
    )  # fmt: skip
    groups = found.groupby(pd.Index(found.name, name="shipped records"), sort=False)
    frame = groups[["steps", "images", "seconds"]].sum()
    frame["runs"] = frame["done"] = groups.steps.agg(lambda steps: (steps > 0).sum())
    return frame.assign(flops=groups.flops.agg(lambda flops: flops.sum(skipna=False)))


def dry_run(study: str, how: StudyOptions, gpus: int = 1, **speed: object) -> str:
    """The table of `preview` for a terminal, and a line where its times are a guess.

    speed: options of `find_speed`; with any of them, and at tier paper, the table is that of GPU hours.
    """
    full_size = how.tier != "shipped" and TIERS[how.tier].full_size
    asked = gpus != 1 or any(speed.values())
    if how.tier != "shipped" and study != TRANSFER and (asked or full_size):
        runs = planned(study, how.tier, data=how.data, seeds=how.seeds)[0]
        return text(runs, how, gpus, find_speed(runs, runs_dir=how.runs_dir, **speed))
    if asked:
        raise UserError("GPU hours are counted of pretraining alone: leave out --gpus and a GPU's speed")
    found = preview_text(preview(study, **vars(how)))
    if full_size:
        return f"{found}\npretraining alone: the tasks have the lengths of their recipes"
    if how.tier == "shipped" or known_speeds(how.runs_dir, TIERS[how.tier].recipe):
        return found
    return f"{found}\nthe times are a rough guess until a first study in {how.runs_dir} has measured this machine"


def text(runs: Sequence[Run], how: StudyOptions, gpus: int, known: Speed) -> str:
    """The table of GPU hours for a terminal, and under it what its numbers rest on."""
    axes, models = TIERS[how.tier], models_of(runs)
    said = [f"steps: lengths share their trunk; one by one they would be {sum(run.steps for run in runs):,}"]
    said += [f"GPU hours: {known.source}" + ("; validation counted, loading not" if known.images else "")]
    if known.images:
        said.append("images a second of one GPU: " + ", ".join(f"{short(m)} {known.images[m]:,.0f}" for m in models))
        said += [f"days: {gpus} GPUs are taken to be {gpus} times as fast as one, never idle"] * (gpus > 1)
    said.append("checkpoints, at most: one of each trunk where its rate drops, and four more of the one in training")
    if axes.full_size:
        for images in sorted({max(axes.images), *axes.second_images} & {run.images for run in runs}):
            said.append(f"images: {images:,} are {bytes_text(_PACKED * images)}, packed at {_PACKED / 1000:g} kB each")
        unknown = ", ".join(short(m) for m in models if m != RECIPE.model)
        said.append(f"recipe: as released for base; what is unknown of {unknown} is our default (studies/tiers.py)")
        if "scenes" in sources(how.data):
            said.append(f"data: none is given, and this is the published grid; a study needs --data {TWO_SOURCES}")
        elif line := left_out(how.tier, how.data, **{k: n for k, n in images_of(how.data).items() if k != "labelled"}):
            said.append(f"data: {line}")
    return "\n".join([preview_text(shown(costs(runs, known.images, how.runs_dir), gpus)), *said])


def start(runs: Sequence[Run], how: StudyOptions, cluster: "Cluster | None" = None) -> dict[str, float]:
    """Before the missing runs of a full-size tier start: print their cost; seconds of an optimiser step by "MODEL
    PRECISION", timed on the device (of this machine, or of the cluster) where they are not known.

    `UserError` with the cost where there is no GPU and device is `auto`, for scenes, which have no photographs, and
    where a processor could not end the runs in a year.
    """
    from ..processes import pick_device

    place = cluster.device if cluster else str(pick_device(how.device))
    known = find_speed(runs, runs_dir=how.runs_dir)
    if place == "cpu" and how.device == "auto":
        found = costs(runs, known.images, how.runs_dir)
        whole = ", ".join(f"{name} {one}" for name, one in shown(found, 1).loc["all"].items())
        where = "cluster" if cluster else "machine"
        raise UserError(f"tier {how.tier} needs GPUs, and this {where} has none ({whole}); --dry-run shows more")
    if "scenes" in sources(how.data):
        raise UserError(f"tier {how.tier} is about photographs of {runs[0].image_size} px: give --data imagefolder:DIR")
    if place == "cpu":
        cores = os.cpu_count() or 1
        years = costs(runs, None, how.runs_dir).seconds["all"] / cores / _YEAR
        if years > 1:
            raise UserError(
                f"tier {how.tier} cannot run on this machine's processor: about {years:,.0f} years on {cores} cores; "
                "take a machine with GPUs, or another tier"
            )
    if not known.images:
        timed = (time_models, models_of(runs), runs[0].image_size, place, Path(how.runs_dir).absolute())
        cluster.call(*timed) if cluster else timed[0](*timed[1:])
        known = find_speed(runs, runs_dir=how.runs_dir)
    gpus = cluster.gpus if cluster else 1
    if not cluster and place.startswith("cuda"):
        import torch

        gpus = torch.cuda.device_count()
    print(text(runs, how, max(1, gpus), known), file=sys.stderr, flush=True)
    return {f"{run.model} {run.precision}": run.batch_size / known.images[run.model] for run in runs}
