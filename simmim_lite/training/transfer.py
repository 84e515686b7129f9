"""Transfer of a pretraining run: what its weights are worth beside the same network without them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated

import torch

from ..data.manifests import check_count, describe, say
from ..data.sources import open_data, open_pictures
from ..errors import UserError, unknown
from ..model.simmim import create_model
from ..model.sizes import LAPTOP, SIZES
from ..model.weights import fetch, is_hub, load_weights, windows_of
from ..processes import one_thread
from .finetune import Task, usual_windows, weights_name
from .parallel import Group, Meter, Parallel, join
from .pretrain import build, pretrain_once
from .probes import probe_all
from .record import made_once
from .run import Run, checkpoints, load_final, new_record, record_path, save_final, write_record
from .specs import Folder, OneOf, checked
from .train import Failed, Trainer, layer_groups, saved
from .tuning import Dense, FineTune, Probe, Transfer

#: Task -> how its training is defined, and the `finetune.Task` that does it.
TASKS = {
    "probe": (Probe, None),
    "classify": (FineTune, "finetune.classification"),
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
    """Transfer a run's final weights, beside the same network from a random start: {"task", "trained", "baseline",
    "lift"}. Both records are kept as RUNS_DIR/transfer/KEY.json; a run that is not finished is pretrained first.
    options: fields of `Probe`, `FineTune` or `Dense`; `scratch`: a dict of those that differ for the baseline. recipe:
    a full-size one by name. weights: a file or hf://OWNER/REPO/PATH to start from; the run then says which network."""
    runs_dir, weights = Path(runs_dir).absolute(), fetch(weights) if is_hub(weights) else weights
    own, base = specs(run, task, weights, recipe, **options)
    first = own.run.steps if own.run else 0
    how = {"runs_dir": runs_dir, "device": device, "file": weights}

    def counted(done: int) -> Callable | None:
        steps = first + own.steps + base.steps
        return progress and (lambda step, _: progress(done + step, steps))

    if first and not record_path(runs_dir, own).exists():
        pretrain_once(own.run, runs_dir=runs_dir, device=device, progress=counted(0))
    trained, _ = once(own, **how, progress=counted(first))
    baseline, _ = once(base, **how, progress=counted(first + own.steps))
    before = scores(baseline)
    lift = {name: score - before[name] for name, score in scores(trained).items() if name in before}
    return {"task": task, "trained": trained, "baseline": baseline, "lift": lift}


@checked
def specs(run: Run, task: str, weights=None, recipe=None, *, scratch: dict | None = None, **fields: object) -> tuple:
    """The specs of the training from a run's weights (or a file's) and of its baseline, as `transfer` does them."""
    kind, _ = TASKS[task]
    if kind is Probe:
        if recipe or weights or scratch or fields.keys() - {"labels", "test_images"}:
            raise UserError("a probe takes the run's own weights, labels and test_images alone: leave the others out")
        own = Probe.of(run, **fields)
        return own, replace(own, run=replace(run, steps=0, init=None, init_windows=None))
    scratch = scratch or {}
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
        own, base = replace(full, run=run), kind.from_dict({**vars(full), "layer_decay": 1.0, **scratch})
    else:
        which = (run,) if kind is FineTune else (task, run)
        own, base = kind.of(*which, **fields), kind.scratch(*which, **{**fields, **scratch})
        base = replace(base, layer_decay=scratch.get("layer_decay", base.layer_decay))
    if weights:
        # as the file tells; of a laptop's size that does not tell, as the run that says which network it is
        name, usual = weights_name(weights), usual_windows(run.model)
        windows = windows_of(weights) or (run.windows if run.model in LAPTOP else usual)
        # what does not fit is refused when it is loaded
        other = windows if windows != usual and len(windows) == len(SIZES[run.model].depths) else None
        own = replace(own, run=None, weights=name, weights_windows=other)
    return own, base


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
    """One transfer of any task: its record, and whether this call did the work. file: the checkpoint of a spec with
    `weights`; data: opened, as `open_for` does. Another process that is at it is waited for, or raises `Busy`."""
    runs_dir, group = Path(runs_dir).absolute(), join(device)
    data = data or open_for(spec.task, spec.data, spec.image_size, getattr(spec, "full_size", False))
    path, folder = record_path(runs_dir, spec), checkpoints(runs_dir, spec.key)

    def make() -> dict:
        weights = _weights(spec, runs_dir, device, progress, file)
        with one_thread(group.device):
            if isinstance(spec, Probe):
                record = _probe(spec, data, weights, group)
            else:
                task = resolve_name(f"{__package__}.{TASKS[spec.task][1]}")(spec, data, weights, group)
                record = work(task, folder, progress)
                if group.is_main and record["status"] == "done":
                    save_final(runs_dir, spec, task.model.state_dict())
        if group.is_main:
            write_record(path, record)
            shutil.rmtree(folder, ignore_errors=True)
        return record

    return made_once(path, spec.key, data, make, group, wait)


def _weights(spec, runs_dir: Path, device: str, progress: Callable | None, file: str | Path | None) -> dict | None:
    """Those that a spec starts from, tensors by name: a run's final ones, a file's, or None."""
    if getattr(spec, "weights", None):
        if file is None or weights_name(file) != spec.weights:
            raise UserError(f"{spec.key} starts from the file {spec.weights}: give it as weights=PATH")
        windows = spec.weights_windows or usual_windows(spec.model)
        model = create_model(spec.model, pretrained_window_sizes=windows)
        load_weights(model, file)
        return model.state_dict()
    if spec.run is None or (isinstance(spec, Probe) and spec.run.random):
        return None
    record, _ = pretrain_once(spec.run, runs_dir=runs_dir, device=device, progress=progress)
    if record["status"] != "done":
        raise UserError(f"run {spec.run.key} failed, so it has no weights to transfer: {record['reason']}")
    return load_final(runs_dir, spec.run)


def work(task: Task, folder: Path, progress: Callable | None = None) -> dict:
    """Train and test a task; its record. folder: of checkpoints. SIGTERM and SIGUSR1 save and raise `Preempted`. Every
    process calls it."""
    spec, data = task.spec, task.data
    groups = layer_groups(task.model, task.depths, spec.layer_decay, spec.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=True)
    trainer = Trainer(spec, Parallel(task.model, task.group, loss=task.loss), optimiser, data.digest)
    trainer.resume(saved(folder))
    try:
        trainer.fit(task.batch, lambda _: folder, progress=progress, divergence=False)
        if not all(bool(p.isfinite().all()) for p in task.model.parameters()):
            raise Failed(f"the trained network's weights were not finite; lower lr ({spec.lr:g})")
    except Failed as failed:
        return new_record(spec, task.kind, status="failed", reason=str(failed), where=trainer.meter.where(data))
    trainer.save(folder)  # should testing fail, nothing is trained again
    task.model.eval()
    parts = task.evaluate()
    parts = {"cost": trainer.cost(len(task.chosen), task.flops), "curve": trainer.curve} | parts
    return new_record(spec, task.kind, status="done", **parts, where=trainer.meter.where(data))


def _probe(spec: Probe, data, weights: dict | None, group: Group) -> dict:
    """The record of a run's probes."""
    meter, run, model = Meter(group), spec.run, build(spec.run)
    if data.probe_train is not None and spec.labels != run.probe_labels:  # the run's own numbers are upper limits
        check_count(data.probe_train, spec.labels)
    if data.test is not None and spec.test_images != run.probe_test:
        check_count(data.test, spec.test_images)
    if weights is not None:
        model.load_state_dict(weights)
    # whole images, whatever the run was trained on
    sized = replace(run, probe_labels=spec.labels, probe_test=spec.test_images, augment="none")
    found = probe_all(model.to(group.device), data, sized)
    if not found:
        raise UserError(f"data '{run.data}' has neither labels nor masks to probe with: use a source with classes")
    parts = {"spec": {"probe_labels": spec.labels, "probe_test": spec.test_images}, "cost": meter.spent()}
    return new_record(spec, "probe", status="done", **parts, transfer=found, where=meter.where(data))


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
    if task in ("probe", "classify"):  # a baseline belongs to many runs, and the labelled splits never grow
        return open_data(data, image_size)
    from ..data import ade20k, coco

    opened = {"detect": coco.open_coco, "segment": ade20k.open_ade20k}[task](data, image_size)
    counts = {"train": len(opened.train), "test": len(opened.test)}
    say(describe(data, opened.num_classes, counts), data, opened.digest)
    return opened
