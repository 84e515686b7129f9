"""The forms of the laws on trial, and runs as the arrays they are fitted to (docs/facts.md, 7). No torch here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np

from ..errors import UserError, unknown
from .records import SCORES, trained

TARGETS = ("loss", "accuracy")
#: Exponents of the saturating laws. They, and Omega's own form, were chosen looking at all 63
#: published runs (docs/facts.md, 7).
SHAPES = {"loss": {"a": 0.2, "b": 0.2, "p": 2.0}, "accuracy": {"a": 0.8, "b": 0.5, "p": 1.25}}


@dataclass(frozen=True, eq=False)
class Points:
    """Runs as arrays (n,): what a law is fitted to. `y` is the loss or the error in per cent."""

    n: np.ndarray  # backbone parameters
    t: np.ndarray  # iterations
    d: np.ndarray  # unique images
    seen: np.ndarray  # images seen, repeats counted
    other: np.ndarray  # 1 where the images are another set than the main one (ImageNet-22K), else 0
    y: np.ndarray
    size: np.ndarray  # model names
    level: np.ndarray  # data levels by name
    cell: np.ndarray  # size x data, a number each
    unit: np.ndarray  # size x data x length: seeds of one setting share it
    target: str  # loss | accuracy

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index) -> "Points":
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "target"}
        return Points(**arrays, target=self.target)

    @property
    def omega(self) -> np.ndarray:
        """N S / D^2."""
        return self.n * self.seen / self.d**2


def score_of(rows: Iterable[dict]) -> str | None:
    """The score that accuracy means for these rows: the first of linear probe, kNN, segmentation probe and fine-tuning
    that they have (published ones: fine-tuning); None where there is none."""
    rows = list(rows)
    return next((s for s in SCORES if any(row[s] is not None for row in rows)), None)


def points(rows: Iterable[dict], target: str = "loss", score: str | None = None) -> Points:
    """Rows of `records.table` (or published, or imported ones) as arrays; runs without the quantity are left out.

    `UserError` for an unknown target, for rows without a score, and for a number that is not finite or out of range.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    rows = trained(rows)
    name = "val_loss" if target == "loss" else score or score_of(rows)
    if name is None:
        raise UserError("no run has a transfer score (it needs labelled images): use target loss")
    rows = [row for row in rows if row[name] is not None]
    if not rows:
        raise UserError(f"no finished run has a {SCORES.get(name, name)}: train some first, or choose the other target")
    for row in rows:
        for what in ("params", "steps", "images", "images_seen", name):
            if not np.isfinite(row[what]) or row[what] < 0 or (row[what] == 0 and what not in SCORES):
                raise UserError(f"{row['key']}: {what} is {row[what]}: give a number above 0, or leave the run out")
        if target == "accuracy" and row[name] >= 1:
            raise UserError(f"{row['key']}: {name} is {row[name]}: give a fraction below 1")
    value = [row[name] if target == "loss" else 100 * (1 - row[name]) for row in rows]
    cells = [(row["model"], row.get("dataset"), row["images"]) for row in rows]
    units = [(*cell, row["steps"]) for cell, row in zip(cells, rows, strict=True)]
    return Points(
        n=np.array([row["params"] for row in rows], float),
        t=np.array([row["steps"] for row in rows], float),
        d=np.array([row["images"] for row in rows], float),
        seen=np.array([row["images_seen"] for row in rows], float),
        other=np.array([not row.get("on_axis", True) for row in rows], float),
        y=np.array(value, float),
        size=np.array([row["model"] for row in rows]),
        level=np.array([row.get("dataset") or f"{row['images']:,} images" for row in rows]),
        cell=_codes(cells),
        unit=_codes(units),
        target=target,
    )


@dataclass(frozen=True)
class Form:
    """A law's form: shapes (searched, on a log scale but for `log_g`) and columns, whose coefficients are linear."""

    title: str
    equation: str
    columns: Callable[[dict, Points, tuple[float, float]], dict[str, np.ndarray]]
    shapes: dict[str, tuple[float, float, tuple[float, ...]]]  # name: lowest, highest, starts
    fixed: tuple[str, ...] = ()  # shapes taken from SHAPES
    signed: bool = False  # coefficients of any sign; else at least 0


def _product(_: dict, x: Points, scale: tuple) -> dict[str, np.ndarray]:
    return {"c": np.ones(len(x)), "k": np.log(x.n / scale[0]) + np.log(x.t / scale[1]) + np.log(x.d / 1e6)}


def _chinchilla(s: dict, x: Points, scale: tuple) -> dict[str, np.ndarray]:
    return {"E": np.ones(len(x)), "A": (x.n / scale[0]) ** -s["a"], "B": (x.t / scale[1]) ** -s["b"]}


def _constrained(s: dict, x: Points, _: tuple) -> dict[str, np.ndarray]:
    """Muennighoff et al. 2023 in images: repeats, and parameters beyond the size optimal for U, wear out.

    The size optimal for U unique images follows from A, B, a, b; their ratio is searched as g = log(aA / bB), so that
    E and B stay linear. Parameters and images count in 1e8.
    """
    u, n = np.log(x.d / 1e8), np.log(x.n / 1e8)
    best = np.minimum((s["log_g"] + s["b"] * u) / s["a"], n)
    spare = np.expm1(np.minimum(n - best, 50.0))  # N / U_N - 1
    repeats = np.maximum(x.seen, x.d) / x.d - 1
    log_n = best + np.log1p(s["R_N"] * -np.expm1(-spare / s["R_N"]))
    log_d = u + np.log1p(s["R_D"] * -np.expm1(-repeats / s["R_D"]))
    ratio = np.exp(s["log_g"]) * s["b"] / s["a"]
    both = ratio * np.exp(-s["a"] * log_n) + np.exp(-s["b"] * log_d)
    return {"E": np.ones(len(x)), "B": both, "s": x.other}


def _saturating(s: dict, x: Points, scale: tuple) -> dict[str, np.ndarray]:
    """Chinchilla's form plus what overfitting costs, h / (1 + h) with h = (Omega / Omega0)^p, which saturates."""
    u = s["p"] * (np.log(x.omega) - np.log(s["Omega0"]))
    found = _chinchilla(s, x, scale) | {"C": 1 / (1 + np.exp(-np.clip(u, -60, 60)))}
    # the published loss is higher on ImageNet-22K at equal length, why is not known; the error is always ImageNet-1K's
    return found | ({"s": x.other} if x.target == "loss" else {})


_EXPONENT = (0.02, 2.5, (0.1, 0.3, 0.8))
_TURN = (1e4, 1e9, (3e5, 1e6, 3e6, 1e7, 3e7))
FORMS = {
    "fixed": Form(
        "saturating in Omega, exponents fixed",
        "E + A N^-a + B T^-b + C h/(1+h), h = (Omega/Omega0)^p, a, b, p given",
        _saturating, {"Omega0": _TURN}, fixed=("a", "b", "p"),
    ),
    "free": Form(
        "saturating in Omega, exponents free",
        "E + A N^-a + B T^-b + C h/(1+h), h = (Omega/Omega0)^p",
        _saturating,
        {
            "a": (*_EXPONENT[:2], (0.2, 0.8)), "b": (*_EXPONENT[:2], (0.2, 0.6)), "p": (0.3, 6.0, (1.0, 2.0)),
            "Omega0": _TURN,
        },
    ),
    "constrained": Form(
        "data-constrained (Muennighoff et al. 2023)",
        "E + A/N'^a + B/D'^b",
        _constrained,
        {
            "a": (*_EXPONENT[:2], (0.2, 0.8)), "b": (*_EXPONENT[:2], (0.1, 0.5)),
            "R_D": (0.05, 1.6e5, (3.0, 50.0, 1e3)), "R_N": (3e-4, 1.6e5, (0.1, 3.0, 50.0)),
            "log_g": (-20.0, 20.0, (-1.0, 2.0)),
        },
    ),
    "chinchilla": Form(
        "Chinchilla in N, T", "E + A N^-a + B T^-b", _chinchilla, {"a": _EXPONENT, "b": _EXPONENT},
    ),
    "product": Form("product", "c + k log(N D T)", _product, {}, signed=True),
}  # fmt: skip


def _codes(names: list) -> np.ndarray:
    index: dict = {}
    return np.array([index.setdefault(name, len(index)) for name in names], int)
