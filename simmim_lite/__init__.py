"""Learn, see and measure how masked image modelling scales: SimMIM pretraining of Swin V2.

Names are looked up when first used, so that `import simmim_lite` costs nothing and does not import torch."""

from importlib import import_module

_HOME = {
    "SIZES": "model.sizes",
    "MaskGenerator": "model.masking",
    "SimMIM": "model.simmim",
    "create_model": "model.simmim",
    "load_weights": "model.weights",
    "save_weights": "model.weights",
    "Run": "training.run",
    "pretrain": "training.pretrain",
    "transfer": "training.transfer",
    "study": "studies.engine",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'simmim_lite' has no attribute '{name}'")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
