"""What the tests of the classification recipe share: a slim swinv2_base, and the recipe cut to a step."""

import pytest
import torch

from simmim_lite.model import sizes
from simmim_lite.training.distributed import Team
from simmim_lite.training.tuning import FineTune

ALONE = Team(torch.device("cpu"))


@pytest.fixture
def slim(monkeypatch):
    """swinv2_base with an eighth of its blocks and a quarter of its width; four stages, 224 px and window 14 stay."""
    size = sizes.Size("swinv2_base", 32, (2, 2, 2, 2))
    monkeypatch.setitem(sizes.SIZES, "swinv2_base", size)
    monkeypatch.setitem(sizes.PAPER, "swinv2_base", size)
    monkeypatch.setattr(Team, "decoders", lambda team: 0)


def recipe(images=12, **options):
    fields = {"batch_size": 4, "steps": 1, "warmup_steps": 0, "precision": "fp32", "eval_every": 1}
    return FineTune.recipe("imagenet-100ep", images, **fields | options)
