"""I have so many images and so much compute: which size, how long, and does more data help? No torch here.

A plan predicts every size and length that the budget allows, by a law fitted to published runs or to the reader's own,
with intervals from held-out errors. It names the set that cannot be told apart, never one answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..evidence.laws import FORMS, TARGETS
from ..evidence.records import short
from ..model.sizes import full_name
from ..training.specs import Count, Folder, OneOf, Positive, checked
from . import basis as bases
from . import speed
from .basis import WHOLE, Basis, Option, options_of

RULE = "longest, then largest"
#: Published data levels that `answers` is about.
ANSWERED = ("imagenet1k-10", "imagenet1k-20", "imagenet1k-100", "imagenet22k")


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
    refused: list[str] = field(default_factory=list)  # why there are no numbers
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
    images_per_second: Mapping[str, float] | None = None,
    gpus: speed.Gpus = 1,
    sizes: Iterable[str] | None = None,
    target: Annotated[str, OneOf(tuple(TARGETS))] = "accuracy",
    measure: str | None = None,
    law: Annotated[str, OneOf(tuple(FORMS))] = "fixed",
    runs_dir: Folder | None = None,
    image_size: Count | None = None,
    batch_size: Count | None = None,
    photographs: bool = True,
    on: Basis | None = None,
) -> Plan:
    """Options for `images` unique images under a budget in FLOPs or in GPU hours (of all GPUs together).

    images_per_second: of training one size on one GPU, by model; other sizes are scaled by their FLOPs. Without it,
    measure = "cuda" (or another device) times steps here, and speeds that studies left in runs_dir count. law: a form
    by name, on published runs. runs_dir: the reader's own runs, to which every form is refitted and the best taken;
    None = published ones. Numbers outside what the runs cover are refused: the order of options is given alone.
    `UserError`, one line, for nonsense, for a budget below the cheapest option, and for hours without a measured speed.
    """
    if (budget_flops is None) == (budget_gpu_hours is None):
        how = "given twice" if budget_flops is not None else "missing"
        raise UserError(f"the budget is {how}: give one of --budget-flops and --budget-gpu-hours")
    on = on or (bases.of_own(runs_dir, target) if runs_dir is not None else bases.of_published(target, law))
    chosen = _sizes(on, sizes)
    if measure and on.image_size is None:
        raise UserError(f"--measure: {on.name} do not say their image_size: add that column, or --images-per-second")
    timed, device = speed.measure(chosen, on.image_size, measure) if measure and not images_per_second else ({}, "")
    speeds, device = _speeds(on, images_per_second or timed, runs_dir, chosen, budget_gpu_hours, device)
    limit = budget_flops or budget_gpu_hours
    cost = {m: (s["flop"] if budget_flops else 1 / (3600 * speeds[m])) * on.batch for m, s in chosen.items()}
    tried = [(model, steps) for model in chosen for steps in _lengths(on, limit / cost[model])]
    unit = "FLOPs" if budget_flops else "GPU hours"
    if not tried:
        cheapest = min(chosen, key=cost.get)
        raise UserError(
            f"a budget of {limit:.3g} {unit} is under the cheapest option, {short(cheapest)} for {on.lengths[0]:,} "
            f"iterations, which costs {cost[cheapest] * on.lengths[0]:.3g}: give more, or plan with a smaller size"
        )
    refused = _outside(on, images, image_size, batch_size, photographs)
    rows = [on.row(model, steps, images) for model, steps in tried]
    options, notes = options_of(on, rows, speeds, bool(refused))
    if options[0].value is None and not refused:
        refused = ["every option is more overfit than any run was"]
    rule = max(options, key=lambda o: (o.steps, o.params))
    notes += _said(on, images, gpus, device, images_per_second, bool(speeds), bool(refused))
    shown = f"{limit:.3g} {unit}" + (f" on {gpus} GPU{'s' * (gpus > 1)}" if gpus > 1 or not budget_flops else "")
    limits, binding, less = "", "not said outside the known range", ""
    if not refused:
        spent = {o.name: cost[o.model] * o.steps / limit for o in options}  # share of the budget
        limits, binding = binds(on, options[0], images)
        less = spend_less(options, spent, limits == "data")
    return Plan(
        images=images, budget=shown, measure=on.measure, basis=on.name, form=on.form, options=options, rule=rule,
        binds=binding, spend_less=less, refused=refused, gpus=gpus, notes=notes,
    )  # fmt: skip


def _sizes(on: Basis, wanted: Iterable[str] | None) -> dict[str, dict]:
    """The sizes to choose from, smallest first, by full name."""
    if wanted is None:
        return on.sizes
    chosen = {}
    for name in wanted:
        full = full_name(name)
        if full not in on.sizes:
            known = ", ".join(short(m) for m in on.sizes)
            raise UserError(
                f"size {short(full)} is not among {on.name} ({known}): choose of these, or train pilot runs"
            )
        chosen[full] = on.sizes[full]
    if not chosen:
        raise UserError(f"no sizes given: choose of {', '.join(short(m) for m in on.sizes)}")
    return dict(sorted(chosen.items(), key=lambda item: item[1]["params"]))


def _speeds(
    on: Basis,
    given: Mapping[str, float] | None,
    runs_dir: str | Path | None,
    chosen: Mapping,
    hours: float | None,
    device: str,
) -> tuple[dict[str, float], str]:
    """Images a second of every chosen size on one device: given, else measured; others scaled by FLOPs."""
    found = speed.checked(given or {})
    if not found and runs_dir is not None:
        found, device = speed.measured(runs_dir, on.image_size)
    found = {model: value for model, value in found.items() if model in on.sizes}
    if not found:
        if hours is not None:
            raise UserError(
                "a budget in GPU hours needs a speed: give --images-per-second SIZE=NUMBER, measured on your GPU, or "
                "--measure cuda on the machine that has it, or the budget as --budget-flops"
            )
        return {}, ""
    known = speed.scaled(found, {model: size["flop"] for model, size in on.sizes.items()})
    return {model: known[model] for model in chosen}, device


def _lengths(on: Basis, affordable: float) -> list[int]:
    """Lengths that were run and fit, and the longest that fits in between."""
    lengths = [t for t in on.lengths if t <= affordable * (1 + 1e-9)]
    step = 1000 if on.lengths[0] >= 10_000 else 10
    longest = int(min(affordable, on.lengths[-1]) // step * step)
    if lengths and longest > 1.05 * lengths[-1]:
        lengths.append(longest)
    return lengths


def _outside(on: Basis, images: int, side: int | None, batch: int | None, photographs: bool) -> list[str]:
    """Why numbers are refused: what lies outside the runs that the law was fitted to."""
    found = []
    low, high = on.images
    if not low * 0.999 <= images <= high * 1.001:
        found.append(f"{images:,} images lie outside {low:,} to {high:,}, which {on.name} cover")
    for what, value, known, unit in (("image size", side, on.image_size, " px"), ("batch", batch, on.batch, "")):
        if value is not None and value != known:
            theirs = f"the {known}{unit}" if known else "the unknown one"
            found.append(f"{what} {value}{unit} is not {theirs} of {on.name}")
    if not photographs and not on.own:
        found.append("images other than photographs are not among the published runs")
    return found


def _said(
    on: Basis, images: int, gpus: int, device: str, given: Mapping | None, hours: bool, refused: bool
) -> list[str]:
    """What a reader must know to trust the numbers."""
    notes = []
    if on.own:
        if on.lights is None:
            notes.append("no light: no doubling of the length among these runs raised the loss")
        notes.append(f"law: {on.form}, the form that predicts held-out cells of {on.name} best")
    else:
        if on.form == "fixed":
            notes.append("the law's exponents and Omega's form were chosen looking at all 63 published runs")
        if on.target == "loss":
            notes.append("the lowest loss is not the best score: notebook 09 shows the regret of both")
        if not refused:
            notes.append(
                "numbers are of photographs at 192 px, fine-tuned on ImageNet-1K; on your images trust the order"
            )
        if WHOLE * 1.001 < images < 14e6:
            notes.append("between ImageNet-1K and ImageNet-22K nothing was published")
    if hours:
        how = "the images a second that you gave" if given else f"the speed measured on {device}"
        notes.append(f"hours by {how}; sizes without a speed are scaled by their FLOPs")
    if gpus > 1:
        notes.append(f"days: {gpus} GPUs are taken to be {gpus} times as fast as one")
    return notes


def binds(on: Basis, best: Option, images: int) -> tuple[str, str]:
    """Which doubling the law would reward most at the best option: size, steps or data; and a line with all three."""
    names = {"params": "size", "steps": "steps", "images": "data"}
    here, gains = on.row(best.model, best.steps, images), {}
    for column, name in names.items():
        there = here | {column: 2 * here[column]}
        there["images_seen"] *= 2 if column == "steps" else 1
        gains[name] = on.predict(here) - on.predict(there)
    most = max(gains, key=gains.get)
    unit, form = ("points", "+.2f") if on.target == "accuracy" else ("of loss", "+.4f")
    told = ", ".join(f"{name} {round(gain, int(form[2])) + 0.0:{form}}" for name, gain in gains.items())  # no -0.00
    most_of = {"size": max(size["params"] for size in on.sizes.values()), "steps": on.lengths[-1]}
    edge = [name for name, value in (("size", best.params), ("steps", best.steps)) if value == most_of[name]]
    beyond = f"; {' and '.join(edge)} at the edge of the known range" if edge else ""
    if gains[most] < 0.01 * on.errors("cell", "one").mean:
        return "nothing", f"nothing that these runs can see (a doubling by the law, {unit}: {told})"
    return most, f"{most} (a doubling by the law, {unit}: {told}{beyond})"


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


def answers(
    levels: Iterable[str] = ANSWERED, budgets: Iterable[float] = (1e19, 1e20, 3e20), form: str = "fixed"
) -> list[dict]:
    """For each data level and budget: what the planner names, what the simple rule picks, and the regret of each.

    `plan` is the `Plan`, or the line that says why there is none. Regret in points is counted on the published runs of
    that level which the budget allows, with the law fitted on the other levels: `picked`, `rule` (rows) and `regret`,
    `rule_regret`; None where no published run is that cheap, or only one.
    """
    from ..evidence import published, trial

    rows, found = published.rows(), []
    for level in levels:
        predict = trial.fitted(rows, "accuracy", form, level)
        here = [row for row in rows if row["dataset"] == level]
        for budget in budgets:
            line = {"level": level, "budget": budget} | dict.fromkeys(("picked", "rule", "regret", "rule_regret"))
            try:
                line["plan"] = plan(here[0]["images"], budget_flops=budget)
            except UserError as error:
                line["plan"] = str(error)
            options = tuple(row for row in here if row["flops"] <= budget)
            if len(options) > 1:
                line["picked"], line["rule"] = min(options, key=predict), trial.pick(options, RULE)
                picked = (line["picked"], line["rule"])
                line["regret"], line["rule_regret"] = (trial.lost(options, row, published.SCORE) for row in picked)
            found.append(line)
    return found
