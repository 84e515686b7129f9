"""Windows, shift and merging as sets: against the network itself, against JavaScript, and by hand."""

import json

import numpy as np
import pytest
import torch
from random_weights import randomise
from reach import attention_groups, blind_groups, blocks_until_seen, steps

from simmim_lite.errors import UserError
from simmim_lite.lab.widget import module
from simmim_lite.lab.windows import GEOMETRIES, WindowView
from simmim_lite.model.masking import STRATEGIES, MaskGenerator, fully_masked_windows, hash_masks, upsample
from simmim_lite.model.swin import Block, SwinV2


@pytest.fixture
def javascript(page):
    """javascript(names, expression): what an expression is in Chromium, after the files js/NAME.js."""

    def evaluate(names: tuple[str, ...], expression: str) -> object:
        page.goto("about:blank")
        page.add_script_tag(content=module(*names).replace("export default { render };", ""))
        return page.evaluate(expression)

    return evaluate


def tokens_of(geometry: str, ratio: float, seed: int, strategy: str = "random") -> np.ndarray:
    pixels, _, _, patches = GEOMETRIES[geometry]
    patch = patches[seed % len(patches)]
    return upsample(hash_masks((pixels // patch,) * 2, ratio, seed, [0], 0, strategy)[0], patch // 4)


def outputs(encoder: SwinV2, images: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """What every block returns: [(B, side * side, C)], in reading order."""
    kept = []

    def keep(block, given, output):
        layout = given[2]
        kept.append(output[:, layout.place])

    handles = [m.register_forward_hook(keep) for m in encoder.modules() if isinstance(m, Block)]
    encoder(images, mask)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize(("side", "window", "depths"), [(8, 4, (2, 2)), (16, 4, (3, 2, 2)), (24, 6, (2, 2, 2, 1))])
@pytest.mark.parametrize("seed", [0, 2])
def test_the_sets_are_what_the_network_does(side: int, window: int, depths: tuple, seed: int) -> None:
    """A token has heard of a visible one where its output differs between two pictures under one mask, in float64:
    there the -100 of a shifted window is below rounding."""
    encoder = randomise(SwinV2(32, depths, window), seed).double().eval()
    hidden = upsample(hash_masks((side // 2,) * 2, 0.9, seed, [0], 0, "square" if seed == 2 else "random")[0], 2)
    images = torch.randn(2, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.inference_mode():
        found = outputs(encoder, images, torch.from_numpy(hidden).expand(2, -1, -1))
    expected = list(steps(hidden, window, depths))
    assert len(found) == len(expected) == sum(depths)
    for output, step in zip(found, expected, strict=True):
        differs = ((output[0] - output[1]).abs().amax(1) > 1e-12).view(step.after.shape).numpy()
        assert (differs == step.after).all(), (step.stage, step.block)


def test_the_field_of_one_token_is_where_its_gradient_is_not_zero(javascript) -> None:
    encoder = randomise(SwinV2(32, (2, 2, 1), 4), 3).double().eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    images.requires_grad_()
    per_block = outputs(encoder, images, torch.zeros(1, 16, 16, dtype=torch.bool))
    code = "[1, 2, 4, 5, 7].map((s) => [...heardOf(encoderSteps(new Uint8Array(256), 16, 4, [2, 2, 1]), s, 5, 11)])"
    fields = javascript(("core", "parts", "windows"), code)
    for output, field in zip(per_block, fields, strict=True):
        factor = 16 // int(output.shape[1] ** 0.5)
        at = (5 // factor) * (16 // factor) + 11 // factor
        (grad,) = torch.autograd.grad(output[0, at].square().sum(), images, retain_graph=True)
        size = grad[0].abs().amax(0).view(16, 4, 16, 4).amax((1, 3))
        assert ((size > 1e-15 * size.max()).numpy().astype(int).ravel() == field).all()


def test_python_and_javascript_agree(javascript) -> None:
    cases, expected = [], []
    for seed in range(60):
        geometry, strategy = list(GEOMETRIES)[seed % 3], list(STRATEGIES)[seed % len(STRATEGIES)]
        pixels, window, depths, patches = GEOMETRIES[geometry]
        ratio, side, shift = (seed * 7 % 20) / 20 + 0.05, pixels // 4, window // 2
        hidden = tokens_of(geometry, ratio, seed, strategy)
        cases.append([pixels // patches[seed % len(patches)], ratio, seed, strategy, side, window, list(depths)])
        both = [[fully_masked_windows(hidden, window, s), blind_groups(hidden, window, s)[0]] for s in (0, shift)]
        expected.append([blocks_until_seen(hidden, window, depths).ravel().tolist(), both])
    code = f"""[{json.dumps(cases)}.map(([cells, ratio, seed, strategy, side, window, depths]) => {{
      const tokens = upsample(hashMask(cells, cells, ratio, seed, 0, 0, strategy), cells, side / cells);
      const found = [...blocksUntilSeen(tokens, side, window, depths)];
      const steps = encoderSteps(tokens, side, window, depths);
      for (const {{ kind, seen, width, count }} of steps) // two ways to count
        for (let i = 0; kind === "block" && i < side * side; i++) {{
          const f = side / width, at = Math.floor(Math.floor(i / side) / f) * width + Math.floor((i % side) / f);
          if (Boolean(seen[at]) !== (found[i] >= 0 && found[i] <= count)) throw new Error(`block ${{count}}`);
        }}
      return [found, [0, window >> 1].map((shift) => {{
        const groups = attentionGroups(side, window, shift), lit = new Set([...groups].filter((_, i) => !tokens[i]));
        return [countOf(blindWindows(tokens, side, window, shift)), new Set(groups).size - lit.size];
      }})];
    }}), ["192-12", "192-6"].map((g) => usualBlind(_GEOMETRIES[g], 32, 0.6, "random"))]"""
    found, usual = javascript(("core", "parts", "windows", "window_view"), code)
    assert found == expected
    assert np.allclose(usual, [[1.98693, 0.82432], [23.49804, 15.71503]], atol=1e-4)


def test_the_papers_windows() -> None:
    """Stage 3 is one unshifted window of 12, stage 4 clamps to 6; about 2 of 16 windows are blind (docs/facts.md)."""
    generator = MaskGenerator(seed=0)
    masks = [generator() for _ in range(400)]
    for window, plain, shifted in ((12, 1.987, 0.824), (6, 23.50, 15.72)):
        for shift, expected in ((0, plain), (window // 2, shifted)):
            counts = [fully_masked_windows(m, window, shift) for m in masks]
            assert abs(np.mean(counts) - expected) < 4 * np.std(counts) / 20
    found = list(steps(masks[0], 12, (2, 2, 18, 2)))
    first = [(12, 0, 48), (12, 6, 48), (12, 0, 24), (12, 6, 24), (12, 0, 12), (12, 0, 12)]
    assert [(s.window, s.shift, len(s.after)) for s in found[:6]] == first
    assert {(s.window, s.shift, len(s.after)) for s in found[22:]} == {(6, 0, 6)}
    assert len(np.unique(attention_groups(48, 12, 6))) == 25


def test_nothing_and_everything_hidden() -> None:
    assert (blocks_until_seen(np.zeros((8, 8)), 4, (2, 2)) == 0).all()
    assert (blocks_until_seen(np.ones((8, 8)), 4, (2, 2)) == -1).all()
    corner = np.ones((8, 8), bool)
    corner[0, 0] = False
    # block 1 reaches the corner's window, block 2 the four pieces it touches, stage 2 is one window
    expected = np.full((8, 8), 3)
    expected[:6, :6], expected[:4, :4], expected[0, 0] = 2, 1, 0
    assert (blocks_until_seen(corner, 4, (2, 2)) == expected).all()


def test_widget_and_its_twin() -> None:
    view = WindowView(geometry="32-4", seed=3)
    assert view.mask_patch == 8
    state = view.twin_state()
    assert state["picture"].startswith("data:image/png;base64,") and state["geometry"] == "32-4"
    assert "http" not in view.static_html()
    for wrong in ({"geometry": "192-7"}, {"mask_patch": 5}, {"ratio": 1.5}, {"strategy": "stripes"}):
        with pytest.raises(UserError):
            WindowView(**wrong)
