"""What the notebooks use beside the library: pictures, charts, live curves, widgets.

Looked up when first used: `lab.pictures`, `lab.mask_lab` and so on. Importing this package imports
neither torch nor plotly.
"""

from importlib import import_module

_MODULES = (
    "charts",
    "explorer",
    "filmstrip",
    "live",
    "mask_lab",
    "monitor",
    "networks",
    "photos",
    "pictures",
    "windows",
)

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'simmim_lite.lab' has no attribute '{name}'")
    return import_module(f".{name}", __name__)
