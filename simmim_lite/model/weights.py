"""Weights in and out, from files and the Hugging Face hub, in the layouts of `layouts`: never a part without a word."""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ..errors import UserError, check_writable, first_line, listed, unknown
from ..files import write_atomic
from ..processes import speaks, told, waiting
from .layouts import LAYOUTS, Found, find
from .simmim import SimMIM
from .sizes import HEAD_DIM, MLP_RATIO, SIZES, Size
from .swin import SwinV2

FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # as which weights are written; all but the first by torch
WEIGHTS = "model.safetensors"  # as transformers calls the file in a folder
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
#: What the tensors of Swin V2 do not tell, in settings and in the names of released files and of timm's models.
_WINDOW = r'"swinv2": {[^}]*window_size": (\d+)', r'window(?:_size)?(?:": )?(\d+)'
_TARGET = (r'target(?:": {"enable)?": "?(raw|normalized|true|false)',)
_MISSHAPED = "of another shape or kind"


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did, in the model's names as far as it has them. As text, one line."""

    layout: str  # simmim (own or official), backbone (official without head), timm, hf
    loaded: tuple[str, ...]  # tensors of the model that were filled
    kept: tuple[str, ...]  # tensors of the model that the file does not hold (mask token and head at most)
    unused: tuple[str, ...]  # tensors of the file without a place here: buffers, classifiers, and what stands beside
    notes: tuple[str, ...] = ()  # what was taken off or passed over, and a window that is another one

    def __str__(self) -> str:
        rest = {"kept as they were": self.kept, "not used": self.unused}
        rest = [f"{what}: {listed(names)}" for what, names in rest.items() if names]
        count = f"{len(self.loaded)} of {len(self.loaded) + len(self.kept)} tensors"
        return "; ".join([f"{count} from the {self.layout} layout", *self.notes, *rest])


def is_hub(name: object) -> bool:
    """Whether a text names a file of the hub."""
    return isinstance(name, str) and name.startswith("hf://")


def fetch(name: str) -> Path:
    """The local copy of `hf://OWNER/REPOSITORY[@REVISION]/PATH`, downloaded at the first time (into `HF_HOME`).

    `UserError`, one line, for a name that is none, and for what cannot be fetched.
    """
    found = re.fullmatch(r"hf://([^/@\s]+/[^/@\s]+)(?:@([^/\s]+))?/(.+)", name)
    if not found:
        raise UserError(f"'{name}' names no file of the hub: give hf://OWNER/REPOSITORY/PATH")
    try:
        import huggingface_hub

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would come before our one line
        with waiting(f"asking the hub for {name}"):
            return Path(huggingface_hub.hf_hub_download(found[1], found[3], revision=found[2]))
    except ImportError as error:
        raise UserError(f"{name} needs the package huggingface_hub: pip install 'simmim-lite[hf]'") from error
    except Exception as error:  # the hub raises errors of many libraries
        raise UserError(f"{name} cannot be fetched ({first_line(error)}); check the name and the network") from error


def _local(source: str | os.PathLike) -> Path:
    """The weights file that a path, a folder as transformers writes it, or a name of the hub means."""
    path = fetch(source) if is_hub(source) else Path(source)
    files = [path / name for name in (WEIGHTS, "pytorch_model.bin")] if path.is_dir() else [path]
    if found := next((file for file in files if file.is_file()), None):
        return found
    raise UserError(f"{path}: no such file; give a .safetensors file, one by torch.save, or a folder of {WEIGHTS}")


def check_target(target: str | os.PathLike, layout: str, source: str | os.PathLike = "") -> Path:
    """The path that weights of a layout are written to: for `hf` a folder (or its WEIGHTS), else a file, by FILES.

    `UserError` for an unknown layout, another suffix, a place that cannot be written, and the file `source` itself.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    path = Path(target).expanduser()
    path = path.parent if layout == "hf" and path.name == WEIGHTS else path
    if layout == "hf" and path.is_file():
        raise UserError(f"{path} is a file, and layout hf is a folder of {WEIGHTS} and config.json")
    if layout != "hf" and (path.is_dir() or path.suffix not in FILES):
        raise UserError(f"{path}: its suffix says no kind of file: give one of {', '.join(FILES)}")
    if source and Path(source).expanduser().resolve() in {p.resolve() for p in (path, path / WEIGHTS)}:
        raise UserError(f"{path} is the file to read, too: give the target another name")
    check_writable(path)
    return path


def _compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The tensors of a file and of a model by how they fit; mask token and head, each as a whole, may be absent."""
    kinds = {kind: [] for kind in ("fits", "absent", "missing", "unknown", _MISSHAPED)}
    optional = ("encoder.mask_token", *(() if any(k.startswith("decoder.") for k in state) else ("decoder.",)))
    for key, value in own.items():
        kind = "absent" if key.startswith(optional) else "missing"
        if key in state:
            kind = "fits" if state[key].shape == value.shape and state[key].is_floating_point() else _MISSHAPED
        kinds[kind].append(key)
    return kinds | {"unknown": [key for key in state if key not in own]}


def load_weights(model: SimMIM, path_or_state_dict: str | os.PathLike | Mapping, head: bool = False) -> Loaded:
    """Fill a model from a file (safetensors or torch's), `hf://OWNER/REPOSITORY/PATH` or a state dict, in any layout.

    The weights may lie under any prefix or key; one line on stderr says what was taken off, kept or not used. Mask
    token and head may be absent, but not with `head`. No code in a file runs. `UserError`, one line, for a file that is
    absent, cut short, of another size or design, or not finite; the model is then as it was.
    """
    given = isinstance(path_or_state_dict, Mapping)
    name = "the state dict" if given else str(path_or_state_dict)
    found = find(path_or_state_dict if given else read(_local(path_or_state_dict)), name)
    state, own = found.state, model.state_dict()
    kinds = _compare(state, own)
    faults = {kind: kinds[kind] for kind in ("missing", "unknown", _MISSHAPED) if kinds[kind]}
    if faults or not kinds["fits"]:
        said = ", ".join(f"{len(keys)} {kind} (first {keys[0]})" for kind, keys in faults.items())
        said = f"{name} ({found.layout} layout) does not fit: {said}; the file has {_shape(found)}"
        size, here = _size_of(found), _shape(model.encoder)
        remedy = f"load it into {size.name}" if here != _shape(found) and size.name in SIZES else "is it whole?"
        raise UserError(f"{said}, the model {here}: {remedy}")
    if head and kinds["absent"]:
        what = f"{name} holds no {kinds['absent'][0]}: to predict pixels needs the mask token and the head"
        raise UserError(f"{what}; give the file of the pretrained model")
    values = {k: state[k].to(own[k].dtype) for k in kinds["fits"]}
    if wrong := not_finite(values):
        raise UserError(f"{name}: {wrong}; its training diverged, or it overflows here: take an earlier checkpoint")
    model.load_state_dict(values, strict=False)
    stage, there, notes = model.encoder.layers[0], tuple(window for _, window in found.windows), found.notes
    here = stage.blocks[0].attn.pretrained_window or stage.window
    if there and there[0] != here:
        notes += (f"pretrained with windows of {there[0]}, not {here}: give pretrained_window_sizes={there}",)
    loaded = Loaded(found.layout, tuple(values), tuple(kinds["absent"]), found.unused, notes)
    if speaks() and (not given or loaded.kept or loaded.unused or notes):  # of a team one process says it
        print(f"simmim-lite: {name}: {loaded}", file=told())
    return loaded


def windows_of(source: str | os.PathLike) -> tuple[int, ...]:
    """The windows of the stages that a file was pretrained with, () where it does not tell."""
    return tuple(window for _, window in find(read(_local(source)), str(source)).windows)


def pinned(source: str) -> tuple[str, str, tuple[int, ...]]:
    """SOURCE@DIGEST, 12 hexadecimal digits of its tensors, the same in every layout; its size; and the windows of its
    stages, () where it does not tell."""
    found, total = find(read(_local(source)), source), hashlib.sha256()
    for name in sorted(found.state):
        total.update(name.encode() + found.state[name].float().numpy().tobytes())
    return f"{source}@{total.hexdigest()[:12]}", _size_of(found).name, tuple(window for _, window in found.windows)


def save_weights(
    model: SimMIM,
    path: str | os.PathLike,
    layout: str = "simmim",
    *,
    image_size: int | None = None,
    without: Collection[str] = (),
) -> Path:
    """Write a model's weights, whole or not at all, as .safetensors when the path ends so, else with `torch.save`.

    layout: `simmim`; `official`, the same under `model` (flat in a safetensors file); `timm`, the backbone only; `hf`,
    a folder that `Swinv2ForMaskedImageModeling.from_pretrained` opens, with image_size (pixels; 192, or 32 for two
    stages) in its config.json. without: tensors to leave out, such as a head that no file filled (`Loaded.kept`).
    """
    target = check_target(path, layout)
    path = target / WEIGHTS if layout == "hf" else target
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in without}
    state = LAYOUTS[layout](state)
    if path.suffix == ".safetensors":
        content = save(state, metadata={"format": "pt"})
    else:
        torch.save({"model": state} if layout == "official" else state, buffer := io.BytesIO())
        content = buffer.getvalue()
    if layout == "hf":
        (target / "config.json").unlink(missing_ok=True)  # an old one beside new weights would be believed
    write_atomic(path, content)
    if layout == "hf":
        side = image_size or (192 if len(model.encoder.depths) == 4 else 32)
        write_atomic(target / "config.json", _hf_config(model, side))
    return target


def read(path: Path) -> object:
    """The content of a file on the CPU; what it is is told by its first bytes, not by its name."""
    try:
        with open(path, "rb") as file:
            if file.read(9)[8:] == b"{":
                return load(path.read_bytes())
            file.seek(0)
            with torch.serialization.safe_globals(_DATA):  # by its path, the name would decide
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are not what they claim to be raise almost anything
        why = str(error).split("WeightsUnpickler error:")[-1].strip()  # what torch.load says before it is advice
        why = (why or type(error).__name__).splitlines()[0][:200]
        remedy = "download it again, or where you trust it save its tensors alone: Python objects are not read"
        raise UserError(f"{path} cannot be read: cut short or no weights file ({why}); {remedy}") from error


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The first tensor that holds NaN or infinity, as text; empty where all numbers are finite."""
    for key, value in state.items():
        if value.is_floating_point() and (wrong := (~value.isfinite()).sum()):
            return f"tensor {key} holds NaN or infinity ({wrong} of {value.numel()} numbers)"
    return ""


def show(source: str) -> list[str]:
    """What a file is, a line each: layout, size, window, target, and how its tensors fit a network of that size.

    source: a file, a folder as transformers writes it, or hf://OWNER/REPOSITORY/PATH. `UserError` without a Swin V2.
    """
    content = read(path := _local(source))
    found = find(content, source)
    size, own, (window, target) = _size_of(found), {}, _settings(path, content)
    if size.embed_dim and size.embed_dim % HEAD_DIM == 0:
        with torch.device("meta"):
            own = SimMIM(SwinV2(size.embed_dim, size.depths)).state_dict()
    kinds = _compare(found.state, own)
    if found.windows:
        here, there = ("-".join(map(str, w)) for w in zip(*found.windows, strict=True))
        window = f"{here} by stage, coordinates of {there}"
    dtypes = sorted({str(v.dtype).removeprefix("torch.") for v in found.state.values()})
    count = f"{sum(found.state[k].numel() for k in kinds['fits']):,} parameters in {len(kinds['fits'])} of {len(own)}"
    rows = {"layout": "; ".join((found.layout, *found.notes)), "size": f"{size.name} ({_shape(found)})"}
    rows |= {"window": window, "target": target, "missing": listed(kinds["missing"] + kinds["absent"]) or "none"}
    rows["extra"] = listed([*kinds["unknown"], *found.unused]) or "none"
    rows["wrong"] = f"{listed(kinds[_MISSHAPED])} ({_MISSHAPED})" if kinds[_MISSHAPED] else "none"
    rows["numbers"] = f"{count} tensors, {', '.join(dtypes)}; {not_finite(found.state) or 'all finite'}"
    return [source, *(f"  {title:8s} {text}" for title, text in rows.items())]


def _shape(network: Found | SwinV2) -> str:
    return f"embed_dim {network.embed_dim}, depths {'-'.join(map(str, network.depths))}"


def _size_of(found: Found) -> Size:
    """The size that a file is of, by width and number of stages: blocks may be missing."""
    width, depths = found.embed_dim, found.depths
    same = (size for size in SIZES.values() if (size.embed_dim, len(size.depths)) == (width, len(depths)))
    return next(same, Size("none of ours", width, depths))


def _settings(path: Path, content: object) -> list[str]:
    """Window and target, as far as the file's settings beside the tensors, files beside it, or its name say them."""
    texts = [json.dumps(content, default=lambda x: vars(x) if isinstance(x, argparse.Namespace) else "", skipkeys=True)]
    with contextlib.suppress(SafetensorError), safe_open(path, "pt") as file:
        texts += (file.metadata() or {}).values()
    beside = path.with_name("config.json"), path.parent.parent / "records" / f"{path.stem}.json"
    text = "\n".join([*texts, *(p.read_text(errors="replace") for p in beside if p.is_file()), path.name]).lower()
    found = [next(filter(None, (re.search(p, text) for p in patterns)), None) for patterns in (_WINDOW, _TARGET)]
    said = [one[1] if one else "not in the file" for one in found]
    return [{"true": "normalized", "false": "raw"}.get(one, one) for one in said]


def _hf_config(model: SimMIM, image_size: int) -> str:
    """The content of config.json for transformers' `Swinv2ForMaskedImageModeling`: this model at a side in pixels."""
    encoder, stages = model.encoder, model.encoder.layers
    config = {"architectures": ["Swinv2ForMaskedImageModeling"], "model_type": "swinv2"}
    config |= {"num_channels": model.channels, "patch_size": model.patch_size, "encoder_stride": model.stride}
    config |= {"image_size": image_size, "embed_dim": encoder.embed_dim, "depths": list(encoder.depths)}
    config["window_size"] = stages[0].window
    config |= {"num_heads": [stage.blocks[0].attn.heads for stage in stages], "mlp_ratio": float(MLP_RATIO)}
    config["pretrained_window_sizes"] = [stage.blocks[0].attn.pretrained_window or 0 for stage in stages]
    config |= {"qkv_bias": True, "drop_path_rate": stages[-1].blocks[-1].drop_path}
    return json.dumps(config, indent=2) + "\n"
