"""Training as it happens: a curve that grows in a live kernel, and stays as a figure in an executed notebook.

A plain figure takes the place of the one before, every two seconds: JupyterLab ignores updates of a figure that is
on the page, and a `FigureWidget` would cost five megabytes in every saved notebook. No torch here.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go

from ..errors import unknown
from ..evidence.drawing import COLOURS, FAINT
from ..processes import in_notebook, one_thread, pick_device
from ..studies.costs import faster_precision, step_speeds
from ..training.run import Run
from .charts import lines
from .pictures import strip

LOSS = "loss on hidden pixels<br>(L1, standard deviations)"


def choose(tier: str, **values: object) -> object:
    """The value of a tier: `choose(tier, smoke=20, quick=300)`; `UserError` for a tier that has none here."""
    if tier not in values:
        raise unknown("tier", tier, values)
    return values[tier]


def course_run(tier: str, data: str, seed: int, runs_dir: str | Path) -> tuple[Run, Path]:
    """The run that notebooks 00 and 03 share, so that it is trained once, and the folder of its record.

    A folder of its own, `RUNS_DIR/course`: a run made for looking at is no part of a study. bf16 where it is measured
    faster on this machine (kept there too), else fp32.
    """
    folder, device = Path(runs_dir) / "course", pick_device()
    small = {"batch_size": 16, "warmup_steps": 5, "val_images": 64, "probe_labels": 200, "probe_test": 100}
    usual = {"steps": 300, "eval_every": 50, "val_images": 256, "probe_labels": 2000, "probe_test": 1000}
    large = usual | {"steps": 1000, "eval_every": 100, "val_images": 1024}
    fields = choose(tier, smoke={"steps": 20, "eval_every": 5} | small, quick=usual, laptop=large)
    run = Run(model="swinv2_femto", data=data, seed=seed, **fields)
    if tier == "smoke":
        return run, folder
    with one_thread(device):  # as `pretrain` runs
        speeds = step_speeds(folder, [run.model], run, str(device))
    return replace(run, precision=faster_precision(speeds, run.model)), folder


class Curve(AbstractContextManager):
    """A training curve that grows: `with Curve(steps, batch_size) as curve: curve.add(step, train_loss=…, val_loss=…)`.

    batch_size turns steps into images seen. It is drawn every two seconds in a notebook, and at the end whatever
    happens. marks: {images seen: text}, dotted lines at the end. rows() gives pictures to show above it, as
    `pictures.strip` takes them: what the network fills in by then."""

    def __init__(self, steps: int, batch_size: int, title="", marks: Mapping | None = None, rows: Callable = dict):
        self.steps, self.batch_size, self.title, self.marks, self.rows = steps, batch_size, title, marks or {}, rows
        self.points: dict[str, list[tuple[int, float]]] = {"val_loss": [], "train_loss": []}
        self.started, self.drawn, self.first = time.monotonic(), 0.0, 0  # first: the step that this call goes on from

    def __exit__(self, *error: object) -> None:
        self.draw(last=True)

    def add(self, step: int, **losses: float) -> None:
        """Put train_loss or val_loss after `step` steps on the curve."""
        for name, loss in losses.items():
            self.points[name].append((step * self.batch_size, loss))
        if time.monotonic() - self.drawn >= 2:
            self.draw()

    def draw(self, last: bool = False) -> None:
        """Show where the training is, the pictures and the curve: a small drawing while it grows, at last a figure."""
        if not in_notebook():
            return
        from IPython.display import HTML, clear_output, display

        (val, train), seconds = self.points.values(), time.monotonic() - self.started
        step, now = len(train), [loss for _, loss in train[-10:]]
        line = f"step {step:,} of {self.steps:,}, {seconds:.0f} s"
        if self.first < step < self.steps:
            line += f", about {seconds / (step - self.first) * (self.steps - step):.0f} s left"
        line += f"; training loss (grey) {sum(now) / len(now):.3f}" if now else ""
        line += f", validation loss (blue) {val[-1][1]:.3f}" if val else ""
        pictures = f'<div style="display:flex;flex-wrap:wrap;gap:16px"><div>{strip(self.rows())}</div>'
        clear_output(wait=True)
        page = HTML(f"<p>{line}</p>{pictures}{'' if last else self.small()}</div>")
        display(*([page, self.figure()] if last else [page]))
        self.drawn = time.monotonic()

    def small(self) -> str:
        """The curve as a drawing in HTML: it is there at once, where a figure would make the page jump."""
        losses = [loss for points in self.points.values() for _, loss in points] or [0]
        across, up, lines = 640 / (self.steps * self.batch_size), 120 / max(max(losses) - min(losses), 1e-9), []
        style = 'stroke-width="2" fill="none" vector-effect="non-scaling-stroke"'
        for points, colour in zip(self.points.values(), (COLOURS[0], FAINT), strict=True):
            places = " ".join(f"{x * across:.1f},{124 - up * (loss - min(losses)):.1f}" for x, loss in points)
            lines.append(f'<polyline points="{places}" stroke="{colour}" {style}/>')
        view = 'viewBox="0 0 640 128" preserveAspectRatio="none" style="width:100%;height:128px"'
        ends = f"{max(losses):.2f}", f"{min(losses):.2f}; 0 to {self.steps * self.batch_size:,} images seen"
        return f'<div style="flex:1 1 140px">{ends[0]}<br><svg {view}>{"".join(lines)}</svg><br>{ends[1]}</div>'

    def figure(self) -> go.Figure:
        """The curve as it is now: training thin, validation with marks."""
        names = ("validation loss", "training loss, one batch")
        curves = (tuple(zip(*points, strict=True)) or ((), ()) for points in self.points.values())
        series = dict(zip(names, curves, strict=True))
        chart = lines(series, "images seen", LOSS, title=self.title, form=".4f").update_layout(height=340)
        chart.update_traces(line={"color": FAINT, "dash": "solid", "width": 1.2}, selector={"name": names[1]})
        for x, text in self.marks.items():
            style = {"line_dash": "dot", "line_color": FAINT, "annotation_position": "top left"}
            chart.add_vline(x=x, annotation_text=text, **style)
        return chart.update_xaxes(range=[0, 1.02 * self.steps * self.batch_size], tickformat="~s")


class Watch:
    """A callback of `pretrain`: in a notebook its curve, every two seconds, with the pictures of `rows(model)`."""

    def __init__(self, rows: Callable[[object], Mapping] = lambda model: {}) -> None:
        self.rows = rows

    def on_train_start(self, trainer: object) -> None:
        """A curve, from where this call goes on."""
        self.curve = Curve(trainer.spec.steps, trainer.spec.batch_size, rows=lambda: self.rows(trainer.net.model))
        self.curve.first = trainer.step
        batch, before = trainer.spec.batch_size, enumerate(trainer.losses[: trainer.step].tolist(), 1)
        self.curve.points["train_loss"] += [(step * batch, loss) for step, loss in before]
        self.curve.points["val_loss"] += [(p["step"] * batch, p["val_loss"]) for p in trainer.curve if "val_loss" in p]

    def on_step_end(self, trainer: object) -> None:
        """The loss of the step."""
        self.curve.add(trainer.step, train_loss=trainer.losses[trainer.step - 1].item())

    def on_validation_end(self, trainer: object, val_loss: float) -> None:
        """The validation loss; after the last step it comes with the record."""
        self.curve.add(trainer.step, val_loss=val_loss)
        if trainer.step == trainer.spec.steps:
            self.curve.draw(last=True)
