"""How an exercise is graded: compare the answer with the truth, and name the cause of a known mistake.

All texts are in exercises.yaml, under the exercise's name; where they hold its truth too, nothing else is needed. The
others are graders, which compare the answer, or what the learner's function returns, with their truth:

    @exercise
    def hidden_cells(answer):
        yield case(number(answer), 22, {"down": 21})  # 21 gets the text of the mistake "down"

and used, as the last line of an exercise's cell: `checks.hidden_cells(answer)`. The first case that is wrong counts. An
untouched stub (`None`, `...`, `NotImplemented`, a function that returns one of them or raises `NotImplementedError`, a
list with a gap) prints `not done yet: count the hidden cells`; an answer of another form than is asked for, or one that
raises an error, prints what is wanted, in one line.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.resources import files

import numpy as np
import yaml

TEXTS = yaml.safe_load(files(__package__).joinpath("exercises.yaml").read_text("utf-8"))
PLACES = {name: f"{k // 3:02d}.{k % 3 + 1}" for k, name in enumerate(TEXTS)}  # three a notebook, in their order
RIGHT: dict[str, bool] = {}  # what each check said last in this process
ANY = object()  # in a mistake of several numbers: whatever this one is


class WrongForm(Exception):
    """The answer is not of the form that was asked for: what is wanted, in words, and what it is."""

    def __init__(self, wanted: str, answer: object) -> None:
        super().__init__(f"{wanted}: yours is {form_of(answer)}")


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
                    another = not known and in_another_form(facts["found"], facts["truth"], within, answer)
                    text = texts["mistakes"][known[0]] if known else another or texts[facts["otherwise"]]
                    break
            line = f"{'right' if passed else 'not right yet'}: {text.format(**facts)}"
        except NotImplementedError:
            passed, line = False, f"not done yet: {texts['task']}"
        except WrongForm as error:
            passed, line = False, f"not right yet: {error}"
        except Exception as error:  # the answer's own: whatever a learner's function raises
            what = (str(error).strip().splitlines() or [""])[0]
            wanted = check.__doc__[0].lower() + check.__doc__[1:]
            passed, line = False, f"not right yet: your answer raised {type(error).__name__}: {what}; wanted: {wanted}"
        print(" ".join(line.split()))
        RIGHT[grader.__name__] = passed
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


def in_another_form(found: object, truth: object, within: float, answer: object) -> str | None:
    """What to say of a right number in per cent where a share is wanted, or rounded where it is the answer itself."""
    if isinstance(truth, tuple):
        said = (in_another_form(f, t, within, answer) for f, t in zip(found, truth, strict=True))
        return next(filter(None, said), None)
    if not (is_number(found) and is_number(truth)) or same(found, truth, within):
        return None
    if 0.01 < truth <= 1 and same(found, 100 * truth):
        return "a share is wanted, from 0 to 1, not a percentage"
    digits = range(3 if truth == int(truth) else 1, 9)  # a count that is a few off was not rounded
    near = {int(truth), *(float(f"{truth:.{n}g}") for n in digits)} - {0}
    return "do not round: write the whole calculation" if found in near and not callable(answer) else None


def call(function: Callable, *arguments: object) -> object:
    """What the learner's function returns; an untouched one ends the check as not done yet."""
    if not callable(function):
        raise WrongForm("a function is wanted here", function)
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
        raise WrongForm("a number is wanted", answer)
    return answer


def numbers(answer: object, *names: str) -> tuple[float, ...]:
    """The numbers of an answer, one a name, from a tuple, list or array; anything else ends the check with one line."""
    several = isinstance(answer, (tuple, list)) or (isinstance(answer, np.ndarray) and answer.ndim)
    found = tuple(answer) if several else ()
    if len(found) != len(names) or not all(map(is_number, found)):
        raise WrongForm(f"{('two', 'three', 'four')[len(names) - 2]} numbers are wanted, ({', '.join(names)})", answer)
    return found


def array(answer: object) -> np.ndarray:
    """An answer as an array of floats; anything else ends the check with one line."""
    try:
        return np.asarray(np.asarray(answer), float)
    except (TypeError, ValueError):
        raise WrongForm("an array is wanted", answer) from None


def of_type(answer: object, kinds: type | tuple[type, ...], wanted: str) -> object:
    """An answer of one of these types; anything else ends the check with one line."""
    if not isinstance(answer, kinds):
        raise WrongForm(wanted, answer)
    return answer


def form_of(answer: object) -> str:
    """What an answer is, in words: `a function`, `the text 'abc'`, `a list of 30`."""
    if callable(answer):
        return "a function"
    if isinstance(answer, np.ndarray):
        return f"an array of shape {answer.shape}"
    text = "the text " if isinstance(answer, str) else ""
    if len(repr(answer)) <= 40:
        return f"{text}{answer!r}"
    return f"a {type(answer).__name__}" + (f" of {len(answer)}" if isinstance(answer, Collection) else "")
