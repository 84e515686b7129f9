"""Transfer of a pretraining run: what its weights are worth beside the same network without them."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from torch import Tensor

from ..data.catalogue import say
from ..data.sources import open_data, open_pictures
from ..errors import UserError, unknown
from ..model import hub
from ..model.simmim import create_model
from ..model.weights import load_weights
from .attentive import attentive_score
from .checkpoint import load_final, save_final
from .dense import RECIPES, Dense
from .distributed import Team, team
from .finetune import Classification
from .kept import Digested, kept
from .loop import Task, work
from .meter import Meter
from .pretrain import build, one_thread, pretrain
from .probes import probe_all
from .probing import Probe
from .run import SCHEMA_VERSION, Run, record_path, remove_unfinished, transfer_path, write_record
from .specs import Folder, OneOf, checked
from .starting import weights_name
from .tally import Tally
from .tuning import TUNING_RECIPES, FineTune

TASKS = ("probe", "classify", "detect", "segment")


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

    - `probe`: frozen features (`probes.probe_all`, and where there are labels an attentive probe,
      `attentive.attentive_probe`); the baseline is the same network at random initialisation. Options: `labels` and
      `test_images`, by default the run's `probe_labels` and `probe_test`.
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
    shelf = _Shelf(Path(runs_dir), device, progress and Tally(progress), weights)
    if task == "probe":
        if recipe or weights:
            raise UserError("a probe has no recipe and takes the run's own weights: leave both out")
        for name in options:
            if name not in ("labels", "test_images"):
                raise unknown("option of probe", name, ("labels", "test_images"))
        own = Probe.of(run, **options)
        shelf.expect(run)
        trained, baseline = (shelf.probed(probe)[0] for probe in (own, own.baseline))
    else:
        both = specs(run, task, weights, recipe, **options)
        shelf.expect(*both)
        trained, baseline = (shelf.tuned(spec)[0] for spec in both)
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
    kind = FineTune if task == "classify" else Dense
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
    spec: FineTune | Dense | Probe,
    *,
    runs_dir: str | Path,
    device: str = "auto",
    data: Digested | None = None,
    wait: bool = True,
) -> tuple[dict, bool]:
    """One transfer of any task, kept as RUNS_DIR/transfer/KEY.json: its record, and whether this call did the work.

    A run it starts from is pretrained first where it is not finished. Another process that is at it is waited for, or
    raises `kept.Busy` with `wait=False`.
    """
    shelf = _Shelf(Path(runs_dir), device)
    return (shelf.probed if isinstance(spec, Probe) else shelf.tuned)(spec, data=data, wait=wait)


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

        opened = (open_coco if task == "detect" else open_ade20k)(data, image_size)
        say(opened.line, data, opened.digest)
        return opened
    # not with a run's own images_needed: a baseline belongs to many runs, and the labelled splits never grow
    return open_data(data, image_size)


def _task(spec: FineTune | Dense, data: Digested, weights: dict[str, Tensor] | None, us: Team) -> Task:
    """A spec as a task of the loop."""
    if isinstance(spec, Dense) and spec.task == "detect":
        from .detect import Detection

        return Detection(spec, data, weights, us)
    if isinstance(spec, Dense):
        from .segment import Segmentation

        return Segmentation(spec, data, weights, us)
    return Classification(spec, data, weights, us)


class _Shelf:
    """The transfer records of a runs folder, and the weights that they start from."""

    def __init__(
        self, runs_dir: Path, device: str, progress: Tally | None = None, file: str | Path | None = None
    ) -> None:
        self.runs_dir, self.device, self.progress, self.file = runs_dir, device, progress, file
        # a baseline has the same data, and a million files take seconds to list
        self.open = functools.cache(open_for)

    def expect(self, *items: Run | FineTune | Dense) -> None:
        """Tell the progress which trainings there are to do: those without a record, and the runs they start from."""
        if self.progress:
            runs = {item if isinstance(item, Run) else item.run for item in items} - {None}
            paths = {run: record_path(self.runs_dir, run) for run in runs}
            paths |= {x: transfer_path(self.runs_dir, x.key) for x in items if not isinstance(x, Run)}
            self.progress.expect([item.steps for item, path in paths.items() if not path.exists()])

    def weights(self, spec: Run | FineTune | Dense, us: Team) -> dict[str, Tensor] | None:
        """The weights that a spec starts from: a run's final ones (pretrained now if need be), a file's, or None."""
        if not isinstance(spec, Run) and spec.weights:
            if self.file is None or weights_name(self.file) != spec.weights:
                raise UserError(f"{spec.key} starts from the file {spec.weights}: give it as weights=PATH")
            model = create_model(spec.model)
            load_weights(model, self.file)
            return model.state_dict()
        run = spec if isinstance(spec, Run) else spec.run
        if run is None:
            return None
        options = {"runs_dir": self.runs_dir, "device": self.device, "progress": self.progress}
        record = pretrain(run, **options)
        if record["status"] != "done":
            raise UserError(f"run {run.key} failed, so it has no weights to transfer: {record['reason']}")
        return load_final(self.runs_dir, run)

    def probed(self, spec: Probe, *, data: Digested | None = None, wait: bool = True) -> tuple[dict, bool]:
        """The record of a run's probes, and whether it was computed now."""
        data = data or self.open("probe", spec.data, spec.image_size)

        def compute(us: Team) -> dict:
            meter, run = Meter(us.device), spec.run
            model = build(run)
            if run.steps:
                model.load_state_dict(self.weights(run, us))
            scores = probe_all(model.to(us.device), data, spec.sized)
            if "linear" in scores:
                scores["attentive"] = attentive_score(model, data, spec.sized)
            if not scores:
                raise UserError(
                    f"data '{run.data}' has neither labels nor masks to probe with: use a source with classes"
                )
            record = {"schema": SCHEMA_VERSION, "kind": "probe", "key": spec.key, "status": "done", "reason": None}
            counts = {"probe_labels": spec.labels, "probe_test": spec.test_images}
            parts = {"cost": meter.read(), "transfer": scores, "where": meter.where(data.digest, data.line)}
            return record | {"run": run.to_dict(), "spec": counts} | parts

        return self.kept(spec.key, data, compute, wait=wait)

    def tuned(self, spec: FineTune | Dense, *, data: Digested | None = None, wait: bool = True) -> tuple[dict, bool]:
        """The record of a spec, and whether it was computed now."""
        task = "classify" if isinstance(spec, FineTune) else spec.task
        data = data or self.open(task, spec.data, spec.image_size, isinstance(spec, FineTune) and spec.full_size)
        folder = self.runs_dir / "checkpoints" / spec.key

        def compute(us: Team) -> dict:
            if us.main:
                remove_unfinished(folder)
            job = _task(spec, data, self.weights(spec, us), us)
            options = {"digest": data.digest, "line": data.line, "folder": folder, "progress": self.progress}
            record = work(spec, job, us, **options)
            if us.main and record["status"] == "done":
                save_final(self.runs_dir, spec, job.model.state_dict())
            return record

        return self.kept(spec.key, data, compute, wait=wait)

    def kept(
        self, key: str, data: Digested, compute: Callable[[Team], dict], *, wait: bool = True
    ) -> tuple[dict, bool]:
        """The record of a key, if made from the images there are now; else computed and written, by one team."""
        path, lock = transfer_path(self.runs_dir, key), self.runs_dir / "locks" / f"{key}.lock"
        with team(self.device) as us:

            def make() -> dict:
                with one_thread(us.device):
                    record = compute(us)
                if us.main:
                    write_record(path, record)
                    shutil.rmtree(self.runs_dir / "checkpoints" / key, ignore_errors=True)
                return record

            return kept(path, lock, data, make, wait=wait, us=us)
