"""Weights in and out: this project's own layout, the official one, timm's and transformers', from and to files.

All four name the same tensors (FACTS 5). Swin V2 needs no tensor change between windows and image sizes, so a file fits
whenever width, depths and, for the head, the final stride agree.

- `simmim`: `SimMIM.state_dict()`: `encoder.*`, `decoder.0.*`.
- `official`: the same under the key `model`; reads `rpe_mlp` for `cpb_mlp`, and files of the backbone alone.
- `timm`: the backbone; a merge stands at the start of the stage it leads to, not at the end of the one before.
- `hf`: transformers' `Swinv2ForMaskedImageModeling`: query, key and value apart.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from . import hub
from .export import check_target, hf_config
from .simmim import SimMIM
from .sizes import SIZES

LAYOUTS = ("simmim", "timm", "hf", "official")

# official names on the left, transformers' on the right; the first that matches counts
_HF_TRUNK = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "embeddings.norm"),
    ("mask_token", "embeddings.mask_token"),
    ("layers", "encoder.layers"),
    ("norm", "layernorm"),
)
_HF_BLOCK = (
    ("attn.logit_scale", "attention.self.logit_scale"),
    ("attn.cpb_mlp", "attention.self.continuous_position_bias_mlp"),
    ("attn.q_bias", "attention.self.query.bias"),
    ("attn.v_bias", "attention.self.value.bias"),
    ("attn.proj", "attention.output.dense"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
_QKV = tuple(f"attention.self.{part}.weight" for part in ("query", "key", "value"))
_BLOCK = re.compile(r"(.*layers\.\d+\.blocks\.\d+)\.(.+)")
_BUFFERS = ("relative_coords_table", "relative_position_index", "attn_mask")  # recomputed, never loaded
_HEADS = ("head.", "classifier.")  # classifiers; a SimMIM has none


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did, in the model's names as far as it has them."""

    layout: str  # simmim (own or official), backbone (official without head), timm, hf
    loaded: tuple[str, ...]  # tensors of the model that were filled
    kept: tuple[str, ...]  # tensors of the model that the file does not hold (with strict: mask token and head at most)
    unused: tuple[str, ...]  # tensors of the file without a place here (with strict: buffers and classifiers at most)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded from the {self.layout} layout"]
        parts += [f"kept as they were: {_some(self.kept)}"] if self.kept else []
        parts += [f"not used: {_some(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def load_weights(model: SimMIM, path_or_state_dict: str | os.PathLike | Mapping, strict: bool = True) -> Loaded:
    """Fill a model from a file (.safetensors, else torch's) or a state dict in any of the layouts, told by its keys.

    A path may be a name of the Hugging Face hub, `hf://OWNER/REPOSITORY/PATH`, which is downloaded once (`hub.fetch`).

    Values are cast to the model's dtype and device. strict: the file must fill the whole backbone and hold nothing
    unknown; mask token and head may be absent (each as a whole). Otherwise whatever fits is loaded. The model is filled
    after all checks, so an error leaves it as it was. Files are opened with `weights_only=True`: no code in them runs.

    Raises `UserError`, one line, for a file that is absent, cut short, of another size or design.
    """
    if isinstance(path_or_state_dict, Mapping):
        name, content = "the state dict", path_or_state_dict
    else:
        name, content = str(path_or_state_dict), _read(path_or_state_dict)
    found = _tensors(content)
    layout = detect_layout(found, name)
    state, unused = _to_own(found, layout)
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape and v.is_floating_point()}
    kept = [k for k in own if k not in fits]
    spare = [k for k in state if k not in own]
    misshaped = [k for k in kept if k in state]
    head = [k for k in own if k.startswith("decoder.")]
    optional = {"encoder.mask_token", *(head if not any(k in state for k in head) else ())}
    missing = [k for k in kept if k not in state and k not in optional]
    if not fits or strict and (missing or spare or misshaped):
        lines = [f"{len(missing)} missing (first {missing[0]})"] if missing else []
        lines += [f"{len(spare)} unknown (first {spare[0]})"] if spare else []
        for k in misshaped[:1]:
            sizes = " in the file, ".join(f"{tuple(t[k].shape)} {str(t[k].dtype)[6:]}" for t in (state, own)) + " here"
            lines.append(f"{len(misshaped)} of another shape or kind (first {k}: {sizes})")
        raise UserError(f"{name} ({layout} layout) does not fit: tensors {', '.join(lines)}; {_remedy(state, model)}")
    with torch.no_grad():
        for key, value in fits.items():
            own[key].copy_(value)
    return Loaded(layout, tuple(fits), tuple(kept), tuple(unused + spare))


def save_weights(
    model: SimMIM,
    path: str | os.PathLike,
    layout: str = "simmim",
    *,
    image_size: int | None = None,
    leave_out: Collection[str] = (),
) -> Path:
    """Write a model's weights, whole or not at all, as .safetensors when the path ends so, else with `torch.save`.

    layout: `simmim`; `official`, the same under `model` (flat in a safetensors file); `timm`, which has no place for
    mask token and head: backbone only; `hf`, a folder that `Swinv2ForMaskedImageModeling.from_pretrained` opens: path
    is the folder's, and image_size, in pixels, goes into its config.json (192, or 32 for a model of two stages).
    leave_out: tensors of the model that are not written, because nobody trained them.
    """
    target = check_target(path, layout, LAYOUTS)
    path = target / "model.safetensors" if layout == "hf" else target
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if k not in leave_out}
    state = {"timm": _to_timm, "hf": _to_hf}.get(layout, dict)(state)
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
            config.write_text(hf_config(model, image_size or (192 if len(model.encoder.depths) == 4 else 32)))
    except Exception as error:  # a full disk is an OSError, a RuntimeError or a SafetensorError, as the writer pleases
        why = _first_line(error)
        raise UserError(f"cannot write {path}: {why}; free some space or choose another folder") from error
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return target


def detect_layout(state: Mapping[str, Tensor], name: str = "the state dict") -> str:
    """`simmim` (own and official pretraining files), `backbone` (official), `timm` or `hf`; `UserError` for others."""
    if any("relative_position_bias_table" in k for k in state):
        raise UserError(f"{name} is of Swin V1 (it holds relative_position_bias_table); take one of Swin V2")
    if any(k.startswith(("swinv2.", "embeddings.")) or ".attention.self." in k for k in state):
        return "hf"
    if any(k.startswith("encoder.") for k in state):
        return "simmim"
    if any(k.startswith(("patch_embed.", "layers.")) for k in state):
        # a file without any merge has one stage, for which the two agree
        merges = {k.split(".")[1] for k in state if re.match(r"layers\.\d+\.downsample\.", k)}
        return "timm" if merges and "0" not in merges else "backbone"
    keys = f"its keys are {_some(list(state))}" if state else "it holds no named tensors"
    raise UserError(f"{name} holds no Swin V2 weights in a known layout ({', '.join(LAYOUTS)}): {keys}")


def _read(path: str | os.PathLike) -> object:
    """The content of a file, here or on the hub, on the CPU."""
    path = hub.fetch(path) if hub.is_hub(path) else Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; give a .safetensors file or one written by torch.save")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the weights file in it, for instance {path / 'model.safetensors'}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # official checkpoints carry their configuration object: it is read as a plain dictionary, and dropped
        with torch.serialization.safe_globals([(OrderedDict, "yacs.config.CfgNode")]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are not what they claim to be raise almost anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            why = f"it holds a Python object ({refused[1]}), and foreign code is never run; save its tensors alone"
        else:
            why = f"cut short or no weights file ({_first_line(error)}); copy or download it again"
        raise UserError(f"{path} cannot be read: {why}") from error


def _tensors(content: object) -> dict[str, Tensor]:
    """The named tensors of a file's content: unwrapped from `model` or `state_dict`, without DDP's `module.`."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}
    return {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}


def _to_own(found: dict[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under the model's names, and the names in the file of those that are none of the model's business."""
    state, unused = {}, []
    for key, value in found.items():
        no_key_bias = key.endswith("attn.k_bias") and not value.any()
        if no_key_bias or key.endswith(_BUFFERS) or key.startswith(_HEADS):
            unused.append(key)
        else:
            state[_own_name(key, layout)] = value
    for key in [k for k in state if k.endswith(_QKV[0])]:
        stem = key.removesuffix(_QKV[0])
        parts = [stem + name for name in _QKV]
        if all(part in state for part in parts):
            state[stem + "attn.qkv.weight"] = torch.cat([state.pop(part) for part in parts])
    for key in [k for k in state if k.endswith("attn.qkv.bias")]:
        q, k, v = state[key].chunk(3)
        if not k.any():  # Swin V2 has no bias on the keys; one that is not zero stays, and is unknown
            del state[key]
            stem = key.removesuffix("qkv.bias")
            state |= {stem + "q_bias": q, stem + "v_bias": v}
    return state, unused


def _own_name(key: str, layout: str) -> str:
    """A tensor's name in the model, or its own name where it has none."""
    key = key.replace(".rpe_mlp.", ".cpb_mlp.")
    if layout == "simmim" or key.startswith("decoder."):
        return key
    if layout == "timm":
        key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
    if layout == "hf":
        key = _rename(key.removeprefix("swinv2."), [pair[::-1] for pair in _HF_TRUNK])
        if block := _BLOCK.fullmatch(key):
            key = f"{block[1]}.{_rename(block[2], [pair[::-1] for pair in _HF_BLOCK])}"
    return f"encoder.{key}"


def _to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Backbone tensors under timm's names (timm 0.9 and newer)."""
    out = {}
    for key, value in state.items():
        if key.startswith("encoder.") and key != "encoder.mask_token":
            name = key.removeprefix("encoder.")
            out[re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)] = value
    return out


def _to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors under the names of transformers' `Swinv2ForMaskedImageModeling`."""
    out = {}
    for key, value in state.items():
        if not key.startswith("encoder."):
            out[key] = value
            continue
        name = f"swinv2.{_rename(key.removeprefix('encoder.'), _HF_TRUNK)}"
        block = _BLOCK.fullmatch(name)
        if block and block[2] == "attn.qkv.weight":
            # clones, because files refuse or repeat tensors that share memory
            out |= {f"{block[1]}.{n}": part.clone() for n, part in zip(_QKV, value.chunk(3), strict=True)}
        else:
            out[f"{block[1]}.{_rename(block[2], _HF_BLOCK)}" if block else name] = value
    return out


def _rename(name: str, pairs: "tuple | list") -> str:
    """Replace the leading part of a dotted name."""
    for old, new in pairs:
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def _remedy(state: dict[str, Tensor], model: SimMIM) -> str:
    """What a file of these tensors (own names) is, and what to do with it."""
    patches = state.get("encoder.patch_embed.proj.weight")
    if patches is None:
        return "it holds no patch embedding: the file is cut short, or no backbone"
    blocks = {tuple(map(int, m)) for k in state for m in re.findall(r"^encoder\.layers\.(\d+)\.blocks\.(\d+)\.", k)}
    depths = tuple(sum(s == stage for s, _ in blocks) for stage in sorted({s for s, _ in blocks}))
    encoder = model.encoder
    if (len(patches), depths) == (encoder.embed_dim, encoder.depths):
        return "width and depths agree, so the file is cut short or of another design; strict=False loads what fits"
    names = [n for n, s in SIZES.items() if (s.embed_dim, s.depths) == (len(patches), depths)]
    fits = f"load it into {names[0]}" if names else f"no size in {', '.join(SIZES)} has these"
    here = f"the model {encoder.embed_dim}, {'-'.join(map(str, encoder.depths))}"
    return f"the file has embed_dim {len(patches)}, depths {'-'.join(map(str, depths))}, {here}: {fits}"


def _some(names: "tuple | list", most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_line(error: Exception) -> str:
    text = str(error).split("WeightsUnpickler error:")[-1].strip()  # what torch.load says before it is advice
    return (text or type(error).__name__).splitlines()[0][:200]
