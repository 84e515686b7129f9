"""The names of Swin V2's tensors in four layouts, told by the names alone, whatever they are wrapped in.

All four name the same tensors (docs/facts.md, 5). Swin V2 needs no tensor change between windows and image sizes, so a
file fits whenever width, depths and, for the head, the final stride agree.

- `simmim`: `SimMIM.state_dict()`: `encoder.*`, `decoder.0.*`; the official files are the same, under the key `model`,
  some with `rpe_mlp` for `cpb_mlp`.
- `backbone`: the same without `encoder.`, as in the official fine-tuned files.
- `timm`: the backbone; a merge stands at the start of the stage it leads to, not at the end of the one before.
- `hf`: transformers' `Swinv2ForMaskedImageModeling`: query, key and value apart. Two generations of names are read; the
  one that is written is that of the installed transformers.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import UserError

#: Put anywhere into names by torch's wrappers: compile, DDP, FSDP, activation checkpointing.
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_EMA = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
_BUFFERS = ("relative_coords_table", "relative_position_index", "attn_mask")  # recomputed, never loaded
_HEADS = ("head.", "classifier.")  # classifiers; a SimMIM has none
_BLOCK = re.compile(r"((?:[^.]+\.)*?)(encoder\.)?(layers\.\d+\.blocks\.\d+)\.((\w+).*)")
_HF_PARTS = ("attention", "layernorm_before", "layernorm_after")

# official names on the left, transformers' on the right; the first that matches counts
_HF_TRUNK = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "embeddings.norm"),
    ("mask_token", "embeddings.mask_token"),
    ("layers", "encoder.layers"),
    ("norm", "layernorm"),
)
# of a block; the names of transformers 5.24 come before those that its Swin V1 has already
_HF_BLOCK = (
    ("attn.logit_scale", "attention.self.logit_scale", "attention.logit_scale"),
    ("attn.cpb_mlp", "attention.self.continuous_position_bias_mlp", "attention.continuous_position_bias_mlp"),
    ("attn.q_bias", "attention.self.query.bias", "attention.q_proj.bias"),
    ("attn.v_bias", "attention.self.value.bias", "attention.v_proj.bias"),
    ("attn.query", "attention.self.query", "attention.q_proj"),
    ("attn.key", "attention.self.key", "attention.k_proj"),
    ("attn.value", "attention.self.value", "attention.v_proj"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    ("mlp.fc2", "output.dense", "mlp.fc2"),
)
_QKV = tuple(f"attn.{part}.weight" for part in ("query", "key", "value"))
_OTHERS = (
    ("relative_position_bias_table", "is of Swin V1"),
    (r"(^|\.)stages\.\d+\.", "is of another network, or in the layout of OpenMMLab"),
    (r"cls_token|class_token|pos_embed|position_embeddings|(^|\.)blocks\.\d+\.attn\.", "is of a ViT or MAE"),
    (r"(^|\.)layer\d\.\d+\.(conv|bn)\d\.", "is of a ResNet"),
    (r"(^|\.)features\.\d+\.\d+\.", "is in torchvision's layout"),
    (r"exp_avg|momentum_buffer", "holds an optimiser's state and no weights"),
)


@dataclass(frozen=True)
class Found:
    """The tensors of one Swin V2 in a file's content, under the names of `SimMIM.state_dict()`."""

    layout: str  # simmim | backbone | timm | hf
    state: dict[str, Tensor]  # what has no name in a SimMIM keeps its own
    unused: tuple[str, ...]  # names of buffers, classifiers, and of what stands beside the network
    taken_off: tuple[str, ...]  # wrappers and prefixes, from the outside in
    passed_over: tuple[str, ...]  # prefixes of other copies of the network
    windows: dict[int, tuple[int, int]]  # stage: window, and window of its coordinates; where the file has the buffers

    @property
    def wrapping(self) -> str:
        """What was taken off and passed over to come to the network, as text."""
        parts = [f"taken off: {', '.join(f'{part}.' for part in self.taken_off)}"] if self.taken_off else []
        parts += [f"passed over: the weights under {some(self.passed_over)}"] if self.passed_over else []
        return "; ".join(parts)

    @property
    def embed_dim(self) -> int | None:
        """Width of the first stage, by any block; None where no block has its first norm."""
        for key, value in self.state.items():
            if m := re.fullmatch(r"encoder\.layers\.(\d+)\.blocks\.\d+\.norm1\.weight", key):
                return len(value) >> int(m[1])
        return None

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        blocks = {tuple(m.groups()) for k in self.state if (m := re.match(r"encoder\.layers\.(\d+)\.blocks\.(\d+)", k))}
        counts = Counter(int(stage) for stage, _ in blocks)
        return tuple(counts[stage] for stage in range(max(counts, default=-1) + 1))


def find(content: object, name: str = "the state dict") -> Found:
    """The one Swin V2 in a file's content; of weights and their moving average the weights themselves.

    `name` is for the one line of a `UserError`: nothing known, another network, or several to choose from.
    """
    places = dict(_places(content))
    names = [f"{path}{key}" for path, tensors in places.items() for key in tensors]
    copies = [(path, prefix) for path, tensors in places.items() for prefix in _prefixes(tensors)]
    for pattern, what in _OTHERS[:1] if copies else _OTHERS:
        if key := next((k for k in names if re.search(pattern, k)), None):
            raise UserError(f"{name} {what} (tensor {key}): take a file of a Swin V2")
    if not copies:
        keys = some(map(str, content)) if isinstance(content, Mapping) else ""
        what = f"its tensors are {some(names)}" if names else f"no tensors, but a {type(content).__name__} of {keys}"
        raise UserError(f"{name} holds no Swin V2 weights in a known layout ({', '.join(LAYOUTS)}): {what}")
    chosen = [c for c in copies if not _EMA.search("".join(c))] or copies
    if len(chosen) > 1:
        what = f"{len(chosen)} networks, under {some(repr(''.join(c)) for c in chosen)}"
        raise UserError(f"{name} holds {what}: save the one you mean in a file of its own")
    path, prefix = chosen[0]
    return _found(places[path], path, prefix, tuple("".join(c) for c in copies if c != chosen[0]), name)


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone tensors under timm's names (timm 0.9 and newer)."""
    out = {}
    for key, value in state.items():
        if key.startswith("encoder.") and key != "encoder.mask_token":
            out[_move_merge(key.removeprefix("encoder."), 1)] = value
    return out


def to_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors under the names of the installed transformers' `Swinv2ForMaskedImageModeling`."""
    names, out = tuple(hf_block_names().items()), {}
    for key, value in state.items():
        if not key.startswith("encoder."):
            out[key] = value
            continue
        name = f"swinv2.{_rename(key.removeprefix('encoder.'), _HF_TRUNK)}"
        block = _BLOCK.fullmatch(name)
        if block is None:
            out[name] = value
            continue
        stem, part = name.removesuffix(block[4]), block[4]
        if part == "attn.qkv.weight":
            # clones, because files refuse or repeat tensors that share memory
            out |= {stem + _rename(n, names): third.clone() for n, third in zip(_QKV, value.chunk(3), strict=True)}
        else:
            out[stem + _rename(part, names)] = value
    return out


#: Layouts that are written: name -> what makes their tensors of a `SimMIM.state_dict()`.
LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "simmim": dict,
    "timm": to_timm,
    "hf": to_hf,
    "official": dict,
}


@cache
def hf_block_names() -> dict[str, str]:
    """What the installed transformers calls the parts of a block, by our names; without it, what 5.24 does.

    `UserError` for a transformers with a third kind of names.
    """
    installed = _installed_names() or []
    for names in ({row[0]: row[k] for row in _HF_BLOCK} for k in (1, -1)):
        odd = [name for name in installed if not name.startswith(tuple(f"{n}." for n in names.values()))]
        odd = [name for name in odd if name not in names.values()]
        if not odd:
            return names
    mend = "write the layout timm, or install transformers 5.24"
    raise UserError(f"the installed transformers has names for Swin V2 that are not known here ({odd[0]}): {mend}")


def _installed_names() -> list[str] | None:
    """Names of a block's tensors in the installed transformers; None where it is not there."""
    try:
        from transformers import Swinv2Config, Swinv2ForMaskedImageModeling
    except ImportError:
        return None
    config = Swinv2Config(image_size=8, patch_size=2, embed_dim=2, depths=[1], num_heads=[1], window_size=2)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not spent on it
        names = Swinv2ForMaskedImageModeling(config).state_dict()
    return [b[4] for b in map(_BLOCK.fullmatch, names) if b and not b[4].endswith(_BUFFERS)]


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names of many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _places(content: object, path: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dictionaries in a content that hold tensors: where, as a prefix, and the tensors by name."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items():
        yield from _places(value, f"{path}{key}.")


def _plain(key: str) -> str:
    """A name without what torch's wrappers put into it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _prefixes(tensors: Iterable[str]) -> list[str]:
    """What stands before the names of a Swin V2, once for each that is there."""
    blocks = [b for b in map(_BLOCK.fullmatch, map(_plain, tensors)) if b]
    hf = _is_hf(blocks)
    return list(dict.fromkeys(b[1] + ("" if hf else b[2] or "") for b in blocks))


def _is_hf(blocks: Iterable[re.Match]) -> bool:
    return any(b[5] in _HF_PARTS for b in blocks)


def _found(tensors: dict[str, Tensor], path: str, prefix: str, others: tuple[str, ...], name: str) -> Found:
    """The network under a prefix, by our names, and everything else as unused."""
    own, unused, beside, buffers = {}, [], [], {}
    for key, value in tensors.items():
        plain = _plain(key)
        head = re.fullmatch(r"((?:[^.]+\.)*?)(decoder\..+)", plain)
        if head and prefix.startswith(head[1]):
            plain = head[2]
        elif plain.startswith(prefix):
            plain = plain.removeprefix(prefix)
        else:
            beside.append(key)
            continue
        if plain in own:
            raise UserError(f"{name} holds {plain} twice (once as {key}): save the one you mean in a file of its own")
        if plain.endswith(_BUFFERS):
            buffers[plain] = value
        no_key_bias = plain.endswith("attn.k_bias") and not value.any()
        if no_key_bias or plain.endswith(_BUFFERS) or plain.startswith(_HEADS):
            unused.append(plain)
        else:
            own[plain] = value
    if _is_hf(b for b in map(_BLOCK.fullmatch, own) if b):
        layout, usual = "hf", "swinv2."
    else:
        # a file without any merge has one stage, for which the two agree
        merges = {int(m[1]) for k in own if (m := re.match(r"layers\.(\d+)\.downsample\.", k))}
        layout = "timm" if merges and 0 not in merges else "simmim" if prefix.endswith("encoder.") else "backbone"
        usual = "encoder." if layout == "simmim" else ""
    wrappers = [w for w in _WRAPPERS if any(w in key.split(".") for key in tensors)]
    taken_off = [part for part in (path + prefix.removesuffix(usual)).split(".") if part] + wrappers
    state = _fused({_own_name(key, layout): value for key, value in own.items()})
    unused = [usual + key for key in unused] + beside
    return Found(layout, state, tuple(unused), tuple(taken_off), others, _windows(buffers))


def _own_name(key: str, layout: str) -> str:
    """The name in a SimMIM of a tensor whose prefix is taken off; its own name where it has none."""
    if key.startswith("decoder."):
        return key
    key = key.replace(".rpe_mlp.", ".cpb_mlp.")
    if layout == "timm":
        key = _move_merge(key, -1)
    if layout == "hf":
        key = _rename(key, [pair[::-1] for pair in _HF_TRUNK])
        if block := _BLOCK.fullmatch(key):
            key = key.removesuffix(block[4]) + _own_block(block[4])
    return f"encoder.{key}"


def _own_block(name: str) -> str:
    """Our name of a tensor of a block in either generation of transformers."""
    return _rename(name, [(theirs, ours) for ours, *names in _HF_BLOCK for theirs in names])


def _fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as one matrix; a bias for all three as two, where that of the keys is zero."""
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
    return state


def _windows(buffers: dict[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Window of each stage, and the window that its coordinates were made for, as far as buffers tell."""
    found = {}
    for key, table in buffers.items():
        stage = re.search(r"layers\.(\d+)\.", key)
        if stage and key.endswith("relative_coords_table") and table.ndim == 4 and table.shape[1] > 1:
            window = (table.shape[1] + 1) // 2
            farthest = 2 ** (3 * table.abs().max().item()) - 1  # 8 (window - 1) / (pretrained - 1)
            known = 0 < farthest < math.inf
            found[int(stage[1])] = window, 1 + round(8 * (window - 1) / farthest) if known else window
    return found


def _move_merge(key: str, by: int) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + by}.downsample", key)


def _rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Replace the leading part of a dotted name."""
    for old, new in pairs:
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name
