"""The exercises of all notebooks: solutions pass, stubs are not done, plausible wrong answers name their case."""

import contextlib
import io
import json
import re
import sys
from itertools import pairwise

import numpy as np
import pytest

from simmim_lite.course import checks, grading
from simmim_lite.errors import UserError
from simmim_lite.studies import notebooks

#: What is changed in a solution to make a plausible mistake of it, and what the line then names.
MISTAKES = [
    ("00.2", "image[:, ~hidden].mean(axis=1, keepdims=True)", "image.mean((1, 2))[:, None]", "leaked"),
    ("00.3", "[:, hidden]", "", "the whole picture"),
    ("01.1", "(30, 30 / 49)", "(29, 29 / 49)", "rounded down"),
    ("01.1", "30 / 49", "0.61", "do not round"),
    ("01.1", "30 / 49", "3000 / 49", "not a percentage"),
    ("01.2", "mask.repeat(factor, axis=0).repeat(factor, axis=1)", "[[*r] * factor for r in mask] * factor", "tile"),
    ("01.3", "0.85", "0.6", "the same ratio"),
    ("02.1", "(16, 4, 1, 1)", "(4, 2, 1, 1)", "windows a side"),
    ("02.3", ".transpose(0, 2, 1, 3, 4)", "", "reshape alone"),
    ("03.1", "300 * 64 / 1024", "19", "do not round"),
    ("03.1", "300 * 64 / 1024", "300 * 64 // 1024", "do not round"),
    ("03.2", ">=", ">", "that step included"),
    ("03.3", "each.std(ddof=1)", "(a.var(ddof=1) + b.var(ddof=1)) ** 0.5", "different images"),
    ("04.2", 'r["steps"] == 500_000 and ', "", "shorter runs"),
    ("04.3", "0.004", "0", "margin is 0.004"),
    ("05.2", "6 *", "2 *", "forward pass only"),
    ("05.3", 'r["finetune"]', 'r["params"]', "largest affordable"),
    ("06.2", ' and long["val_loss"] > short["val_loss"]', "", "in most of them the loss fell"),
    ("06.3", "omega > last", "omega > first", "red at Omega"),
    ("07.2", "sum(s != 0 for s in signs)", "len(signs)", "leave ties out"),
    ("07.2", "return ", "return 100 * ", "not a percentage"),
    ("07.3", 'a["dataset"] == b["dataset"] and a["steps"] == b["steps"]', "True", "all pairs of runs"),
    ("08.2", "(right[there] / union[there])", "(right / union.clip(1))", "does not count as 0"),
    ("08.3", "max(reached, default=0)", "next(iter(reached), 0)", "never rise again"),
    ("09.2", "sorted(set(groups))", "groups", "a fold for every run"),
    ("09.3", 'row["finetune"] for row in options', 'row["finetune"] for row in rows', "the best of all runs"),
    ("10.2", "share % k == 0 and ", "", "do not divide into"),
    ("10.3", "length - 7 * length // 8", "length", "from its first step"),
    ("11.2", " ** 2", "", "the root is missing"),
    ("11.3", "value + half >=", "value >=", "own intervals were forgotten"),
    ("12.3", "ddof=1", "ddof=0", "n - 1 below the line"),
    ("12.3", "min(gains", "max(gains", "the larger gain"),
]
#: What an exercise asks for, other than a number.
WANTED = {"00.2": "an array", "01.1": "two numbers", "01.2": "an array", "02.1": "four numbers", "02.3": "an array"}
WANTED |= {"03.3": "two numbers", "04.2": "a dictionary", "05.3": "the name of a model", "06.3": "a colour"}
WANTED |= {"07.3": "two numbers", "09.2": "a list of pairs", "11.3": "names"}
FITS = {"a number": (int, float), "an array": (int, float, list, tuple, np.ndarray), "a dictionary": dict}
FITS |= {"the name of a model": str, "a colour": str, "a list of pairs": tuple, "names": tuple}
FORMS = ("seventy", 30, float("nan"), True, [1, 2, 3, 4, 5], [[1], [2, 3]], (), {"a": 1}, np.ones((2, 2)), max)


def _exercises() -> dict[str, tuple[str, str]]:
    """The cell of every exercise, and the solution in the folded cell below it, by its place in the course: 04.2."""
    found = {}
    for path in sorted(notebooks.folder().glob("[0-9]*.ipynb")):
        cells = pairwise(json.loads(path.read_text("utf-8"))["cells"])
        cells = [pair for pair in cells if "exercise" in pair[0]["metadata"].get("tags", ())]
        for number, (cell, below) in enumerate(cells, 1):
            assert below["metadata"]["tags"] == ["solution"]
            solution = re.search(r"```python\n(.*?)```", "".join(below["source"]), re.S)[1]
            found[f"{path.stem[:2]}.{number}"] = "".join(cell["source"]), solution
    return found


EXERCISES = _exercises()


def name_of(place: str) -> str:
    return re.search(r"^checks\.(\w+)\(\w+\);$", EXERCISES[place][0], re.M).group(1)


def said(call) -> tuple[object, str]:
    """What a call returns, and the one line it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        result = call()
    assert out.getvalue().count("\n") == 1, out.getvalue()
    return result, out.getvalue().strip()


def checked(place: str, code: str) -> str:
    """The line of the check of an exercise, with this code in place of the stub."""
    source = f"{code}\n{EXERCISES[place][0].splitlines()[-1]}"
    return said(lambda: exec(source, {"checks": checks}))[1]  # noqa: S102


@pytest.mark.parametrize("place", EXERCISES)
def test_exercises(place: str) -> None:
    """Stubs are not done, solutions pass, and plausible mistakes in them are named."""
    (stub, solution), name = EXERCISES[place], name_of(place)
    assert grading.PLACES[name] == place
    assert checked(place, stub.rpartition("\n")[0]) == f"not done yet: {grading.TEXTS[name]['task']}"
    assert checked(place, solution).startswith("right: ")
    for _, old, new, case in (row for row in MISTAKES if row[0] == place):
        assert old in solution
        line = checked(place, solution.replace(old, new))
        assert line.startswith("not right yet: ") and case in line, line


@pytest.mark.parametrize("place", EXERCISES)
def test_an_answer_of_another_form_is_told_what_is_wanted(place: str) -> None:
    check, stub = getattr(checks, name_of(place)), EXERCISES[place][0]
    wanted, answers = WANTED.get(place, "a number"), [(form, form, "") for form in FORMS]
    if stub.startswith("def "):
        answers = [(form, None, "a function is wanted") for form in FORMS if form is not max]
        answers += [(lambda *_, form=form: form, form, "") for form in FORMS]
        answers += [(lambda: 1, None, "; wanted: a function ("), (lambda *_: 1 / 0, None, "; wanted: a function (")]
    for answer, form, words in answers:
        passed, line = said(lambda answer=answer: check(answer))
        assert passed is False and line.startswith("not right yet: "), line
        fits = isinstance(form, FITS.get(wanted, ())) and not (isinstance(form, bool) and wanted == "a number")
        assert (words or f" {wanted} ") in line or fits, line
        assert "raised" not in line or words.startswith("; wanted"), line


def test_the_summary_names_what_is_open(capsys) -> None:
    grading.RIGHT.clear()
    for solved in ((), ("04.1", "04.3"), ("04.2",)):
        for place in solved:
            checked(place, EXERCISES[place][1])
        checks.summary("04")
    told = "0 of 3 right; open: 1, 2, 3", "2 of 3 right; open: 2", "3 of 3 right"
    assert capsys.readouterr().out.splitlines() == [f"exercises: {text}" for text in told]


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
        (4, "not right yet: a function is wanted here: yours is 4"),
        (lambda x: x, "not right yet: no: not four"),
        (lambda x: 2 * x, "right: yes"),
    ],
)
def test_one_line_for_any_answer(answer, line: str) -> None:
    passed, found = said(lambda: doubled(answer))
    assert found.startswith(line)
    assert passed is line.startswith("right")


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
    assert checks.guess(None, "a loss", 0, 2) is None
    monkeypatch.setattr(checks, "in_notebook", lambda: True)
    monkeypatch.setattr(checks, "executed_unseen", lambda: False)
    with pytest.raises(UserError, match='^your guess first: write a loss, or "pass", in place of None') as stopped:
        checks.guess(None, "a loss", 0, 2)
    assert stopped.value._render_traceback_() == [str(stopped.value)], "a notebook shows the one line"
    with pytest.raises(UserError, match="^a loss, or \"pass\", is wanted: your guess is the text 'seventy'"):
        checks.guess("seventy", "a loss", 0, 2)
    assert checks.guess(" Pass", "a loss", 0, 2) is None and checks.guess(0.5, "a loss", 0, 2) == 0.5
    for wrong in (50, -0.1, float("nan")):
        with pytest.raises(UserError, match='a loss, or "pass", is wanted: your guess is .*, and not from 0 to 2'):
            checks.guess(wrong, "a loss", 0, 2)
    for guess, truth in ((80, 59.3), (60, 59.3), (20, 59.3), (None, 59.3), (20, float("nan"))):
        checks.told(guess, truth, "%")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["20.7 too high", "close", "39.3 too low"]
    assert lines[0].startswith("you said 80, it is 59.3 %")
