"""Sets that give a picture by its number: torchvision's, and those of the Hugging Face hub. No torch at import."""

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError, first_line, unknown


def indexed(spec: str, kind: str, name: str, root: Path) -> tuple[dict, Callable, tuple[str, ...]]:
    """A set of torchvision's or the hub's (kind: torchvision | hf): split -> (a sequence, its labels, -1 = unknown);
    picture(sequence, i) -> what `decode.read` takes; classes. root: where torchvision keeps its downloads."""
    if kind == "hf":
        return _hf_parts(spec, name)
    train, held = _torchvision_splits(name, root)
    labels = [_targets(part) for part in (train, held)]
    classes = getattr(train, "classes", None) or range(1 + max(map(max, labels)))
    return {"train": (train, labels[0]), "test": (held, labels[1])}, _first, tuple(map(str, classes))


def _first(part: Sequence, i: int) -> object:
    return part[i][0]


def _entry(column: str, part: Sequence, i: int) -> bytes | str | None:
    entry = part[i][column]
    return entry and (entry["bytes"] or entry["path"])


def _hf_parts(spec: str, name: str) -> tuple[dict, Callable, tuple[str, ...]]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{spec} needs the package datasets: pip install 'simmim-lite[hf]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries would come before our one line
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub raises errors of many libraries
        reason = first_line(error)
        raise UserError(f"{spec}: datasets cannot load it ({reason}); check the name and the network") from error
    columns = loaded["train"].features if "train" in loaded else {}
    image = next((c for c, f in columns.items() if isinstance(f, datasets.Image)), None)
    if image is None:
        raise UserError(f"{spec}: no train split with a column of images (splits: {', '.join(loaded)})")
    label = next((c for c, f in columns.items() if isinstance(f, datasets.ClassLabel)), None)
    held = {split: loaded[split] for split in ("validation", "test") if split in loaded}
    parts = {"train": loaded["train"], **{split.replace("validation", "val"): part for split, part in held.items()}}
    # as bytes or a path, so that their pictures are read as all others are
    parts = {split: part.cast_column(image, datasets.Image(decode=False)) for split, part in parts.items()}
    labelled = {k: (p, list(p[label]) if label else [-1] * len(p)) for k, p in parts.items()}
    return labelled, functools.partial(_entry, image), tuple(columns[label].names) if label else ()


def _torchvision_splits(name: str, root: Path) -> tuple:
    """The training and the held-out set of a torchvision class, downloaded by itself where it can."""
    from torchvision import datasets

    known = {}
    for candidate in datasets.__all__:
        arguments = inspect.signature(getattr(datasets, candidate).__init__).parameters
        if "train" in arguments or "split" in arguments:
            known[candidate] = arguments
    if name not in known:
        raise unknown("torchvision data set", name, known)
    arguments, kind = known[name], getattr(datasets, name)
    options = {"download": True} if "download" in arguments else {}
    try:
        if "train" in arguments:
            return kind(root, train=True, **options), kind(root, train=False, **options)
        train = kind(root, split="train", **options)
        try:
            return train, kind(root, split="test", **options)
        except ValueError:
            return train, kind(root, split="val", **options)
    except Exception as error:  # downloads fail in many ways
        raise UserError(f"torchvision:{name}: torchvision cannot open it in {root} ({first_line(error)})") from error


def _targets(part) -> list[int]:
    """Class numbers of a torchvision data set, -1 where a target is not one."""
    for attribute in ("targets", "labels", "_labels", "_targets"):
        targets = getattr(part, attribute, None)
        if targets is not None and len(targets) == len(part):
            break
    else:
        targets = [part[i][1] for i in range(len(part))]
    return [int(t) if isinstance(t, (int, np.integer)) or getattr(t, "ndim", 1) == 0 else -1 for t in targets]
