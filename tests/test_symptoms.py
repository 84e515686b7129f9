"""Every symptom is really there, its remedy really removes it, and the library says in one line what it can notice."""

import numpy as np
import pytest

from simmim_lite.course import symptoms
from simmim_lite.course.symptoms import RUN
from simmim_lite.lab import pictures

#: after / before, at most or at least: what the remedy must do to the number.
REMEDIES = {
    "noise": (0, 0.6),
    "grey_mush": (6, np.inf),
    "checkerboard": (0, 0.5),
    "wrong_colours": (0, 0.45),
    "loss_does_not_fall": (0, 0.8),
    "not_a_number": (1.5, np.inf),
    "too_good": (0, 0.75),
    "low_knn": (1.5, np.inf),
}


@pytest.mark.parametrize("name", symptoms.SYMPTOMS)
def test_a_symptom_and_its_remedy(name: str) -> None:
    symptom = symptoms.SYMPTOMS[name]()
    low, high = REMEDIES[name]
    assert low < symptom.after / symptom.before < high, (symptom.before, symptom.after)
    for picture in symptom.rows.values():
        assert picture.shape == (6, 3, 32, 32) and picture.dtype == np.uint8
    first = next(iter(symptom.rows.values()))
    assert all(
        not (row == first).all() for name, row in symptom.rows.items() if "query" not in name and row is not first
    )
    figure = pictures.sheet(symptom.rows, title=symptom.name)
    assert len(figure.layout.images) + len(figure.data) >= 24
    text = symptoms.card(symptom)
    assert text.count("**") == 10 and "/" + "work" not in text and "  " not in text


def test_numbers_are_the_same_every_time() -> None:
    first, second = symptoms.wrong_colours(), symptoms.wrong_colours()
    assert (first.before, first.after) == (second.before, second.after)


def test_the_library_says_it_in_one_line() -> None:
    nan = symptoms.not_a_number()
    assert nan.says.startswith("the training loss was not finite at step 2") and "lower lr (9)" in nan.says
    assert nan.before < RUN.steps == nan.after
    assert symptoms.noise().says == "80 of 80 tensors from the simmim layout; taken off: ema."
    assert symptoms.loss_does_not_fall().says.startswith("mask_ratio 0.97 hides all 16 cells")
    for symptom in (nan, symptoms.noise(), symptoms.loss_does_not_fall()):
        assert "\n" not in symptom.says


def test_a_flat_loss_is_what_predicting_the_mean_costs() -> None:
    """The text says 0.85: the loss of the mean of the hidden pixels' distribution, and where the slow run stays."""
    slow = symptoms.loss_does_not_fall()
    assert slow.before > 0.95
    _, _, x, _ = symptoms.task()
    assert abs(float(x.abs().mean()) - 0.85) < 0.1


def test_whitened_features_have_unit_variance() -> None:
    import torch

    x = torch.randn(400, 80, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(-2, 2, 80))
    white, asked = symptoms.whiten(x, x[:5])
    assert white.shape == (400, 64) and torch.allclose(asked, white[:5])
    assert torch.allclose(white.T @ white / 400, torch.eye(64), atol=2e-2)
