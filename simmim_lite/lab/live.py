"""Training as it happens: a curve that grows in a live kernel, and stays as a figure in an executed notebook.

A plain figure takes the place of the one before, every two seconds: JupyterLab ignores updates of a figure that is
on the page, and a `FigureWidget` would cost five megabytes in every saved notebook. No torch here.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go

from ..errors import unknown
from ..evidence.drawing import COLOURS, FAINT, TEMPLATE
from ..processes import executed_unseen, in_notebook
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

    def due(self, seconds: float = 2.0) -> bool:
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


class Curve:
    """A training curve that grows: `with Curve(steps) as curve: curve.add(step, train_loss=…, val_loss=…)`.

    batch_size turns steps into images seen. It is drawn every two seconds, and at the end whatever happens. marks:
    {images seen: text}, drawn as dotted lines (a drop of the learning rate, say). rows() gives pictures to show above
    it, as `pictures.strip` takes them: what the network fills in by then.
    """

    def __init__(
        self,
        steps: int,
        batch_size: int,
        title: str = "",
        marks: Mapping[int, str] | None = None,
        rows: Callable[[], Mapping] = dict,
    ) -> None:
        self.steps, self.batch_size, self.title, self.marks, self.rows = steps, batch_size, title, marks or {}, rows
        self.points: dict[str, list[tuple[int, float]]] = {"train_loss": [], "val_loss": []}
        self.shown, self.started, self.first = Shown(), time.monotonic(), None

    def __enter__(self) -> "Curve":
        return self

    def __exit__(self, *error: object) -> None:
        self.draw(last=True)

    def add(self, step: int, **losses: float) -> None:
        """Put train_loss or val_loss after `step` steps on the curve."""
        for name, loss in losses.items():
            self.points[name].append((step * self.batch_size, loss))
        if self.shown.due():
            self.draw()

    def draw(self, last: bool = False) -> None:
        """Show where the training is, the pictures and the curve: a small drawing while it grows, at last a figure."""
        from .pictures import strip

        (train, val), seconds = self.points.values(), time.monotonic() - self.started
        step, now = len(train), [loss for _, loss in train[-10:]]
        self.first = step if self.first is None else self.first  # what was done before is no measure of the speed
        line = f"step {step:,} of {self.steps:,}, {seconds:.0f} s"
        if self.first < step < self.steps:
            line += f", about {seconds / (step - self.first) * (self.steps - step):.0f} s left"
        line += f"; training loss (grey) {sum(now) / len(now):.3f}" if now else ""
        line += f", validation loss (blue) {val[-1][1]:.3f}" if val else ""
        html = f'<p>{line}</p><div style="display:flex;flex-wrap:wrap;gap:16px"><div>{strip(self.rows())}</div>'
        html += f"{'' if last else self.small()}</div>"
        self.shown.draw({"text/html": html}, *([self.figure()._repr_mimebundle_()] if last else ()))

    def small(self) -> str:
        """The curve as a drawing in HTML: it is there at once, where a figure would make the page jump."""
        losses = [loss for points in self.points.values() for _, loss in points] or [0]
        across, up, lines = 640 / (self.steps * self.batch_size), 120 / max(max(losses) - min(losses), 1e-9), []
        steady = 'vector-effect="non-scaling-stroke"'
        for points, colour in zip(self.points.values(), (FAINT, COLOURS[0]), strict=True):
            places = " ".join(f"{x * across:.1f},{124 - up * (loss - min(losses)):.1f}" for x, loss in points)
            lines.append(f'<polyline points="{places}" stroke="{colour}" stroke-width="2" fill="none" {steady}/>')
        view = 'viewBox="0 0 640 128" preserveAspectRatio="none" style="flex:1 1 140px;height:150px"'
        return f"<svg {view}>{''.join(lines)}</svg>"

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
        top = {"t": 84 if self.title else 30, "b": 50}
        return chart.update_layout(template=TEMPLATE, title_text=self.title, legend=legend, margin=top, height=300)


class Watch:
    """A callback of `pretrain`: in a notebook its curve, every two seconds, with the pictures of `rows(model)`."""

    def __init__(self, rows: Callable[[object], Mapping]) -> None:
        self.rows = rows

    def on_train_start(self, trainer: object) -> None:
        """A curve, from where this call goes on."""
        model, spec = trainer.net.model, trainer.spec
        self.curve = Curve(spec.steps, spec.batch_size, rows=lambda: self.rows(model))
        self.curve.first = trainer.step

    def on_step_end(self, trainer: object) -> None:
        """Draw, where two seconds have passed since the last picture."""
        if in_notebook() and (self.curve.shown.due() or trainer.step == trainer.spec.steps):
            self.curve.points = {"train_loss": [], "val_loss": []}
            for step, loss in enumerate(trainer.losses[: trainer.step].tolist(), 1):
                self.curve.points["train_loss"].append((step * trainer.spec.batch_size, loss))
            for point in trainer.curve:
                if "val_loss" in point:
                    self.curve.points["val_loss"].append((point["images_seen"], point["val_loss"]))
            self.curve.draw(last=trainer.step == trainer.spec.steps)


def knob(function: Callable, **controls: object) -> None:
    """`ipywidgets.interactive(function, **controls)` where somebody can turn it, drawn when a control is let go;
    elsewhere what it returns by default.

    No widget is made where no browser answers its messages: that can hang a kernel.
    """
    from IPython.display import display
    from ipywidgets import interactive

    if in_notebook() and executed_unseen():
        display(function())
    elif in_notebook():
        knobs = interactive(function, **controls)
        for control in knobs.children[:-1]:
            control.tooltip, control.style.description_width, control.layout.width = (
                control.description,
                "initial",
                "auto",
            )
            if hasattr(control, "continuous_update"):
                control.continuous_update = False
        display(knobs)
