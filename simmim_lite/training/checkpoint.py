"""Checkpoints of a training in progress, whole or sharded, and the weights and the record of a finished one."""

import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ..errors import UserError
from .parallel import Team
from .run import Run, cannot_write, current_record, remove, remove_unfinished, write_atomic
from .specs import Spec

CHECKPOINT_VERSION = 1
_SHARDS = ".shards"  # a folder in which each process keeps its part (torch.distributed.checkpoint)
_REST = "state.pt"  # in it: what is no tensor of the model or the optimiser
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


def trunk_folder(runs_dir: str | Path, run: Run) -> Path:
    """Checkpoints before the learning rate drops, shared by all lengths: RUNS_DIR/checkpoints/TRUNK_KEY."""
    return Path(runs_dir) / "checkpoints" / run.trunk_key


def tail_folder(runs_dir: str | Path, spec: Spec) -> Path:
    """Checkpoints of one training alone, of a run those after the drop: RUNS_DIR/checkpoints/KEY."""
    return Path(runs_dir) / "checkpoints" / spec.key


def weights_path(runs_dir: str | Path, spec: Spec) -> Path:
    """Final weights: RUNS_DIR/weights/KEY.safetensors."""
    return Path(runs_dir) / "weights" / f"{spec.key}.safetensors"


def run_checkpoints(runs_dir: str | Path, run: Run) -> list[Path]:
    """The checkpoints that a run can go on from: those of its own tail, and of its trunk up to the drop."""
    trunk = trunk_folder(runs_dir, run).glob("step-*")
    return [*tail_folder(runs_dir, run).glob("step-*"), *(p for p in trunk if step_of(p) <= run.drop_step)]


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def save_checkpoint(
    folder: Path,
    state: dict,
    model: nn.Module,
    optimiser: torch.optim.AdamW,
    team: Team,
    sharded: bool,
    keep: Collection[int] = (),
) -> None:
    """Write FOLDER/step-NNNNNNN.pt, or .shards, whole or not at all; of the others there, the newest two and those at
    the steps in `keep` stay. state: plain types and tensors, its `step` among them. Every process calls it."""
    state = {"version": CHECKPOINT_VERSION, **state}

    def write() -> None:
        buffer, parts = io.BytesIO(), {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(state | parts, buffer)
        write_atomic(folder / f"step-{state['step']:07d}.pt", buffer.getvalue())

    def thin() -> None:
        steps = sorted({step_of(path) for path in folder.glob("step-*")})
        for step in set(steps[:-2]) - set(keep):  # two, should one not be readable
            for path in folder.glob(f"step-{step:07d}.*"):
                remove(path)

    if sharded:
        _save_shards(folder / f"step-{state['step']:07d}{_SHARDS}", state, model, optimiser, team)
    else:
        team.on_main(write)
    team.on_main(thin)


def _save_shards(path: Path, state: dict, model: nn.Module, optimiser: torch.optim.AdamW, team: Team) -> None:
    """Each process writes its part into a folder of another name, which is then renamed. Tensors go under their names,
    whatever the number of processes: any number of them can read them again, one alone included."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    def begin() -> Path:
        # a name that `remove_unfinished` knows
        folder = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}"
        try:
            folder.mkdir(parents=True)
            torch.save(state | {"groups": optimiser.state_dict()["param_groups"]}, folder / _REST)
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError to a full disk
            remove(folder)
            raise _cannot_write(path, error) from error
        return folder

    def finish() -> None:
        try:
            remove(path)  # of an earlier attempt, and perhaps damaged
            os.replace(unfinished, path)
        except OSError as error:
            raise cannot_write(path, error) from error

    unfinished = team.on_main(begin)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in _named(model, optimiser):
        tensors |= {f"{moment}.{name}": optimiser.state[parameter][moment] for moment in _MOMENTS}
    try:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(unfinished))
    except CheckpointException as error:  # the same in every process
        team.on_main(lambda: remove(unfinished))
        raise _cannot_write(path, _cause(error)) from error
    team.on_main(finish)


def read_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.AdamW) -> dict:
    """What was saved, with `model` and `optimiser`: tensors on the CPU, of shards laid out as the model's are now.

    Nothing is changed: what cannot be read raises before anything is half loaded. Processes read without one another.
    """
    if path.suffix != _SHARDS:
        return torch.load(path, map_location="cpu", weights_only=True)
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    state = torch.load(path / _REST, map_location="cpu", weights_only=True)
    named = list(_named(model, optimiser))
    tensors = {f"model.{name}": torch.empty_like(value) for name, value in model.state_dict().items()}
    for name, parameter in named:
        tensors |= {f"{moment}.{name}": torch.empty_like(parameter.detach()) for moment in _MOMENTS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that this is done alone is meant
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    except CheckpointException as error:  # no `Exception`
        raise ValueError(str(_cause(error))) from error
    step = torch.tensor(float(state["step"]))  # every step updates every parameter
    moments = {
        i: {"step": step.clone(), **{moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}}
        for i, (name, _) in enumerate(named)
    }
    optimiser_state = {"state": moments, "param_groups": state.pop("groups")}
    return state | {"optimiser": optimiser_state, "model": {n: tensors[f"model.{n}"] for n in model.state_dict()}}


def adopt(state: dict, model: nn.Module, optimiser: torch.optim.AdamW) -> None:
    """Load a state's model and optimiser, whole tensors cut to this process's shards where the model is sharded."""
    own, parameters = model.state_dict(), [parameter for _, parameter in _named(model, optimiser)]
    model.load_state_dict({name: _fit(value, own[name]) for name, value in state["model"].items()})
    moments = {
        i: {k: v if k == "step" else _fit(v, parameters[i]) for k, v in values.items()}
        for i, values in state["optimiser"]["state"].items()
    }
    optimiser.load_state_dict({"state": moments, "param_groups": state["optimiser"]["param_groups"]})


def latest(paths: Iterable[Path], data_digest: str, read: Callable[[Path], dict], team: Team) -> dict | None:
    """The furthest of these checkpoints that every process can read, if any.

    One that cannot be read, or that belongs to other data, is named on stderr and passed over: the one before it is
    taken, or the training starts anew where there is none. Nothing that is finished depends on it.
    """
    for path in team.broadcast(sorted(paths, key=lambda p: (step_of(p), p), reverse=True)):
        state, reason = None, ""
        try:
            state = read(path)
            if state["version"] != CHECKPOINT_VERSION or state["data_digest"] != data_digest:
                raise ValueError("it was made from other data or by another version")
        except Exception as error:  # a short file fails in many ways, all mean the same
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = next(filter(None, team.gather(reason)), "")
        if not reason:
            return state
        if team.is_main:
            print(f"simmim-lite: checkpoint {path} is passed over ({reason[:120]})", file=sys.stderr)
    return None


def clear_checkpoints(runs_dir: str | Path, run: Run) -> None:
    """After a run is finished: keep the trunk's end, where a longer run can branch off, and delete the rest."""
    remove(tail_folder(runs_dir, run))
    for path in trunk_folder(runs_dir, run).glob("step-*"):
        if step_of(path) < run.drop_step:
            remove(path)


def save_final(runs_dir: str | Path, spec: Spec, weights: dict[str, Tensor]) -> None:
    """Write the final weights of a run or a transfer, as safetensors."""
    from safetensors.torch import save

    write_atomic(weights_path(runs_dir, spec), save({k: v.detach().cpu().contiguous() for k, v in weights.items()}))


def load_final(runs_dir: str | Path, spec: Spec) -> dict[str, Tensor]:
    """The final weights of a finished run; one line when the file is missing or not whole."""
    from safetensors.torch import load

    path = weights_path(runs_dir, spec)
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


class Digested(Protocol):
    """Data as a record knows it."""

    spec: str
    digest: str
    line: str  # what was said of it when it was opened


class Busy(Exception):
    """Another process holds the lock, and the caller did not want to wait."""


def made_once(
    path: Path, lock: Path, data: Digested, make: Callable[[], dict], *, team: Team, wait: bool = True
) -> tuple[dict, bool]:
    """The record at `path` if it was made from the images that `data` holds now, else what `make()` writes there.

    Returns the record and whether this call made it. `lock` is a file that one process at a time holds, in a team the
    main one; it is free again when that process ends, however it ends. Another waits, or raises `Busy` with
    `wait=False`. In a team all processes make, if it must be made.
    """
    if not team.is_main:
        record = team.broadcast()
        made = record is None
        if made:
            make()
            record = team.broadcast()
        return record, made

    def make_with_others() -> dict:
        team.broadcast(None)
        return make()

    record, made = _made_once(path, lock, data, make_with_others, wait or team.size > 1)
    team.broadcast(record)
    return record, made


def _made_once(path: Path, lock: Path, data: Digested, make: Callable[[], dict], wait: bool) -> tuple[dict, bool]:
    if (record := current_record(path, data.digest)) is not None:
        return record, False
    holder = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            holder.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise Busy(lock.stem) from None
            print(f"simmim-lite: another process works on {lock.stem}; waiting for it", file=sys.stderr)
            holder.acquire()
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        record = current_record(path, data.digest)  # the process that was waited for may have made it
        if record is not None:
            return record, False
        if path.exists():
            why = f"was made from other images than {data.spec} holds now; it runs again"
            print(f"simmim-lite: {path.name} {why}", file=sys.stderr)
        remove_unfinished(path.parent, path.name)
        return make(), True
    finally:
        holder.release()


def _named(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    """Names and parameters in the order in which the optimiser numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [(names[parameter], parameter) for group in optimiser.param_groups for parameter in group["params"]]


def _fit(value: Tensor, like: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    # every process has the whole tensor: each takes its part, and none is sent
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _cause(error) -> BaseException:
    return next(iter(error.failures.values()))[0]


def _cannot_write(path: Path, error: BaseException) -> UserError:
    return cannot_write(path, error if isinstance(error, OSError) else OSError(str(error).strip().splitlines()[0]))
