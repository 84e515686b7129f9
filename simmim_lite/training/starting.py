"""Where a transfer starts: the encoder from a pretraining run, from a checkpoint file, or at random."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..model.sizes import PAPER, SIZES
from ..model.swin import SwinV2
from .dense import Dense
from .tuning import FineTune

#: Windows of the paper's pretraining, a stage: 12, clamped to the last stage's 6 x 6 map at 192 px (FACTS 3, 4).
PAPER_WINDOWS = (12, 12, 12, 6)


def weights_name(path: str | Path) -> str:
    """NAME@DIGEST of a checkpoint file: what a spec holds, so that its key is about the content and not the place."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise UserError(f"cannot read the weights {path} ({error.strerror}); give a checkpoint file") from error
    return f"{Path(path).name}@{digest}"


def pretrained_windows(spec: FineTune | Dense) -> tuple[int, ...] | None:
    """The window that each stage was pretrained at; None without pretraining.

    Windows are clamped to each stage's map, so the last stage may have seen a smaller one (12, 12, 12, 6).
    """
    if spec.run is not None:
        return tuple(min(spec.run.window_size, g) for g in SIZES[spec.model].stage_grids(spec.run.image_size))
    if spec.weights is not None:
        return PAPER_WINDOWS if spec.model in PAPER else (4, 4)
    return None


def build_encoder(spec: Dense, weights: dict[str, Tensor] | None) -> SwinV2:
    """The encoder of a dense task at step 0, for images of any sides; weights as `load_encoder` takes them."""
    size = SIZES[spec.model]
    windows = spec.window_size, size.patch_size, spec.drop_path, pretrained_windows(spec)
    encoder = SwinV2(size.embed_dim, size.depths, *windows)
    encoder.reset_parameters(torch.Generator().manual_seed(spec.seed))
    load_encoder(encoder, spec, weights)
    return encoder


def load_encoder(encoder: SwinV2, spec: FineTune | Dense, weights: dict[str, Tensor] | None) -> None:
    """Load a SimMIM's state dict into its encoder, and freeze the mask token: nothing is hidden in a transfer.

    weights: needed just when the spec starts from a run or a file.
    """
    wanted = spec.run is not None or spec.weights is not None
    if (weights is None) == wanted:
        raise UserError(f"{spec.key}: {spec.init} needs {'the run and its' if wanted else 'no'} weights")
    if weights is not None:
        prefix = "encoder."
        encoder.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    encoder.mask_token.requires_grad_(False)
