"""The film-strip: what a network fills in as it trains, and what networks of other sizes and data fill in at their end.

Everything comes from files: films of `pretrain(run, film=12)`, kept checkpoints, final weights, and the two films that
ship with the package (made by tools/lab_content.py). torch is imported only where weights are read.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import traitlets

from ..errors import UserError, unknown
from ..training.run import Run, read_record, record_path
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
    from ..training.film import film_path, read_film
    from ..training.run import load_final, tail_folder, trunk_folder

    if film_path(runs_dir, run).exists():
        return read_film(film_path(runs_dir, run))
    record = read_record(record_path(runs_dir, run)) or {}
    kept: dict[int, Path] = {}
    for folder, last in ((trunk_folder(runs_dir, run), run.drop_step), (tail_folder(runs_dir, run), run.steps)):
        steps = {int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.pt")}
        kept |= {step: path for step, path in steps.items() if step <= last}
    weights = {step: _checkpoint(kept[step]) for step in sorted(kept)}
    if record.get("status") == "done":
        weights[run.steps] = load_final(runs_dir, run)
    if not weights:
        nothing = f"{run.key}: neither film, checkpoint nor weights in {runs_dir}"
        raise UserError(f"{nothing}; pretrain(run, film=12) films it")
    losses = {point["step"]: point["val_loss"] for point in record.get("curve", ())}
    facts = {"kind": "run", "key": run.key, "run": run.to_dict(), "curve": record.get("curve", [])}
    facts |= {"final": record.get("final"), "where": record.get("where")}
    about = [{"step": step, "val_loss": losses.get(step)} for step in weights]
    return _film(run, data, facts, about, [run] * len(weights), weights.values())


def grid(runs_dir: str | Path, runs: Sequence[Run], data=None):
    """The ends of finished runs, on the same pictures under the same masks: sizes down, data levels across.

    The runs must agree on data, picture and mask; one line names a run that is not finished.
    """
    from ..training.run import load_final

    first = runs[0]
    for run in runs:
        same = ("data", "image_size", "mask_patch", "mask_ratio", "mask_strategy", "target", "statistics")
        other = next((name for name in same if getattr(run, name) != getattr(first, name)), None)
        if other:
            raise UserError(f"{run.key}: its {other} is not that of {first.key}; a grid shows the same task")
    records = [read_record(record_path(runs_dir, run)) or {} for run in runs]
    missing = [run.key for run, record in zip(runs, records, strict=True) if record.get("status") != "done"]
    if missing:
        some = f"({len(missing)} of {len(runs)} are missing)"
        raise UserError(f"{missing[0]}: not finished in {runs_dir}; pretrain it first {some}")
    facts = {"kind": "grid", "key": "grid", "run": first.to_dict(), "where": records[-1]["where"]}
    about = [
        {name: getattr(run, name) for name in ("steps", "model", "images", "seed", "key")}
        | {name: record["final"][name] for name in ("val_loss", "val_loss_se")}
        for run, record in zip(runs, records, strict=True)
    ]
    about = [{"step": one.pop("steps")} | one for one in about]
    return _film(first, data, facts, about, runs, (load_final(runs_dir, run) for run in runs))


class FilmStrip(Widget):
    """Films as tabs: `FilmStrip()` shows those of the package, `FilmStrip({"my run": frames(…)})` any others."""

    _esm = module("core", "parts", "filmstrip")
    films = traitlets.List(traitlets.Dict()).tag(sync=True)  # [{name, sheet: an address of a PNG, **facts}]

    def __init__(self, films: "Mapping | None" = None) -> None:
        films = films or {"Through a run": shipped("scenes"), "Sizes and data": shipped("scenes-grid")}
        address = "data:image/png;base64,"
        sheets = [address + base64.b64encode(film.png()).decode() for film in films.values()]
        named = zip(films.items(), sheets, strict=True)
        super().__init__(films=[{"name": name, "sheet": sheet, **film.facts} for (name, film), sheet in named])


def _checkpoint(path: Path) -> dict:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)["model"]
    except Exception as error:  # a short file fails in many ways
        raise UserError(f"{path}: not a readable checkpoint; delete it") from error


def _film(first: Run, data, facts: dict, about: Sequence[dict], runs: Sequence[Run], weights):
    """A film of networks, a frame each; about: what is known of each frame."""
    from ..data.sources import open_for_training
    from ..training.film import Shot
    from ..training.pretrain import build
    from ..training.probes import input_statistics

    data = data or open_for_training(first.data, first.image_size, first.images, streamed=first.streamed)
    shot = Shot.of(first, data, *input_statistics(data, first.statistics))
    taken = []
    for run, state in zip(runs, weights, strict=True):
        model = build(replace(run, seed=0))  # the seed is of weights that are replaced
        model.load_state_dict(state)
        taken.append(shot.take(model))
    facts["frames"] = [one | {"each": each} for one, (_, each) in zip(about, taken, strict=True)]
    return shot.film(facts, [frame for frame, _ in taken])
