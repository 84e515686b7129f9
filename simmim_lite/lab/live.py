"""Training as it happens: a curve that grows in a live kernel, and stays as a figure in an executed notebook.

A plain figure takes the place of the one before, at most once a second: JupyterLab ignores updates of a figure that is
on the page, and a `FigureWidget` would cost five megabytes in every saved notebook. No torch here.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go

from ..errors import unknown
from ..evidence.drawing import COLOURS, FAINT, TEMPLATE
from ..evidence.twins import bundle
from ..processes import in_notebook
from ..training.run import Run

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
    from ..processes import one_thread, pick_device
    from ..studies.speed import faster_precision, step_speeds

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


class Shown:
    """The output of a cell that is drawn again and again; silent where there is no notebook."""

    def __init__(self) -> None:
        self.last = 0.0

    def draw(self, *bundles: Mapping[str, object]) -> None:
        """Show mime bundles, one below the other, in place of all that the cell has shown before."""
        if in_notebook():
            from IPython.display import clear_output, display

            clear_output(wait=True)
            for bundle in bundles:
                display(dict(bundle), raw=True)
        self.last = time.monotonic()

    def due(self, seconds: float = 1.0) -> bool:
        """Whether so many seconds have passed since the last picture."""
        return time.monotonic() - self.last >= seconds


class Progress:
    """A line `training: step 120 of 300, 8 s`; give it as `progress=` to `pretrain`."""

    def __init__(self, what: str = "training") -> None:
        self.what, self.shown, self.started = what, Shown(), time.monotonic()

    def __call__(self, step: int, steps: int) -> None:
        if self.shown.due() or step == steps:
            seconds = time.monotonic() - self.started
            self.shown.draw({"text/plain": f"{self.what}: step {step:,} of {steps:,}, {seconds:.0f} s"})


class Watch:
    """A callback of `pretrain`: every two seconds its loss, the time that is left, and a figure, `draw(model)`, of what
    the network fills in by then."""

    def __init__(self, draw: Callable[[object], go.Figure]) -> None:
        self.draw, self.shown, self.started, self.first = draw, Shown(), time.monotonic(), 0

    def on_train_start(self, trainer: object) -> None:
        """From where this call goes on."""
        self.first = trainer.step

    def on_step_end(self, trainer: object) -> None:
        """Draw, where two seconds have passed since the last picture."""
        if in_notebook() and (self.shown.due(2.0) or trainer.step == trainer.spec.steps):
            seconds, steps = time.monotonic() - self.started, trainer.spec.steps
            left = seconds / (trainer.step - self.first) * (steps - trainer.step)
            loss = trainer.losses[max(0, trainer.step - 10) : trainer.step].mean().item()
            line = f"step {trainer.step:,} of {steps:,}, loss {loss:.3f}, {seconds:.0f} s, about {left:.0f} s left"
            figure = self.draw(trainer.net.model.eval())
            trainer.net.model.train()
            self.shown.draw({"text/plain": line}, bundle(figure))


class Curve:
    """A training curve that grows: `with Curve(steps) as curve: curve.add(step, train_loss=…, val_loss=…)`.

    batch_size turns steps into images seen. The figure is drawn at most once a second, and at the end whatever
    happens. marks: {images seen: text}, drawn as dotted lines (a drop of the learning rate, say).
    """

    def __init__(self, steps: int, batch_size: int, title: str, marks: Mapping[int, str]) -> None:
        self.steps, self.batch_size, self.title, self.marks = steps, batch_size, title, marks
        self.points: dict[str, list[tuple[int, float]]] = {"train_loss": [], "val_loss": []}
        self.shown = Shown()

    def __enter__(self) -> "Curve":
        return self

    def __exit__(self, *error: object) -> None:
        self.shown.draw(bundle(self.figure()))

    def add(self, step: int, **losses: float) -> None:
        """Put train_loss or val_loss after `step` steps on the curve."""
        for name, loss in losses.items():
            self.points[name].append((step * self.batch_size, loss))
        if self.shown.due():
            self.shown.draw(bundle(self.figure()))

    def figure(self) -> go.Figure:
        """The curve as it is now: training thin, validation with marks."""
        chart, end = go.Figure(), self.steps * self.batch_size
        train, val = (list(zip(*points, strict=True)) or [(), ()] for points in self.points.values())
        chart.add_scatter(x=train[0], y=train[1], name="training loss, one batch", mode="lines", line_color=FAINT)
        chart.add_scatter(x=val[0], y=val[1], name="validation loss", mode="lines+markers", line_color=COLOURS[0])
        for x, text in self.marks.items():
            line = {"dash": "dot", "color": FAINT}
            chart.add_vline(x=x, line=line, annotation_text=text, annotation_position="top left")
        chart.update_xaxes(title_text="images seen", range=[-0.02 * end, 1.02 * end], tickformat="~s")
        chart.update_yaxes(title_text=LOSS, hoverformat=".4f")
        legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
        top = {"t": 84 if self.title else 50}
        return chart.update_layout(template=TEMPLATE, title_text=self.title, legend=legend, margin=top)
