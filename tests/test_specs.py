"""Every field of every spec refuses what it does not take, in one line; a value has one key however it is given."""

import contextlib
import dataclasses
import errno
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pytest

from simmim_lite.errors import UserError
from simmim_lite.evidence.records import BEGINNINGS, TRANSFER, shipped, shipped_names
from simmim_lite.studies.notebooks import PARAMETERS
from simmim_lite.studies.tiers import StudyOptions
from simmim_lite.training import specs
from simmim_lite.training.pretrain import build
from simmim_lite.training.record import read_record
from simmim_lite.training.run import Run, Runtime, new_record, record_path, write_atomic, write_record
from simmim_lite.training.specs import Count, number, read
from simmim_lite.training.tuning import Dense, FineTune, Probe

SPECS = dict.fromkeys((Run, FineTune, Dense, Runtime, StudyOptions), {})
SPECS |= {Probe: {"run": Run(), "labels": 9, "test_images": 9}}
NOT_NUMBERS = ("", "ten", "10", math.nan, math.inf, -math.inf, True, [1], (1,), {}, b"1", 1j, Decimal(1), object)
NOT_NUMBERS += (np.bool_(True), np.float32("nan"), np.array([1, 2]), np.array("x"))
BAD = {
    int: (*NOT_NUMBERS, 1.5, np.float64(2.5), -1, 2**64, 1e300, 10**400, -(10**400)),
    float: (*NOT_NUMBERS, -1, 10**400),
    bool: ("yes", "True", 0, 1, 1.0, math.nan, np.int64(1), [True], {}),
    str: (3, 0.5, True, math.nan, ["flip"], ("flip",), {}, b"flip", np.int64(3), "two\nlines"),
    tuple: ("text", "", 0.9, True, {}, b"ab", "0.9, 0.95", [math.nan, 0.9], ["0.9", "0.95"], [True, 0.9], [-1, 1]),
    Run: ("a key", 3, True, {}, [Run()], Run),
}
PAIRS = ([0.9], (0.9,) * 3, "[0.9]", "[0.9, x]", np.array([[0.9, 0.95]]), [0.9, 1.0], [0.9, None])


def bad(hint: object) -> Iterator[object]:
    """Values that a type must refuse."""
    kind = specs.base(hint)
    parts = typing.get_args(kind)
    kind = typing.get_origin(kind) or kind
    yield from BAD.get(kind, ())
    if kind is tuple and Ellipsis not in parts:
        yield from PAIRS
    if types.NoneType not in typing.get_args(hint):
        yield None


def allowed(name: str, given: object) -> bool:
    """What is wrong for most fields of a type, and right for some."""
    many = name in ("seeds", "log") and str(given) in ("[1]", "(1,)", "[1 2]", "['0.9', '0.95']")
    return many or (name in ("runs_dir", "data", "address") and given == "a key")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_bad_values_of_every_field_are_one_line(spec: type) -> None:
    for name, hint in ((f.name, f.type) for f in dataclasses.fields(spec)):
        for given in (one for one in bad(hint) if not allowed(name, one)):
            with pytest.raises(UserError) as caught:
                spec(**{**SPECS[spec], name: given})
                pytest.fail(f"{spec.__name__}({name}={given!r}) is taken")
            line = str(caught.value)
            shown = given.item() if getattr(given, "shape", None) == () else given
            assert re.match(rf"(unknown )?{name} ", line) and "\n" not in line and len(line) < 400, line
            assert " ".join((str if line.startswith("unknown") else repr)(shown).split())[:40] in line, line
            assert line.startswith("unknown") or ": give " in line, line


PLAIN = [
    ("images", 1e4, 10_000), ("images", np.array(64), 64), ("seed", np.uint64(2**63 - 1), 2**63 - 1), ("lr", 1, 1.0),
    ("lr", np.float32(0.1), 0.1), ("drop_path", -0.0, 0.0), ("betas", [0, np.float32(0.95)], (0.0, 0.95)),
    ("betas", "[0,0.95]", (0.0, 0.95)), ("betas", np.array([0.9, 0.99]), (0.9, 0.99)),
    ("precision", np.str_("bf16"), "bf16"), ("data", "imagefolder:/a/b/", "imagefolder:/a/b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "plain"), PLAIN)
def test_one_value_has_one_key_however_it_is_given(name: str, given: object, plain: object) -> None:
    run, found = Run(**{name: given}), getattr(Run(**{name: given}), name)
    assert (found, type(found)) == (plain, type(plain)) and math.copysign(1, found if found == 0 else 1) == 1
    assert run.key == Run(**{name: plain}).key


def test_keys_of_all_shipped_records_are_those_that_their_specs_have_now() -> None:
    kinds = {"pretrain": Run, "finetune": FineTune, "detect": Dense, "segment": Dense}
    seen = set()
    for name in (*shipped_names(), TRANSFER, BEGINNINGS):
        for record in shipped(name):
            run, kind = record["run"], kinds.get(record["kind"])
            if kind is None:
                counts = record["spec"]
                spec = Probe(run=Run.from_dict(run), labels=counts["probe_labels"], test_images=counts["probe_test"])
            else:
                given = run if kind is Run else {**record["spec"], "run": run}
                spec = kind.from_dict(given)
                assert spec.to_dict() == given
            assert spec.key == record["key"]
            seen.add(record["kind"])
    assert seen == {*kinds, "probe"}


WHOLE = {"64": 64, "1e4": 10_000, "200k": 200_000, "1_000": 1000, "1,000": 1000, "2M": 2_000_000, "1.5k": 1500}
WHOLE |= {"1,281,167": 1_281_167, "-5": -5, " 7 ": 7, "1.2e3": 1200, "14.197122M": 14_197_122}
WHOLE |= dict.fromkeys(("", "ten", "1.5", "1.000", "1,00", "1__0", "0x10", "1e-3", "1e999999999", "٣", "1 000"))
NUMBERS = {".5": 0.5, "1e-3": 1e-3, "1.000": 1.0, "3B": 3e9, "1,000.5": 1000.5}
NUMBERS |= dict.fromkeys(("nan", "inf", "1,5", "10%", "1e3k", "--1", "1e"))


@pytest.mark.parametrize(("kind", "known"), [(int, WHOLE), (float, NUMBERS)])
def test_numbers_are_read_as_people_write_them(kind: type, known: dict) -> None:
    for text, found in known.items():
        with pytest.raises(ValueError) if found is None else contextlib.nullcontext():
            assert (number(text, kind), type(number(text, kind))) == (found, kind), text


@pytest.mark.parametrize(
    ("hint", "text", "found"),
    [
        (PARAMETERS["seeds"], "[0, 1]", (0, 1)), (PARAMETERS["seeds"], "(3,)", (3,)), (PARAMETERS["seeds"], "1e1", 10),
        (Count | None, "none", None), (bool, "Yes", True), (Run.__annotations__["betas"], "0.9,0.95", (0.9, 0.95)),
        (Dense.__annotations__["short_sides"], "[480, 512]", (480, 512)),
        (PARAMETERS["models"], "['swinv2_atto', \"swinv2_pico\"]", ("swinv2_atto", "swinv2_pico")),
        (PARAMETERS["seeds"], "two", "seeds is 'two': give a whole number from 0, or a list, each a whole number"),
        (PARAMETERS["seeds"], "[0,", "is '[0,': give"), (PARAMETERS["effect"], "nan", "'nan': give a number above 0"),
        (Count | None, "0", "is '0': give a whole number from 1, or None"),
        (bool, "perhaps", "is 'perhaps': give true or false"),
    ],
)  # fmt: skip
def test_texts_are_read_by_their_type(hint: object, text: str, found: object) -> None:
    if isinstance(found, str):
        with pytest.raises(UserError, match=re.escape(found)):
            read("seeds", hint, text)
    else:
        assert read("seeds", hint, text) == found


def test_key_is_readable_covers_every_field_and_does_not_depend_on_where_a_run_was_made() -> None:
    base = Run(images=64)
    assert re.fullmatch(r"atto-scenes-n64-t1000-s0-[0-9a-f]{10}", base.key)
    other = {
        "model": "swinv2_femto", "data": "imagefolder:a", "images": 65, "steps": 7, "seed": 1, "subset_seed": 0,
        "batch_size": 32, "image_size": 64, "window_size": 8, "mask_patch": 16, "mask_ratio": 0.5,
        "mask_strategy": "block", "target": "normalized", "target_window": 9, "augment": "none",
        "statistics": "imagenet", "lr": 1e-3, "warmup_steps": 1, "weight_decay": 0.1, "betas": (0.9, 0.99),
        "clip_grad": 1.0, "drop_path": 0.1, "precision": "bf16", "eval_every": 9, "val_images": 9, "val_masks": 9,
        "probe_labels": 9, "probe_test": 9, "recipe_version": 99, "channels": 4, "init": "weights.pth@0123456789ab",
    }  # fmt: skip
    assert other.keys() == {f.name for f in dataclasses.fields(Run)} - {"init_windows"}
    begun = [dataclasses.replace(base, init=other["init"], init_windows=w) for w in (None, (4, 4), (8, 4))]
    assert len({run.key for run in begun}) == 3 and not {"init", "init_windows", "channels"} & base.to_dict().keys()
    assert len({base.key, *(dataclasses.replace(base, **{name: v}).key for name, v in other.items())}) == len(other) + 1
    assert Run.from_dict(json.loads(json.dumps(base.to_dict()))) == base
    assert Run(steps=250).trunk_key == Run(steps=1000).trunk_key != Run(steps=250, seed=1).trunk_key
    with pytest.raises(UserError, match="unknown field of Run 'step': did you mean 'steps'"):
        Run.from_dict({"step": 3})
    assert {s: build(Run(image_size=s)).target_window for s in (32, 64, 192, 224)} == {32: 7, 64: 15, 192: 47, 224: 55}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "swinv2_picco"}, ["swinv2_picco", "did you mean 'swinv2_pico'"]),
        ({"model": "swin_tiny_patch4_window7_224"}, ["did you mean 'swinv2_small'"]),
        ({"mask_ratio": 0.95}, ["mask_ratio 0.95 hides all 16 cells", "smaller mask_patch"]),
        ({"mask_patch": 7}, ["mask_patch 7", "4, 8, 16, 32"]),
        ({"augment": "picture-crop+flip"}, ["probe_labels is 3000", "give 0"]),
    ],
)
def test_fields_that_do_not_fit_each_other_get_one_line(fields: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Run(**fields)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), str(caught.value)


def test_record_round_trip_refusals_and_a_failed_write(tmp_path, monkeypatch) -> None:
    run = Run(images=64)
    path = record_path(tmp_path, run)
    assert read_record(path) is None
    record = new_record(run, status="failed", reason="none", where={"data_digest": ""})
    write_record(path, record)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(path, new_record(run, status="done", final={"val_loss": float("nan")}))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(UserError, match="cannot write .*No space left; free some space"):
        write_atomic(path, "second")
    with pytest.raises(UserError, match="cannot write .*--runs-dir"):
        write_atomic(path / "record.json", "")
    assert read_record(path) == record and list(path.parent.iterdir()) == [path]
