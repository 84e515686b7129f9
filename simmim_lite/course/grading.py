"""How an exercise is graded: compare the answer with the truth, and name the cause of a known mistake.

All texts are in exercises.yaml, under the exercise's name; where they hold its truth too, nothing else is needed. The
others are graders, which compare the answer, or what the learner's function returns, with their truth:

    @exercise
    def hidden_cells(answer):
        yield case(number(answer), 22, {"down": 21})  # 21 gets the text of the mistake "down"

and used, as the last line of an exercise's cell: `checks.hidden_cells(answer)`. The first case that is wrong counts. An
untouched stub (`None`, `...`, `NotImplemented`, a function that returns one of them or raises `NotImplementedError`, a
list with a gap) prints `not done yet: count the hidden cells`; an answer that raises an error prints it in one line.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files

import numpy as np
import yaml

TEXTS = yaml.safe_load(files(__package__).joinpath("exercises.yaml").read_text("utf-8"))
ANY = object()  # in a mistake of several numbers: whatever this one is


class WrongForm(Exception):
    """The answer is not of the form that was asked for; the text says which one is."""


def case(found: object, truth: object, mistakes: Mapping[str, object] | None = None, **facts: object) -> dict:
    """A comparison: mistakes {name: what it makes}; facts that texts need; `otherwise`, the name of another text."""
    return {"found": found, "truth": truth, "mistakes": mistakes or {}, "otherwise": "otherwise"} | facts


def wrong(mistake: str, **facts: object) -> dict:
    """A case that is wrong by a mistake that no value shows."""
    return case(None, ANY, {mistake: ANY}) | {"passed": False} | facts


def exercise(grader: Callable[[object], Iterator[dict]]) -> Callable[[object], bool]:
    """Make a check of a grader (answer) -> cases, whose texts are those of its name.

    The check prints one line, `right: …`, `not right yet: …` or `not done yet: …`, and returns whether it was right.
    """
    texts = TEXTS[grader.__name__]

    @functools.wraps(grader)
    def check(answer: object) -> bool:
        passed, text, within = False, texts["right"], texts.get("within", 0.01)
        try:
            if untouched(answer):
                raise NotImplementedError
            for facts in grader(answer):
                passed = facts.get("passed", same(facts["found"], facts["truth"], within))
                if not passed:
                    known = [name for name, made in facts["mistakes"].items() if same(facts["found"], made, within)]
                    text = texts["mistakes"][known[0]] if known else texts[facts["otherwise"]]
                    break
            line = f"{'right' if passed else 'not right yet'}: {text.format(**facts)}"
        except NotImplementedError:
            passed, line = False, f"not done yet: {texts['task']}"
        except WrongForm as error:
            passed, line = False, f"not right yet: {error}"
        except Exception as error:  # the answer's own: whatever a learner's function raises
            what = (str(error).strip().splitlines() or [""])[0]
            passed, line = False, f"not right yet: your answer raised {type(error).__name__}: {what}"
        print(" ".join(line.split()))
        return passed

    check.task, check.__doc__ = texts["task"], texts.get("wants", texts["task"])
    return check


def one_number(name: str) -> Callable[[object], bool]:
    """The check of an exercise that asks for one number, which exercises.yaml holds with its mistakes."""

    def grader(answer: object) -> Iterator[dict]:
        yield case(number(answer), TEXTS[name]["truth"], {value: value for value in TEXTS[name]["mistakes"]})

    grader.__name__ = name
    return exercise(grader)


def same(found: object, truth: object, within: float = 0.01) -> bool:
    """Whether an answer is a value: numbers within a share of it, arrays to rounding, everything else exactly."""
    if truth is ANY:
        return True
    if isinstance(truth, tuple):
        return len(found) == len(truth) and all(same(f, t, within) for f, t in zip(found, truth, strict=True))
    if isinstance(truth, np.ndarray):
        return np.shape(found) == truth.shape and bool(np.allclose(found, truth))
    if is_number(found) and is_number(truth):
        return bool(abs(found - truth) <= max(1e-9 if truth == 0 else 1e-9 * abs(truth), within * abs(truth)))
    return bool(np.ndim(found) == np.ndim(truth) and found == truth)


def untouched(answer: object) -> bool:
    """Whether an answer is still a stub: None, `...`, NotImplemented, or a non-empty container that holds one."""
    if isinstance(answer, (Mapping, list, tuple)):
        return any(map(untouched, answer.values() if isinstance(answer, Mapping) else answer))
    return answer is None or answer is ... or answer is NotImplemented


def call(function: Callable, *arguments: object) -> object:
    """What the learner's function returns; an untouched one ends the check as not done yet."""
    if not callable(function):
        raise WrongForm(f"a function is wanted here: yours is {form_of(function)}")
    result = function(*arguments)
    if untouched(result):
        raise NotImplementedError
    return result


def is_number(value: object) -> bool:
    """Whether a value is one number, and no truth value."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def number(answer: object) -> float:
    """The one number of an answer; anything else ends the check with one line."""
    if isinstance(answer, np.ndarray) and answer.ndim == 0:
        answer = answer.item()
    if not is_number(answer):
        raise WrongForm(f"one number is wanted: yours is {form_of(answer)}")
    return answer


def numbers(answer: object, *names: str) -> tuple[float, ...]:
    """The numbers of an answer, one a name, from a tuple, list or array; anything else ends the check with one line."""
    try:
        found = tuple(map(float, answer))
    except (TypeError, ValueError):
        found, yours = (), f"one {type(answer).__name__}"
    else:
        yours = f"{len(found)} numbers"
    if len(found) != len(names):
        raise WrongForm(f"{len(names)} numbers are wanted, ({', '.join(names)}): yours is {yours}")
    return found


def array(answer: object) -> np.ndarray:
    """An answer as an array of floats; anything else ends the check with one line."""
    try:
        return np.asarray(np.asarray(answer), float)
    except (TypeError, ValueError):
        raise WrongForm(f"an array is wanted: yours is {form_of(answer)}") from None


def form_of(answer: object) -> str:
    """What an answer is, in words: `one list of 3`."""
    count = f" of {len(answer)}" if isinstance(answer, (list, tuple, set, dict, np.ndarray)) else ""
    return f"one {type(answer).__name__}{count}"
