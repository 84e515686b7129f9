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


def looked_up(package: str, home: dict[str, str]):
    """`__getattr__` of a package whose names are in modules that are imported when they are first used."""

    def get(name: str):
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f".{home[name]}", package), name)

    return get


__getattr__ = looked_up(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
