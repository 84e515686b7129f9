"""What runs cost on this machine, before they start: a table for a notebook, and one for a terminal. No torch here."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..evidence.records import TRANSFER as TRANSFER_SET
from ..evidence.records import beside, flops_text, millions, shipped, shipped_names, short
from ..model.sizes import SIZES
from ..training.run import PRECISIONS, Run, record_path, transfer_path
from ..training.specs import checked
from ..training.tuning import Dense, FineTune, Probe
from .grids import TIERS, TRANSFER
from .parameters import Study, StudyOptions
from .speed import known_speeds
from .transfer_grid import planned

if TYPE_CHECKING:
    import pandas as pd

#: Validation and probes of one run, in optimiser steps of its model: only the estimate of time left depends on it.
EVALUATION_STEPS = 60
#: Seconds of a core an image, trained or tested, of a small network: most of it does not depend on the network.
_DENSE_SECONDS = {"detect": 0.004, "segment": 0.0015}
_PROBE_SECONDS = 4.0  # the attentive probe and two passes over its images
#: Seconds of a core for a GFLOP of small-model training, for the estimate on a machine where nothing was measured yet.
_GFLOP_SECONDS = 1 / 45


def table(runs: Sequence[Run], tier: str = "shipped", runs_dir: str | Path = "runs") -> "pd.DataFrame":
    """Runs by size, a row each and one for all: what varies among them, what they cost, how many are done.

    Lengths off one trunk share its steps, and are counted as they are trained. Times are of one core: of steps measured
    on this machine where `runs_dir` has any, else a rough guess; at tier shipped what was measured when they were made,
    at tier paper hours of one GPU (`costs.rows`).
    """
    import pandas as pd

    groups = {model: [run for run in runs if run.model == model] for model in dict.fromkeys(r.model for r in runs)}
    if tier in TIERS and TIERS[tier].full_size:
        from . import costs

        return pd.DataFrame(costs.rows(costs.costs(runs, costs.find_speed(runs, runs_dir=runs_dir).images, runs_dir)))
    made = {}
    if tier == "shipped" and runs:
        known = {r["key"]: r["cost"]["core_seconds"] for r in beside(runs[0].data) if r["kind"] == "pretrain"}
        made = known if all(run.key in known for run in runs) else {}
    lines = []
    for model, some in [*groups.items(), *([("all", list(runs))] if len(groups) > 1 else [])]:
        total = _sum(cost_of(part, runs_dir) for part in ([some] if model != "all" else groups.values()))
        if made:
            total |= {"seconds": sum(made[run.key] for run in some), "done": len(some)}
        said = {name: sorted({getattr(run, name) for run in some}) for name in ("images", "steps", "seed")}
        lines.append(
            {"size": short(model) + (f" ({millions(SIZES[model].parameters)})" if model in SIZES else "")}
            | {name: _listed(values) for name, values in said.items()}
            | {"runs": f"{len(some):,}", "FLOPs": flops_text(total["flops"])}
            | {"core time": clock(total["seconds"]), "done": f"{total['done']:,.0f} of {len(some):,}"}
        )
    return pd.DataFrame(lines).set_index("size") if lines else pd.DataFrame()


@checked
def preview(study: Study, **options: object) -> list[dict[str, str]]:
    """What a study would run, a line a size (or task) and all together, as text: a table of cost before it starts.

    Runs off one trunk share its steps, and are counted as they will be trained. The time is of one core: from steps
    measured on this machine where `runs_dir` has any, else a rough guess; at tier paper it is of one GPU, and a dash
    where nothing was measured (`costs.rows`). `done` counts records that are there. The source is looked at, not
    opened (`parameters.images_of`). Tier `shipped`, the default, shows what the shipped runs took when they were made.
    options: the fields of `parameters.StudyOptions`.
    """
    how = StudyOptions.from_dict({"tier": "shipped", **options})
    if how.tier == "shipped":
        return _preview_shipped(study)
    runs, tasks, runs_dir = *planned(study, how.tier, data=how.data, seeds=how.seeds), how.runs_dir
    if TIERS[how.tier].full_size:
        from . import costs

        return costs.rows(costs.costs(runs, costs.find_speed(runs, runs_dir=runs_dir).images, runs_dir))
    if study != TRANSFER:
        return preview_of(runs, runs_dir)
    kinds = ("probe", "classify", "segment", "detect")
    lines = [_task_line(kind, [s for s in tasks if task_of(s) == kind], Path(runs_dir)) for kind in kinds]
    pretraining = [{"": f"pretraining, {line.pop('model size')}", **line} for line in preview_of(runs, runs_dir)[:-1]]
    return [*pretraining, *(line for line in lines if line["runs"] != "0")]


def _listed(values: list[int]) -> str:
    """Sorted numbers to read: `16, 64`; of more than two that follow each other `101 to 106`."""
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(f"{value:,}" for value in values)


def preview_of(runs: Sequence[Run], runs_dir: str | Path = "runs") -> list[dict[str, str]]:
    """The table of `preview` for any runs of one recipe."""
    groups = {model: [run for run in runs if run.model == model] for model in dict.fromkeys(run.model for run in runs)}
    costs = {f"{short(m)} ({millions(SIZES[m].parameters)})": cost_of(some, runs_dir) for m, some in groups.items()}
    return [_line(name, cost) for name, cost in (costs | {"all": _sum(costs.values())}).items()]


def _sum(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Costs by name, all together."""
    total: dict[str, float] = defaultdict(float)
    for cost in costs:
        for name, value in cost.items():
            total[name] += value
    return dict(total)


def cost_of(runs: Sequence[Run], runs_dir: str | Path = "runs") -> dict[str, float]:
    """What runs of one recipe cost as they will be trained: runs, steps, images, flops, seconds of a core, done."""
    speeds, families = known_speeds(Path(runs_dir), runs[0]), defaultdict(list)
    for run in runs:
        families[run.trunk_key].append(run)
    return _sum(family_cost(family, speeds, Path(runs_dir)) for family in families.values())


def dry_run(study: str, how: StudyOptions, on: Mapping[str, object] | None = None) -> str:
    """The table of `preview` for a terminal, and a line where its times are a guess.

    on: options of `costs.find_speed`, and `gpus`; with any of them, and at tier paper, the table is that of
    `costs.text`, in GPU hours.
    """
    on, full_size = dict(on or {}), how.tier != "shipped" and TIERS[how.tier].full_size
    if how.tier != "shipped" and study != TRANSFER and (on or full_size):
        from . import costs

        runs = planned(study, how.tier, data=how.data, seeds=how.seeds)[0]
        gpus = on.pop("gpus", 1)
        known = costs.find_speed(runs, runs_dir=how.runs_dir, **on)
        return costs.text(runs, tier=how.tier, data=how.data, gpus=gpus, known=known, runs_dir=how.runs_dir)
    if on:
        raise UserError(f"GPU hours are counted of pretraining alone: leave out --{next(iter(on)).replace('_', '-')}")
    text = preview_text(preview(study, **vars(how)))
    if full_size:
        tasks = "the tasks themselves are not in it: fine-tuning has the lengths of its recipes"
        return f"{text}\npretraining alone; {tasks}; hours need a speed, as study all --dry-run takes it"
    if how.tier == "shipped" or known_speeds(Path(how.runs_dir), TIERS[how.tier].recipe):
        return text
    return f"{text}\nthe times are a rough guess until a first study in {how.runs_dir} has measured this machine"


def preview_text(rows: list[dict[str, str]]) -> str:
    """The rows of `preview` as a table for a terminal: numbers to the right; `UserError` for no rows."""
    if not rows:
        raise UserError("nothing to show at tier shipped: no records are shipped with this version")
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in texts)


def family_cost(family: Sequence[Run], speeds: Mapping[str, float], runs_dir: Path = Path("runs")) -> dict[str, float]:
    """What runs off one trunk cost, as `cost_of` has it: the longest one, the branches' tails, an evaluation for each
    and those along the way. speeds: seconds of a step by "MODEL PRECISION"; what is not known is guessed."""
    longest = max(run.steps for run in family)
    steps = longest + sum(run.steps - run.drop_step for run in family if run.steps < longest)
    run = family[0]
    gflop = 6 * SIZES[run.model].gmac(run.image_size, run.window_size, head=True) * run.batch_size
    second = speeds.get(f"{run.model} {run.precision}", gflop * _GFLOP_SECONDS)
    evaluations = EVALUATION_STEPS * (len(family) + longest // run.eval_every * 0.5)
    return {
        "runs": len(family),
        "steps": steps,
        "images": steps * run.batch_size,
        "flops": steps * gflop * 1e9,
        "seconds": second * (steps + evaluations),
        "done": sum(_done(run, runs_dir) for run in family),
    }


def tuning_seconds(spec: FineTune | Dense | Probe, speeds: dict[str, float]) -> float:
    """Estimated core seconds of a fine-tuning, or of another transfer, and its test."""
    if isinstance(spec, Dense):
        return _DENSE_SECONDS[spec.task] * (spec.steps * spec.batch_size + (spec.test_images or 0))
    probe = _PROBE_SECONDS if isinstance(spec, Probe) else 0
    return probe + speeds.get(f"{spec.model} {spec.precision}", 0.1) * (spec.steps + EVALUATION_STEPS)


def _done(run: Run, runs_dir: Path) -> bool:
    """Whether the run is finished, in whatever precision this machine was found to be faster."""
    return any(record_path(runs_dir, replace(run, precision=p)).exists() for p in PRECISIONS)


def task_of(item: FineTune | Dense | Probe) -> str:
    """probe, classify, detect or segment."""
    return item.task if isinstance(item, Dense) else "probe" if isinstance(item, Probe) else "classify"


def _task_line(task: str, specs: Sequence[FineTune | Dense | Probe], runs_dir: Path) -> dict[str, str]:
    """The line of a task in the preview: images are trained on, FLOPs known where all images have one size."""
    cost = {"runs": len(specs), "steps": sum(s.steps for s in specs)}
    cost["images"] = sum(s.labels if task == "probe" else s.steps * s.batch_size for s in specs)
    gmac = {s.model: SIZES[s.model].gmac((s.run or s).image_size, (s.run or s).window_size) for s in specs}
    cost["flops"] = sum(6e9 * gmac[s.model] * s.steps * s.batch_size for s in specs) if task == "classify" else None
    cost["done"] = sum(_transferred(s, runs_dir) for s in specs)
    speeds = known_speeds(runs_dir, TIERS["quick"].recipe)
    guess = {f"{m} {p}": g * 6 * 64 * _GFLOP_SECONDS for m, g in gmac.items() for p in PRECISIONS}
    cost["seconds"] = sum(tuning_seconds(s, guess | speeds) for s in specs)
    return _line(task, cost, "")


def _transferred(spec: FineTune | Dense | Probe, runs_dir: Path) -> bool:
    run = spec.run
    for p in PRECISIONS:
        own = {} if isinstance(spec, Probe) else {"precision": p}
        same = replace(spec, **own, run=run and replace(run, precision=p))
        if transfer_path(runs_dir, same.key).exists():
            return True
    return False


def _line(name: str, cost: dict[str, float], what: str = "model size") -> dict[str, str]:
    return {
        what: name,
        "runs": f"{cost['runs']:,.0f}",
        "steps": f"{cost['steps']:,.0f}",
        "images seen": f"{cost['images']:,.0f}",
        "FLOPs": flops_text(cost["flops"]),
        "time on one core": clock(cost["seconds"]),
        "done": f"{cost['done']:,.0f} of {cost['runs']:,.0f}",
    }


def _preview_shipped(study: str) -> list[dict[str, str]]:
    tasks = {"finetune": ": classify", "segment": ": segment", "detect": ": detect"} if study == TRANSFER else {}
    lines = []
    for name in [TRANSFER_SET] if study == TRANSFER else shipped_names():
        for kind, task in ({"pretrain": ""} | tasks).items():
            records = [r for r in shipped(name) if r["kind"] == kind]
            some = [r for r in records if (r["run"] if kind == "pretrain" else r["spec"])["steps"]]
            steps = sum((r["run"] if kind == "pretrain" else r["spec"])["steps"] for r in some)
            cost = {"runs": len(some), "done": len(some), "steps": steps}
            cost["images"] = sum(r["cost"]["images_seen"] for r in some)
            cost["flops"] = sum(r["cost"]["flops"] for r in some) if all(r["cost"]["flops"] for r in some) else None
            cost["seconds"] = sum(r["cost"]["core_seconds"] for r in records)
            lines.append(_line(name + task, cost, "shipped records"))
    return lines


def clock(seconds: float) -> str:
    """Seconds to read: `45 s`, `4 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
