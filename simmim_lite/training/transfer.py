"""Transfer of a pretraining run: what its weights are worth beside the same network without them."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch

from ..data.manifests import say
from ..data.sources import open_data, open_pictures
from ..errors import UserError, unknown
from ..model.simmim import create_model
from ..model.weights import fetch, is_hub, load_weights
from ..processes import one_thread
from .parallel import Meter, Parallel, Team, join
from .pretrain import build, pretrain_once, weights_name
from .probes import probe_all
from .run import (
    SCHEMA_VERSION,
    Run,
    load_final,
    made_once,
    remove,
    save_final,
    tail_folder,
    transfer_path,
    write_record,
)
from .specs import Folder, OneOf, checked
from .train import Checkpoints, Curve, Failed, Health, Preemption, Progress, Training, train
from .tuning import Dense, FineTune, Probe, Transfer

#: Task -> how its training is defined, and the class that trains and tests it.
TASKS = {
    "probe": (Probe, None),
    "classify": (FineTune, "finetune.Classification"),
    "detect": (Dense, "detect.Detection"),
    "segment": (Dense, "segment.Segmentation"),
}


@checked
def transfer(
    run: Run,
    task: Annotated[str, OneOf(tuple(TASKS))],
    *,
    runs_dir: Folder = "runs",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    weights: str | Path | None = None,
    recipe: str | None = None,
    **options: object,
) -> dict:
    """Transfer a run's final weights, beside a baseline: {"task", "trained", "baseline", "lift"}.

    - `probe`: frozen features (`probes.probe_all`), beside those of the same network at random initialisation. Options:
      `labels` and `test_images`, by default the run's own numbers.
    - `classify` (options: the fields of `FineTune`), `detect` and `segment` (of `Dense`: Mask R-CNN and UPerNet),
      beside the same from a random start. `scratch`: a dict of fields that differ for the baseline, such as a learning
      rate of its own. recipe: a full-size one by name (`tuning.RECIPES`, `TUNING_RECIPES`).

    weights: a checkpoint to start from in place of the run's own, a file or hf://OWNER/REPO/PATH; the run then only
    says which network. `progress(done, all)` counts optimiser steps over all trainings. Both records are kept as
    RUNS_DIR/transfer/KEY.json and never computed twice; `lift` is trained minus baseline. A run that is not finished is
    pretrained first. Under torchrun every process makes the same call.
    """
    own, base = specs(run, task, weights := fetch(weights) if is_hub(weights) else weights, recipe, **options)
    stages, done, found = [spec for spec in (own.run, own, base) if spec is not None], 0, []
    for stage in stages:

        def report(step: int, steps: int, done: int = done) -> None:
            progress(done + step, sum(stage.steps for stage in stages))

        how = {"runs_dir": runs_dir, "device": device, "progress": progress and report}
        if not isinstance(stage, Run):
            found.append(once(stage, **how, file=weights)[0])
        elif stage.steps and not transfer_path(runs_dir, own.key).exists():
            pretrain_once(stage, **how)
        done += stage.steps
    trained, baseline = found
    before = scores(baseline)
    lift = {name: score - before[name] for name, score in scores(trained).items() if name in before}
    return {"task": task, "trained": trained, "baseline": baseline, "lift": lift}


@checked
def specs(run: Run, task: str, weights=None, recipe=None, *, scratch: dict | None = None, **fields: object) -> tuple:
    """The specs of the training from a run's weights (or a file's) and of its baseline, as `transfer` does them."""
    kind, _ = TASKS[task]
    if kind is Probe:
        if recipe or weights or scratch:
            raise UserError("a probe has no recipe and takes the run's own weights: leave both out")
        for name in fields.keys() - {"labels", "test_images"}:
            raise unknown("option of probe", name, ("labels", "test_images"))
        own = Probe.of(run, **fields)
        return own, own.baseline
    if recipe:
        fits = [name for name, known in kind.KNOWN.items() if known.get("task", task) == task]
        if recipe not in fits:
            raise unknown(f"recipe of {task}", recipe, fits)
        given = {"model": run.model, "data": run.data, **fields}
        full_size = kind is FineTune and fields.get("augment", "timm") == "timm"
        opened = open_for(task, given["data"], fields.get("image_size", run.image_size), full_size)
        if opened.train is None:
            raise UserError(f"data '{given['data']}' has no labels to fine-tune on: use a source with classes")
        full = kind.recipe(recipe, fields.get("labels") or fields.get("images") or len(opened.train), **given)
        own, base = replace(full, run=run), kind.from_dict({**vars(full), **(scratch or {}), "layer_decay": 1.0})
    else:
        which = (run,) if kind is FineTune else (task, run)
        own, base = kind.of(*which, **fields), kind.scratch(*which, **{**fields, **(scratch or {})})
    return replace(own, run=None, weights=weights_name(weights)) if weights else own, base


def once(
    spec: Transfer | Probe,
    *,
    runs_dir: str | Path,
    device: str = "auto",
    data=None,
    wait: bool = True,
    progress: Callable[[int, int], None] | None = None,
    file: str | Path | None = None,
) -> tuple[dict, bool]:
    """One transfer of any task, kept as RUNS_DIR/transfer/KEY.json: its record, and whether this call did the work.

    A run it starts from is pretrained first where it is not finished; file: the checkpoint of a spec with `weights`;
    data: opened, as `open_for` does. Another process that is at it is waited for, or raises `Busy` with `wait=False`.
    """
    runs_dir, team = Path(runs_dir), join(device)
    data = data or open_for(spec.task, spec.data, spec.image_size, getattr(spec, "full_size", False))
    path, lock = transfer_path(runs_dir, spec.key), runs_dir / "locks" / f"{spec.key}.lock"
    folder = tail_folder(runs_dir, spec)

    def make() -> dict:
        weights = _weights(spec, runs_dir, device, progress, file)
        with one_thread(team.device):
            if isinstance(spec, Probe):
                record = _probe(spec, data, weights, team)
            else:
                module, _, name = TASKS[spec.task][1].partition(".")
                task = getattr(import_module(f".{module}", __package__), name)(spec, data, weights, team)
                record = work(spec, task, team, data, folder=folder, progress=progress)
                if team.is_main and record["status"] == "done":
                    save_final(runs_dir, spec, task.model.state_dict())
        if team.is_main:
            write_record(path, record)
            remove(folder)
        return record

    return made_once(path, lock, data, make, folder, team=team, wait=wait)


def _weights(spec, runs_dir: Path, device: str, progress: Callable | None, file: str | Path | None) -> dict | None:
    """Those that a spec starts from, tensors by name: a run's final ones, a file's, or None."""
    if getattr(spec, "weights", None):
        if file is None or weights_name(file) != spec.weights:
            raise UserError(f"{spec.key} starts from the file {spec.weights}: give it as weights=PATH")
        model = create_model(spec.model)
        load_weights(model, file)
        return model.state_dict()
    if spec.run is None or (isinstance(spec, Probe) and not spec.run.steps):
        return None
    record, _ = pretrain_once(spec.run, runs_dir=runs_dir, device=device, progress=progress)
    if record["status"] != "done":
        raise UserError(f"run {spec.run.key} failed, so it has no weights to transfer: {record['reason']}")
    return load_final(runs_dir, spec.run)


def work(
    spec: Transfer, task, team: Team, data, *, folder: Path | None = None, progress: Callable | None = None
) -> dict:
    """Train and test a task; its record. folder: of checkpoints, None = none.

    A task (`Classification`, `Detection`, `Segmentation`) has the kind of its record, its model, AdamW's `groups()`,
    `batch(step)`, this process's share, `loss(model, *batch)`, how many training images are unique, the FLOPs of one
    (None where they differ), and `evaluate()`: the parts of the record that hold its scores, or `Failed`. Every process
    calls it. Where checkpoints are kept SIGTERM and SIGUSR1 save and raise `Preempted`.
    """
    optimiser = torch.optim.AdamW(task.groups(), lr=spec.lr, betas=spec.betas, fused=True)
    training = Training(spec, Parallel(task.model, team, loss=task.loss), optimiser, data.digest)
    training.resume(folder.glob("step-*") if folder else ())
    fields = spec.to_dict()
    record = {"schema": SCHEMA_VERSION, "kind": task.kind, "key": spec.key, "status": "failed", "reason": None}
    record |= {"run": fields.pop("run"), "spec": fields}
    callbacks = [Health(divergence=False), Curve(), Progress(progress)]
    try:
        with Preemption() if folder else contextlib.nullcontext() as preemption:
            train(training, task.batch, callbacks + ([Checkpoints(lambda _: folder, preemption)] if folder else []))
        parts = task.evaluate()
    except Failed as failed:
        return record | {"reason": str(failed), "where": training.meter.where(data)}
    record |= {"status": "done", "cost": training.cost(task.unique, task.flops), "curve": training.curve}
    return record | parts | {"where": training.meter.where(data)}


def _probe(spec: Probe, data, weights: dict | None, team: Team) -> dict:
    """The record of a run's probes."""
    meter, run, model = Meter(team), spec.run, build(spec.run)
    if weights is not None:
        model.load_state_dict(weights)
    found = probe_all(model.to(team.device), data, spec.sized, attentive=True)
    if not found:
        raise UserError(f"data '{run.data}' has neither labels nor masks to probe with: use a source with classes")
    record = {"schema": SCHEMA_VERSION, "kind": "probe", "key": spec.key, "status": "done", "reason": None}
    record |= {"run": run.to_dict(), "spec": {"probe_labels": spec.labels, "probe_test": spec.test_images}}
    return record | {"cost": meter.spent(), "transfer": found, "where": meter.where(data)}


def scores(record: dict) -> dict[str, float]:
    """Scores by name, in 0..1; none for a failed record."""
    if record["status"] != "done":
        return {}
    if record["kind"] == "finetune":
        return {"top1": record["final"]["top1"]}
    return {name: score["score"] for name, score in record["transfer"].items()}


def open_for(task: str, data: str, image_size: int, full_size: bool = False):
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
