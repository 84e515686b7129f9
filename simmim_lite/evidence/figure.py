"""The figure that all plots are made of: plotly's own, shown in JupyterLab a second sooner. No torch here."""

import json
import os
import sys

import plotly.graph_objects as go

MIME = "application/vnd.plotly.v1+json"
# hosts and settings for which plotly picks another renderer than JupyterLab's
_OTHERS = ("PLOTLY_RENDERER", "COLAB_NOTEBOOK_ID", "AZURE_NOTEBOOKS_HOST", "COCALC_PROJECT_ID")
_OTHERS += ("DATABRICKS_RUNTIME_VERSION", "KAGGLE_KERNEL_RUN_TYPE")


class Figure(go.Figure):
    """A plotly figure whose first picture does not wait for plotly's renderers.

    They import nbformat to compare its version, which compiles the grammar of internet addresses: 1.2 s in every
    kernel. In a Jupyter kernel without other settings the bundle is the same as theirs; anywhere else they are asked.
    """

    def _repr_mimebundle_(self, include=None, exclude=None, validate: bool = True, **kwargs) -> dict:
        if not _plain_kernel():
            return super()._repr_mimebundle_(include, exclude, validate, **kwargs)
        content = json.loads(self.to_json(validate=False))
        return {MIME: content | {"config": {}}}

    def _ipython_display_(self) -> None:
        if not _plain_kernel():
            return super()._ipython_display_()
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)


def _plain_kernel() -> bool:
    """Whether this is a Jupyter kernel in which plotly would choose JupyterLab's renderer, and was not asked yet."""
    if "plotly.io._renderers" in sys.modules or any(name in os.environ for name in _OTHERS):
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__module__.startswith("ipykernel.")
