"""Sharded checkpoints: each process writes its part of a step into one folder (torch.distributed.checkpoint).

Tensors are stored under their names, whatever the number of processes, so any number of them can read a step again, one
alone included, and sharded or whole.
"""

import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import CHECKPOINT_VERSION
from .distributed import Team
from .run import cannot_write

SUFFIX = ".shards"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
_REST = "state.pt"  # what is no tensor of the model or the optimiser


def save_shards(folder: Path, state: dict, model: nn.Module, optimiser: torch.optim.AdamW, us: Team) -> Path:
    """Write FOLDER/step-NNNNNNN.shards, whole or not at all: a folder of another name, renamed. Every process calls it.

    `state` as `save_checkpoint` takes it, without the model and the optimiser, from the main process.
    """
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    path = folder / f"step-{state['step']:07d}{SUFFIX}"

    def begin() -> str:
        unfinished = _beside(path, "")
        try:
            unfinished.mkdir(parents=True)
            groups = optimiser.state_dict()["param_groups"]
            torch.save({"version": CHECKPOINT_VERSION, **state, "groups": groups}, unfinished / _REST)
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError to a full disk
            shutil.rmtree(unfinished, ignore_errors=True)
            raise _failed(path, error) from error
        return str(unfinished)

    def finish() -> None:
        try:
            if path.exists():  # of an earlier attempt, and perhaps damaged
                old = _beside(path, ".old")
                os.replace(path, old)
                os.replace(unfinished, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(unfinished, path)
        except OSError as error:
            raise cannot_write(path, error) from error

    unfinished = Path(us.lead(begin))
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in _named(model, optimiser):
        tensors |= {f"{moment}.{name}": optimiser.state[parameter][moment] for moment in _MOMENTS}
    try:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(unfinished))
    except CheckpointException as error:  # the same in every process
        if us.main:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise _failed(path, _first(error)) from error
    us.lead(finish)
    return path


def read_shards(path: Path, model: nn.Module, optimiser: torch.optim.AdamW) -> dict:
    """A state as `torch.load` gives a whole checkpoint's, its tensors laid out as those of the model are now.

    Nothing is changed: what cannot be read raises before anything is half loaded. Processes read without one another.
    """
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    state = torch.load(path / _REST, map_location="cpu", weights_only=True)
    tensors = {f"model.{name}": torch.empty_like(value) for name, value in model.state_dict().items()}
    named = list(_named(model, optimiser))
    for name, parameter in named:
        tensors |= {f"{moment}.{name}": torch.empty_like(parameter.detach()) for moment in _MOMENTS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that this is done alone is meant
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    except CheckpointException as error:  # no `Exception`
        raise ValueError(str(_first(error))) from error
    steps = torch.tensor(float(state["step"]))  # every step updates every parameter
    moments = {
        i: {"step": steps.clone(), **{moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}}
        for i, (name, _) in enumerate(named)
    }
    state["optimiser"] = {"state": moments, "param_groups": state.pop("groups")}
    state["model"] = {name: tensors[f"model.{name}"] for name in model.state_dict()}
    return state


def adopt(state: dict, model: nn.Module, optimiser: torch.optim.AdamW) -> None:
    """Load a state's model and optimiser, whole tensors cut to this process's shards where the model is sharded."""
    own = model.state_dict()
    model.load_state_dict({name: _fit(value, own[name]) for name, value in state["model"].items()})
    parameters = [parameter for _, parameter in _named(model, optimiser)]
    moments = {
        i: {k: v if k == "step" else _fit(v, parameters[i]) for k, v in values.items()}
        for i, values in state["optimiser"]["state"].items()
    }
    optimiser.load_state_dict({"state": moments, "param_groups": state["optimiser"]["param_groups"]})


def _named(model: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters in the order in which the optimiser numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter


def _fit(value: Tensor, like: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    # every process has the whole tensor: each takes its part, and none is sent
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _beside(path: Path, mark: str) -> Path:
    """A name beside `path` that `remove_unfinished` knows."""
    return path.parent / f".{path.name}{mark}.{os.getpid()}.{threading.get_ident()}"


def _first(error) -> BaseException:
    return next(iter(error.failures.values()))[0]


def _failed(path: Path, error: BaseException):
    return cannot_write(path, error if isinstance(error, OSError) else OSError(str(error).strip().splitlines()[0]))
