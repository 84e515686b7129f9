"""What follows from a plan's options: what binds, where to spend less, which pilot run teaches most. No torch here."""

from collections.abc import Mapping

import numpy as np

from .basis import Basis
from .options import Option, predict, row_of

PILOT = 0.25  # of the budget that a pilot run may cost
TEACHES = 0.1  # a pilot that narrows the choice by less is not worth naming


def _gain(on: Basis, option: Option, images: int, what: str) -> float:
    """What the law expects from twice as much of a column, in the unit of y, positive for better."""
    size = {"params": option.params, "flop": 0.0}
    here = row_of(on, option.model, size, option.steps, images)
    there = here | {what: 2 * here[what]}
    if what == "steps":
        there["images_seen"] *= 2
    before, after = predict(on, on.law, [here, there])
    return float(before - after)


def binds(on: Basis, best: Option, images: int) -> tuple[str, str]:
    """Which doubling the law would reward most at the best option: size, steps or data; and a line with all three."""
    names = {"params": "size", "steps": "steps", "images": "data"}
    gains = {name: _gain(on, best, images, column) for column, name in names.items()}
    most = max(gains, key=gains.get)
    unit, form = ("points", "+.2f") if on.target == "accuracy" else ("of loss", "+.4f")
    told = ", ".join(f"{name} {round(gain, int(form[2])) + 0.0:{form}}" for name, gain in gains.items())  # no -0.00
    edge = [n for n, v in (("size", best.params), ("steps", best.steps)) if v == _most(on, n)]
    beyond = f"; {' and '.join(edge)} at the edge of the known range" if edge else ""
    if gains[most] < 0.01 * on.errors("cell", "one").mean:
        return "nothing", f"nothing that these runs can see (a doubling by the law, {unit}: {told})"
    return most, f"{most} (a doubling by the law, {unit}: {told}{beyond})"


def _most(on: Basis, what: str) -> float:
    return max(s["params"] for s in on.sizes.values()) if what == "size" else on.lengths[-1]


def spend_less(options: list[Option], spent: Mapping[str, float], data_limits: bool) -> str:
    """Where more compute buys nothing that can be told; empty where it buys something. spent: shares of the budget."""
    best = options[0]
    cheap = min((o for o in options if o.together), key=lambda o: spent[o.name])
    parts = []
    if spent[best.name] < 0.7:
        why = "data is the limit: " if data_limits else ""
        parts.append(
            f"{why}{best.name} is predicted best at {spent[best.name]:.0%} of the budget, and no option to be better"
        )
    if spent[cheap.name] < 0.7 * spent[best.name]:
        share = spent[cheap.name] / spent[best.name]
        parts.append(f"{cheap.name} costs {share:.0%} of the best prediction and cannot be told from it")
    return "; ".join(parts)


def pilot(on: Basis, options: list[Option], images: int, share: Mapping[str, float]) -> str:
    """The run of at most a quarter of the budget whose result would narrow the choice most.

    Bootstrap fits stand for what the law may be. Knowing run p, with the noise of held-out runs, takes cov^2 / var from
    the variance of every gap between the best and an option of its set.
    """
    rivals = [o for o in options if o.together]
    options = [o for o in options if o.value is not None]
    cheap = [o for o in options if share[o.name] <= PILOT]
    if len(rivals) < 2:
        return "none is needed: no other option's interval reaches the best"
    if not cheap:
        return f"none: every option costs more than {PILOT:.0%} of the budget"
    rows = [row_of(on, o.model, on.sizes[o.model], o.steps, images) for o in options]
    drawn = np.array([predict(on, law, rows) for law in on.bootstrap])  # (fits, options)
    if len(drawn) < 10:
        return "not said: too few runs to draw again"
    noise = 1.4826 * float(np.nanmedian(np.abs(on.errors("cell", "one").error)))
    drawn = drawn - drawn.mean(0)
    index = {o.name: k for k, o in enumerate(options)}
    gaps = np.stack([drawn[:, index[o.name]] - drawn[:, 0] for o in rivals[1:]], 1)
    before = gaps.var(0).sum()
    told = {}
    for option in cheap:
        p = drawn[:, index[option.name]]
        told[option.name] = float(((gaps * p[:, None]).mean(0) ** 2).sum() / (p.var() + noise**2) / max(before, 1e-30))
    name = max(told, key=told.get)
    if told[name] < TEACHES:
        return f"none of at most {PILOT:.0%} of the budget would narrow the choice by {TEACHES:.0%}"
    return f"{name}: {share[name]:.0%} of the budget, narrows the choice by {told[name]:.0%}"
