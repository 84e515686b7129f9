"""What the studies run, and who runs it. Looked up when first used: nothing here imports torch by itself."""

from .. import looked_up

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

__getattr__ = looked_up(__name__, _HOME)
