"""Weights in and out, from and to files, in the layouts of `layouts`: never a part of them without a word."""

import argparse
import json
import os
import pathlib
import re
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from . import hub
from .layouts import LAYOUTS, Found, find, some
from .simmim import SimMIM
from .sizes import HEAD_DIM, MLP_RATIO, SIZES
from .swin import SwinV2

#: What other trainers keep beside the weights and is data alone: read as plain data, by `weights_only=True` too.
_DATA = [
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),
    *((OrderedDict, f"{m}.utilities.data.AttributeDict") for m in ("lightning.fabric", "lightning_fabric")),
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    *((np.float64(0).__reduce__()[0], f"numpy.{m}.multiarray.scalar") for m in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    *((pathlib.PurePath, f"pathlib{m}.{n}Path") for m in ("", "._local") for n in ("Posix", "Windows")),
]
_AGAIN = "copy or download it again"


@dataclass(frozen=True, repr=False)
class Loaded:
    """What `load_weights` did, in the model's names as far as it has them. As text, one line."""

    layout: str  # simmim (own or official), backbone (official without head), timm, hf
    loaded: tuple[str, ...]  # tensors of the model that were filled
    kept: tuple[str, ...]  # tensors of the model that the file does not hold (with strict: mask token and head at most)
    unused: tuple[str, ...]  # tensors of the file without a place here: buffers, classifiers, and what stands beside
    wrapping: str = ""  # prefixes that were taken off, and copies that were passed over, as text
    moved: str = ""  # where the file is of another window than the model, what that means

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} of {len(self.loaded) + len(self.kept)} tensors from the {self.layout} layout"]
        parts += filter(None, (self.wrapping, self.moved))
        parts += [f"kept as they were: {some(self.kept)}"] if self.kept else []
        parts += [f"not used: {some(self.unused)}"] if self.unused else []
        return "; ".join(parts)

    __repr__ = __str__


@dataclass(frozen=True)
class Fit:
    """The tensors of a file against those of a model, in the model's names."""

    fits: tuple[str, ...]
    missing: tuple[str, ...]  # not in the file; mask token and head, each as a whole, may be
    absent: tuple[str, ...]  # of those, what may be
    unknown: tuple[str, ...]  # not in the model
    misshaped: tuple[str, ...]  # in both, of another shape, or no floating-point numbers

    @classmethod
    def of(cls, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> "Fit":
        head = [k for k in own if k.startswith("decoder.")]
        optional = {"encoder.mask_token", *(head if not any(k in state for k in head) else ())}
        fits = tuple(k for k in own if k in state and state[k].shape == own[k].shape and state[k].is_floating_point())
        return cls(
            fits,
            tuple(k for k in own if k not in state and k not in optional),
            tuple(k for k in own if k not in state and k in optional),
            tuple(k for k in state if k not in own),
            tuple(k for k in own if k in state and k not in fits),
        )

    def faults(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
        """What does not fit, as text, with the first tensor of each kind."""
        lines = [f"{len(self.missing)} missing (first {self.missing[0]})"] if self.missing else []
        lines += [f"{len(self.unknown)} unknown (first {self.unknown[0]})"] if self.unknown else []
        for k in self.misshaped[:1]:
            sizes = " in the file, ".join(f"{tuple(t[k].shape)} {str(t[k].dtype)[6:]}" for t in (state, own)) + " here"
            lines.append(f"{len(self.misshaped)} of another shape or kind (first {k}: {sizes})")
        return lines


def load_weights(
    model: SimMIM, path_or_state_dict: str | os.PathLike | Mapping, strict: bool = True, head: bool = False
) -> Loaded:
    """Fill a model from a file (safetensors or torch's) or a state dict in any of the layouts, told by its keys.

    A path may be a name of the Hugging Face hub, `hf://OWNER/REPOSITORY/PATH`, which is downloaded once (`hub.fetch`).
    The weights may lie under any prefix or key (`model`, `state_dict`, `module.`, `_orig_mod.`, `backbone.`, …); what
    was taken off, kept or not used is said in one line on stderr, which the result is as text.

    Values are cast to the model's dtype and device. strict: the file must fill the whole backbone and hold nothing
    unknown; mask token and head may be absent (each as a whole), but not with `head`. Otherwise whatever fits is
    loaded. The model is filled after all checks, so an error leaves it as it was. Files are opened with
    `weights_only=True`: no code in them runs.

    Raises `UserError`, one line, for a file that is absent, cut short, of another size or design, or not finite.
    """
    name, content = opened(path_or_state_dict)
    found, own = find(content, name), model.state_dict()
    state, fit = found.state, Fit.of(found.state, own)
    faults = fit.faults(state, own)
    if not fit.fits or strict and faults:
        raise UserError(
            f"{name} ({found.layout} layout) does not fit: tensors {', '.join(faults)}; {_remedy(found, model)}"
        )
    if head and fit.absent:
        what = f"{name} holds no {fit.absent[0]}: to predict pixels needs the mask token and the head of pretraining"
        raise UserError(f"{what}; give the file of the pretrained model")
    values = {k: state[k].to(own[k].dtype) for k in fit.fits}
    if wrong := not_finite(values):
        raise UserError(f"{name}: {wrong}; its training diverged, or it overflows here: take an earlier checkpoint")
    with torch.no_grad():
        for key, value in values.items():
            own[key].copy_(value)
    kept = tuple(k for k in own if k not in values)
    loaded = Loaded(found.layout, fit.fits, kept, found.unused + fit.unknown, found.wrapping, _moved(found, model))
    if os.environ.get("RANK", "0") == "0":  # of a team one process says it
        print(f"simmim-lite: {name}: {loaded}", file=sys.stderr)
    return loaded


def save_weights(
    model: SimMIM,
    path: str | os.PathLike,
    layout: str = "simmim",
    *,
    image_size: int | None = None,
    without: Collection[str] = (),
) -> Path:
    """Write a model's weights, whole or not at all, as .safetensors when the path ends so, else with `torch.save`.

    layout: `simmim`; `official`, the same under `model` (flat in a safetensors file); `timm`, which has no place for
    mask token and head: backbone only; `hf`, a folder that `Swinv2ForMaskedImageModeling.from_pretrained` opens: path
    is the folder's, and image_size, in pixels, goes into its config.json (192, or 32 for a model of two stages).
    without: names of the model's tensors to leave out, such as a head that no file filled (`Loaded.kept`).
    """
    target = hub.check_target(path, layout, LAYOUTS)
    path = target / hub.WEIGHTS if layout == "hf" else target
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in without}
    state = LAYOUTS[layout](state)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, temporary, metadata={"format": "pt"})
        else:
            torch.save({"model": state} if layout == "official" else state, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        config = target / "config.json"
        if layout == "hf":
            config.unlink(missing_ok=True)  # an old one beside new weights would be believed
        os.replace(temporary, path)
        if layout == "hf":
            config.write_text(_hf_config(model, image_size or (192 if len(model.encoder.depths) == 4 else 32)))
    except Exception as error:  # a full disk is an OSError, a RuntimeError or a SafetensorError, as the writer pleases
        why = _first_line(error)
        raise UserError(f"cannot write {path}: {why}; free some space or choose another folder") from error
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return target


def opened(source: str | os.PathLike | Mapping) -> tuple[str, object]:
    """What to call a source of weights, and its content, on the CPU."""
    if isinstance(source, Mapping):
        return "the state dict", source
    if not isinstance(source, (str, os.PathLike)):
        raise UserError(
            f"weights from a {type(source).__name__}: give a file, hf://OWNER/REPOSITORY/PATH or a state dict"
        )
    return str(source), read(local(source))


def local(source: str | os.PathLike) -> Path:
    """The weights file that a path, a folder as transformers writes it, or a name of the hub means."""
    path = hub.fetch(source) if hub.is_hub(source) else Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file; give a .safetensors file or one written by torch.save")
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} is a folder without model.safetensors: give the weights file in it")


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The first tensor that holds NaN or infinity, as text; empty where all numbers are finite."""
    wrong = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if not wrong:
        return ""
    first = state[wrong[0]]
    more = f", and {len(wrong) - 1} tensors more" if len(wrong) > 1 else ""
    return f"tensor {wrong[0]} holds NaN or infinity ({(~first.isfinite()).sum()} of {first.numel()} numbers{more})"


def read(path: Path) -> object:
    """The content of a file on the CPU; what it is is told by its first bytes, not by its name."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        if not start:
            raise UserError(f"{path} is empty: {_AGAIN}")
        if start[8:9] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        if text := _text(start):
            mend = "download the file itself (of one in Git LFS, by `git lfs pull`)"
            raise UserError(f"{path} is a text and no weights (it begins with '{text}'): {mend}")
        with open(path, "rb") as file, torch.serialization.safe_globals(_DATA):
            return torch.load(file, map_location="cpu", weights_only=True)  # by its path, the name would decide
    except UserError:
        raise
    except Exception as error:  # bytes that are not what they claim to be raise almost anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            why = f"it holds a Python object ({refused[1]}), and foreign code is never run; "
            why += "save its tensors alone, torch.save(model.state_dict(), FILE), where you trust it"
        else:
            why = f"cut short or no weights file ({_first_line(error)}); {_AGAIN}"
        raise UserError(f"{path} cannot be read: {why}") from error


def _text(start: bytes) -> str:
    """The first words of a text; empty for anything else."""
    readable = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return " ".join(start.decode("ascii").split())[:30] if readable else ""


def whole(found: Found) -> tuple[str | None, dict[str, Tensor]]:
    """The name of the size that a file is of, None for other sizes, and all tensors of such a network, without memory.

    A file with tensors missing is taken for the size of its width; one that is none has no tensors.
    """
    width, patches = found.embed_dim, found.state.get("encoder.patch_embed.proj.weight")
    if width is None or width % HEAD_DIM:
        return None, {}
    side = patches.shape[-1] if patches is not None and patches.ndim == 4 else 4

    def tensors(depths: tuple[int, ...]) -> dict[str, Tensor]:
        with torch.device("meta"):
            return SimMIM(SwinV2(width, depths, patch_size=side), side).state_dict()

    own, same = tensors(found.depths), [size for size in SIZES.values() if size.embed_dim == width]
    if Fit.of(found.state, own).missing and same:
        return same[0].name, tensors(same[0].depths)
    return next((size.name for size in same if size.depths == found.depths), None), own


def shape(network: Found | SwinV2) -> str:
    """Width and depths, as text."""
    return f"embed_dim {network.embed_dim}, depths {'-'.join(map(str, network.depths))}"


def _remedy(found: Found, model: SimMIM) -> str:
    """What a file is, and what to do with it."""
    name = whole(found)[0]
    fits = f"load it into {name}" if name else f"no size in {', '.join(SIZES)} has these"
    if name and SIZES[name].embed_dim == model.encoder.embed_dim:
        fits = "it is cut short or of another design"
    return f"the file has {shape(found)}, the model {shape(model.encoder)}: {fits}, or {_AGAIN}"


def _moved(found: Found, model: SimMIM) -> str:
    """What to know where the coordinates of the position bias are of another window than the model's."""
    here = model.encoder.layers[0].blocks[0].attn.pretrained_window or model.encoder.layers[0].window
    there = tuple(window for _, (_, window) in sorted(found.windows.items()))
    if not there or there[0] == here:
        return ""
    return f"pretrained with windows of {there[0]}, not {here}: create the model with pretrained_window_sizes={there}"


def _first_line(error: Exception) -> str:
    text = str(error).split("WeightsUnpickler error:")[-1].strip()  # what torch.load says before it is advice
    return (text or type(error).__name__).splitlines()[0][:200]


def _hf_config(model: SimMIM, image_size: int) -> str:
    """The content of config.json for transformers' `Swinv2ForMaskedImageModeling`: this model at a side in pixels."""
    encoder = model.encoder
    first = [stage.blocks[0] for stage in encoder.layers]
    config = {
        "architectures": ["Swinv2ForMaskedImageModeling"],
        "model_type": "swinv2",
        "image_size": image_size,
        "patch_size": model.patch_size,
        "num_channels": 3,
        "embed_dim": encoder.embed_dim,
        "depths": list(encoder.depths),
        "num_heads": [block.attn.heads for block in first],
        "window_size": encoder.layers[0].window,
        "pretrained_window_sizes": [block.attn.pretrained_window or 0 for block in first],
        "mlp_ratio": float(MLP_RATIO),
        "qkv_bias": True,
        "drop_path_rate": encoder.layers[-1].blocks[-1].drop_path,
        "encoder_stride": model.stride,
    }
    return json.dumps(config, indent=2) + "\n"
