"""Make what the lab ships: its films, in some minutes on one core, and networks out of finished runs.

python tools/lab_content.py films runs               # finished runs in `runs` are not run again
python tools/lab_content.py network RUN.json runs scenes "scenes, by femto"
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save

from simmim_lite.lab import filmstrip, networks
from simmim_lite.training.film import film_path
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run, read_record, record_path, write_atomic


def films(runs_dir: str) -> list[Path]:
    """The two films of the package."""
    one = Path(runs_dir) / "film"
    pretrain(filmstrip.SHIPPED_RUN, runs_dir=one, device="cpu", film=12)
    for run in filmstrip.SHIPPED_GRID:
        pretrain(run, runs_dir=Path(runs_dir), device="cpu")
    grid = filmstrip.grid(runs_dir, filmstrip.SHIPPED_GRID).png()
    for name, content in (("scenes", film_path(one, filmstrip.SHIPPED_RUN).read_bytes()), ("scenes-grid", grid)):
        write_atomic(filmstrip.FOLDER / f"{name}.png", content)
    return [filmstrip.FOLDER / f"{name}.png" for name in filmstrip.SHIPPED]


def network(run_file: str, runs_dir: str, name: str, title: str) -> list[Path]:
    """Put the network of a finished run among the shipped ones: half precision, with its record's provenance."""
    run = Run.from_dict(json.loads(Path(run_file).read_text()))
    found, record = networks.of_run(run, runs_dir), read_record(record_path(runs_dir, run))
    where = {k: record["where"][k] for k in ("commit", "versions", "device", "data_digest")}
    about = found.about | {"name": name, "title": title, "key": run.key, "where": where}
    about["final"] = {k: record["final"][k] for k in ("val_loss", "val_loss_se")}
    about |= {k: record["cost"][k] for k in ("images_seen", "seconds")}
    state = {k: v.half().contiguous() for k, v in found.model.state_dict().items()}
    path = networks.FOLDER / f"{name}.safetensors"
    write_atomic(path, save(state, {"about": json.dumps(about)}))
    return [path]


if __name__ == "__main__":
    print(*{"films": films, "network": network}[sys.argv[1]](*sys.argv[2:]), sep="\n")
