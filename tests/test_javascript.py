"""JavaScript against Python, in Chromium: masks, their numbers, Swin V2, local statistics, pictures of predictions."""

import base64
import json

import numpy as np
import pytest
import torch
from random_weights import random_model
from safetensors.torch import save

from simmim_lite.lab import networks, photos
from simmim_lite.lab.widget import module
from simmim_lite.model.masking import (
    STRATEGIES,
    average_distance,
    fully_masked_windows,
    hash_masks,
    hidden_count,
    uniforms,
    upsample,
)


@pytest.fixture
def script(page):
    """A page with the widgets' functions; `script(expression, argument)` is what they return."""
    page.goto("about:blank")
    page.add_script_tag(content=module("core", "net", "parts", "pixels").replace("export default { render };", ""))
    return page.evaluate


def b64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def test_masks_agree_in_a_thousand_settings(script) -> None:
    rng = np.random.default_rng(0)
    settings = [
        {
            "rows": int(rng.integers(1, 25)),
            "columns": int(rng.integers(1, 25)),
            "ratio": float(rng.choice([0.0, 1.0, 0.6, rng.random(), round(rng.random(), 2)])),
            "seed": int(rng.integers(0, 2**31 if k % 2 else 300)),
            "id": int(rng.integers(0, 2**53 if k % 3 == 0 else 1000)),
            "visit": int(rng.integers(0, 50)),
            "strategy": list(STRATEGIES)[k % 3],
        }
        for k in range(1000)
    ]
    theirs = script(
        """all => all.map(s =>
          Array.from(hashMask(s.rows, s.columns, s.ratio, s.seed, s.id, s.visit, s.strategy)).join(""))""",
        settings,
    )
    assert script("Object.keys(STRATEGIES)") == list(STRATEGIES)
    for s, text in zip(settings, theirs, strict=True):
        shape = (s["rows"], s["columns"])
        (ours,) = hash_masks(shape, s["ratio"], s["seed"], np.array([s["id"]], np.uint64), s["visit"], s["strategy"])
        assert text == "".join("1" if hidden else "0" for hidden in ours.ravel()), s
        assert text.count("1") == hidden_count(s["rows"] * s["columns"], s["ratio"])


def test_numbers_of_a_mask_agree(script) -> None:
    settings = [(g, 192 // g, 0.1 + 0.05 * k, k) for k, g in enumerate((2, 3, 6, 6, 6, 12, 12, 24, 24, 48, 48, 6))]
    settings += [(4, 8, 0.6, 1), (8, 4, 0.5, 2), (6, 32, 0.0, 1), (6, 32, 1.0, 1)]
    theirs = script(
        """all => all.map(([g, cell, ratio, seed]) => {
          const mask = hashMask(g, g, ratio, seed), side = g * cell / 4, tokens = upsample(mask, g, cell / 4);
          const count = (w, s) => blindWindows(tokens, side, w, s).reduce((a, b) => a + b, 0);
          const blind = [12, 6, 4].map(w => side % w ? null : [count(w, 0), count(w, w / 2)]);
          const far = averageDistance(mask, g, cell);
          return [Number.isFinite(far) ? far : null, blind];
        })""",
        settings,
    )
    for (g, cell, ratio, seed), (far, blind) in zip(settings, theirs, strict=True):
        mask = hash_masks((g, g), ratio, seed, [0])[0]
        ours = average_distance(mask, cell)
        assert (far is None) == np.isinf(ours)
        assert far is None or far == pytest.approx(ours, rel=1e-9)
        tokens = upsample(mask, cell // 4)
        for w, found in zip((12, 6, 4), blind, strict=True):
            if len(tokens) % w == 0:
                assert found == [fully_masked_windows(tokens, w, s) for s in (0, w // 2)]


def predict(script, weights: bytes, x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    text = script(
        """([weights, x, hidden]) => {
          const y = new Net(bytesOf(weights)).predict(new Float32Array(bytesOf(x).buffer), bytesOf(hidden));
          let text = ""; for (const byte of new Uint8Array(y.buffer)) text += String.fromCharCode(byte);
          return btoa(text); }""",
        [base64.b64encode(weights).decode(), b64(x.astype(np.float32)), b64(hidden.astype(np.uint8))],
    )
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(x.shape)


@pytest.mark.parametrize("name, side, window", [("swinv2_femto", 64, 4), ("swinv2_atto", 64, 8)])
def test_swin_in_the_page_equals_the_librarys_on_random_weights(script, name: str, side: int, window: int) -> None:
    """Every parameter random and not zero; at 64 px both stages have shifted windows."""
    model = random_model(name, img_size=side, window_size=window, target="raw")
    about = {"side": side, "patch_size": 4, "window": window, "depths": [2, 2], "target": "raw"}
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()}, {"about": json.dumps(about)})
    x = uniforms(3 * side * side, 1).reshape(3, side, side) * 4 - 2
    hidden = upsample(hash_masks((side // 8, side // 8), 0.6, 1, [0])[0], 2)
    with torch.inference_mode():
        ours = model.reconstruct(torch.from_numpy(x)[None], torch.from_numpy(hidden)[None])[0].numpy()
    assert np.abs(predict(script, weights, x, hidden) - ours).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("name", networks.names())
def test_a_shipped_network_says_the_same_in_the_page(script, name: str) -> None:
    network = networks.shipped(name)
    about = network.about
    pixels = photos.pixels(photos.photographs()[1], 32)
    mask = hash_masks((4, 4), 0.6, 5, [0])[0]
    tokens, hidden = upsample(mask, 2), upsample(mask, 8)
    x = (pixels / 255 - np.array(about["mean"])[:, None, None]) / np.array(about["std"])[:, None, None]
    prediction = network.predict(pixels, tokens)
    assert np.abs(predict(script, network.weights, x, tokens) - prediction).max() < 1e-4
    for statistics in networks.STATISTICS:
        found = script(
            """([bytes, prediction, hidden, about, how]) => {
              const x = normalise(bytesOf(bytes), about), visible = Float32Array.from(bytesOf(hidden), h => 1 - h);
              const y = new Float32Array(bytesOf(prediction).buffer), t = targetOf(x, about);
              const { losses } = cellLosses(y, t, 32, 8);
              return [Array.from(toBytes(y, x, visible, about, how)), Array.from(t), Array.from(losses)]; }""",
            [b64(pixels), b64(prediction), b64(hidden.astype(np.uint8)), about, statistics],
        )
        shown, target, losses = (np.array(part) for part in found)
        ours = networks.to_pixels(prediction, pixels, hidden, about, statistics).ravel().astype(int)
        assert np.abs(shown - ours).max() <= 1
        goal = networks.target(pixels, about)
        assert np.abs(target - goal.ravel()).max() < 2e-4
        error = np.abs(prediction - goal).mean(0).reshape(4, 8, 4, 8).mean((1, 3))
        assert np.abs(losses - error.ravel()).max() < 1e-4
