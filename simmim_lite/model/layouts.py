"""The names of Swin V2's tensors in four layouts, told by the names alone, whatever they are wrapped in.

All name the same tensors (docs/facts.md, 5). `simmim`: `SimMIM.state_dict()`, `encoder.*` and `decoder.0.*`; the
official files are the same under the key `model`. `backbone`: without `encoder.`, as in official fine-tuned files.
`timm`: the backbone, a merge at the start of the stage it leads to. `hf`: transformers' `Swinv2ForMaskedImageModeling`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, listed

#: Put anywhere into names by torch's wrappers: compile, DDP, FSDP, activation checkpointing.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
BUFFERS = ("relative_coords_table", "relative_position_index", "attn_mask")  # recomputed, never loaded
_QKV = tuple(f"attn.{part}.weight" for part in ("query", "key", "value"))
#: Ours without `encoder.`, transformers': at the start of a name, or after the number of a block; tried in this order.
_HF = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "embeddings.norm"),
    ("mask_token", "embeddings.mask_token"),
    ("layers", "encoder.layers"),
    ("norm", "layernorm"),
    ("attn.logit_scale", "attention.self.logit_scale"),
    ("attn.cpb_mlp", "attention.self.continuous_position_bias_mlp"),
    ("attn.q_bias", "attention.self.query.bias"),
    ("attn.v_bias", "attention.self.value.bias"),
    *((f"attn.{part}", f"attention.self.{part}") for part in ("query", "key", "value")),
    ("attn.proj", "attention.output.dense"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


@dataclass(frozen=True)
class Found:
    """The tensors of one Swin V2 in a file's content, under the names of `SimMIM.state_dict()`."""

    layout: str  # simmim | backbone | timm | hf
    state: dict[str, Tensor]  # what has no name in a SimMIM keeps its own
    unused: tuple[str, ...]  # names of buffers, classifiers, and of what stands beside the network
    notes: tuple[str, ...]  # prefixes that were taken off, and copies that were passed over
    windows: tuple[tuple[int, int], ...]  # by stage: window, and that of its coordinates; where the file has buffers

    @property
    def embed_dim(self) -> int:
        """Width of the first stage; 0 where the file does not have its beginning."""
        return len(self.state.get("encoder.patch_embed.norm.weight", ()))

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        names = (re.match(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", key) for key in self.state)
        stages = [int(stage) for stage, _ in {name.groups() for name in names if name}]
        return tuple(stages.count(stage) for stage in range(max(stages, default=-1) + 1))


def find(content: object, name: str = "the state dict") -> Found:
    """The one Swin V2 in a file's content; of weights and their moving average the weights themselves.

    `UserError`, in one line with `name`, for nothing in a known layout and for several networks to choose from.
    """
    places = dict(_places(content))
    copies = [(path, prefix) for path, tensors in places.items() for prefix in _prefixes(tensors)]
    if not copies:
        keys = [f"{path}{key}" for path, tensors in places.items() for key in tensors] or [type(content).__name__]
        raise UserError(f"{name} holds no Swin V2 in a known layout ({', '.join(LAYOUTS)}): it holds {listed(keys)}")
    average = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
    chosen, *more = [copy for copy in copies if not average.search("".join(copy))] or copies
    if more:
        networks = f"{len(more) + 1} networks, under {listed(repr(''.join(copy)) for copy in (chosen, *more))}"
        raise UserError(f"{name} holds {networks}: save the one you mean in a file of its own")
    path, prefix = chosen
    root, own, buffers, unused, beside = re.sub(r"(encoder|swinv2)\.$", "", prefix), {}, {}, [], []
    for key, value in places[path].items():
        plain = _plain(key)
        start = root if plain.startswith(f"{root}decoder.") else prefix
        plain = plain.removeprefix(start) if plain.startswith(start) else ""
        if not plain or plain in own:
            beside.append(key)
        elif plain.endswith(BUFFERS):
            buffers[plain] = value
        elif plain.startswith(("head.", "classifier.")):  # classifiers, which a SimMIM does not have
            unused.append(plain)
        else:
            own[plain] = value
    merges = {key.split(".")[1] for key in own if re.match(r"layers\.\d+\.downsample\.", key)}
    ours = "simmim" if prefix.endswith("encoder.") else "backbone"  # of one stage timm's names are the same
    layout = "hf" if _is_hf(own) else "timm" if merges and "0" not in merges else ours
    usual = {"hf": "swinv2.", "simmim": "encoder."}.get(layout, "")
    off = [part for part in (path + prefix.removesuffix(usual)).split(".") if part]
    off += [wrapper for wrapper in _WRAPPERS if any(wrapper in key.split(".") for key in places[path])]
    notes = (f"taken off: {', '.join(f'{part}.' for part in off)}",) if off else ()
    if others := ["".join(copy) for copy in copies if copy != chosen]:
        notes += (f"passed over: the weights under {listed(others)}",)
    unused = (*(usual + key for key in [*buffers, *unused]), *beside)
    return Found(layout, _own_names(own, layout), unused, notes, _windows(buffers))


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone tensors under timm's names (timm 0.9 and newer)."""
    names = {key: key.removeprefix("encoder.") for key in state if key.startswith("encoder.")}
    return {_move_merge(name, 1): state[key] for key, name in names.items() if name != "mask_token"}


def to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors under the names of transformers' `Swinv2ForMaskedImageModeling`."""
    out = {}
    for key, value in state.items():
        stem, parts = key.removesuffix("attn.qkv.weight"), {key: value}
        if stem != key:  # clones, because files refuse or repeat tensors that share memory
            parts = {stem + name: third.clone() for name, third in zip(_QKV, value.chunk(3), strict=True)}
        for name, tensor in parts.items():
            out[re.sub(r"^encoder\.(.*)", lambda m: f"swinv2.{_renamed(m[1], _HF)}", name)] = tensor
    return out


#: Layouts that are written: name -> what makes their tensors of a `SimMIM.state_dict()`.
LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "simmim": dict,
    "timm": to_timm,
    "hf": to_hf,
    "official": dict,
}


def _places(content: object, path: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dictionaries in a content that hold tensors: where, as a prefix, and the tensors by name."""
    if isinstance(content, Mapping):
        if tensors := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
            yield path, tensors
        for key, value in content.items():
            yield from _places(value, f"{path}{key}.")


def _plain(key: str) -> str:
    """A name without what torch's wrappers put into it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _is_hf(names: Iterable[str]) -> bool:
    return any(re.search(r"\.blocks\.\d+\.(attention\.|layernorm_)", name) for name in names)


def _prefixes(tensors: Iterable[str]) -> list[str]:
    """What stands before the names of a Swin V2, once for each that is there."""
    names = list(map(_plain, tensors))
    blocks = (re.match(r"((?:[^.]+\.)*?)(encoder\.)?layers\.\d+\.blocks\.\d+\.", name) for name in names)
    hf = _is_hf(names)
    return list(dict.fromkeys(b[1] + ("" if hf else b[2] or "") for b in blocks if b))


def _own_names(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Tensors of a layout, their prefix taken off, under our names, with query, key and value as one matrix."""
    state = {}
    for key, value in tensors.items():
        key = _move_merge(key, -1) if layout == "timm" else key
        key = _renamed(key, [pair[::-1] for pair in _HF]) if layout == "hf" else key
        key = key.replace(".rpe_mlp.", ".cpb_mlp.")  # as some official files call it
        state[key if key.startswith("decoder.") else f"encoder.{key}"] = value
    for stem in [key.removesuffix(_QKV[0]) for key in state if key.endswith(_QKV[0])]:
        if all(stem + name in state for name in _QKV):
            state[f"{stem}attn.qkv.weight"] = torch.cat([state.pop(stem + name) for name in _QKV])
    return state


def _move_merge(key: str, by: int) -> str:
    """A name with its merge moved to another stage."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + by}.downsample", key)


def _renamed(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        key = re.sub(rf"(^|blocks\.\d+\.){re.escape(old)}(?=\.|$)", rf"\g<1>{new}", key)
    return key


def _windows(buffers: Mapping[str, Tensor]) -> tuple[tuple[int, int], ...]:
    """Window of each stage, and the window that its coordinates were made for, as far as buffers tell."""
    found = {}
    for key, table in sorted(buffers.items()):
        if key.endswith(BUFFERS[0]):  # the largest coordinate is 8 (window - 1) / (pretrained - 1)
            window, farthest = (table.shape[1] + 1) // 2, 2 ** (3 * table.abs().max().item()) - 1
            found[re.search(r"layers\.(\d+)", key)[1]] = window, 1 + round(8 * (window - 1) / max(farthest, 1e-9))
    return tuple(found.values())
