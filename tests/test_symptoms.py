"""Every symptom is really there, its remedy really removes it, and the library says in one line what it can notice."""

import numpy as np

from simmim_lite.course import symptoms

#: after / before, between these: what the remedy must do to the number. What the library says.
REMEDIES = {
    "noise": (0, 0.6, "80 of 80 tensors from the simmim layout; taken off: ema."),
    "grey_mush": (6, np.inf, ""),
    "checkerboard": (0, 0.5, ""),
    "wrong_colours": (0, 0.45, ""),
    "loss_does_not_fall": (0, 0.8, "mask_ratio 0.97 hides all 16 cells"),
    "not_a_number": (1.5, np.inf, "the training loss was not finite at step 2"),
    "too_good": (0, 0.75, ""),
    "low_knn": (1.5, np.inf, ""),
}


def check(name: str) -> None:
    """What notebook is_this_normal shows of a symptom: called in its kernel by test_notebooks, once all are made."""
    symptom = symptoms.SYMPTOMS[name]()
    low, high, says = REMEDIES[name]
    assert low < symptom.after / symptom.before < high, (symptom.before, symptom.after)
    assert symptom.says.startswith(says) and "\n" not in symptom.says and bool(says) == bool(symptom.says)
    first, *others = symptom.rows.values()
    assert all(row.shape == (6, 3, 32, 32) and row.dtype == np.uint8 for row in (first, *others))
    assert not any((row == first).all() for row in others)
    assert "{" not in symptoms.card(symptom)
    if name == "loss_does_not_fall":  # the text says what predicting the mean costs: where the slow run stays
        assert symptom.before > 0.95
        assert abs(float(symptom.texts["looks"].split("near ")[1].split(",")[0]) - 0.85) < 0.1
    if name == "not_a_number":
        assert "lower lr (9)" in symptom.says and symptom.before < symptoms.RUN.steps == symptom.after
