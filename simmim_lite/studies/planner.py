"""I have so many images and so much compute: which size, how long, and does more data help? No torch here.

A plan predicts every size and length that the budget allows, by a law fitted to published runs or to the reader's own,
with intervals from held-out errors. It names the set that cannot be told apart, never one answer."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pandas as pd

from ..errors import UserError, unknown
from ..evidence.laws import TARGETS
from ..model.sizes import short
from ..training.specs import Count, Folder, OneOf, Positive, checked
from . import costs
from .basis import LIGHTS, Basis, of_own, of_published
from .tiers import BY_SIZE

RULE = "longest, then largest"
#: What else a reader may do with a budget: what is known of it, and what is not.
_RELEASED = (
    "simmim-lite pretrain --init FILE goes on from them on your images. Notebook 12 compares that with the weights "
    "as they are and with your own pretraining: known for two drawn worlds, unknown for your images until it ran"
)
_DISTIL = (
    "{} learns to give the features of a larger network, which is needed at every step; not part of this library, "
    "and what it gains over the options above is unknown"
)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One size and length. value, low, high are in the unit of `Plan.measure`, None where the law does not reach."""

    model: str
    params: int
    steps: int
    flops: float
    hours: float | None  # GPU hours in all
    epochs: float
    omega: float
    light: str
    value: float | None = None
    low: float | None = None  # 90 % interval from held-out errors
    high: float | None = None
    together: bool | None = None  # its interval overlaps that of the best
    rank: int  # 1 is the best predicted

    @property
    def name(self) -> str:
        """`large, 250,000 iterations`."""
        return f"{short(self.model)}, {self.steps:,} iterations"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a budget can buy, best predicted first, and what follows from it."""

    images: int
    budget: str
    measure: str
    basis: str
    form: str
    options: list[Option]
    rule: Option  # what the simple rule picks
    binds: str
    spend_less: str
    refused: str = ""  # why there are no numbers
    gpus: int = 1  # that share the hours
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> Option:
        """The option of the best prediction."""
        return self.options[0]

    @property
    def together(self) -> list[Option]:
        """Options whose intervals overlap that of the best, it included."""
        return [option for option in self.options if option.together]


@checked
def plan(
    images: Count,
    *,
    budget_flops: Positive | None = None,
    budget_gpu_hours: Positive | None = None,
    images_per_second: Mapping[str, float] | Iterable[str] = (),
    gpus: Count = 1,
    target: Annotated[str, OneOf(tuple(TARGETS))] = "accuracy",
    runs_dir: Folder | None = None,
    on: Basis | None = None,
) -> Plan:
    """Options for `images` unique images under a budget in FLOPs or in GPU hours (of all GPUs together).

    images_per_second: of training one size on one GPU, by model; other sizes are scaled by their FLOPs. runs_dir: the
    reader's own runs, to which every form is refitted and the best taken; None = published ones. For a number of images
    outside what the runs cover the order of options is given alone. `UserError` for nonsense, a budget too small, and
    hours without a speed."""
    if (budget_flops is None) == (budget_gpu_hours is None):
        how = "given twice" if budget_flops is not None else "missing"
        raise UserError(f"the budget is {how}: give one of --budget-flops and --budget-gpu-hours")
    on = on or (of_own(runs_dir, target) if runs_dir is not None else of_published(target))
    batch, given = on.rows[0]["batch_size"], costs.speeds_of(images_per_second)
    if odd := [model for model in given if model not in on.sizes]:
        raise unknown("size among the runs that the plan rests on", odd[0], on.sizes)
    speeds = costs.scaled(given, {model: size["flop"] for model, size in on.sizes.items()}) if given else {}
    if not speeds and budget_gpu_hours:
        way = "--images-per-second SIZE=NUMBER, measured on your GPU"
        raise UserError(f"a budget in GPU hours needs a speed: give {way}, or the budget as --budget-flops")
    limit, unit = budget_flops or budget_gpu_hours, "FLOPs" if budget_flops else "GPU hours"
    cost = {m: (s["flop"] if budget_flops else 1 / (3600 * speeds[m])) * batch for m, s in on.sizes.items()}
    rows = [on.row(model, steps, images) for model in on.sizes for steps in _lengths(on, limit / cost[model])]
    if not rows:
        cheapest = min(cost, key=cost.get)
        raise UserError(
            f"a budget of {limit:.3g} {unit} is under the cheapest option, {short(cheapest)} for {on.lengths[0]:,} "
            f"iterations, which costs {cost[cheapest] * on.lengths[0]:.3g}: give more, or plan with a smaller size"
        )
    low, high = (edge(row["images"] for row in on.rows) for edge in (min, max))
    refused = ""
    if not low * 0.999 <= images <= high * 1.001:
        refused = f"{images:,} images lie outside {low:,} to {high:,}, which {on.name} cover"
    options, notes = _options(on, rows, speeds, bool(refused))
    if options[0].value is None and not refused:
        refused = "every option is more overfit than any run was"
    if on.own:
        notes.append(f"law: {on.form}, the form that predicts held-out cells of {on.name} best")
    else:
        notes.append("published runs are photographs at 192 px, fine-tuned on ImageNet-1K: on yours trust the order")
        notes.append("the law's exponents and Omega's form were chosen looking at all 63 of them")
    if speeds:
        days = f"; days: {gpus} GPUs are taken to be {gpus} times as fast as one" if gpus > 1 else ""
        notes.append(f"hours by the images a second that you gave; others scaled by FLOPs{days}")
    limits, less = ("", "not said outside the known range"), ""
    if not refused:
        limits = _binds(on, options[0], images)
        less = _spend_less(options, {o.name: cost[o.model] * o.steps / limit for o in options}, limits[0] == "data")
    return Plan(
        images=images, budget=f"{limit:.3g} {unit}" + (f" on {gpus} GPUs" if gpus > 1 else ""), measure=on.measure,
        basis=on.name, form=on.form, options=options, rule=max(options, key=lambda o: (o.steps, o.params)),
        binds=limits[1], spend_less=less, refused=refused, gpus=gpus, notes=notes,
    )  # fmt: skip


def _lengths(on: Basis, affordable: float) -> list[int]:
    """Lengths that were run and fit, and the longest that fits in between."""
    lengths = [t for t in on.lengths if t <= affordable * (1 + 1e-9)]
    step = 1000 if on.lengths[0] >= 10_000 else 10
    longest = int(min(affordable, on.lengths[-1]) // step * step)
    return [*lengths, longest] if lengths and longest > 1.05 * lengths[-1] else lengths


def _options(on: Basis, rows: list[dict], speeds: Mapping[str, float], refused: bool) -> tuple[list[Option], list[str]]:
    """All options, best first, and notes.

    Options more overfit (by Omega) than any run that the law was fitted to have no number and come last, the least
    overfit first: there the law's last term is saturated, and what it says of longer training is made up."""
    y = np.array([on.predict(row) for row in rows])
    omega = np.array([row["params"] * row["images_seen"] / row["images"] ** 2 for row in rows])
    reach = float(on.points.omega.max())
    known = omega <= 1.01 * reach
    order = sorted(range(len(rows)), key=lambda k: (not known[k], y[k] if known[k] else omega[k]))
    found, notes, top = [], {}, None
    for place, k in enumerate(order, 1):
        row, numbers = rows[k], {}
        if known[k] and not refused:
            half, said = on.half_width(row["model"], row["images"])
            notes |= dict.fromkeys(said)
            top = y[k] + half if top is None else top
            value, *ends = (100 - v if on.target == "accuracy" else v for v in (y[k], y[k] - half, y[k] + half))
            numbers = {"value": float(value), "low": float(min(ends)), "high": float(max(ends))}
            numbers["together"] = bool(y[k] - half <= top)
        found.append(
            Option(
                model=row["model"], params=row["params"], steps=row["steps"], flops=row["flops"],
                hours=row["images_seen"] / speeds[row["model"]] / 3600 if speeds else None,
                epochs=row["images_seen"] / row["images"], omega=float(omega[k]), light=on.light(omega[k]),
                rank=place, **numbers,
            )
        )  # fmt: skip
    if beyond := int((~known).sum()):
        one = f"{beyond} option{'s' * (beyond > 1)} beyond Omega {reach:.1e}, the most overfit of {on.name}"
        notes[f"{one}: no numbers, and last in order, by Omega"] = None
    return found, list(notes)


def _binds(on: Basis, best: Option, images: int) -> tuple[str, str]:
    """Which doubling the law would reward most at the best option: size, steps or data; and a line with all three."""
    here, gains = on.row(best.model, best.steps, images), {}
    for name, columns in {"size": ["params"], "steps": ["steps", "images_seen"], "data": ["images"]}.items():
        gains[name] = on.predict(here) - on.predict(here | {column: 2 * here[column] for column in columns})
    most = max(gains, key=gains.get)
    unit, digits = ("points", 2) if on.target == "accuracy" else ("of loss", 4)
    told = ", ".join(f"{name} {round(gain, digits) + 0.0:+.{digits}f}" for name, gain in gains.items())  # no -0.00
    if gains[most] < 0.01 * on.errors("cell", "one").mean:
        return "nothing", f"nothing that these runs can see (a doubling by the law, {unit}: {told})"
    return most, f"{most} (a doubling by the law, {unit}: {told})"


def _spend_less(options: list[Option], spent: Mapping[str, float], data_limits: bool) -> str:
    """Where more compute buys nothing that can be told; empty where it buys something. spent: shares of the budget."""
    best, share, parts = options[0], spent[options[0].name], []
    cheap = min((o for o in options if o.together), key=lambda o: spent[o.name])
    if share < 0.7:
        why = "data is the limit: " if data_limits else ""
        parts.append(f"{why}{best.name} is predicted best at {share:.0%} of the budget, and no option to be better")
    if spent[cheap.name] < 0.7 * share:
        less = spent[cheap.name] / share
        parts.append(f"{cheap.name} costs {less:.0%} of the best prediction and cannot be told from it")
    return "; ".join(parts)


def table(plan: Plan) -> pd.DataFrame:
    """The options, a line each, best predicted first, as text: * overlaps the best, < is the simple rule's pick."""
    form, found = ".4f" if plan.measure == "validation loss" else ".2f", []
    for o in plan.options:
        line = {"": f"{'*' if o.together else ' '}{o.rank}{'<' if o == plan.rule else ' '}", "size": short(o.model)}
        line |= {"iterations": f"{o.steps:,}", "FLOPs": f"{o.flops:.2e}"}
        if o.hours is not None:
            line["GPU hours"] = f"{o.hours:,.1f}" if o.hours >= 1 else f"{o.hours:.2g}"
            line |= {"days": f"{o.hours / plan.gpus / 24:.2g}"} if plan.gpus > 1 else {}
        line["epochs"] = f"{o.epochs:,.0f}" if o.epochs >= 10 else f"{o.epochs:.2g}"
        line |= {"Omega": f"{o.omega:.1e}", "light": o.light}
        if not plan.refused:
            line[plan.measure] = "–" if o.value is None else f"{o.value:{form}}"
            line["90 % interval"] = "–" if o.value is None else f"{o.low:{form}} to {o.high:{form}}"
        found.append(line)
    return pd.DataFrame(found).set_index("")


def sayings(plan: Plan) -> dict[str, str]:
    """What follows from the table, by heading; what there is nothing to say on is left out."""
    best, rule, said = plan.best, plan.rule, {}
    if plan.refused:
        said["no numbers"] = f"{plan.refused}: the order is all the law can give"
        said["first in order"] = best.name
    else:
        names = [o.name for o in plan.together[1:]]
        names = "; ".join(names) if len(names) <= 4 else f"{len(names)} others, marked *"
        said["best predicted"] = best.name + (f", not to be told from {names}" if names else ", alone")
    place = "the same" if rule == best else f"number {rule.rank} here"
    if rule.together is not None and rule != best:
        place += ", in the set" if rule.together else ", outside the set"
    said |= {f"simple rule ({RULE})": f"{rule.name}: {place}", "what binds": plan.binds, "spend less": plan.spend_less}
    if best.model in BY_SIZE:  # of the others there are no released weights
        said["or start from released weights"] = _RELEASED
    if best.model != [*BY_SIZE][-1]:  # of giant there is no larger one
        said["or distil from a larger model instead"] = _DISTIL.format(short(best.model))
    return {name: text for name, text in said.items() if text}


def lines(plan: Plan) -> Iterator[str]:
    """A plan as text."""
    yield f"{plan.images:,} images, {plan.budget}; {plan.measure} by the law '{plan.form}' on {plan.basis}\n"
    yield table(plan).rename_axis(None).to_string()
    yield "* its interval overlaps that of the best, < the simple rule's pick"
    shown = dict.fromkeys(o.light for o in plan.options if o.light in LIGHTS)
    yield "; ".join(f"{light}: {LIGHTS[light]}" for light in LIGHTS if light in shown) + "\n"
    for name, text in [*sayings(plan).items(), *(("note", note) for note in plan.notes)]:
        yield from textwrap.wrap(f"{name}: {text}", 94, subsequent_indent="  ", break_on_hyphens=False)
