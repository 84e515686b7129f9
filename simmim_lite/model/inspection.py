"""What a file of weights is, before anything is done with it: the verb `weights show`."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from . import weights
from .layouts import Found, find, some

#: Names, in lower case, under which trainers keep what Swin V2's tensors do not tell.
_NAMES = {
    "window": ("window_size", "window"),
    "input": ("image_size", "img_size", "side", "input_size"),
    "target": ("target", "norm_target"),
}
#: The same in names, of released files (simmim_pretrain__swinv2_base__img192_window12__….pth) and of timm's models.
_IN_A_NAME = {"window": r"window(\d+)", "input": r"img(\d+)|window\d+_(\d+)"}


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
    shape = f"embed_dim {found.embed_dim}, depths {'-'.join(map(str, found.depths))}"
    count = sum(found.state[k].numel() for k in fit.fits)
    unknown = "not in the file"
    rows = {
        "layout": "; ".join(filter(None, (found.layout, found.wrapping))),
        "size": f"{size or 'none of ours'} ({shape})",
        "window": _windows(found) or _said(hints, "window") or f"{unknown}; the tensors are the same for all windows",
        "input": _said(hints, "input", " px") or unknown,
        "target": _said(hints, "target") or f"{unknown}, raw or normalized",
        "missing": some([*fit.missing, *fit.absent]) or "none",
        "extra": some(fit.unknown + found.unused) or "none",
        "numbers": f"{count:,} parameters in {len(fit.fits)} of {len(own)} tensors, {', '.join(kinds)}",
    }
    rows["numbers"] += f"; {weights.not_finite(found.state) or 'all finite'}"
    if fit.misshaped:
        rows["wrong"] = "tensors " + fit.faults(found.state, own)[-1].replace(" here", f" in {size or 'its size'}")
    return [source, *(f"  {title:8s} {text}" for title, text in rows.items())]


def _windows(found: Found) -> str:
    """The windows of the stages, by the file's buffers; empty where it has none."""
    if not found.windows:
        return ""
    own, of = ("-".join(str(w[i]) for _, w in sorted(found.windows.items())) for i in (0, 1))
    return f"{own} by stage" + (f", with the coordinates of {of}" if of != own else "") + " (its buffers)"


def _hints(path: Path, content: object) -> Iterator[tuple[str, Mapping]]:
    """Dictionaries that may tell more, and where they are from: in the file, beside it, and its name."""
    if isinstance(content, Mapping):
        yield "the file", {k: v for k, v in content.items() if isinstance(v, (str, int))}
        for key, value in content.items():
            value = vars(value) if isinstance(value, argparse.Namespace) else value
            if isinstance(value, Mapping) and not any(isinstance(v, Tensor) for v in value.values()):
                yield f"{key} in the file", value
    with open(path, "rb") as file:
        safe = file.read(9)[8:] == b"{"
    if safe:
        with safe_open(path, "pt") as file:
            yield from (("the file's metadata", _parsed(text)) for text in (file.metadata() or {}).values())
    for beside in (path.with_name("config.json"), path.parent.parent / "records" / f"{path.stem}.json"):
        if beside.is_file():
            yield beside.name, _parsed(beside.read_text(errors="replace"))
    yield "the file's name", {"model": path.name}


def _parsed(text: str) -> dict:
    """A JSON object; none for any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _said(hints: list[tuple[str, Mapping]], what: str, unit: str = "") -> str:
    """The first of the hints that knows, and where it is from; empty where none does."""
    for where, hint in hints:
        for value in _values(hint, _NAMES[what]):
            value = value[-1] if isinstance(value, (list, tuple)) and value else value  # (3, 192, 192)
            if what == "target":
                value = {True: "normalized", False: "raw"}[value] if isinstance(value, bool) else value
                good = value in ("raw", "normalized")
            else:
                good = type(value) is int
            if good:
                return f"{value}{unit} ({where})"
    for where, hint in hints if what in _IN_A_NAME else ():
        for name in _values(hint, ("model", "arch", "architecture")):
            if m := re.search(_IN_A_NAME[what], str(name)):
                return f"{m[m.lastindex]}{unit} ({where})"
    return ""


def _values(hint: Mapping, names: tuple[str, ...]) -> Iterator[object]:
    """What stands under one of the names, wherever it is; of many networks' settings Swin V2's first."""
    for key, value in hint.items():
        if str(key).lower() in names:
            yield from _values(value, ("enable",)) if isinstance(value, Mapping) else (value,)
    for _, value in sorted(hint.items(), key=lambda item: "swinv2" not in str(item[0]).lower()):
        if isinstance(value, Mapping):
            yield from _values(value, names)
