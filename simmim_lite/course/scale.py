"""What the published grid takes, for notebook 10: hours by size, days by GPUs, memory, recipe. No torch here."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from ..evidence.records import millions, short
from ..lab import charts
from ..model.sizes import SIZES
from ..studies import tiers as full_size
from ..studies.costs import bytes_text
from ..training.run import Run

#: Bytes a parameter while it is trained in fp32 with AdamW (autocast keeps it so): weight, gradient, two moments.
STATE = {"weights and gradients": 8, "AdamW's moments": 8}
#: Memory of a GPU that the table compares with, in GB: two common sizes.
GPUS = (80, 141)


def _alone(runs: Sequence[Run]) -> Counter:
    """Optimiser steps by model, if every run were trained alone."""
    steps = Counter()
    for run in runs:
        steps[run.model] += run.steps
    return steps


def saved(found: pd.DataFrame, runs: Sequence[Run]) -> float:
    """The share of all steps that trunks save, in %. found: `costs.costs` of the runs."""
    return 100 * (1 - found.steps.iloc[-1] / _alone(runs).total())


def hours(found: pd.DataFrame, runs: Sequence[Run], guess: float | None = None) -> go.Figure:
    """GPU hours by size, of every run alone and as they will be trained; a guess dashed.

    found: `costs.costs` of the runs, with a speed.
    """
    pairs = zip(found[:-1].itertuples(), _alone(runs).values(), strict=True)
    values = {cost.Index: (cost.hours * steps / cost.steps, cost.hours) for cost, steps in pairs}
    return charts.bars(values, "GPU hours", guess, form=",.0f", series=("each run alone", "lengths off one trunk"))


def days(found: pd.DataFrame, gpus: int, efficiency: float = 1.0) -> go.Figure:
    """Days of the whole grid against the number of GPUs, this one marked. efficiency: of a GPU among many, 0 to 1."""

    def take(count: int) -> float:
        return found.hours.iloc[-1] / 24 / (count if count == 1 else count * efficiency)

    counts = [2**k for k in range(11)]
    here = f"{gpus:,} GPU{'s' * (gpus > 1)}: {take(gpus):,.1f} days"
    series = {"all sizes": (counts, [take(n) for n in counts]), here: ([gpus], [take(gpus)])}
    chart = charts.lines(series, "GPUs", "days", guess=30, log=True, log_x=True, form=",.1f", guess_name="a month")
    return chart.update_xaxes(tickvals=counts, ticktext=[f"{n:,}" for n in counts])


def _size(model: str) -> str:
    return f"{short(model)} ({millions(SIZES[model].parameters)})"


def memory(gpus: int) -> list[dict[str, str]]:
    """What training keeps in memory whatever the batch, a line a size: computed from parameters, nothing measured."""
    lines = []
    for model in full_size.BY_SIZE:
        parts = {name: each * SIZES[model].simmim_parameters for name, each in STATE.items()}
        total = sum(parts.values())
        line = {"model size": _size(model)} | {name: bytes_text(part) for name, part in parts.items()}
        line |= {"together": bytes_text(total)} | {f"left of {g} GB": bytes_text(1e9 * g - total) for g in GPUS}
        lines.append(line | {f"sharded over {gpus}": bytes_text(total / gpus)})
    return lines


def recipe() -> list[dict[str, str]]:
    """Learning rate and drop path by size, and where each comes from."""
    released = {full_size.RECIPE.model: "as released"}
    return [
        {"model size": _size(model), "learning rate": f"{full_size.BY_SIZE[model]['lr']:g}"}
        | {"drop path": f"{full_size.BY_SIZE[model]['drop_path']:g}"}
        | {"source": released.get(model, "our default; the paper's is unknown")}
        for model in full_size.BY_SIZE
    ]


def speed_of(images_per_second: str, assume: str) -> Mapping[str, object]:
    """Options of `costs.find_speed`: the speed that was measured, where one is given, else the assumption."""
    return {"images_per_second": [images_per_second]} if images_per_second else {"assume": assume}


def commands(groups: Mapping[str, Sequence[str]]) -> str:
    """Command lines under their titles, in Markdown."""
    return "\n\n".join(f"**{title}**\n\n```bash\n" + "\n".join(lines) + "\n```" for title, lines in groups.items())
