"""Checkpoints of a run in progress, and the final weights of a finished one. All written whole."""

import io
import shutil
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .dense import Dense
from .distributed import Team
from .run import Run, remove, write_atomic
from .tuning import FineTune

CHECKPOINT_VERSION = 1


def trunk_folder(runs_dir: str | Path, run: Run) -> Path:
    """Checkpoints before the learning rate drops, shared by all lengths: RUNS_DIR/checkpoints/TRUNK_KEY."""
    return Path(runs_dir) / "checkpoints" / run.trunk_key


def tail_folder(runs_dir: str | Path, run: Run) -> Path:
    """Checkpoints after the drop, of this length alone: RUNS_DIR/checkpoints/KEY."""
    return Path(runs_dir) / "checkpoints" / run.key


def weights_path(runs_dir: str | Path, run: Run | FineTune | Dense) -> Path:
    """Final weights: RUNS_DIR/weights/KEY.safetensors."""
    return Path(runs_dir) / "weights" / f"{run.key}.safetensors"


def save_checkpoint(folder: Path, state: dict) -> Path:
    """Write FOLDER/step-NNNNNNN.pt; state holds tensors, numbers, strings, lists and dicts, and its `step`."""
    buffer = io.BytesIO()
    torch.save({"version": CHECKPOINT_VERSION, **state}, buffer)
    path = folder / f"step-{state['step']:07d}.pt"
    write_atomic(path, buffer.getvalue())
    return path


def thin_checkpoints(folder: Path, keep: Collection[int] = ()) -> None:
    """Delete all but the newest two (should one not be readable) and those at the steps in `keep`."""
    steps = sorted({_step(path) for path in folder.glob("step-*")})
    for step in set(steps[:-2]) - set(keep):
        for path in folder.glob(f"step-{step:07d}.*"):
            remove(path)


def read_whole(path: Path) -> dict:
    """What `save_checkpoint` was given, its tensors on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def latest_checkpoint(
    runs_dir: str | Path,
    run: Run,
    data_digest: str,
    read: Callable[[Path], dict] = read_whole,
    team: Team | None = None,
) -> dict | None:
    """The furthest state this run can go on from: its own tail, else the trunk up to where the learning rate drops.

    A file that cannot be read, or that belongs to other data, is named on stderr and passed over: the one before it is
    taken, or the run starts anew where there is none. Nothing that is finished depends on it.
    """
    tail = tail_folder(runs_dir, run).glob("step-*")
    trunk = trunk_folder(runs_dir, run).glob("step-*")
    return latest_in([*tail, *(p for p in trunk if _step(p) <= run.drop_step)], data_digest, read, team)


def latest_in(
    paths: Iterable[Path],
    data_digest: str,
    read: Callable[[Path], dict] = read_whole,
    team: Team | None = None,
) -> dict | None:
    """The furthest readable state among checkpoints of this data; the others are named and passed over.

    In a team all processes take the same one: the furthest that each of them can read.
    """
    paths = sorted(paths, key=lambda p: (_step(p), p), reverse=True)
    for path in team.tell(paths) if team else paths:
        state, reason = None, ""
        try:
            state = read(path)
            if state["version"] != CHECKPOINT_VERSION or state["data_digest"] != data_digest:
                raise ValueError("it was made from other data or by another version")
        except Exception as error:  # a short file fails in many ways, all mean the same
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = next(filter(None, team.gather(reason)), "") if team else reason
        if not reason:
            return state
        if team is None or team.main:
            print(f"simmim-lite: checkpoint {path} is passed over ({reason[:120]})", file=sys.stderr)
    return None


def clear_checkpoints(runs_dir: str | Path, run: Run) -> None:
    """After a run is finished: keep the trunk's end, where a longer run can branch off, and delete the rest."""
    shutil.rmtree(tail_folder(runs_dir, run), ignore_errors=True)
    for path in trunk_folder(runs_dir, run).glob("step-*"):
        if _step(path) < run.drop_step:
            remove(path)


def save_final(runs_dir: str | Path, run: Run | FineTune | Dense, weights: dict[str, Tensor]) -> None:
    """Write the final weights of a run or a transfer, as safetensors."""
    from safetensors.torch import save

    write_atomic(weights_path(runs_dir, run), save({k: v.detach().cpu().contiguous() for k, v in weights.items()}))


def load_final(runs_dir: str | Path, run: Run) -> dict[str, Tensor]:
    """The final weights of a finished run; one line when the file is missing or not whole."""
    from safetensors.torch import load

    path = weights_path(runs_dir, run)
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no weights of this run; pretrain it first, or delete its record to run it again"
        ) from None
    except Exception as error:
        raise UserError(
            f"{path}: not readable weights ({error}); delete the file and the run's record, and run again"
        ) from error


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
