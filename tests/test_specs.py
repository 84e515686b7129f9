"""Every field of every spec refuses what it does not take, in one line; a value has one key however it is given."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pytest
from PIL import Image

from simmim_lite.errors import UserError
from simmim_lite.evidence.records import TRANSFER, shipped, shipped_names
from simmim_lite.model import sizes
from simmim_lite.studies import parameters
from simmim_lite.studies.parameters import PARAMETERS, StudyOptions
from simmim_lite.training import specs
from simmim_lite.training.pretrain import pretrain
from simmim_lite.training.run import Run, Runtime
from simmim_lite.training.specs import Count, Spec, number, read, value
from simmim_lite.training.tuning import Dense, FineTune, Probe

SPECS = dict.fromkeys((Run, FineTune, Dense, Runtime, StudyOptions), {})
SPECS |= {Probe: {"run": Run(), "labels": 9, "test_images": 9}}
NOT_NUMBERS = (
    "",
    "ten",
    "10",
    math.nan,
    math.inf,
    -math.inf,
    True,
    [1],
    (1,),
    {},
    b"1",
    1j,
    Decimal(1),
    np.bool_(True),
)
NOT_NUMBERS += (np.float32("nan"), np.array([1, 2]), np.array("x"), object)
BAD = {
    int: (*NOT_NUMBERS, 1.5, np.float64(2.5), -1, 2**64, 1e300, 10**400, -(10**400)),
    float: (*NOT_NUMBERS, -1, 10**400),
    bool: ("yes", "True", 0, 1, 1.0, math.nan, np.int64(1), [True], {}),
    str: (3, 0.5, True, math.nan, ["flip"], ("flip",), {}, b"flip", np.int64(3), "two\nlines"),
    tuple: (
        "text",
        "",
        0.9,
        True,
        {},
        {0.5},
        b"ab",
        "0.9, 0.95",
        [math.nan, 0.9],
        ["0.9", "0.95"],
        [True, 0.9],
        [-1, 0.9],
    ),
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


def everything() -> list[tuple[type, str, object]]:
    every = [(s, f.name, f.type) for s in SPECS for f in dataclasses.fields(s)]
    return [(spec, name, given) for spec, name, hint in every for given in bad(hint) if not allowed(name, given)]


def allowed(name: str, given: object) -> bool:
    """What is wrong for most fields of a type, and right for some."""
    many = name in ("seeds", "log") and str(given) in ("[1]", "(1,)", "[1 2]", "['0.9', '0.95']")
    return many or (name in ("runs_dir", "data", "address") and given == "a key")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_bad_values_of_every_field_are_one_line(spec: type) -> None:
    tried = 0
    for kind, name, given in everything():
        if kind is not spec:
            continue
        with pytest.raises(UserError) as caught:
            spec(**{**SPECS[spec], name: given})
            pytest.fail(f"{spec.__name__}({name}={given!r}) is taken")
        line = str(caught.value)
        shown = given.item() if getattr(given, "shape", None) == () else given
        assert re.match(rf"(unknown )?{name} ", line) and "\n" not in line and len(line) < 400, line
        assert " ".join((str if line.startswith("unknown") else repr)(shown).split())[:40] in line, line
        assert line.startswith("unknown") or ": give " in line, line
        tried += 1
    assert tried > 10 * len(dataclasses.fields(spec)) - 20


def test_every_field_of_every_spec_has_a_rule() -> None:
    def below(kind: type) -> Iterator[type]:
        for sub in kind.__subclasses__():
            yield from below(sub) if sub.__subclasses__() else (sub,)

    assert {spec for spec in below(Spec) if spec.__module__.startswith("simmim_lite.")} == set(SPECS)
    bare = [f"{s.__name__}.{f.name}" for s in SPECS for f in dataclasses.fields(s) if not specs.has_rule(f.type)]
    assert bare == []
    assert all(map(specs.has_rule, PARAMETERS.values()))


PLAIN = [
    ("images", 1e4, 10_000), ("images", np.int32(64), 64), ("images", np.float64(64), 64), ("images", np.array(64), 64),
    ("seed", np.uint64(2**63 - 1), 2**63 - 1), ("lr", 1, 1.0), ("lr", np.float32(0.1), 0.1),
    ("mask_ratio", np.float16(0.5), 0.5), ("drop_path", -0.0, 0.0), ("clip_grad", 5, 5.0),
    ("betas", [0, np.float32(0.95)], (0.0, 0.95)), ("betas", "[0,0.95]", (0.0, 0.95)),
    ("betas", np.array([0.9, 0.99]), (0.9, 0.99)), ("precision", np.str_("bf16"), "bf16"),
    ("data", "imagefolder:/a/b/", "imagefolder:/a/b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "plain"), PLAIN)
def test_one_value_has_one_key_however_it_is_given(name: str, given: object, plain: object) -> None:
    run, same = Run(**{name: given}), Run(**{name: plain})
    found = getattr(run, name)
    assert (found, type(found)) == (plain, type(plain)) and math.copysign(1, found if found == 0 else 1) == 1
    assert run == same and run.key == same.key


def test_keys_of_all_shipped_records_are_those_that_their_specs_have_now() -> None:
    kinds = {"pretrain": Run, "finetune": FineTune, "detect": Dense, "segment": Dense}
    seen = set()
    for name in (*shipped_names(), TRANSFER):
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


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [(text, kind, n) for kind, known in ((int, WHOLE), (float, NUMBERS)) for text, n in known.items()],
)
def test_numbers_are_read_as_people_write_them(text: str, kind: type, found: float | None) -> None:
    if found is None:
        with pytest.raises(ValueError):
            number(text, kind)
    else:
        assert number(text, kind) == found and type(number(text, kind)) is kind


@pytest.mark.parametrize(
    ("hint", "text", "found"),
    [
        (PARAMETERS["seeds"], "[0, 1]", (0, 1)),
        (PARAMETERS["seeds"], "(3,)", (3,)),
        (PARAMETERS["seeds"], "1e1", 10),
        (Count | None, "none", None),
        (bool, "Yes", True),
        (Run.__annotations__["betas"], "0.9,0.95", (0.9, 0.95)),
        (Dense.__annotations__["short_sides"], "[480, 512]", (480, 512)),
        (PARAMETERS["seeds"], "two", "seeds is 'two': give a whole number from 0, or a list, each a whole number"),
        (PARAMETERS["seeds"], "[0,", "is '[0,': give"),
        (PARAMETERS["effect"], "nan", "is 'nan': give a number above 0"),
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


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("swinv2_tiny", "small"), ("swin_tiny_patch4_window7_224", "small"), ("swinv2_t", "small"),
        ("SwinV2-B", "base"), ("base", "base"),
        ("swinv2_bse", "base"), ("swinv2_picco", "pico"), ("vit_large_patch16", "large"),
        ("swinv2_xl", "huge"), ("resnet50", None), ("", None),
    ],
)  # fmt: skip
def test_the_size_that_was_meant(name: str, near: str | None) -> None:
    assert sizes.nearest(name) == (near and f"swinv2_{near}")
    with pytest.raises(UserError, match=f"did you mean 'swinv2_{near}'" if near else f"unknown model '{name}': known"):
        Run(model=name)


def test_arguments_of_functions_are_checked_by_the_same_types() -> None:
    @specs.checked
    def twice(count: Count, label: str = "", *, of: specs.Positive | None = None) -> tuple:
        return count, label, of

    assert twice(2e0, of=np.float32(0.5)) == (2, "", 0.5)
    for call in (lambda: twice(True), lambda: twice(count="2"), lambda: twice(1, of=math.nan)):
        with pytest.raises(UserError, match=r"(count|of) is .*: give a (whole )?number"):
            call()
    assert value("x", list, "[1, 'a']") == [1, "a"]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ({"seeds": "two"}, "seeds is 'two': give a whole number from 0, or a list"),
        ({"seeds": 1.5}, "seeds is 1.5"),
        ({"tier": "smke"}, "unknown tier 'smke': did you mean 'smoke'"),
        ({"runs_dir": 5}, "runs_dir is 5: give a folder"),
        ({"runs_dir": ""}, "runs_dir is '': give a folder"),
        ({"data": "imagefolder:/nowhere"}, "/nowhere: no such folder"),
        ({"data": "scnes"}, "unknown data 'scnes': did you mean 'scenes'"),
        ({"gpus": "A100"}, "gpus is 'A100': give a whole number from 1"),
        ({"images_per_second": 900}, "images_per_second is 900: give SIZE=NUMBER"),
        ({"In": ["", "tier = 'quick'  # smoke", "# Parameters\nsedes = 2\n"]}, "unknown parameter 'sedes'"),
    ],
)
def test_a_notebook_checks_its_parameters(names: dict, line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        parameters.check_notebook(names)
    assert caught.value._render_traceback_() == [f"UserError: {caught.value}"]


def test_a_notebook_has_its_parameters_made_plain() -> None:
    names = {"seeds": "[0, 1]", "workers": 2.0, "data": "scenes", "other": "x"}
    parameters.check_notebook(names)
    assert names == {"seeds": (0, 1), "workers": 2, "data": "scenes", "other": "x"}


def test_a_run_of_more_images_than_there_are_never_succeeds(tmp_path) -> None:
    for k in range(12):
        Image.new("RGB", (40, 40), (20 * k, 0, 0)).save(tmp_path / f"{k}.png")
    run = Run(data=f"imagefolder:{tmp_path}", images=99, steps=0, probe_labels=0)
    with pytest.raises(UserError, match=r"images 99: train of .* holds 8 images; ask for 1 to 8"):
        pretrain(run, runs_dir=tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("*.json"))
