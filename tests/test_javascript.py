"""JavaScript against Python, in Chromium: masks, windows, Swin V2, local statistics, pictures of predictions."""

import base64
import json

import numpy as np
import pytest
import torch
from lab_walk import pixels as pixels_of
from lab_walk import predict as said
from random_weights import random_model
from reach import blind_groups, blocks_until_seen
from safetensors.torch import save
from test_diagnose import LOGS

from simmim_lite.data.batches import normalise
from simmim_lite.evidence import diagnose
from simmim_lite.lab import pictures
from simmim_lite.lab.mask_lab import NETWORKS, STATISTICS, shipped_network
from simmim_lite.lab.widgets import module
from simmim_lite.model import masking, swin
from simmim_lite.model.masking import STRATEGIES, average_distance, fully_masked_windows, hash_masks, upsample

FILES = ("core", "net", "parts", "pixels", "windows", "diagnose")


@pytest.fixture(scope="module")
def script(browser):
    """`script(expression, argument)`: what the widgets' functions return."""
    page = browser.new_page()
    page.add_script_tag(content=module(*FILES).replace("export default { render };", ""))
    yield page.evaluate
    page.close()


def test_a_log_is_judged_alike(script) -> None:
    """The verdict and every word, in the page as in Python."""
    code = """([texts, table]) => texts.map((text) => {
      const [layout, points] = logOfText(text), [verdict, found] = judgedLog(points, 0.8, table);
      return [layout, points.length, verdict, found.map((one) => [one.name, one.sure, one.says, one.next])]; })"""
    texts = [text for _, text, _ in LOGS.values()] + [
        "",
        "no log",
        "a;loss\n1;0,5\n",
        "step,loss\n" + "\n".join(f"{i},0" for i in range(30)),
        '{"curve": []}',
        '{"kind": "finetune", "curve": [{"step": 1, "train_loss": 2.5}]}',
        '{"log_history": [{"step": 1, "loss": 0.5}, {"step": 1, "train_runtime": 9, "train_loss": 0.7}]}',
    ]
    for text, theirs in zip(texts, script(code, [texts, diagnose.TABLE]), strict=True):
        layout, points = diagnose.of_text(text)
        verdict, found = diagnose.judged(points, 0.8)
        assert theirs == [layout, len(points), verdict, [[f.name, f.sure, f.says, f.next] for f in found]]


def b64(content: "np.ndarray | bytes") -> str:
    return base64.b64encode(content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()).decode()


def test_masks_agree_in_a_thousand_settings(script) -> None:
    rng, settings = np.random.default_rng(0), []
    for k in range(1000):
        ratio = float(rng.choice([0.0, 1.0, 0.6, rng.random(), round(rng.random(), 2)]))
        shape = [int(n) for n in rng.integers(1, 25, 2)]
        seed, image = int(rng.integers(0, 2**31 if k % 2 else 300)), int(rng.integers(0, 2**53 if k % 3 == 0 else 1000))
        settings.append([*shape, ratio, seed, image, int(rng.integers(0, 50)), list(STRATEGIES)[k % len(STRATEGIES)]])
    theirs = script("all => all.map(s => Array.from(hashMask(...s)).join(''))", settings)
    assert script("Object.keys(STRATEGIES)") == list(STRATEGIES)
    for (rows, columns, ratio, seed, image, visit, strategy), text in zip(settings, theirs, strict=True):
        (ours,) = hash_masks((rows, columns), ratio, seed, np.array([image], np.uint64), visit, strategy)
        assert text == "".join(map(str, ours.ravel().astype(int)))
        assert text.count("1") == masking.hidden_count(ours.size, ratio)


# pixels a side, tokens a side of a window, blocks a stage, mask patches in pixels
GEOMETRIES = [(192, w, (2, 2, 18, 2), (8, 16, 32, 64)) for w in (12, 6)] + [(32, 4, (2, 2), (4, 8, 16))]


def test_distances_and_windows_agree(script) -> None:
    cases, expected = [], []
    for seed in range(60):
        strategy = list(STRATEGIES)[seed % len(STRATEGIES)]
        pixels, window, depths, patches = GEOMETRIES[seed % 3]
        patch, ratio = patches[seed % len(patches)], (0.0, 1.0)[seed] if seed < 2 else (seed * 7 % 20) / 20 + 0.05
        mask = hash_masks((pixels // patch,) * 2, ratio, seed, [0], 0, strategy)[0]
        hidden, far = upsample(mask, patch // 4), average_distance(mask, patch)
        cases.append([pixels // patch, ratio, seed, strategy, pixels // 4, window, list(depths)])
        both = [[fully_masked_windows(hidden, window, s), blind_groups(hidden, window, s)] for s in (0, window // 2)]
        far = None if np.isinf(far) else pytest.approx(far, rel=1e-9)
        expected.append([far, blocks_until_seen(hidden, window, depths).ravel().tolist(), both])
    code = """cases => cases.map(([cells, ratio, seed, strategy, side, window, depths]) => {
      const mask = hashMask(cells, cells, ratio, seed, 0, 0, strategy), tokens = upsample(mask, cells, side / cells);
      const found = [...blocksUntilSeen(tokens, side, window, depths)];
      const far = averageDistance(mask, cells, 4 * side / cells);
      for (const { kind, seen, width, count } of encoderSteps(tokens, side, window, depths)) // two ways to count
        for (let i = 0; kind === "block" && i < side * side; i++) {
          const f = side / width, at = Math.floor(Math.floor(i / side) / f) * width + Math.floor((i % side) / f);
          if (Boolean(seen[at]) !== (found[i] >= 0 && found[i] <= count)) throw new Error(`block ${count}`);
        }
      return [Number.isFinite(far) ? far : null, found, [0, window >> 1].map((shift) => {
        const groups = attentionGroups(side, window, shift), lit = new Set([...groups].filter((_, i) => !tokens[i]));
        return [countOf(blindWindows(tokens, side, window, shift)), new Set(groups).size - lit.size];
      })];
    })"""
    assert script(code, cases) == expected


def predict(script, weights: bytes, x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    code = """([weights, x, hidden]) => {
      const y = new Net(bytesOf(weights)).predict(new Float32Array(bytesOf(x).buffer), bytesOf(hidden));
      return Array.from(y); }"""
    found = script(code, [b64(weights), b64(x.astype(np.float32)), b64(hidden.astype(np.uint8))])
    return np.array(found, np.float32).reshape(x.shape)


@pytest.mark.parametrize("name, side, window", [("swinv2_femto", 64, 4), ("swinv2_atto", 64, 8)])
def test_swin_in_the_page_equals_the_librarys_on_random_weights(script, name: str, side: int, window: int) -> None:
    """Every parameter random and not zero; at 64 px both stages have shifted windows."""
    model = random_model(name, img_size=side, window_size=window, target="raw")
    about = {"side": side, "patch_size": 4, "window": window, "depths": [2, 2], "target": "raw"}
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()}, {"about": json.dumps(about)})
    x = masking.uniforms(3 * side * side, 1).reshape(3, side, side) * 4 - 2
    hidden = upsample(hash_masks((side // 8, side // 8), 0.6, 1, [0])[0], 2)
    with torch.inference_mode():
        ours = model.reconstruct(torch.from_numpy(x)[None], torch.from_numpy(hidden)[None])[0].numpy()
    assert np.abs(predict(script, weights, x, hidden) - ours).max() < 1e-4 * np.abs(ours).max()


def test_attention_in_the_page_equals_the_librarys(script, monkeypatch) -> None:
    """Of every token, head and block, with the places in the map that it attends to, and the position bias."""
    model, found = random_model("swinv2_atto", img_size=64, window_size=4, target="raw"), []

    def attend(qkv, heads, scale, bias, mask):
        q, k, _ = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
        cosine = torch.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
        logits = cosine * scale[:, None, None] + bias + (0 if mask is None else mask[:, None])
        found.append((logits.softmax(-1)[0].numpy(), bias.numpy()))
        return window_attention(qkv, heads, scale, bias, mask)

    window_attention = swin.window_attention
    monkeypatch.setattr(swin, "window_attention", attend)
    x = masking.uniforms(3 * 64 * 64, 1).reshape(3, 64, 64) * 4 - 2
    hidden = upsample(hash_masks((8, 8), 0.6, 1, [0])[0], 2)
    with torch.inference_mode():
        model.reconstruct(torch.from_numpy(x)[None], torch.from_numpy(hidden)[None])
    about = {"side": 64, "patch_size": 4, "window": 4, "depths": [2, 2], "target": "raw"}
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()}, {"about": json.dumps(about)})
    code = """([weights, x, hidden]) => {
      const seen = [];
      new Net(bytesOf(weights)).predict(new Float32Array(bytesOf(x).buffer), bytesOf(hidden), seen);
      const arrays = (b) => Object.fromEntries(["weights", "places", "own", "bias"].map((k) => [k, [...b[k]]]));
      return seen.map((b) => ({ ...b, ...arrays(b) })); }"""
    blocks = script(code, [b64(weights), b64(x.astype(np.float32)), b64(hidden.astype(np.uint8))])
    assert [(b["stage"], b["n"], b["shift"]) for b in blocks] == [(0, 16, 0), (0, 16, 2), (1, 8, 0), (1, 8, 2)]
    for block, (theirs, bias) in zip(blocks, found, strict=True):
        n, heads = block["n"], block["heads"]
        order = swin.stage_layouts(n, n, 4, torch.device("cpu"))[1][bool(block["shift"])].order.view(-1, 16).numpy()
        own = np.reshape(block["weights"], (heads, n * n, 16))[:, order].transpose(1, 0, 2, 3)
        assert np.abs(own - theirs).max() < 1e-5 and np.abs(np.reshape(block["bias"], bias.shape) - bias).max() < 1e-4
        assert (np.reshape(block["places"], (n * n, 16))[order] == order[:, None]).all()
        assert (np.array(block["own"])[order] == np.arange(16)).all()


def local_statistics(x: np.ndarray, counted: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance in a window around each pixel over those that count, slowly; of the whole channel
    where fewer than two do."""
    mean, variance, half = np.empty_like(x), np.empty_like(x), window // 2
    for c, i, j in np.ndindex(*x.shape):
        at = slice(max(0, i - half), i + half + 1), slice(max(0, j - half), j + half + 1)
        near = x[c][at][counted[at]]
        near = near if len(near) > 1 else x[c][counted]
        mean[c, i, j], variance[c, i, j] = near.mean(), near.var(ddof=1)
    return mean, variance


def as_bytes(prediction, x, counted, about: dict, statistics: str) -> np.ndarray:
    """A prediction as a picture: in the picture's own units, by the statistics of the pixels that count."""
    mean, std = (np.array(about[k])[:, None, None] for k in ("mean", "std"))
    values = prediction.astype(float)
    if about["target"] == "normalized":
        if statistics == "normalised":
            return np.clip(np.rint(127.5 + 42.5 * values), 0, 255)
        level, variance = local_statistics(x, counted | (statistics == "true"), about["target_window"])
        values = values * np.sqrt(variance + 1e-6) + level
    return np.clip(np.rint(255 * (values * std + mean)), 0, 255)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shipped_network_says_the_same_in_the_page(script, name: str) -> None:
    """Predictions, target, losses of cells, and the picture by each kind of statistics; visible ones do not leak."""
    network = shipped_network(name)
    about, side = network.about, network.about["side"]
    cells, mask = side // 8, hash_masks((side // 8, side // 8), 0.6, 5, [0])[0]
    pixels = pixels_of(pictures.photographs()[1], side)
    tokens, hidden = upsample(mask, 2), upsample(mask, 8)
    x = normalise(pixels[None], tuple(about["mean"]), tuple(about["std"]))
    x = goal = x[0].double().numpy()
    if about["target"] == "normalized":
        level, variance = local_statistics(x, np.ones((side, side), bool), about["target_window"])
        goal = (x - level) / np.sqrt(variance + 1e-6)
    prediction = said(network, pixels, tokens)
    assert np.abs(predict(script, network.weights, x, tokens) - prediction).max() < 1e-4
    error = np.abs(prediction - goal).mean(0).reshape(cells, 8, cells, 8).mean((1, 3))
    code = """([bytes, prediction, hidden, about, how]) => {
      const x = normalise(bytesOf(bytes), about), visible = Float32Array.from(bytesOf(hidden), h => 1 - h);
      const y = new Float32Array(bytesOf(prediction).buffer), t = targetOf(x, about);
      const { losses } = cellLosses(y, t, about.side, 8);
      return [Array.from(toBytes(y, x, visible, about, how)), Array.from(t), Array.from(losses)]; }"""
    for statistics in STATISTICS:
        given = [b64(pixels), b64(prediction), b64(hidden.astype(np.uint8)), about, statistics]
        shown, target, losses = map(np.array, script(code, given))
        assert np.abs(target - goal.ravel()).max() < 1e-3 and np.abs(losses - error.ravel()).max() < 1e-4
        assert np.abs(shown - as_bytes(prediction, x, ~hidden, about, statistics).ravel()).max() <= 1
