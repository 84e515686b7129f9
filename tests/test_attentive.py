"""The attentive probe: it finds a token that the mean hides, and is a function of its features."""

import math

import numpy as np
import pytest
import torch

from simmim_lite.training import attentive
from simmim_lite.training.attentive import AttentivePooling, attentive_probe
from simmim_lite.training.probes import ridge_probe, wilson


def hidden(n: int, seed: int, tokens: int = 4, width: int = 16) -> tuple[torch.Tensor, np.ndarray]:
    """Maps (n, C, 4, 4) of noise; one token, marked in channel 0, carries the class in channels 1 to 3."""
    rng = np.random.default_rng(seed)
    maps, labels = rng.normal(size=(n, width, tokens * tokens)), rng.integers(0, 3, n)
    place = rng.integers(0, tokens * tokens, n)
    maps[:, 0] = 0.1 * maps[:, 0]
    maps[np.arange(n), 0, place] = 4
    maps[np.arange(n), 1 + labels, place] += 3
    return torch.tensor(maps, dtype=torch.float32).view(n, width, tokens, tokens), labels


def test_it_attends_where_the_mean_does_not_look():
    (x, y), (u, v) = hidden(1200, 1), hidden(600, 2)
    score = attentive_probe(x, y, u, v)
    linear = ridge_probe(x.mean((2, 3)), y, u.mean((2, 3)), v)
    assert score["score"] > 0.9 > linear["score"] + 0.05
    correct = round(score["score"] * 600)
    assert (score["low"], score["high"]) == wilson(correct, 600)
    assert (score["metric"], score["n_train"], score["n_test"]) == ("top-1", 1200, 600)


def test_it_is_a_function_of_its_features():
    (x, y), (u, v) = hidden(300, 1), hidden(200, 2)
    torch.manual_seed(1)
    first = attentive_probe(x, y, u, v)
    torch.manual_seed(2)
    assert attentive_probe(x, y, u, v) == first
    moved = attentive_probe(5 * x + 3, y, 5 * u + 3, v)  # standardised: scale and offset drop out
    assert moved["score"] == pytest.approx(first["score"], abs=0.02)


def test_constant_features_give_chance_and_not_nan():
    x = torch.full((40, 8, 2, 2), 3.0)
    assert 0 <= attentive_probe(x, np.arange(40) % 2, x, np.arange(40) % 2)["score"] <= 1


def test_at_the_start_it_is_a_linear_layer_on_the_mean():
    probe, x = AttentivePooling(6, 3), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(probe.head.weight)
    torch.testing.assert_close(probe(x), probe.head(x.mean(1)))
    torch.nn.init.normal_(probe.query)
    for b in range(2):  # one image at a time, by the formula
        weights = [math.exp(float((token @ probe.query).detach()) / math.sqrt(6)) for token in x[b]]
        mean = sum(w * token for w, token in zip(weights, x[b], strict=True)) / sum(weights)
        torch.testing.assert_close(probe(x)[b], probe.head(mean), rtol=1e-5, atol=1e-6)


def test_the_score_moves_with_the_query(monkeypatch):
    """A probe whose query stays at zero does not find the token."""
    (x, y), (u, v) = hidden(600, 1), hidden(300, 2)
    free = attentive_probe(x, y, u, v)["score"]
    monkeypatch.setattr(attentive.AttentivePooling, "forward", lambda self, t: self.head(t.mean(1)))
    assert attentive_probe(x, y, u, v)["score"] < free - 0.05
