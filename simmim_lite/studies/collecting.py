"""The reader's own runs for a notebook: what is finished, what is missing, and what that would cost. No torch here."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..evidence import shipped, tables
from ..evidence.records import flops_text, load, millions, short
from ..model.sizes import SIZES
from ..training.run import PRECISIONS, Run, record_path, transfer_path
from ..training.specs import Folder, Positive, Source, checked
from ..training.tuning import Dense, FineTune, Probe
from . import full_size
from .estimate import EVALUATION_STEPS, known_speeds, tuning_seconds
from .grids import TIERS, TRANSFER, Axes
from .parameters import Seeds, Study, StudyOptions, Tier

if TYPE_CHECKING:
    import pandas as pd

#: Seconds of a core for a GFLOP of small-model training, for the estimate on a machine where nothing was measured yet.
_GFLOP_SECONDS = 1 / 45


@checked
def collect(study: Study, runs: Sequence[Run] | None = None, **options: object) -> list[dict]:
    """The reader's records of a study (a name in `STUDIES`, `transfer` or `all`), training what is missing.

    runs: those that the study takes, by default those of `grids.grid`; references and fine-tunings are added to them.

    options: the fields of `parameters.StudyOptions`; tier is `shipped` by default. Tier `shipped` trains nothing and
    returns the finished runs on this data that lie in `runs_dir`, perhaps none. Any other tier (smoke, quick, laptop,
    paper) returns its records in grid order. `UserError` for a wrong option, for data that cannot be opened, and for
    runs that could not be finished; what was finished is kept.
    """
    how = StudyOptions.from_dict({"tier": "shipped", **options})
    if how.tier == "shipped":
        return [record for record in load(how.runs_dir) if _data_of(record) in full_size.sources(how.data)]
    from .engine import train_missing

    return train_missing(study, runs, **options).records


@checked
def axes(
    tier: Tier = "shipped",
    *,
    data: Source = "scenes",
    seeds: Seeds | None = None,
    runs_dir: Folder = "runs",
    minutes: Positive | None = None,
) -> Axes:
    """What a tier varies on this data (sizes, unique images, lengths, seeds), and the runs that fill it.

    Tier `shipped` has those of the shipped records. Where a tier chooses its number of seeds by the time they take,
    this times a step on this machine, once, and prints what was chosen. The source is looked at, not opened.
    """  # fmt: skip
    if tier == "shipped":
        keys = {row["key"] for row in tables.rows(data=data).get("shipped", [])}
        return Axes.of(Run.from_dict(record["run"]) for record in shipped.beside(data) if record["key"] in keys)
    from .engine import planned_axes
    from .seeding import choose

    how = StudyOptions(tier=tier, data=data, seeds=seeds, runs_dir=runs_dir)
    chosen, said = choose("all", how, minutes=minutes)
    print(said, end="\n" if said else "")
    return planned_axes(tier, data=data, seeds=chosen)


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
        known = {r["key"]: r["cost"]["core_seconds"] for r in shipped.beside(runs[0].data) if r["kind"] == "pretrain"}
        made = known if all(run.key in known for run in runs) else {}
    lines = []
    for model, some in [*groups.items(), *([("all", list(runs))] if len(groups) > 1 else [])]:
        cost = [cost_of(part, runs_dir) for part in ([some] if model != "all" else groups.values())]
        total = {name: sum(one[name] for one in cost) for name in cost[0]}
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
def preview(
    study: Study,
    *,
    tier: Tier = "shipped",
    data: Source = "scenes",
    seeds: Seeds | None = None,
    runs_dir: Folder = "runs",
) -> list[dict[str, str]]:
    """What a study would run, a line a size (or task) and all together, as text: a table of cost before it starts.

    Runs off one trunk share its steps, and are counted as they will be trained. The time is of one core: from steps
    measured on this machine where `runs_dir` has any, else a rough guess; at tier paper it is of one GPU, and a dash
    where nothing was measured (`costs.rows`). `done` counts records that are there. The source is looked at, not
    opened (`parameters.images_of`). Tier `shipped` shows what the shipped runs took when they were made.
    """
    if tier == "shipped":
        return _preview_shipped(study)
    from .engine import planned

    runs, tasks = planned(study, tier, data=data, seeds=seeds)
    if TIERS[tier].full_size:
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
    lines, total = [], defaultdict(float)
    for model in dict.fromkeys(run.model for run in runs):
        cost = cost_of([run for run in runs if run.model == model], runs_dir)
        for name, value in cost.items():
            total[name] += value
        lines.append(_line(f"{short(model)} ({millions(SIZES[model].parameters)})", cost))
    return [*lines, _line("all", total)]


def cost_of(runs: Sequence[Run], runs_dir: str | Path = "runs") -> dict[str, float]:
    """What runs of one recipe cost as they will be trained: runs, steps, images, flops, seconds of a core, done."""
    speeds, families, cost = known_speeds(Path(runs_dir), runs[0]), defaultdict(list), defaultdict(float)
    for run in runs:
        families[run.trunk_key].append(run)
    for family in families.values():
        for name, value in _family_cost(family, speeds, Path(runs_dir)).items():
            cost[name] += value
    return dict(cost)


@checked
def dry_run(
    study: Study,
    *,
    tier: Tier,
    data: Source = "scenes",
    seeds: Seeds | None = None,
    runs_dir: Folder = "runs",
    on: dict[str, object] | None = None,
) -> str:
    """The table of `preview` for a terminal, and a line where its times are a guess.

    on: options of `costs.find_speed`, and `gpus`; with any of them, and at tier paper, the table is that of
    `costs.text`, in GPU hours.
    """
    on = dict(on or {})
    if tier != "shipped" and study != TRANSFER and (on or TIERS[tier].full_size):
        from . import costs
        from .engine import planned

        runs = planned(study, tier, data=data, seeds=seeds)[0]
        gpus = on.pop("gpus", 1)
        known = costs.find_speed(runs, runs_dir=runs_dir, **on)
        return costs.text(runs, tier=tier, data=data, gpus=gpus, known=known, runs_dir=runs_dir)
    if on:
        raise UserError(f"GPU hours are counted of pretraining alone: leave out --{next(iter(on)).replace('_', '-')}")
    text = preview_text(preview(study, tier=tier, data=data, seeds=seeds, runs_dir=runs_dir))
    if tier != "shipped" and TIERS[tier].full_size:
        tasks = "the tasks themselves are not in it: fine-tuning has the lengths of its recipes"
        return f"{text}\npretraining alone; {tasks}; hours need a speed, as study all --dry-run takes it"
    if tier == "shipped" or known_speeds(Path(runs_dir), TIERS[tier].recipe):
        return text
    guess = f"the times are a rough guess until a first study in {runs_dir} has measured this machine"
    return f"{text}\n{guess}"


def preview_text(rows: list[dict[str, str]]) -> str:
    """The rows of `preview` as a table for a terminal: numbers to the right; `UserError` for no rows."""
    if not rows:
        raise UserError("nothing to show at tier shipped: no records are shipped with this version")
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    padded = [
        [
            text.rjust(width) if k else text.ljust(width)
            for k, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _family_cost(family: list[Run], speeds: dict[str, float], runs_dir: Path) -> dict[str, float]:
    """Steps of a trunk and its branches, as they will be trained."""
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
    lines = []
    for name in [shipped.TRANSFER] if study == TRANSFER else shipped.names():
        records = [r for r in shipped.records(name) if r["kind"] == "pretrain"]
        trained = [r for r in records if r["run"]["steps"]]
        cost = {"runs": len(trained), "done": len(trained), "steps": sum(r["run"]["steps"] for r in trained)}
        cost["images"] = sum(r["cost"]["images_seen"] for r in trained)
        cost["flops"] = sum(r["cost"]["flops"] for r in trained)
        cost["seconds"] = sum(r["cost"]["core_seconds"] for r in records)
        lines.append(_line(name, cost, "shipped records"))
        for kind, task in (("finetune", "classify"), ("segment",) * 2, ("detect",) * 2) if study == TRANSFER else ():
            some = [r for r in shipped.records(name) if r["kind"] == kind]
            cost = {"runs": len(some), "done": len(some), "steps": sum(r["spec"]["steps"] for r in some)}
            cost["images"] = sum(r["cost"]["images_seen"] for r in some)
            cost["flops"] = sum(r["cost"]["flops"] for r in some) if all(r["cost"]["flops"] for r in some) else None
            cost["seconds"] = sum(r["cost"]["core_seconds"] for r in some)
            lines.append(_line(f"{name}: {task}", cost, "shipped records"))
    return lines


def clock(seconds: float) -> str:
    """Seconds to read: `45 s`, `4 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _data_of(record: dict) -> str | None:
    run = record.get("run") or record.get("spec") or {}
    return run.get("data")
