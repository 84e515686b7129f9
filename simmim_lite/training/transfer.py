"""Transfer of a pretraining run: what its weights are worth beside the same network without them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..data.sources import Data, open_data
from ..errors import UserError, unknown
from .checkpoint import load_final
from .finetune import finetune
from .kept import kept
from .meter import Meter
from .pretrain import build, one_thread, pick_device, pretrain
from .probes import probe_all
from .run import SCHEMA_VERSION, Run, transfer_path, write_record
from .tuning import FineTune

TASKS = ("probe", "finetune")


def transfer(
    run: Run,
    task: str,
    *,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> dict:
    """Transfer a run's final weights, beside a baseline: {"task", "trained", "baseline", "lift"}.

    - `probe`: frozen features (`probes.probe_all`); the baseline is the same network at random initialisation. Options:
      `labels` and `test_images`, by default the run's `probe_labels` and `probe_test`.
    - `finetune`: classification (`finetune.finetune`); the baseline is the same network from scratch, on the same
      labels with the same budget, without layer decay. Options: the fields of `FineTune`; `scratch`, a dict of fields
      that are to be different for the baseline, such as a learning rate of its own.

    `trained` and `baseline` are records, kept as RUNS_DIR/transfer/KEY.json and never computed twice; `lift` is trained
    minus baseline for each score that both have. A run that is not finished is pretrained first.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    shelf = _Shelf(run, Path(runs_dir), device, progress)
    trained, baseline = (_probe if task == "probe" else _finetune)(shelf, run, **options)
    own, reference = scores(trained), scores(baseline)
    lift = {name: own[name] - reference[name] for name in own if name in reference}
    return {"task": task, "trained": trained, "baseline": baseline, "lift": lift}


def _probe(shelf: "_Shelf", run: Run, **options: int) -> tuple[dict, dict]:
    for name in options:
        if name not in ("labels", "test_images"):
            raise unknown("option of probe", name, ("labels", "test_images"))
    spec = {
        "probe_labels": options.get("labels", run.probe_labels),
        "probe_test": options.get("test_images", run.probe_test),
    }
    if not spec["probe_labels"]:
        raise UserError(f"run {run.key} has probe_labels 0: say how many labelled images to probe with, labels=3000")

    def probe(of: Run) -> dict:
        key = f"{of.key}-probe-l{spec['probe_labels']}-n{spec['probe_test']}"
        sized = dataclasses.replace(of, **spec)

        def compute(data: Data) -> dict:
            place = pick_device(shelf.device)
            meter = Meter(place)
            model = build(of)
            if of.steps:
                model.load_state_dict(shelf.weights())
            with one_thread(place):
                scores = probe_all(model.to(place), data, sized)
            if not scores:
                raise UserError(
                    f"data '{of.data}' has neither labels nor masks to probe with: use a source with classes"
                )
            record = {"schema": SCHEMA_VERSION, "kind": "probe", "key": key, "status": "done", "reason": None}
            parts = {"cost": meter.read(), "transfer": scores, "where": meter.where(data.digest)}
            return record | {"run": of.to_dict(), "spec": spec} | parts

        return shelf.kept(key, of.data, of.image_size, compute)[0]

    return probe(run), probe(dataclasses.replace(run, steps=0))


def _finetune(shelf: "_Shelf", run: Run, *, scratch: dict | None = None, **fields: object) -> tuple[dict, dict]:
    known = {f.name for f in dataclasses.fields(FineTune)} - {"run", "model", "recipe_version"}
    for name in (*fields, *(scratch or {})):
        if name not in known:
            raise unknown("fine-tuning field", name, sorted(known | {"scratch"}))

    def tune(spec: FineTune) -> dict:
        return shelf.tuned(spec)[0]

    return tune(FineTune.of(run, **fields)), tune(FineTune.scratch(run, **{**fields, **(scratch or {})}))


def finetune_once(
    spec: FineTune,
    *,
    runs_dir: str | Path,
    device: str = "auto",
    data: Data | None = None,
    wait: bool = True,
) -> tuple[dict, bool]:
    """One fine-tuning, kept as RUNS_DIR/transfer/KEY.json: its record, and whether this call did the work.

    A run it starts from is pretrained first where it is not finished. Another process that is at it is waited for, or
    raises `kept.Busy` with `wait=False`.
    """
    return _Shelf(spec.run, Path(runs_dir), device, None).tuned(spec, data=data, wait=wait)


def scores(record: dict) -> dict[str, float]:
    """Scores by name, in 0..1; none for a failed record."""
    if record["status"] != "done":
        return {}
    if record["kind"] == "finetune":
        return {"top1": record["final"]["top1"]}
    return {name: score["score"] for name, score in record["transfer"].items()}


class _Shelf:
    """The transfer records of a runs folder, and the weights of one run in it."""

    def __init__(self, run: Run | None, runs_dir: Path, device: str, progress: Callable | None) -> None:
        self.run, self.runs_dir, self.device, self.progress = run, runs_dir, device, progress

    def weights(self) -> dict[str, Tensor]:
        """The run's final weights, pretrained now if it is not finished."""
        record = pretrain(self.run, runs_dir=self.runs_dir, device=self.device, progress=self.progress)
        if record["status"] != "done":
            raise UserError(f"run {self.run.key} failed, so it has no weights to transfer: {record['reason']}")
        return load_final(self.runs_dir, self.run)

    def tuned(self, spec: FineTune, *, data: Data | None = None, wait: bool = True) -> tuple[dict, bool]:
        """The record of a fine-tuning, and whether it was computed now."""

        def compute(data: Data) -> dict:
            weights = self.weights() if spec.run else None
            with one_thread(pick_device(self.device)):
                return finetune(spec, data, weights, device=self.device, progress=self.progress)

        return self.kept(spec.key, spec.data, spec.image_size, compute, data=data, wait=wait)

    def kept(
        self,
        key: str,
        spec: str,
        image_size: int,
        compute: Callable[[Data], dict],
        *,
        data: Data | None = None,
        wait: bool = True,
    ) -> tuple[dict, bool]:
        """The record of a key, if made from the images there are now; else computed, by one process, and written."""
        # not with the run's own images_needed: a baseline belongs to many runs, and the labelled splits never grow
        data = data or open_data(spec, image_size)
        path, lock = transfer_path(self.runs_dir, key), self.runs_dir / "locks" / f"{key}.lock"

        def make() -> dict:
            record = compute(data)
            write_record(path, record)
            return record

        return kept(path, lock, data, make, wait=wait)
