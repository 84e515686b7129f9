"""The exercises of all notebooks: solutions pass, stubs are not done, plausible wrong answers name their case."""

import contextlib
import io
import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from simmim_lite.course import checks, grading
from simmim_lite.studies import notebooks

SOLUTIONS = Path(__file__).parent / "solutions"
#: What the line on the wrong answer has to name.
CASES = {
    ("00_start", 1): "rounded down",
    ("00_start", 2): "leaked",
    ("00_start", 3): "the whole picture",
    ("01_masks", 1): "rounded down",
    ("01_masks", 2): "tile",
    ("01_masks", 3): "the same ratio",
    ("02_swin", 1): "windows a side",
    ("02_swin", 2): "bias is missing",
    ("02_swin", 3): "reshape alone",
    ("03_one_run", 1): "not one image",
    ("03_one_run", 2): "that step included",
    ("03_one_run", 3): "different images",
    ("04_data_scale", 1): "a batch held one image",
    ("04_data_scale", 2): "shorter runs",
    ("04_data_scale", 3): "margin is 0.004",
    ("05_model_size", 1): "width 16",
    ("05_model_size", 2): "forward pass only",
    ("05_model_size", 3): "largest affordable",
    ("06_schedule", 1): "twice",
    ("06_schedule", 2): "in most of them the loss fell",
    ("06_schedule", 3): "red at Omega",
    ("07_proxy_loss", 1): "only neighbours",
    ("07_proxy_loss", 2): "leave ties out",
    ("07_proxy_loss", 3): "all pairs of runs",
    ("08_transfer", 1): "24 powers",
    ("08_transfer", 2): "does not count as 0",
    ("08_transfer", 3): "never rise again",
    ("09_scaling_law", 1): "saturates",
    ("09_scaling_law", 2): "a fold for every run",
    ("09_scaling_law", 3): "the best of all runs",
    ("10_full_scale", 1): "the branches are missing",
    ("10_full_scale", 2): "do not divide into",
    ("10_full_scale", 3): "from its first step",
    ("11_your_study", 1): "a step is a batch",
    ("11_your_study", 2): "the root is missing",
    ("11_your_study", 3): "own intervals were forgotten",
}
BOOKS = {book: sum(b == book for b, _ in CASES) for book, _ in CASES}  # exercises of each


def exercises(book: str) -> list[str]:
    cells = json.loads((notebooks.folder() / f"{book}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if "exercise" in cell["metadata"].get("tags", ())]


def solutions(book: str):
    path = SOLUTIONS / f"s{book}.py"
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_of(source: str) -> str:
    return re.search(r"^checks\.(\w+)\(\w+\);?$", source, re.M).group(1)


def said(call) -> tuple[object, str]:
    """What a call returns, and the one line it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        result = call()
    assert out.getvalue().count("\n") == 1, out.getvalue()
    return result, out.getvalue().strip()


@pytest.mark.parametrize(("book", "number"), CASES)
def test_an_exercise(book: str, number: int) -> None:
    sources = exercises(book)
    assert len(sources) == BOOKS[book]
    source, answers = sources[number - 1], solutions(book)
    check = getattr(checks, name_of(source))
    _, line = said(lambda: exec(source, {"checks": checks}))  # noqa: S102
    assert line == f"not done yet: {check.task}"
    passed, line = said(lambda: check(getattr(answers, f"solution_{number}")()))
    assert passed is True, line
    assert line.startswith("right: ")
    passed, line = said(lambda: check(getattr(answers, f"wrong_{number}")()))
    assert passed is False
    assert line.startswith("not right yet: ")
    assert CASES[book, number] in line


def test_every_solution_belongs_to_an_exercise() -> None:
    for book, count in BOOKS.items():
        named = {name for name in vars(solutions(book)) if re.fullmatch(r"(solution|wrong)_\d+", name)}
        assert named == {f"{kind}_{k}" for kind in ("solution", "wrong") for k in range(1, count + 1)}


@pytest.mark.parametrize("name", [name for name, texts in grading.TEXTS.items() if "truth" in texts])
def test_every_mistake_of_one_number_is_named(name: str) -> None:
    texts = grading.TEXTS[name]
    assert said(lambda: getattr(checks, name)(texts["truth"])) == (True, f"right: {texts['right']}")
    for value, text in texts["mistakes"].items():
        assert said(lambda value=value: getattr(checks, name)(value)) == (False, f"not right yet: {text}")


def test_every_text_of_a_grader_is_used() -> None:
    """Names of mistakes, and of texts beside the usual ones, stand in the code of the graders."""
    code = Path(grading.__file__).with_name("graders.py").read_text()
    usual = {"task", "wants", "truth", "within", "right", "otherwise", "mistakes"}
    for name, texts in grading.TEXTS.items():
        if "truth" not in texts:
            wanted = [*texts.get("mistakes", ()), *(set(texts) - usual)]
            assert [one for one in wanted if f'"{one}"' not in code] == [], name


grading.TEXTS["doubled"] = {"task": "double it", "right": "yes", "otherwise": "no:\n   not four"}


@grading.exercise
def doubled(answer):
    """A function that doubles."""
    yield grading.case(grading.call(answer, 2), 4)


def _raises():
    raise NotImplementedError


def _missing(x):
    return x / 0


TODO = "not done yet: double it"
STUBS = (None, ..., NotImplemented, (1, None), {"a": [...]}, lambda x: None, lambda x: ..., lambda x: (x, None))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        *((stub, TODO) for stub in (*STUBS, lambda x: _raises())),
        (_missing, "not right yet: your answer raised ZeroDivisionError: division by zero"),
        (lambda: 4, "not right yet: your answer raised TypeError:"),
        (4, "not right yet: a function is wanted here: yours is one int"),
        (lambda x: x, "not right yet: no: not four"),
        (lambda x: 2 * x, "right: yes"),
    ],
)
def test_one_line_for_any_answer(answer, line: str) -> None:
    passed, found = said(lambda: doubled(answer))
    assert found.startswith(line)
    assert passed is line.startswith("right")


ANYTHING = ("text", 0, -1.5, (1, 2), [], [1, 2, 3], np.ones((2, 2)), {"a": 1}, float("nan"))


@pytest.mark.parametrize("name", [n for book in BOOKS for n in map(name_of, exercises(book))])
def test_a_check_survives_any_answer_and_never_leaks_pythons_words(name: str) -> None:
    for answer in (*ANYTHING, *(lambda *_, value=value: value for value in (*ANYTHING, [[1]]))):
        passed, line = said(lambda answer=answer: getattr(checks, name)(answer))
        assert passed is False
        assert re.match("not (right|done) yet: ", line)
        assert "raised" not in line, (answer, line)


@pytest.mark.parametrize(
    ("answer", "yours"), [(5, "one int"), ("ab", "one str"), ((1, 2, 3), "3 numbers"), (np.ones(1), "1 numbers")]
)
def test_a_pair_is_asked_for_where_one_is_wanted(answer, yours: str) -> None:
    """Not Python's `cannot unpack`; also where a learner's function returns it."""
    for check, given in ((checks.cells_at_224, answer), (checks.choosing_the_size, lambda *_: answer)):
        passed, line = said(lambda check=check, given=given: check(given))
        assert passed is False
        assert re.match(rf"not right yet: 2 numbers are wanted, \(.*\): yours is {yours}$", line)


def test_one_number_is_asked_for_where_one_is_wanted() -> None:
    for check, answer in ((checks.pairs_right, np.arange(5)), (checks.overfit_runs, lambda rows: [0] * 5)):
        _, line = said(lambda check=check, answer=answer: check(answer))
        assert re.match(r"not right yet: one number is wanted: yours is one (ndarray|list) of 5$", line)
    _, line = said(lambda: checks.traffic_light(lambda omega: "green"))
    assert "green is wanted below 7.6e+05" in line and "red above 3.1e+06" in line
    with pytest.raises(AttributeError, match="no check is named 'nonsense'"):
        checks.nonsense  # noqa: B018


def test_the_stamp_says_what_was_used(capsys) -> None:
    one = {"key": "atto-1", "run": {"data": "scenes", "seed": 1}}
    rows = [{"data": "scenes", "seed": s, "val_loss": 0.5} for s in (0, 1, 2)]
    checks.stamp([one], rows, [])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"python {sys.version.split()[0]}, simmim-lite ")
    assert lines[1].startswith("commit ")
    assert "device " in lines[1]
    assert lines[2:] == [
        "records used: 1 of scenes, key atto-1",
        "records used: 3 of scenes, seeds 0, 1, 2",
        "records used: 0",
    ]
