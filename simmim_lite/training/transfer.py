"""Transfer of a pretraining run: what its weights are worth beside the same network without them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ..data.listing import say
from ..data.sources import open_data, open_pictures
from ..errors import UserError, unknown
from ..model import hub
from ..model.simmim import create_model
from ..model.weights import load_weights
from .checkpoint import Digested, load_final, made_once, save_final, tail_folder
from .finetune import Classification, weights_name
from .machine import Meter, Preemption, one_thread
from .parallel import Parallel, Team, join
from .pretrain import build, pretrain
from .probes import attentive_score, probe_all
from .run import SCHEMA_VERSION, Run, record_path, remove, remove_unfinished, transfer_path, write_record
from .specs import Folder, OneOf, checked
from .train import Checkpoints, Curve, Failed, Health, Progress, Training, train
from .tuning import RECIPES, TUNING_RECIPES, Dense, FineTune, Probe, Transfer

TASKS = ("probe", "classify", "detect", "segment")
Task = object  # Classification, Detection or Segmentation: see `work`


@checked
def transfer(
    run: Run,
    task: Annotated[str, OneOf(TASKS)],
    *,
    runs_dir: Folder = "runs",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    weights: str | Path | None = None,
    recipe: str | None = None,
    **options: object,
) -> dict:
    """Transfer a run's final weights, beside a baseline: {"task", "trained", "baseline", "lift"}.

    - `probe`: frozen features (`probes.probe_all`, and where there are labels an attentive probe); the baseline is the
      same network at random initialisation. Options: `labels` and `test_images`, by default the run's `probe_labels`
      and `probe_test`.
    - `classify`, `detect`, `segment`: fine-tuning (`FineTune`), Mask R-CNN and UPerNet (`Dense`); the baseline is the
      same from a random start, with the same annotations and budget, without layer decay. Options: the fields of
      `FineTune` or `Dense`, `data` among them; `scratch`, a dict of fields that are to be different for the baseline,
      such as a learning rate of its own. recipe: a full-size one by name (`Dense.recipe`, `FineTune.recipe`); of one
      for classification, steps and learning rate follow the options `labels` and `batch_size`.

    weights: a checkpoint to start from in place of the run's own weights, a file or hf://OWNER/REPO/PATH; the run then
    only says which network.
    `progress(done, all)` counts optimiser steps over all trainings that this call has to do.
    `trained` and `baseline` are records, kept as RUNS_DIR/transfer/KEY.json and never computed twice; `lift` is trained
    minus baseline for each score that both have. A run that is not finished is pretrained first. Under torchrun every
    process makes the same call.
    """
    if hub.is_hub(weights):
        weights = hub.fetch(weights)
    if task == "probe":
        if recipe or weights:
            raise UserError("a probe has no recipe and takes the run's own weights: leave both out")
        for name in options:
            if name not in ("labels", "test_images"):
                raise unknown("option of probe", name, ("labels", "test_images"))
        own = Probe.of(run, **options)
        both, trained = (own, own.baseline), (run,)
    else:
        trained = both = specs(run, task, weights, recipe, **options)
    report = progress and _all_steps(progress, Path(runs_dir), trained)
    opened = functools.cache(open_for)  # a baseline has the same data, and a million files take seconds to list
    how = {"runs_dir": runs_dir, "device": device, "progress": report, "file": weights, "open_data": opened}
    trained, baseline = (once(spec, **how)[0] for spec in both)
    own, reference = scores(trained), scores(baseline)
    lift = {name: own[name] - reference[name] for name in own if name in reference}
    return {"task": task, "trained": trained, "baseline": baseline, "lift": lift}


@checked
def specs(
    run: Run,
    task: str,
    weights: str | Path | None = None,
    recipe: str | None = None,
    *,
    scratch: dict | None = None,
    **fields: object,
) -> tuple[FineTune | Dense, FineTune | Dense]:
    """The training from a run's weights (or a file's) and its baseline from scratch, as `transfer` does them."""
    kind = {"classify": FineTune, "detect": Dense, "segment": Dense}[task]
    fixed = {"run", "weights", "model", "task", "version", "recipe_version"}
    known = {f.name for f in dataclasses.fields(kind)} - fixed
    for name in (*fields, *(scratch or {})):
        if name not in known:
            raise unknown(f"field of {task}", name, sorted(known | {"scratch"}))
    if recipe:
        fits = TUNING_RECIPES if kind is FineTune else [name for name, r in RECIPES.items() if r["task"] == task]
        if recipe not in fits:
            raise unknown(f"recipe of {task}", recipe, fits)
        given = {"model": run.model, "data": run.data, **fields}
        full_size = kind is FineTune and fields.get("augment", "timm") == "timm"
        opened = open_for(task, given["data"], fields.get("image_size", run.image_size), full_size)
        if opened.train is None:
            raise UserError(f"data '{given['data']}' has no labels to fine-tune on: use a source with classes")
        count = fields.get("labels" if kind is FineTune else "images") or len(opened.train)
        full = kind.recipe(recipe, count, **given)
        own = dataclasses.replace(full, run=run)
        base = dataclasses.replace(full, **{**(scratch or {}), "layer_decay": 1.0})
    else:
        which = (run,) if kind is FineTune else (task, run)
        own, base = kind.of(*which, **fields), kind.scratch(*which, **{**fields, **(scratch or {})})
    return dataclasses.replace(own, run=None, weights=weights_name(weights)) if weights else own, base


def once(
    spec: Transfer | Probe,
    *,
    runs_dir: str | Path,
    device: str = "auto",
    data: Digested | None = None,
    wait: bool = True,
    progress: Callable[[int, int], None] | None = None,
    file: str | Path | None = None,
    open_data: Callable[..., Digested] | None = None,
) -> tuple[dict, bool]:
    """One transfer of any task, kept as RUNS_DIR/transfer/KEY.json: its record, and whether this call did the work.

    A run it starts from is pretrained first where it is not finished; file: the checkpoint of a spec with `weights`.
    Another process that is at it is waited for, or raises `checkpoint.Busy` with `wait=False`.
    """
    runs_dir = Path(runs_dir)
    data = data or (open_data or open_for)(spec.task, spec.data, spec.image_size, getattr(spec, "full_size", False))
    path, lock = transfer_path(runs_dir, spec.key), runs_dir / "locks" / f"{spec.key}.lock"
    team = join(device)

    def weights() -> dict[str, Tensor] | None:
        """Those that it starts from: a run's final ones, a file's, or None."""
        if getattr(spec, "weights", None):
            if file is None or weights_name(file) != spec.weights:
                raise UserError(f"{spec.key} starts from the file {spec.weights}: give it as weights=PATH")
            model = create_model(spec.model)
            load_weights(model, file)
            return model.state_dict()
        if spec.run is None:
            return None
        record = pretrain(spec.run, runs_dir=runs_dir, device=device, progress=progress)
        if record["status"] != "done":
            raise UserError(f"run {spec.run.key} failed, so it has no weights to transfer: {record['reason']}")
        return load_final(runs_dir, spec.run)

    def make() -> dict:
        folder = tail_folder(runs_dir, spec)
        with one_thread(team.device):
            if isinstance(spec, Probe):
                record = _probe(spec, data, weights() if spec.run.steps else None, team)
            else:
                team.on_main(lambda: remove_unfinished(folder))
                task = open_task(spec, data, weights(), team)
                record = work(spec, task, team, digest=data.digest, line=data.line, folder=folder, progress=progress)
                if team.is_main and record["status"] == "done":
                    save_final(runs_dir, spec, task.model.state_dict())
        if team.is_main:
            write_record(path, record)
            remove(folder)
        return record

    return made_once(path, lock, data, make, team=team, wait=wait)


def work(
    spec: Transfer,
    task: Task,
    team: Team,
    *,
    digest: str,
    line: str = "",
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Train and test a task; its record. digest, line: of the data; folder: of checkpoints, None = none.

    A task (`Classification`, `Detection`, `Segmentation`) has the kind of its record, its model, AdamW's `groups()`,
    whose `scale` multiplies the learning rate, `batch(step)`, this process's share, `loss(model, *batch)`, how many
    training images are unique, the FLOPs of one (None where they differ), and `evaluate()`: the parts of the record
    that hold its scores, and why there are none, or None. Every process calls it.
    """
    training = begin(spec, task, team, digest, folder)
    fields = spec.to_dict()
    record = {"schema": SCHEMA_VERSION, "kind": task.kind, "key": spec.key}
    try:
        run_task(training, task, folder, progress)
        parts, reason = task.evaluate()
        if reason:
            raise Failed(reason)
    except Failed as failed:
        record |= {"status": "failed", "reason": str(failed), "run": fields.pop("run"), "spec": fields}
        return record | {"where": training.where(line)}
    record |= {"status": "done", "reason": None, "run": fields.pop("run"), "spec": fields}
    record |= {"cost": training.cost(task.unique, task.flops), "curve": training.curve}
    return record | parts | {"where": training.where(line)}


def begin(spec: Transfer, task: Task, team: Team, digest: str, folder: Path | None = None) -> Training:
    """A task's training, at its start or where its last checkpoint is."""
    optimiser = torch.optim.AdamW(task.groups(), lr=spec.lr, betas=spec.betas, fused=True)
    training = Training(spec, Parallel(task.model, team, loss=task.loss), optimiser, digest)
    training.resume(folder.glob("step-*") if folder else ())
    return training


def run_task(training: Training, task: Task, folder: Path | None = None, progress: Callable | None = None) -> None:
    """The steps that are left. SIGTERM and SIGUSR1 save and raise `Preempted` where checkpoints are kept."""
    callbacks = [Health(divergence=False), Curve(), *([Progress(progress)] if progress else ())]
    if folder is None:
        return train(training, task.batch, callbacks)
    with Preemption() as preemption:
        train(training, task.batch, [*callbacks, Checkpoints(lambda now: folder, preemption)])


def scores(record: dict) -> dict[str, float]:
    """Scores by name, in 0..1; none for a failed record."""
    if record["status"] != "done":
        return {}
    if record["kind"] == "finetune":
        return {"top1": record["final"]["top1"]}
    return {name: score["score"] for name, score in record["transfer"].items()}


def open_for(task: str, data: str, image_size: int, full_size: bool = False) -> Digested:
    """The data of a task (a name in TASKS); full_size: for classification, pictures at their own size."""
    if full_size:
        return open_pictures(data)
    if task in ("detect", "segment"):
        from ..data.ade20k import open_ade20k
        from ..data.coco import open_coco

        opened = {"detect": open_coco, "segment": open_ade20k}[task](data, image_size)
        say(opened.line, data, opened.digest)
        return opened
    # not with a run's own images_needed: a baseline belongs to many runs, and the labelled splits never grow
    return open_data(data, image_size)


def open_task(spec: Transfer, data: Digested, weights: dict[str, Tensor] | None, team: Team) -> Task:
    """A spec as what is trained and tested."""
    if spec.task == "classify":
        return Classification(spec, data, weights, team)
    module, name = {"detect": ("detect", "Detection"), "segment": ("segment", "Segmentation")}[spec.task]
    return getattr(import_module(f".{module}", __package__), name)(spec, data, weights, team)


def _probe(spec: Probe, data: Digested, weights: dict[str, Tensor] | None, team: Team) -> dict:
    """The record of a run's probes."""
    meter, run = Meter(team.device), spec.run
    model = build(run)
    if weights is not None:
        model.load_state_dict(weights)
    found = probe_all(model.to(team.device), data, spec.sized)
    if "linear" in found:
        found["attentive"] = attentive_score(model, data, spec.sized)
    if not found:
        raise UserError(f"data '{run.data}' has neither labels nor masks to probe with: use a source with classes")
    record = {"schema": SCHEMA_VERSION, "kind": "probe", "key": spec.key, "status": "done", "reason": None}
    record |= {"run": run.to_dict(), "spec": {"probe_labels": spec.labels, "probe_test": spec.test_images}}
    return record | {"cost": meter.read(), "transfer": found, "where": meter.where(data.digest, data.line)}


def _all_steps(report: Callable, runs_dir: Path, trainings: Iterable[Run | Transfer]) -> Callable[[int, int], None]:
    """`progress(step, steps)` for one training after another, which reports `(done, all)` of those without a record,
    and of the runs they start from."""
    runs = {item if isinstance(item, Run) else item.run for item in trainings} - {None}
    paths = {run: record_path(runs_dir, run) for run in runs}
    paths |= {item: transfer_path(runs_dir, item.key) for item in trainings if not isinstance(item, Run)}
    return in_all(report, [item.steps for item, path in paths.items() if not path.exists()])


def in_all(report: Callable[[int, int], None], steps: Iterable[int]) -> Callable[[int, int], None]:
    """A progress callback for one training after another, of so many steps each, which reports `(done, all)`.

    A training that nobody expected makes the total larger.
    """
    waiting, finished, current, last = [n for n in steps if n], 0, 0, 0

    def progress(step: int, steps: int) -> None:
        nonlocal finished, current, last
        if step <= last or steps != current:  # another one has begun
            finished, current = finished + current, steps
            if steps in waiting:
                waiting.remove(steps)
        last = step
        report(finished + step, finished + current + sum(waiting))

    return progress
