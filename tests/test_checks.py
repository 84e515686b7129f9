"""The exercises of all notebooks: solutions pass, stubs are not done, plausible wrong answers name their case."""

import contextlib
import io
import json
import re
import sys

import numpy as np
import pytest
import solutions

from simmim_lite.course import checks, grading
from simmim_lite.errors import UserError
from simmim_lite.studies import notebooks

#: What the line on the wrong answer to an exercise has to name; those of one number are in a test of their own.
CASES = {
    "00_start": {2: "leaked", 3: "the whole picture"},
    "01_masks": {1: "rounded down", 2: "tile", 3: "the same ratio"},
    "02_swin": {1: "windows a side", 3: "reshape alone"},
    "03_one_run": {2: "that step included", 3: "different images"},
    "04_data_scale": {2: "shorter runs", 3: "margin is 0.004"},
    "05_model_size": {2: "forward pass only", 3: "largest affordable"},
    "06_schedule": {2: "in most of them the loss fell", 3: "red at Omega"},
    "07_proxy_loss": {2: "leave ties out", 3: "all pairs of runs"},
    "08_transfer": {2: "does not count as 0", 3: "never rise again"},
    "09_scaling_law": {2: "a fold for every run", 3: "the best of all runs"},
    "10_full_scale": {2: "do not divide into", 3: "from its first step"},
    "11_your_study": {2: "the root is missing", 3: "own intervals were forgotten"},
}


def exercises(book: str) -> list[str]:
    cells = json.loads((notebooks.folder() / f"{book}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if "exercise" in cell["metadata"].get("tags", ())]


def name_of(source: str) -> str:
    return re.search(r"^checks\.(\w+)\(\w+\);?$", source, re.M).group(1)


def said(call) -> tuple[object, str]:
    """What a call returns, and the one line it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        result = call()
    assert out.getvalue().count("\n") == 1, out.getvalue()
    return result, out.getvalue().strip()


@pytest.mark.parametrize("book", CASES)
def test_exercises(book: str) -> None:
    """Stubs are not done, solutions pass, and a plausible wrong answer names its case; each of the three of a book."""
    for number, source in enumerate(exercises(book), 1):
        check, place = getattr(checks, name_of(source)), f"{book[:2]}_{number}"
        assert said(lambda s=source: exec(s, {"checks": checks}))[1] == f"not done yet: {check.task}"  # noqa: S102
        passed, line = said(lambda c=check, n=place: c(getattr(solutions, f"solution_{n}")))
        assert passed is True and line.startswith("right: "), line
        if case := CASES[book].get(number):
            passed, line = said(lambda c=check, n=place: c(getattr(solutions, f"wrong_{n}")))
            assert passed is False and line.startswith("not right yet: ") and case in line, line


@pytest.mark.parametrize("name", [name for name, texts in grading.TEXTS.items() if "truth" in texts])
def test_every_mistake_of_one_number_is_named(name: str) -> None:
    texts = grading.TEXTS[name]
    assert said(lambda: getattr(checks, name)(texts["truth"])) == (True, f"right: {texts['right']}")
    for value, text in texts["mistakes"].items():
        assert said(lambda value=value: getattr(checks, name)(value)) == (False, f"not right yet: {text}")


grading.TEXTS["doubled"] = {"task": "double it", "right": "yes", "otherwise": "no:\n   not four"}


@grading.exercise
def doubled(answer):
    """A function that doubles."""
    yield grading.case(grading.call(answer, 2), 4)


def _raises():
    raise NotImplementedError


TODO = "not done yet: double it"
STUBS = (None, ..., NotImplemented, (1, None), {"a": [...]}, lambda x: None, lambda x: (x, None))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        *((stub, TODO) for stub in (*STUBS, lambda x: _raises())),
        (lambda x: x / 0, "not right yet: your answer raised ZeroDivisionError: division by zero"),
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


ANYTHING = ("text", -1.5, (1, 2), [], np.ones((2, 2)), {"a": 1}, float("nan"))


@pytest.mark.parametrize("name", [n for book in CASES for n in map(name_of, exercises(book))])
def test_a_check_survives_any_answer_and_never_leaks_pythons_words(name: str) -> None:
    for answer in (*ANYTHING, *(lambda *_, value=value: value for value in (*ANYTHING, [[1]]))):
        passed, line = said(lambda answer=answer: getattr(checks, name)(answer))
        assert passed is False
        assert re.match("not (right|done) yet: ", line)
        assert "raised" not in line, (answer, line)


def test_the_stamp_says_what_was_used(capsys) -> None:
    one = {"key": "atto-1", "run": {"data": "scenes", "seed": 1}}
    rows = [{"data": "scenes", "seed": s, "val_loss": 0.5} for s in (0, 1, 2)]
    checks.stamp([one], rows, [])
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"python {sys.version.split()[0]}, simmim-lite ")
    assert second.startswith("commit ") and "device " in second
    used = ("1 of scenes, key atto-1", "3 of scenes, seeds 0, 1, 2", "0")
    assert lines == [f"records used: {text}" for text in used]


def test_a_guess_is_a_number_or_pass_and_is_compared_in_words(monkeypatch, capsys) -> None:
    """Where somebody walks through the notebook it stops until there is one; executed unseen it goes on without."""
    assert checks.guess(None, "a loss") is None
    monkeypatch.setattr(checks, "in_notebook", lambda: True)
    monkeypatch.setattr(checks, "executed_unseen", lambda: False)
    with pytest.raises(UserError, match='^your guess first: write a loss, or "pass", in place of None') as stopped:
        checks.guess(None, "a loss")
    assert stopped.value._render_traceback_() == [str(stopped.value)], "a notebook shows the one line"
    with pytest.raises(UserError, match="^guess = 'seventy': give a loss"):
        checks.guess("seventy", "a loss")
    assert checks.guess(" Pass", "a loss") is None and checks.guess(0.5, "a loss") == 0.5
    for guess, truth in ((80, 59.3), (60, 59.3), (20, 59.3), (None, 59.3), (20, float("nan"))):
        checks.told(guess, truth, "%")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["20.7 too high", "close", "39.3 too low"]
    assert lines[0].startswith("you said 80, it is 59.3 %")
