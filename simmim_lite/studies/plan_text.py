"""A plan as text, and the command that prints it: `simmim-lite plan`. No torch here."""

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..training.specs import read
from . import speed

if TYPE_CHECKING:
    from .planner import Plan

_WIDTH = 94  # characters: what a notebook shows in one line
LIGHTS = {
    "green": "nothing is known to overfit",
    "yellow": "the loss may turn up while the score still gains",
    "orange": "longer training is a coin flip",
    "red": "longer training lost score every time",
}


def cells(plan: "Plan") -> list[dict[str, str]]:
    """The cost table, a line an option, best predicted first, as text."""
    form = ".2f" if plan.measure != "validation loss" else ".4f"
    found = []
    for o in plan.options:
        line = {"": f"{'*' if o.together else ' '}{o.rank}", "size": o.model.removeprefix("swinv2_")}
        line |= {"iterations": f"{o.steps:,}", "FLOPs": f"{o.flops:.2e}"}
        if o.hours is not None:
            line["GPU hours"] = f"{o.hours:,.1f}" if o.hours >= 1 else f"{o.hours:.2g}"
            if plan.gpus > 1:
                line["days"] = f"{o.hours / plan.gpus / 24:.2g}"
        line |= {
            "epochs": f"{o.epochs:,.0f}" if o.epochs >= 10 else f"{o.epochs:.2g}",
            "Omega": f"{o.omega:.1e}",
            "light": o.light,
        }
        if not plan.refused:
            line[plan.measure] = "–" if o.value is None else f"{o.value:{form}}"
            line["90 % interval"] = "–" if o.value is None else f"{o.low:{form}} to {o.high:{form}}"
            line["first wins"] = "–" if o.chance is None else f"{100 * o.chance:.0f} %"
        found.append(line | {"<": "<" if o == plan.rule else ""})
    return found


def sayings(plan: "Plan") -> dict[str, str]:
    """What follows from the table, by heading; what there is nothing to say on is left out."""
    best = plan.best
    said = {}
    if plan.refused:
        said["no numbers"] = "; ".join(plan.refused) + ": the order is all the law can give"
        said["first in order"] = best.name
    else:
        others = plan.together[1:]
        names = "; ".join(o.name for o in others) if len(others) <= 4 else f"{len(others)} others, marked *"
        said["best predicted"] = best.name + (f", not to be told from {names}" if others else ", alone")
    rule = plan.rule
    place = "the same" if rule == best else f"number {rule.rank} here"
    if rule.together is not None and rule != best:
        place += ", in the set" if rule.together else ", outside the set"
    said["simple rule (longest, then largest)"] = f"{rule.name}: {place}"
    said |= {"what binds": plan.binds, "spend less": plan.spend_less}
    return {name: text for name, text in said.items() if text}


def lines(plan: "Plan") -> Iterator[str]:
    """A plan as text."""
    yield f"{plan.images:,} images, {plan.budget}; {plan.measure} by the law '{plan.form}' on {plan.basis}"
    yield ""
    table = cells(plan)
    widths = {name: max(len(name), *(len(line[name]) for line in table)) for name in table[0]}
    for line in ({name: name for name in table[0]}, *table):
        yield "  ".join(
            f"{text:<{widths[n]}}" if n == "size" else f"{text:>{widths[n]}}" for n, text in line.items()
        ).rstrip()
    yield "" if plan.refused else "* its interval overlaps that of the best    < the simple rule's pick"
    if not plan.refused:
        yield "first wins: how often a prediction that far ahead was the better run"
    shown = dict.fromkeys(o.light for o in plan.options if o.light in LIGHTS)
    yield "; ".join(f"{light}: {LIGHTS[light]}" for light in LIGHTS if light in shown)
    yield ""
    for name, text in [*sayings(plan).items(), *(("note", note) for note in plan.notes)]:
        yield from textwrap.wrap(f"{name}: {text}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def show(arguments: argparse.Namespace) -> None:
    """Print the plan that the options ask for."""
    from .planner import plan

    names = (
        "budget_flops",
        "budget_gpu_hours",
        "sizes",
        "target",
        "measure",
        "law",
        "runs_dir",
        "image_size",
        "batch_size",
    )
    found = plan(
        arguments.images,
        gpus=read("gpus", speed.Gpus, arguments.gpus),
        images_per_second=speed.parse(arguments.images_per_second),
        photographs=not arguments.not_photographs,
        **{name: getattr(arguments, name) for name in names},
    )
    print(json.dumps(dataclasses.asdict(found), indent=1) if arguments.json else "\n".join(lines(found)))
