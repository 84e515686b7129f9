"""Make what the lab ships: its films, in some minutes on one core, and networks out of finished runs.

python tools/lab_content.py films runs               # finished runs in `runs` are not run again
python tools/lab_content.py network RUN.json runs scenes "scenes, 32 px" scenes
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save

from simmim_lite.data.sources import open_data
from simmim_lite.lab import mask_lab, widgets
from simmim_lite.model.masking import hash_masks
from simmim_lite.model.sizes import SIZES
from simmim_lite.training.callbacks import Film, fill_in, film_path, filmed
from simmim_lite.training.pretrain import build, pretrain
from simmim_lite.training.probes import input_statistics
from simmim_lite.training.record import read_record
from simmim_lite.training.run import Run, load_final, record_path, write_atomic

#: One run, and sizes x data levels. Seeds, pictures and masks are the first ones, never picked.
FILMED = Run(model="swinv2_femto", images=16384, steps=1000, eval_every=50)
GRID = tuple(
    Run(model=f"swinv2_{size}", images=images, steps=1000) for size in ("atto", "femto") for images in (64, 1024, 16384)
)


def grid(runs_dir: str | Path, runs: Sequence[Run]) -> Film:
    """The ends of finished runs that agree on the task, on the same pictures under the same masks."""
    first, taken, frames = runs[0], [], []
    data = open_data(first.data, first.image_size, images_needed=first.images, streamed=first.streamed)
    pictures, cells, facts = filmed(first, data)
    for run in runs:
        record, model = read_record(record_path(runs_dir, run)), build(replace(run, seed=0))
        model.load_state_dict(load_final(runs_dir, run))
        frame, each = fill_in(model, pictures, cells, *input_statistics(data, first.statistics))
        taken.append(frame)
        about = {"step": run.steps} | {name: getattr(run, name) for name in ("model", "images", "seed", "key")}
        frames.append(about | {k: record["final"][k] for k in ("val_loss", "val_loss_se")} | {"each": each})
    facts |= {"kind": "grid", "key": "grid", "where": record["where"], "frames": frames}
    return Film(facts, pictures, np.stack(taken))


def films(runs_dir: str) -> list[Path]:
    """The two films of the package."""
    one = Path(runs_dir) / "film"
    pretrain(FILMED, runs_dir=one, device="cpu", film=12)
    for run in GRID:
        pretrain(run, runs_dir=Path(runs_dir), device="cpu")
    contents = film_path(one, FILMED).read_bytes(), grid(runs_dir, GRID).png()
    paths = [widgets.FILMS / f"{name}.png" for name in widgets.SHIPPED_FILMS]
    for path, content in zip(paths, contents, strict=True):
        write_atomic(path, content)
    return paths


def losses(run: Run, model, data, statistics: tuple) -> dict[str, float]:
    """The mean loss on hidden pixels of 200 test pictures, which no training saw, at the network's side and at
    twice that: enlarged, and 50 squares of four pictures side by side, which are as sharp as those it learned from."""
    side, ids = run.image_size, np.asarray(data.test.ids[:200])
    small = np.asarray(data.test.images[:200])
    enlarged = [Image.fromarray(one.transpose(1, 2, 0)).resize((2 * side, 2 * side), Image.BICUBIC) for one in small]
    four = small.reshape(50, 2, 2, 3, side, side).transpose(0, 3, 1, 4, 2, 5).reshape(50, 3, 2 * side, 2 * side)
    large = np.stack([np.asarray(one).transpose(2, 0, 1) for one in enlarged])
    found = {}
    for name, some in {
        f"{side} px": small,
        f"{2 * side} px, enlarged": large,
        f"{2 * side} px, four in a square": four,
    }.items():
        cells = hash_masks((some.shape[-1] // run.mask_patch,) * 2, run.mask_ratio, 0, ids[: len(some)])
        found[name] = round(float(np.mean(fill_in(model, some, cells, *statistics)[1])), 4)
    return found


def network(run_file: str, runs_dir: str, name: str, title: str, pictures: str) -> list[Path]:
    """Put the network of a finished run among the shipped ones (`mask_lab.NETWORKS`), with its record's provenance;
    pictures: what it was trained on, to read."""
    run = Run.from_dict(json.loads(Path(run_file).read_text()))
    record, size, mean_std = read_record(record_path(runs_dir, run)), SIZES[run.model], ("mean", "std")
    loss, steps = record["final"]["val_loss"], f"{run.steps:,} steps"
    about = {"name": name, "title": title, "key": run.key, "model": run.model, "side": run.image_size}
    about["text"] = f"{run.model}, {steps} on {pictures}; validation loss {loss:.3f}."
    about |= {"window": run.window_size, "patch_size": size.patch_size, "depths": list(size.depths)}
    data = open_data(run.data, run.image_size)
    values, model = input_statistics(data, run.statistics), build(replace(run, seed=0))
    model.load_state_dict(load_final(runs_dir, run))
    about |= {"mask_patch": run.mask_patch, "target": run.target, "target_window": model.target_window}
    about |= {k: list(v) for k, v in zip(mean_std, values, strict=True)}
    about["where"] = {k: record["where"][k] for k in ("commit", "versions", "device", "data_digest")}
    about["final"] = {k: record["final"][k] for k in ("val_loss", "val_loss_se")}
    about |= {k: record["cost"][k] for k in ("images_seen", "seconds")}
    if data.test is not None:
        about["losses"] = losses(run, model.eval(), data, values)
        said = "; ".join(f"{one:.3f} at {where}" for where, one in about["losses"].items())
        about["text"] += f" On 200 test pictures it is {said}."
    state = {k: v.half().contiguous() for k, v in load_final(runs_dir, run).items()}
    path = mask_lab.FOLDER / f"{name}.safetensors"
    write_atomic(path, save(state, {"about": json.dumps(about)}))
    return [path]


if __name__ == "__main__":
    print(*{"films": films, "network": network}[sys.argv[1]](*sys.argv[2:]), sep="\n")
