"""figure.py: a figure shows the bundle that plotly's renderers make, without importing them."""

import json
import os
import subprocess
import sys

import plotly.graph_objects as go
from plotly.io._renderers import renderers

from simmim_lite.evidence import drawing, figure
from simmim_lite.lab import charts

IN_A_KERNEL = """
import json, sys
from ipykernel.zmqshell import ZMQInteractiveShell
shell = ZMQInteractiveShell.instance()
shown = []
shell.display_pub.publish = lambda data, *_, **__: shown.append(data)
from simmim_lite.evidence import drawing
from IPython.display import display
display(drawing.empty("nothing"))
slow = [name for name in ("nbformat", "plotly.io._renderers", "scipy", "torch") if name in sys.modules]
print(json.dumps({"shown": shown, "slow": slow}))
"""


def in_a_kernel(**environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_KERNEL], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_kernel_shows_a_figure_without_the_slow_imports() -> None:
    said = in_a_kernel()
    assert said["slow"] == []
    (bundle,) = said["shown"]
    own = go.Figure(drawing.empty("nothing"))
    theirs = renderers._build_mime_bundle(own.to_dict(), "plotly_mimetype")[figure.MIME]
    assert set(bundle) == {figure.MIME}
    assert {k: bundle[figure.MIME][k] for k in ("data", "layout")} == {k: theirs[k] for k in ("data", "layout")}


def test_a_renderer_that_was_asked_for_is_used() -> None:
    (bundle,) = in_a_kernel(PLOTLY_RENDERER="json")["shown"]
    assert set(bundle) == {"application/json"}


def test_every_plot_is_such_a_figure() -> None:
    for chart in (drawing.empty("x"), drawing.panels("a", "b")):
        assert isinstance(chart.update_layout(height=200), figure.Figure)


def test_a_slider_shows_one_figure_at_a_time() -> None:
    """Traces by their visibility, and of the layout what differs: whatever was shown before, nothing of it is left."""
    parts = {n: charts.bars({"a": n}, "unit").update_layout(title_text=f"{n} of them") for n in (1, 2, 3)}
    parts[2].add_scatter(y=[0])
    chart = charts.slider(parts, "how many", first=2)
    (control,) = chart.layout.sliders
    assert [trace.visible for trace in chart.data] == [False, True, True, False]
    assert (control.active, [step.label for step in control.steps]) == (1, ["1", "2", "3"])
    for n, step in enumerate(control.steps):
        visible, layout = step.args
        assert visible["visible"] == [k == n for k in (0, 1, 1, 2)]
        assert layout["title"]["text"] == f"{n + 1} of them"
        assert layout["xaxis"]["range"] == list(parts[n + 1].layout.xaxis.range)
    assert charts.slider(parts, "how many").layout.title.text == "3 of them"
