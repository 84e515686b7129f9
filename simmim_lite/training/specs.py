"""What a field or an argument may hold is written in its type and checked here: one mechanism, one line. No torch here.

    class Run(Spec):
        steps: Whole = 1000
        betas: tuple[Share, Share] = (0.9, 0.95)
        images: Count | None = None

`Spec` checks the fields of a dataclass, `checked` the arguments of a function, `read` a text of the command line or of
papermill. Values are made plain before a key is made of them: 1e4, numpy.int64(10000) and 10000 are one number.
"""

import ast
import dataclasses
import functools
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np

from ..errors import UserError, unknown
from ..model import sizes

_LARGEST = 2**63  # whole numbers stay below: they seed generators and count bytes
_SHOWN = 60  # characters of a wrong value in its line
_NUMBER = re.compile(
    r"([+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.[0-9]*)?|\.[0-9]+))(?:(e[+-]?[0-9]+)|([kmbt]))?",
    re.IGNORECASE,
)
_POWERS = {"": 0, "k": 3, "m": 6, "b": 9, "t": 12}
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_CALLED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a dictionary",
    list: "a list",
}
_Class = TypeVar("_Class")


class Unfit(ValueError):
    """A value that its type does not take; what is in it is the rule that it breaks, if it breaks one."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; ends as in mathematics: of `[)` the lower end is in it, and the upper is not."""

    low: float
    high: float = math.inf
    ends: str = "[)"
    odd: bool = False
    remedy: str = ""  # what to do in place of a wrong number, where the range does not say it

    def fit(self, value: float) -> float:
        """The value as a key has it; `Unfit`."""
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        if not (above and below) or (self.odd and value % 2 == 0):
            raise Unfit(self)
        return value

    def said(self, what: str) -> str:
        """What it takes, to read; what: of which class, as in `a number`."""
        what = what.replace("a ", "an odd ", 1) if self.odd else what
        text = f"{what} {'from' if self.ends[0] == '[' else 'above'} {self.low:g}"
        if self.high not in (math.inf, _LARGEST):
            joint = {"[]": " to", "[)": " to below", "()": " and below", "(]": ", at most"}[self.ends]
            text += f"{joint} {self.high:g}"
        return text + (f" ({self.remedy})" if self.remedy else "")


@dataclass(frozen=True)
class OneOf:
    """One of some names; `near` gives the one that was meant where spelling does not tell."""

    known: Collection[str] = dataclasses.field(hash=False)
    near: Callable[[str], str | None] | None = None

    def fit(self, value: str) -> str:
        if value not in self.known:
            raise Unfit(self)
        return value

    def said(self, what: str) -> str:
        return f"one of {', '.join(self.known)}"


@dataclass(frozen=True)
class Text:
    """Texts (and paths) that match a pattern, and what they are called. `end` is dropped: one folder has one key."""

    pattern: str
    name: str
    end: str = ""

    def fit(self, value: str | os.PathLike) -> str | os.PathLike:
        if not re.fullmatch(self.pattern, os.fspath(value)):
            raise Unfit(self)
        return value.rstrip(self.end) or value if self.end else value

    def said(self, what: str) -> str:
        return self.name


Whole = Annotated[int, Range(0, _LARGEST)]
Count = Annotated[int, Range(1, _LARGEST)]
Side = Annotated[int, Range(1, 16384, "[]")]  # pixels
Positive = Annotated[float, Range(0, ends="()")]
Share = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 1, "(]")]
Inside = Annotated[float, Range(0, 1, "()")]
LearningRate = Annotated[float, Range(0, 10, "()")]
Model = Annotated[str, OneOf(sizes.SIZES, sizes.nearest)]
Source = Annotated[str, Text(r"\S(.*\S)?", "a source of images, as in scenes or imagefolder:DIR", end="/")]
Checkpoint = Annotated[str, Text(r".+@[0-9a-f]+", "NAME@DIGEST of a checkpoint file")]
Folder = Annotated[str | os.PathLike, Text(r"\S.*", "a folder")]


class Spec:
    """Base of a frozen dataclass that defines a training: fields are checked by their types, and made plain."""

    #: Fields that came later: `to_dict` leaves them out at their defaults, so keys that were there before stay.
    LATER: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, value(field.name, field.type, getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """What the fields say of each other: `UserError` on the first that does not fit, naming value and remedy."""

    def to_dict(self) -> dict:
        """Plain JSON types; a spec among the fields is its own dict."""
        held = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        kept = {n: v for n, (v, default) in held.items() if n not in self.LATER or v != default}
        plain = {n: list(v) if isinstance(v, tuple) else v for n, v in kept.items()}
        return {n: v.to_dict() if isinstance(v, Spec) else v for n, v in plain.items()}

    @classmethod
    def from_dict(cls: type[_Class], given: Mapping[str, object]) -> _Class:
        """The inverse of `to_dict`; a field this version does not know is an error that names it."""
        known = {f.name: f.type for f in dataclasses.fields(cls)}
        for name in given:
            if name not in known:
                raise unknown(f"field of {cls.__name__}", name, known)
        nested = {n: base(known[n]) for n, v in given.items() if isinstance(v, Mapping) and _is_spec(base(known[n]))}
        return cls(**{n: nested[n].from_dict(v) if n in nested else v for n, v in given.items()})


def fields(kind: type, given: Mapping[str, object]) -> dict[str, object]:
    """Some fields of a spec before there is one, checked as it will check them; other names pass."""
    hints = {f.name: f.type for f in dataclasses.fields(kind)}
    return {name: value(name, hints[name], v) if name in hints else v for name, v in given.items()}


def checked(function: Callable) -> Callable:
    """A function whose arguments are checked, and made plain, by their types; types without a rule let all pass."""
    signature = inspect.signature(function)
    hints = {name: p.annotation for name, p in signature.parameters.items() if has_rule(p.annotation)}

    @functools.wraps(function)
    def call(*args: object, **options: object) -> object:
        bound = signature.bind(*args, **options)
        for name in hints.keys() & bound.arguments.keys():
            bound.arguments[name] = value(name, hints[name], bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return call


def value(name: str, hint: object, given: object) -> object:
    """What was given for a field or an argument of this type, made plain; `UserError`, one line, if it does not fit."""
    try:
        return _fit(hint, given)
    except Unfit as error:
        raise _refusal(name, hint, given, *error.args) from None


def read(name: str, hint: object, text: str) -> object:
    """A text, as the command line and papermill have it, as a value of this type; else as `value`.

    Numbers are read as people write them (`number`), a list with its brackets or without them, None as `none`.
    """
    try:
        return _fit(hint, _read(hint, text))
    except Unfit as error:
        raise _refusal(name, hint, text, *error.args) from None


def number(text: str, kind: type = float) -> int | float:
    """A number as people write it: 64, 1_000, 1,000, 1e4, 200k, 2M, .5. ValueError for any other text.

    kind int: a whole number; 1.000, which is a thousand to some and one to others, is none.
    """
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        raise ValueError(text)
    digits, exponent, power = (part or "" for part in found.groups())
    try:
        exact = Decimal(re.sub("[,_]", "", digits) + exponent).scaleb(_POWERS[power.lower()])
    except ArithmeticError:  # 1e999999999
        raise ValueError(text) from None
    ambiguous = "." in digits and not exponent and not power
    if math.isinf(exact) or math.isinf(float(exact)) or (kind is int and (ambiguous or exact % 1)):
        raise ValueError(text)
    return kind(exact)


def said(hint: object) -> str:
    """What a type takes, to read: `a whole number from 1, or None`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return functools.reduce(lambda text, rule: rule.said(text), parts[1:], said(parts[0]))
    if _is_union(origin):
        return ", or ".join(dict.fromkeys(map(said, parts)))
    if origin is tuple:
        return f"{'a list' if parts[-1] is Ellipsis else f'{len(parts)} numbers'}, each {said(parts[0])}"
    return _CALLED.get(hint, "None" if hint is types.NoneType else f"a {getattr(hint, '__name__', hint)}")


def base(hint: object) -> object:
    """A type without its rules and without None: what a command line option of it is."""
    first = typing.get_args(hint)[:1]
    inner = typing.get_origin(hint) is Annotated or _is_union(typing.get_origin(hint))
    return base(first[0]) if inner else hint


def has_rule(hint: object) -> bool:
    """Whether a type says what it takes: a rule, true or false, or a class of ours."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple or _is_union(origin):
        return all(has_rule(part) for part in parts if part not in (types.NoneType, Ellipsis))
    return origin is Annotated or hint in (bool, dict) or _is_spec(hint)


def _fit(hint: object, given: object) -> object:
    """A value as its type has it; `Unfit`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return functools.reduce(lambda fitted, rule: rule.fit(fitted), parts[1:], _fit(parts[0], given))
    if _is_union(origin):
        return _first(parts, lambda part: _fit(part, given))
    if origin is tuple or hint in (tuple, list):
        return _several(hint, parts or (Any, ...), given)
    if hint in (int, float):
        return _number(hint, given)
    given = bool(given) if isinstance(given, np.bool_) else str(given) if isinstance(given, np.str_) else given
    if hint is Any or (isinstance(hint, type) and isinstance(given, hint)):
        return given
    raise Unfit


def _several(hint: object, parts: tuple, given: object) -> tuple | list:
    if isinstance(given, str) and re.fullmatch(r"\s*[\[(].*[\])]\s*", given):  # as papermill's -p leaves a list
        given = _read(hint, given)
    if not (isinstance(given, (tuple, list)) or getattr(given, "ndim", 0) == 1):
        raise Unfit
    wanted = parts[:1] * len(given) if parts[-1] is Ellipsis else parts
    if len(given) != len(wanted):
        raise Unfit
    return (list if hint is list else tuple)(_fit(part, one) for part, one in zip(wanted, given, strict=True))


def _number(kind: type, given: object) -> int | float:
    if isinstance(given, np.floating):
        given = float(str(given))  # the shortest decimal: 0.1 in single precision is 0.1, and has its key
    elif getattr(given, "shape", None) == ():  # a scalar of numpy or torch
        given = given.item()
    if isinstance(given, bool) or not isinstance(given, Real):
        raise Unfit
    try:
        fitted = kind(given)
    except (ValueError, OverflowError):  # not finite, or too large
        raise Unfit from None
    if fitted != given and kind is int or kind is float and not math.isfinite(fitted):
        raise Unfit
    return fitted + 0  # -0.0 is 0.0


def _read(hint: object, text: str) -> object:
    """A text as a value of a type, its rules not yet asked; `Unfit`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _read(parts[0], text)
    if _is_union(origin):
        return _first(parts, lambda part: _read(part, text))
    if origin is tuple:
        found = re.fullmatch(r"\s*(?:\[(.*)\]|\((.*)\)|([^\[\]()]+))\s*", text)
        if not found:
            raise Unfit
        inner = next(part for part in found.groups() if part is not None).strip().removesuffix(",")
        return tuple(_read(parts[0], part.strip()) for part in inner.split(",")) if inner else ()
    try:
        if hint in (int, float):
            return number(text, hint)
        if hint is bool:
            return _TRUTH[text.strip().lower()]
        if hint is types.NoneType:
            return {"none": None}[text.strip().lower()]
        return text if hint is str else ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError, MemoryError, RecursionError):
        if hint is Any:
            return text
        raise Unfit from None


def _first(parts: Iterable[object], attempt: Callable[[object], object]) -> object:
    """What the first part of a union makes that takes a value; texts, which take every text, come last."""
    broken = Unfit()
    for part in sorted(parts, key=lambda part: (part is not types.NoneType, base(part) is str)):
        try:
            return attempt(part)
        except Unfit as error:
            broken = error
    raise broken


def _refusal(name: str, hint: object, given: object, rule: object = None) -> UserError:
    if isinstance(rule, OneOf) and isinstance(given, str):
        return unknown(name, given, rule.known, rule.near)
    given = given.item() if getattr(given, "shape", None) == () else given
    shown = " ".join(repr(given).split())
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
    more = ", below 2**63" if isinstance(given, Real) and given >= _LARGEST else ""
    return UserError(f"{name} is {shown}: give {said(hint)}{more}")


def _is_union(origin: object) -> bool:
    return origin in (typing.Union, types.UnionType)


def _is_spec(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Spec)
