"""What the studies run, and who runs it. Looked up when first used: nothing here imports torch by itself."""

from importlib import import_module

_HOME = {
    "axes": "engine",
    "collect": "engine",
    "study": "engine",
    "train": "engine",
    "preview": "costs",
    "table": "costs",
    "grid": "grids",
    "STUDIES": "tiers",
    "check_notebook": "notebooks",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'simmim_lite.studies' has no attribute '{name}'")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
