"""The film-strip: what a network fills in as it trains, and what networks of other sizes and data fill in at their end.

Everything comes from files: films of `pretrain(run, film=12)`, kept checkpoints, final weights, and the two films that
ship with the package. torch is imported only where weights are read.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import traitlets

from ..errors import UserError, unknown
from ..training.run import Run, read_record, record_path, write_atomic
from .widget import Widget, module

FOLDER = Path(__file__).with_name("films")
#: The shipped films: one run, and sizes x data levels. Seeds, pictures and masks are the first ones, never picked.
SHIPPED_RUN = Run(model="swinv2_femto", images=16384, steps=1000, eval_every=50)
SHIPPED_GRID = tuple(
    Run(model=model, images=images, steps=1000)
    for model in ("swinv2_atto", "swinv2_femto")
    for images in (64, 1024, 16384)
)
SHIPPED = ("scenes", "scenes-grid")


def shipped(name: str = "scenes"):
    """A film of the package: `scenes` (a run, frame by frame) or `scenes-grid` (sizes x data levels at their end)."""
    from ..training.film import read_film

    if name not in SHIPPED:
        raise unknown("film", name, SHIPPED)
    return read_film(FOLDER / f"{name}.png")


def frames(runs_dir: str | Path, run: Run, data=None):
    """The film of a run: as it was filmed, else from what is kept of it, its checkpoints and its final weights.

    A finished run that was not filmed has two frames, the drop of the learning rate and the end. `UserError` when there
    is nothing. `data`: the opened source, where a caller has it already.
    """
    from ..training.checkpoint import tail_folder, trunk_folder
    from ..training.film import film_path, read_film

    if film_path(runs_dir, run).exists():
        return read_film(film_path(runs_dir, run))
    record = read_record(record_path(runs_dir, run)) or {}
    kept = {int(p.stem.removeprefix("step-")): p for p in trunk_folder(runs_dir, run).glob("step-*.pt")}
    kept = {step: p for step, p in kept.items() if step <= run.drop_step}
    kept |= {int(p.stem.removeprefix("step-")): p for p in tail_folder(runs_dir, run).glob("step-*.pt")}
    weights = {step: _checkpoint(kept[step]) for step in sorted(kept)}
    if record.get("status") == "done":
        weights[run.steps] = _final(runs_dir, run)
    if not weights:
        raise UserError(
            f"{run.key}: neither film, checkpoint nor weights in {runs_dir}; pretrain(run, film=12) films it"
        )
    losses = {point["step"]: point["val_loss"] for point in record.get("curve", ())}
    shot = _shot(run, data)
    taken = [(step, *_take(shot, run, state)) for step, state in weights.items()]
    facts = {"kind": "run", "key": run.key, "run": run.to_dict(), "curve": record.get("curve", [])}
    facts |= {"final": record.get("final"), "where": record.get("where")}
    facts["frames"] = [{"step": step, "val_loss": losses.get(step), "each": each} for step, _, each in taken]
    return shot.film(facts, [frame for _, frame, _ in taken])


def grid(runs_dir: str | Path, runs: Sequence[Run], data=None):
    """The ends of finished runs, on the same pictures under the same masks: sizes down, data levels across.

    The runs must agree on data, picture and mask; one line names a run that is not finished.
    """
    first = runs[0]
    for run in runs:
        same = ("data", "image_size", "mask_patch", "mask_ratio", "mask_strategy", "target", "statistics")
        other = next((name for name in same if getattr(run, name) != getattr(first, name)), None)
        if other:
            raise UserError(f"{run.key}: its {other} is not that of {first.key}; a grid shows the same task")
    records = [read_record(record_path(runs_dir, run)) or {} for run in runs]
    missing = [run.key for run, record in zip(runs, records, strict=True) if record.get("status") != "done"]
    if missing:
        raise UserError(
            f"{missing[0]}: not finished in {runs_dir}; pretrain it first ({len(missing)} of {len(runs)} are missing)"
        )
    shot = _shot(first, data)
    taken = [_take(shot, run, _final(runs_dir, run)) for run in runs]
    facts = {"kind": "grid", "key": "grid", "run": first.to_dict(), "where": records[-1]["where"]}
    facts["frames"] = [
        {
            "step": run.steps,
            "model": run.model,
            "images": run.images,
            "seed": run.seed,
            "key": run.key,
            "val_loss": record["final"]["val_loss"],
            "val_loss_se": record["final"]["val_loss_se"],
            "each": each,
        }
        for run, record, (_, each) in zip(runs, records, taken, strict=True)
    ]
    return shot.film(facts, [frame for frame, _ in taken])


def make(folder: str | Path = FOLDER, runs_dir: str | Path = "runs", progress=None) -> list[Path]:
    """Make the films of the package, in some minutes on one core. Finished runs in `runs_dir` are not run again."""
    from ..training.film import film_path
    from ..training.pretrain import pretrain

    one = Path(runs_dir) / "film"
    pretrain(SHIPPED_RUN, runs_dir=one, device="cpu", film=12, progress=progress)
    for run in SHIPPED_GRID:
        pretrain(run, runs_dir=Path(runs_dir), device="cpu", progress=progress)
    films = {"scenes": film_path(one, SHIPPED_RUN).read_bytes(), "scenes-grid": grid(runs_dir, SHIPPED_GRID).png()}
    for name, content in films.items():
        write_atomic(Path(folder) / f"{name}.png", content)
    return [Path(folder) / f"{name}.png" for name in films]


class FilmStrip(Widget):
    """Films as tabs: `FilmStrip()` shows those of the package, `FilmStrip({"my run": frames(…)})` any others."""

    _esm = module("core", "parts", "filmstrip")
    films = traitlets.List(traitlets.Dict()).tag(sync=True)  # [{name, sheet: an address of a PNG, **facts}]

    def __init__(self, films: "Mapping | None" = None) -> None:
        if films is None:
            films = {"Through a run": shipped("scenes"), "Sizes and data": shipped("scenes-grid")}
        sheets = {
            name: "data:image/png;base64," + base64.b64encode(film.png()).decode() for name, film in films.items()
        }
        super().__init__(films=[{"name": name, "sheet": sheets[name], **film.facts} for name, film in films.items()])


def _checkpoint(path: Path) -> dict:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)["model"]
    except Exception as error:  # a short file fails in many ways
        raise UserError(f"{path}: not a readable checkpoint; delete it") from error


def _final(runs_dir: str | Path, run: Run) -> dict:
    from ..training.checkpoint import load_final

    return load_final(runs_dir, run)


def _shot(run: Run, data):
    from ..data.sources import open_for_training
    from ..training.film import Shot
    from ..training.probes import input_statistics

    data = data or open_for_training(run.data, run.image_size, run.images, streamed=run.streamed)
    return Shot.of(run, data, *input_statistics(data, run.statistics))


def _take(shot, run: Run, state: dict) -> tuple:
    from ..training.pretrain import build

    model = build(replace(run, seed=0))  # the seed is of weights that are replaced
    model.load_state_dict(state)
    return shot.take(model)
