"""What a file of weights is, before anything is done with it: the verb `weights show`."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open

from . import weights
from .layouts import Found, find, some

#: What Swin V2's tensors do not tell -> names, in lower case, under which trainers keep it; and what tells it in the
#: names of released files (simmim_pretrain__swinv2_base__img192_window12__….pth) and of timm's models.
_NAMES = {
    "window": (("window_size", "window"), r"window(\d+)"),
    "input": (("image_size", "img_size", "side", "input_size"), r"img(\d+)|window\d+_(\d+)"),
    "target": (("target", "norm_target"), None),
}
_UNKNOWN = "not in the file"


def lines(source: str) -> list[str]:
    """A file's layout, size, window, input, target, and how its tensors fit the network of that size; a line each.

    source: a file, a folder as transformers writes it, or hf://OWNER/REPOSITORY/PATH. `UserError` for what holds no
    Swin V2; numbers that are not finite, missing and unknown tensors are shown.
    """
    path = weights.local(source)
    content = weights.read(path)
    found, hints = find(content, source), list(_hints(path, content))
    size, own = weights.whole(found)
    fit = weights.Fit.of(found.state, own)
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in found.state.values()})
    count = sum(found.state[k].numel() for k in fit.fits)
    rows = {
        "layout": "; ".join(filter(None, (found.layout, found.wrapping))),
        "size": f"{size or 'none of ours'} ({weights.shape(found)})",
        "window": _windows(found) or _told(hints, "window") or f"{_UNKNOWN}; the tensors are the same for all windows",
        "input": _told(hints, "input", " px") or _UNKNOWN,
        "target": _told(hints, "target") or f"{_UNKNOWN}, raw or normalized",
        "missing": some([*fit.missing, *fit.absent]) or "none",
        "extra": some(fit.unknown + found.unused) or "none",
        "numbers": f"{count:,} parameters in {len(fit.fits)} of {len(own)} tensors, {', '.join(kinds)}; "
        + (weights.not_finite(found.state) or "all finite"),
    }
    if fit.misshaped:
        rows["wrong"] = "tensors " + fit.faults(found.state, own)[-1].replace(" here", f" in {size or 'its size'}")
    return [source, *(f"  {title:8s} {text}" for title, text in rows.items())]


def _windows(found: Found) -> str:
    """The windows of the stages, by the file's buffers; empty where it has none."""
    own, of = ("-".join(str(w[i]) for _, w in sorted(found.windows.items())) for i in (0, 1))
    return own and f"{own} by stage" + (f", with the coordinates of {of}" if of != own else "") + " (its buffers)"


def _hints(path: Path, content: object) -> Iterator[tuple[str, str, object]]:
    """(where, dotted key in lower case, value) of whatever may tell more: in the file, beside it, and its name."""
    parts: dict[str, object] = {}
    if isinstance(content, Mapping):
        parts["the file"] = {k: v for k, v in content.items() if isinstance(v, (str, int))}
        inner = {k: vars(v) if isinstance(v, argparse.Namespace) else v for k, v in content.items()}
        parts |= {f"{k} in the file": v for k, v in inner.items() if isinstance(v, Mapping)}
    with open(path, "rb") as file:
        safe = file.read(9)[8:] == b"{"
    if safe:
        with safe_open(path, "pt") as file:
            parts["the file's metadata"] = {k: _parsed(text) for k, text in (file.metadata() or {}).items()}
    for beside in (path.with_name("config.json"), path.parent.parent / "records" / f"{path.stem}.json"):
        if beside.is_file():
            parts[beside.name] = _parsed(beside.read_text(errors="replace"))
    parts["the file's name"] = {"model": path.name}
    for where, part in parts.items():
        # the outermost first; of many networks' settings Swin V2's
        flat = sorted(_flat(part), key=lambda item: (item[0].count("."), "swinv2" not in item[0]))
        yield from ((where, key, value) for key, value in flat)


def _flat(part: Mapping, above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in part.items():
        key = f"{above}{key}".lower()
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value[-1] if isinstance(value, (list, tuple)) and value else value  # (3, 192, 192)


def _parsed(text: str) -> dict:
    """A JSON object; none for any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _told(hints: list[tuple[str, str, object]], what: str, unit: str = "") -> str:
    """The first of the hints that knows, and where it is from; empty where none does."""
    names, pattern = _NAMES[what]
    for where, key, value in hints:
        if what == "target" and isinstance(value, bool):
            value = "normalized" if value else "raw"
        good = value in ("raw", "normalized") if what == "target" else type(value) is int
        if key.removesuffix(".enable").rpartition(".")[2] in names and good:
            return f"{value}{unit} ({where})"
    for where, key, value in hints if pattern else ():
        named = key.rpartition(".")[2] in ("model", "arch", "architecture")
        if named and (m := re.search(pattern, str(value))):
            return f"{m[m.lastindex]}{unit} ({where})"
    return ""
