"""claims.py: every rule and every branch of it, on made-up records whose answer is known."""

import itertools
import random

import numpy as np
import pytest
from scipy import stats
from synthetic_records import ATTO, FEMTO, PICO, record, study, tuning

from simmim_lite.evidence.claims import claims, claims_of
from simmim_lite.evidence.records import run_rows
from simmim_lite.evidence.rules import FAILS, GATES, HOLDS, OPEN, RULES, TABLE, UNTESTED

IDS = ["C1", "C2", "C3", "C4", "C5a", "C5b", "C6", "C7", "C8", "C9"]
SEEDS = (200, 201, 202)
LEVELS = (16, 1024, 16384)


def grid(change, *, sizes=(ATTO, FEMTO), levels=LEVELS, lengths=(250, 500), seeds=SEEDS, **fields):
    """Records whose validation loss is .3 + change(model, images, steps, seed); None leaves the run out."""
    made = []
    for model, images, steps, seed in itertools.product(sizes, levels, lengths, seeds):
        if (shift := change(model, images, steps, seed)) is not None:
            cell = {"model": model, "images": images, "steps": steps, "seed": seed}
            made.append(record(val=0.3 + shift, curve=[0.4, 0.35, 0.33, 0.3 + shift], **cell, **fields))
    return made


def one(records, claim):
    (found,) = [c for c in claims(records) if c.id == claim]
    return found


def noise(seed):
    return (-0.0005, 0.0, 0.0005)[seed % 3]


def slow_t(values, level=0.95):
    """A t interval by scipy's own, from the standard error."""
    return stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))


# a run on the plus side of a contrast
PLUS = {
    "C1": lambda m, n, t: m == FEMTO and n == 16 and t == 500,
    "C2": lambda m, n, t: m == FEMTO and n == 16384 and t == 500,
    "C3": lambda m, n, t: n == 16384 and t == 500,
    "C4": lambda m, n, t: m == FEMTO and n == 16 and t == 500,
}


@pytest.mark.parametrize("claim", PLUS)
def test_verdict_effect_and_interval(claim):
    margin = RULES[claim].margin  # beyond it the claim holds, on the other side it does not; the margin itself decides
    side = 1 if margin > 0 else -1
    table = [(0.02 * side, 1, HOLDS), (-0.02 * side, 1, FAILS), (margin, 1, OPEN)]
    for effect, spread, verdict in [*table, (0.9 * margin, 0.01, FAILS), (1.1 * margin, 0.01, HOLDS)]:

        def change(m, n, t, seed, effect=effect, spread=spread):
            return (effect + spread * noise(seed) if PLUS[claim](m, n, t) else 0.0) + 0.1 * (seed - 200)  # paired

        found = one(grid(change), claim)
        low, high = slow_t([effect + spread * noise(seed) for seed in SEEDS])
        assert (found.effect, found.low, found.high) == pytest.approx((effect, low, high), abs=1e-12)
        assert (found.verdict, found.n) == (verdict, 3)
        for number in (f"{abs(found.effect):.4f}", f"{low:+.4f}", f"{high:+.4f}", "3 seeds: 200, 201, 202", "500"):
            assert number in found.evidence
        assert ("seeds would decide it" in found.evidence or "no 1,000 seeds" in found.evidence) == (verdict == OPEN)


RISE = {250: 0.0, 500: 0.03, 1000: 0.04, 2000: 0.04}


@pytest.mark.parametrize(
    ("claim", "change", "options", "effect", "said"),
    [
        # an interaction: the larger is better at 16 images, only less so than at 16,384
        ("C1", lambda m, n, t, s: (m == FEMTO) * ((noise(s) - 0.01) if n == 16 else -0.03), {}, 0.02,
         ("0.0100 below the smaller", "cost it more, but it is not shown to be worse")),
        ("C4", lambda m, n, t, s: (n == 16) * RISE[t] + (t == 2000) * noise(s), {"lengths": tuple(RISE)}, 0.04 / 3,
         ("doublings to 500, 1,000 and 2,000 steps",)),
        # large is the largest size that has every seed
        ("C1", lambda m, n, t, s: None if m == PICO and s == 202 else (m == FEMTO and n == 16) * (0.02 + noise(s)),
         {"sizes": (ATTO, FEMTO, PICO)}, 0.02, ("femto", "it is worse")),
    ],
)  # fmt: skip
def test_what_a_contrast_is_made_of(claim, change, options, effect, said):
    found = one(grid(change, **options), claim)
    assert found.effect == pytest.approx(effect) and found.n == 3
    assert all(words in found.evidence for words in said) and "pico" not in found.evidence


@pytest.mark.parametrize(
    ("d", "spread", "verdict"),
    [(-0.003, 1, HOLDS), (0.003, 1, HOLDS), (0.005, 1, OPEN), (0.02, 1, FAILS), (-0.02, 1, FAILS), (0.0, 40, OPEN)],
)
def test_c6_is_an_equivalence_within_a_quarter_of_the_gain(d, spread, verdict):
    def change(m, n, t, s):  # the last doubling gains .02: the margin is .005
        return (n != 16) * (0.0 if t == 500 else 0.02) + (d + spread * noise(s) if n == 16384 else 0.0)

    found = one(grid(change), "C6")
    assert found.verdict == verdict and found.n == 3 and found.margin == pytest.approx(0.005)
    low, high = slow_t([d + spread * noise(s) for s in SEEDS], 0.9)
    assert (found.effect, found.low, found.high) == pytest.approx((d, low, high), abs=1e-9)
    assert "90 % interval" in found.evidence and "±0.0050" in found.evidence


def overfit_in(seeds):
    """C6's runs, overfit in some seeds."""
    records = grid(lambda m, n, t, s: noise(s))
    for r in records:
        if r["run"]["seed"] in seeds and r["run"]["images"] == 16384:
            r["curve"][0]["val_loss"] = r["final"]["val_loss"] - 0.005
    return records


LONG = {"lengths": (500,)}
#: Claim, records, verdict, and what the sentence says.
SAID = [
    ("C6", lambda: overfit_in({200, 201}), UNTESTED, "overfit in most seeds"),
    ("C1", lambda: study(levels=(16, 16384), lengths=(250, 500), seeds=(4,)), OPEN, "one seed gives no interval"),
    ("C2", lambda: study(levels=(16, 16384), lengths=(250, 500), seeds=(4, 5)), OPEN, "fewer than 3"),
    ("C4", lambda: grid(lambda *c: None if c[:3] == (FEMTO, 16, 250) else 0.0, levels=(16, 16384)), UNTESTED,
     "Missing runs: femto at 16 images and 250 steps"),
    ("C3", lambda: grid(lambda *cell: 0.0, levels=(64,)), UNTESTED, "two data levels"),
    ("C8", lambda: grid(lambda *cell: 0.0, levels=(64,)), UNTESTED, "No run is fine-tuned"),
    ("C9", lambda: study(levels=(16, 64), lengths=(10, 20)), OPEN, "20 steps test the machinery only"),
    ("C5b", lambda: ranked(overfit=False), UNTESTED, "0.0 runs of a seed are overfit"),
    ("C5b", lambda: ranked(data="imagefolder:cats"), UNTESTED, "10,000 labels or more, here it has 3,000"),
    ("C5a", lambda: [r for r in ranked() if r["run"]["steps"]], UNTESTED, "random initialisation"),
    ("C5a", lambda: [r for r in ranked() if r["run"]["images"] == 16384], UNTESTED, "A rank needs 5 runs of a seed"),
    ("C5a", lambda: ranked(data="imagefolder:cats", labels=10_000, probes=("linear", "knn")), HOLDS, "97 % interval"),
    ("C7", lambda: doubled(lambda seed: 0.02 if seed == 201 else -0.02, 0.02), UNTESTED, "rose in 1 of 3 doublings"),
    ("C8", lambda: supervised(0.0, 601), UNTESTED, "for as long as pretraining and fine-tuning together"),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "records", "verdict", "said"), SAID)
def test_what_cannot_be_told_and_why(claim, records, verdict, said):
    found = one(records(), claim)
    assert found.verdict == verdict and said in found.evidence
    assert verdict != UNTESTED or (found.effect is None and found.n == 0)


def test_a_loss_that_is_not_finite_and_smoke_runs():
    records = grid(lambda m, n, t, s: 0.01 + noise(s) if m == FEMTO and n == 16384 else 0.0)
    for r in records:
        if (r["run"]["model"], r["run"]["seed"]) == (FEMTO, 200):
            r["final"]["val_loss"] = float("nan")
    found = one(records, "C2")
    assert found.n == 2 and found.effect == pytest.approx(0.01 + (noise(201) + noise(202)) / 2)
    good = study()  # a smoke run among the others changes nothing
    assert claims(good) == claims([*good, *study(levels=(16,), lengths=(20,))])


# --- ranks: a score that follows validation loss, and a training loss that does or does not ---


def ranked(rho=1.0, overfit=True, labels=3000, data="scenes", probes=("linear", "segment")):
    """Runs whose scores fall with validation loss (noise grows as rho falls), and with training loss the reverse."""
    made, rng = [], np.random.default_rng(3)
    for seed, model in itertools.product(range(5), (ATTO, FEMTO)):
        start = 0.3 + 0.1 * (model == FEMTO) + rng.normal(0, 0.01)  # untrained networks of a size differ by seed
        shared = {"model": model, "seed": seed, "data": data, "probe_labels": labels}
        made.append(record(steps=0, images=16384, scores=dict.fromkeys(probes, start), **shared))
        for images, steps in itertools.product((16, 16384), (250, 500)):
            val = 0.3 + 0.05 * (images == 16) - 0.01 * (steps == 500) - 0.005 * (model == FEMTO)
            val += rng.normal(0, 0.0005)
            score = 0.3 + 0.1 * (model == FEMTO) - (val - 0.3) + rng.normal(0, 0.08 * (1 - rho))
            curve = [0.4, val - 0.01 * (overfit and images == 16), 0.36, val]
            fields = {"val": val, "train": 0.6 - val, "scores": dict.fromkeys(probes, score), "curve": curve}
            made.append(record(images=images, steps=steps, **fields, **shared))
    for r in made:
        for score in r["transfer"].values():
            score["n_train"] = labels
    return made


def test_c5_holds_where_validation_loss_ranks_and_training_loss_does_not():
    records = ranked()
    a, b = one(records, "C5a"), one(records, "C5b")
    assert (a.verdict, b.verdict, a.n, b.n) == (HOLDS, HOLDS, 5, 5)
    zero = [(r["run"]["model"], r["transfer"]["linear"]["score"]) for r in records if not r["run"]["steps"]]
    reference = {m: np.mean([score for model, score in zero if model == m]) for m in (ATTO, FEMTO)}
    rho = []
    for seed in range(5):
        some = [r for r in run_rows(records) if r["seed"] == seed and not r["reference"]]
        merit = [r["linear"] - reference[r["model"]] for r in some]
        rho.append([stats.spearmanr([r[k] for r in some], merit).statistic for k in ("val_loss", "train_loss")])
    val, train = np.array(rho).T
    assert a.effect == pytest.approx(val.mean()) and b.effect == pytest.approx((train - val).mean())
    assert (a.low, a.high) == pytest.approx(np.clip(slow_t(val), -1, 1))
    assert GATES["scenes"].source in a.evidence and "8 runs of a seed" in a.evidence
    assert one(records[:-1], "C5a").n == 4
    assert one(ranked(rho=0.2), "C5a").verdict in (OPEN, FAILS)


# --- C7 and C8 ---


def doubled(rise, change, levels=(16, 16384)):
    """Two lengths whose loss rises by `rise` and whose linear score changes by `change` at the fewest images."""
    made = []
    for seed, images, steps in itertools.product(SEEDS, levels, (250, 500)):
        last, few = steps == 500, images == levels[0]
        val = 0.3 + (rise(seed) if few else -0.01) * last
        score = 0.5 + (change + 0.001 * (seed % 3 - 1) if few else 0.02) * last
        made.append(record(images=images, steps=steps, seed=seed, val=val, scores={"linear": score}))
    return made


def supervised(difference, scratch_steps=1600):
    """Femto, pretrained on 1,024 images and fine-tuned, against scratch on 16,384 labels for as long."""
    made = []
    for seed in SEEDS:
        runs = [record(model=FEMTO, images=n, steps=1000, seed=seed) for n in (1024, 16384)]
        top = 0.6 + difference + 0.001 * (seed % 3 - 1)
        made += [*runs, tuning(runs[0], top, labels=4000, steps=600)]
        for labels, steps, top1 in ((16384, scratch_steps, 0.6), (4000, scratch_steps, 0.5), (16384, 600, 0.4)):
            made.append(tuning(runs[0], top1, scratch=True, labels=labels, steps=steps))
    return made


@pytest.mark.parametrize(("change", "verdict"), [(0.0, HOLDS), (-0.01, OPEN), (-0.03, FAILS)])
def test_c7_is_the_change_of_a_score_on_few_images_and_c8_a_difference_at_equal_lengths(change, verdict):
    for claim, records in (("C7", doubled(lambda seed: 0.02, change)), ("C8", supervised(change))):
        found = one(records, claim)
        assert found.verdict == verdict and found.n == 3
        expected = (change, *slow_t([change + 0.001 * k for k in (-1, 0, 1)]))
        assert (found.effect, found.low, found.high) == pytest.approx(expected)
    assert "1,000 steps on 1,024 images" in found.evidence and "16,384 labels for 1,600" in found.evidence


# --- runs that were made once, and what never mixes ---


def test_a_csv_of_three_seeds_is_by_seed_and_of_one_by_cell():
    rows = run_rows(grid(lambda m, n, t, s: PLUS["C1"](m, n, t) * 0.02))
    rows = [r | {"train_loss": None, "finetune": 0.5, "target": "unknown"} for r in rows]
    by_seed = {c.id: c for c in claims_of(rows)}
    assert by_seed["C1"].n == 3 and "3 seeds" in by_seed["C1"].evidence
    by_cell = {c.id: c for c in claims_of([r for r in rows if r["seed"] == 200])}
    assert by_cell["C1"].n == 2 and "2 cells" in by_cell["C1"].evidence and "not repetition" in by_cell["C1"].evidence
    assert by_cell["C5b"].verdict == by_cell["C8"].verdict == UNTESTED


def test_data_targets_and_image_sizes_are_never_mixed():
    parts = [study(seeds=(0, 1), lengths=(250, 500), **other) for other in ({}, {"target": "normalized"})]
    found = claims([r for part in parts for r in part])
    assert [c.id for c in found] == 2 * IDS
    for part in parts:
        alone = claims(part)
        assert [c for c in found if c.recipe == alone[0].recipe] == alone


def test_order_and_failed_records_change_nothing():
    records = study(lengths=(250, 500))
    shuffled = records + [record(status="failed", seed=90 + k, images=7) for k in range(3)]
    random.Random(2).shuffle(shuffled)
    assert claims(shuffled) == claims(records)
    assert claims([]) == [] == claims([record(status="failed"), record(steps=0)])


def test_the_table_is_what_was_frozen():
    """Terms, units, tests and margins: a change of any is a change of the freeze, and belongs in docs/settings.md."""
    assert [rule.id for rule in TABLE] == IDS
    margins = dict(zip(IDS, [0.001, -0.001, -0.001, 0.001, -0.5, 0.0, 0.25, -0.01, -0.01, 0.5], strict=True))
    assert {rule.id: rule.margin for rule in TABLE} == margins
    tests = ["above", "below", "below", "above", "below", "above", "within", "above", "above", "within"]
    assert [rule.test for rule in TABLE] == tests
