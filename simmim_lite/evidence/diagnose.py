"""Is my run normal? Logs as people have them, read as one curve; what it shows, how sure that is, and what to try next.

js/diagnose.js does the same in a page, by the same table, diagnosis.json. No torch here."""

import contextlib
import csv
import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ..errors import UserError, first_line, unknown
from . import published, tables
from .records import OVERFIT, VALIDATIONS, shipped, shipped_names

TABLE = json.loads(files(__package__).joinpath("diagnosis.json").read_text("utf-8"))
TABLE |= {"overfit": OVERFIT, "validations": VALIDATIONS}
#: Columns by what they hold; the first that a log has counts. Letters, digits and slashes alone are compared.
NAMES = {
    "step": ("step", "steps", "iter", "iteration", "iterations", "globalstep"),
    "epoch": ("epoch", "epochs"),
    "train": ("trainloss", "loss", "trainingloss", "loss/train", "train/loss", "trainlossstep"),
    "val": ("valloss", "evalloss", "testloss", "validationloss", "loss/val", "val/loss", "eval/loss"),
    "lr": ("lr", "trainlr", "learningrate", "learningrate/lr"),
}
_OFFICIAL = re.compile(r"Train: \[(\d+)/\d+\]\[(\d+)/(\d+)\].*?\blr ?([\d.e+-]+).*?\bloss (\S+) \(")


class Point(NamedTuple):
    """What a log says at a step; None where it says nothing."""

    step: float
    train: float | None = None
    val: float | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Finding:
    """A cause, by its name in `TABLE`: what speaks for it, how sure that is, and what to try next."""

    name: str
    sure: str
    says: str
    next: str


@dataclass(frozen=True)
class Diagnosis:
    """What a curve shows. findings: the most telling first; none where it looks healthy or says too little."""

    layout: str
    points: list[Point] = field(repr=False)
    verdict: str  # sick | healthy | too short to say
    findings: list[Finding]
    place: str  # between the mean colour and known runs


def read(path: str | Path) -> tuple[str, list[Point]]:
    """The layout of a log, and its points by step; `UserError`, one line, for what holds no curve."""
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if path.name.startswith("events.out.tfevents"):
        return "TensorBoard", _events(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a log, a record, or a folder of TensorBoard's") from error
    layout, rows = of_text(text)
    if not rows and layout == "record of this package":
        raise UserError(f"{path}: a record without a curve of pretraining losses; give that of a pretraining run")
    if not rows:
        columns = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in NAMES.items() if what != "epoch")
        raise UserError(f"{path}: no curve of losses found; looked for columns {columns}")
    return layout, rows


def of_text(text: str) -> tuple[str, list[Point]]:
    """The same of a log's text."""
    lines = text.splitlines()
    if official := [found.groups() for found in map(_OFFICIAL.search, lines) if found]:
        rows = [{"step": int(e) * int(n) + int(i), "loss": loss, "lr": lr} for e, i, n, lr, loss in official]
        return "official text log", _points(rows)
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict) and "log_history" in content:
            return "transformers' trainer_state.json", _points(content["log_history"])
        if isinstance(content, dict) and "curve" in content:
            pixels = content.get("kind", "pretrain") == "pretrain"  # the loss of a transfer is of labels
            return "record of this package", _points(content["curve"]) if pixels else []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
    if rows:
        whole = [*(point for row in rows for point in row.get("curve", ())), *rows]
        return "JSON lines", _points(whole)
    lines = [line for line in lines if line.strip()]
    return "CSV", _points(csv.DictReader(lines, delimiter=max(",;\t", key="".join(lines[:1]).count)))


def _number(text: object) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _points(rows: Iterable[dict]) -> list[Point]:
    """Points by step, those of a step joined; steps are counted in epochs, or in lines, where a log has none."""
    found: dict[float, dict] = {}
    for place, row in enumerate(rows):
        plain = {re.sub(r"[^a-z0-9/]", "", str(name).lower()): _number(one) for name, one in row.items()}
        if "trainruntime" in plain:  # a summary of the whole run, whose loss is a mean
            continue
        of = {what: next((plain[n] for n in names if plain.get(n) is not None), None) for what, names in NAMES.items()}
        if of["train"] is None and of["val"] is None:
            continue
        step = next((of[n] for n in ("step", "epoch") if of[n] is not None and math.isfinite(of[n])), place)
        held = found.setdefault(step, {})
        held |= {name: of[name] for name in ("train", "val", "lr") if of[name] is not None}
    return [Point(step, **held) for step, held in sorted(found.items())]


def _folder(path: Path) -> tuple[str, list[Point]]:
    """A folder's log: TensorBoard's, or the one that training tools leave under a known name."""
    if events := sorted(path.rglob("events.out.tfevents*")):
        return "TensorBoard", _joined({file: _events(file) for file in events})
    for name in ("trainer_state.json", "log.txt", "log_rank0.txt", "metrics.csv"):
        if there := list(path.rglob(name)):
            nearest = min(len(log.parts) for log in there)
            there = sorted((log for log in there if len(log.parts) == nearest), key=_checkpoint)
            if len(there) > 1 and (_checkpoint(there[0]) < 0 or len({log.parent.parent for log in there}) > 1):
                raise UserError(f"{path}: several logs, {there[0]} and {there[1]}: give one")
            return read(there[-1])
    raise UserError(f"{path}: no log in this folder: give the file, or a folder with trainer_state.json or log.txt")


def _checkpoint(log: Path) -> int:
    """The step of the folder that a trainer of transformers left a log in, -1 of any other."""
    found = re.fullmatch(r"checkpoint-(\d+)", log.parent.name)
    return int(found[1]) if found else -1


def _joined(files: dict[Path, list[Point]]) -> list[Point]:
    """The points of one run, whose losses may be in several folders, one a tag; later files go on where others end."""
    found: dict[float, dict] = {}
    for what in ("train", "val"):
        have = [file for file, points in files.items() if any(getattr(point, what) is not None for point in points)]
        of = sorted({file.parent for file in have})
        if len(of) > 1:
            raise UserError(f"several logs have {what} losses, {of[0]} and {of[1]}: give the folder of one run")
    for point in itertools.chain(*files.values()):
        held = {name: one for name, one in point._asdict().items() if one is not None}
        found.setdefault(point.step, {}).update(held)
    return [Point(**held) for _, held in sorted(found.items())]


def _events(path: Path) -> list[Point]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        held = EventAccumulator(str(path)).Reload()
        rows = [{"step": one.step, tag: one.value} for tag in held.Tags()["scalars"] for one in held.Scalars(tag)]
    except ImportError:
        raise UserError(f"{path}: reading TensorBoard's files needs its package: pip install tensorboard") from None
    except Exception as error:  # a file that is cut or none raises errors of many kinds
        raise UserError(f"{path}: no readable event file ({first_line(error)})") from error
    return _points(rows)


def diagnose(path: str | Path, loss: str | None = None) -> Diagnosis:
    """What a log shows. loss: `l1` or `mse`, of standard deviations; by default MAE's log.txt is taken for mse."""
    layout, points = read(path)
    if loss not in (None, *TABLE["level"]):
        raise unknown("loss", loss, TABLE["level"])
    loss = loss or ("mse" if layout == "JSON lines" and Path(path).name == "log.txt" else "l1")
    return Diagnosis(layout, points, *judged(points, TABLE["level"][loss]), _place(points, loss))


def judged(points: list[Point], level: float) -> tuple[str, list[Finding]]:
    """The verdict on a curve, and its findings; js/diagnose.js is the same, line by line."""
    train = [(p.step, p.train) for p in points if p.train is not None]
    finite, val = [y for _, y in train if math.isfinite(y)], [p.val for p in points if p.val is not None]
    found, share = [], TABLE["shares"]

    def add(name: str, sure: int, **numbers: object) -> None:
        shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in numbers.items()}
        text = TABLE["causes"][name]
        found.append(Finding(name, TABLE["sure"][sure], text["says"].format(**shown), text["next"]))

    if len(finite) < len(train):
        add("not a number", 0, at=f"step {next(step for step, y in train if not math.isfinite(y)):,.0f}")
    if len(finite) < TABLE["least"]:
        return ("sick" if found else "too short to say"), found
    k = max(1, min(5, len(finite) // 20))
    smooth = [float(median(finite[i : i + k])) for i in range(len(finite) - k + 1)]
    first, last, low = smooth[0], smooth[-1], min(smooth)
    fall, many = (first - last) / first if first > 0 else 0.0, len(finite) >= 2 * TABLE["least"]
    if first > share["high"] * level and low > level:
        add("pixels not normalised", 1, first=first, times=first / level)
    elif last > share["away"] * low:
        add("runs away", 0 if many else 1, low=low, last=last)
    elif first < share["low"] * level:
        sure = 1 if first < share["low"] * level / share["far"] else 2
        add("target not in standard deviations", sure, first=first, level=level)
    elif last > share["above"] * level:
        add("noise level", 1 if many else 2, last=last, level=level)
    elif fall < share["flat"]:
        add("flat from the start", 1 if many else 2, first=first, last=last, level=level)
    elif last < share["good"] * level:
        add("too good to be true", 1, last=last, level=level)
    rise = val[-1] - min(val) if len(val) >= VALIDATIONS else 0.0
    if rise > OVERFIT and fall > 0:
        add("rising validation", 0 if rise > share["clear"] * OVERFIT else 1, valley=min(val), val=val[-1])
    if (drop := _drop(points)) and not found:
        step, before = drop
        if before > 0 and (before - last) / before < share["gain"]:
            add("nothing gained at the drop", 2, before=before, at=f"step {step:,.0f}", last=last)
    return ("sick" if found else "healthy" if many and fall >= share["healthy"] else "too short to say"), found


def _drop(points: list[Point]) -> tuple[float, float] | None:
    """The step at which the learning rate falls to a fifth or less at once, in the second half, and the loss before."""
    known = [p for p in points if p.lr and p.train is not None and math.isfinite(p.train)]
    for i in range(len(known) // 2, len(known) - 2):
        if i and known[i].lr <= TABLE["shares"]["drop"] * known[i - 1].lr:
            k = max(1, min(5, i // 20))
            return known[i].step, float(median(p.train for p in known[i - k : i]))
    return None


def known() -> list[tuple[str, float, float]]:
    """Sets of runs of L1 with the lowest and the highest of their validation losses."""
    losses = {tables.SHIPPED.get(name, name): tables.main_rows(shipped(name)) for name in shipped_names()}
    losses["published runs (their protocol is unknown)"] = published.rows()
    ends = {name: [row["val_loss"] for row in rows if row["val_loss"]] for name, rows in losses.items()}
    return [(name, min(some), max(some)) for name, some in ends.items()]


def _place(points: list[Point], loss: str) -> str:
    """Where a run lies between the mean colour and the runs that are known; only of L1 there are any."""
    level, last = TABLE["level"][loss], [p.val if p.val is not None else p.train for p in points][-1]
    said = f"the mean colour buys about {level:g}, this run is at {last:.3g} ({100 * last / level:.0f} % of it)"
    if loss == "mse":
        return f"{said}; there are no shipped runs of this loss to compare with"
    return "; ".join([said, *(f"{name} {low:.2f} to {high:.2f}" for name, low, high in known())])


def text(found: Diagnosis, name: str) -> str:
    """A diagnosis for a terminal."""
    lines = [f"{name}: {found.layout}, {len(found.points)} points", found.place]
    if found.verdict == "healthy":
        lines.append("healthy: the loss falls as it should, and none of the known faults shows")
    elif not found.findings:
        needs = f"{TABLE['least']} losses at least, and a loss that falls by a tenth"
        lines.append(f"too short to say: a verdict takes {needs}")
    for k, one in enumerate(found.findings):
        lines.append(f"{'first' if not k else 'then'}, {one.sure}: {one.name}: {one.says}")
        lines.append(f"  try: {one.next}")
    return "\n".join(lines)
