"""What a field or an argument may hold is written in its type, and checked in one line. No torch here.

`Spec` checks the fields of a dataclass, `checked` the arguments of a function, `read` a text of the command line.
Values are made plain before a key is made of them: 1e4, numpy.int64(10000) and 10000 are one number.
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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, Self

import numpy as np

from ..errors import UserError, unknown

_LARGEST = 2**63  # whole numbers stay below: they seed generators and count bytes
_NUMBER = re.compile(
    r"([+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.[0-9]*)?|\.[0-9]+))(?:(e[+-]?[0-9]+)|([kmbt]))?",
    re.IGNORECASE,
)
_POWERS = {"k": "e3", "m": "e6", "b": "e9", "t": "e12"}
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False, "none": None}
_CALLED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a dictionary"}
_CALLED |= {list: "a list", types.NoneType: "None"}
_UNIONS = (typing.Union, types.UnionType)


class Unfit(ValueError):
    """A value that its type does not take; its argument is the rule that is broken, if it is one."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; ends as in mathematics: of `[)` the lower end is in it, and the upper is not. As of
    every rule, `fit` is the value as a key has it (or `Unfit`), and `said` what it takes, to read."""

    low: float
    high: float = math.inf
    ends: str = "[)"
    odd: bool = False

    def fit(self, value: float) -> float:
        inside = self.low < value < self.high or value == {"[": self.low}.get(self.ends[0])
        if not (inside or value == {"]": self.high}.get(self.ends[1])) or (self.odd and value % 2 == 0):
            raise Unfit(self)
        return value

    def said(self, what: str) -> str:
        what = what.replace("a ", "an odd ", 1) if self.odd else what
        joint = {"[]": " to", "[)": " to below", "()": " and below", "(]": ", at most"}[self.ends]
        end = f"{joint} {self.high:g}" if self.high not in (math.inf, _LARGEST) else ""
        return f"{what} {'from' if self.ends[0] == '[' else 'above'} {self.low:g}{end}"


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
Source = Annotated[str, Text(r"\S(.*\S)?", "a source of images, as in scenes or imagefolder:DIR", end="/")]
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
        plain = {}
        for field in dataclasses.fields(self):
            held = getattr(self, field.name)
            if field.name not in self.LATER or held != field.default:
                held = list(held) if isinstance(held, tuple) else held
                plain[field.name] = held.to_dict() if isinstance(held, Spec) else held
        return plain

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> Self:
        """The inverse of `to_dict`; a field this version does not know is an error that names it."""
        hints, made = {f.name: f.type for f in dataclasses.fields(cls)}, {}
        for name, held in given.items():
            if name not in hints:
                raise unknown(f"field of {cls.__name__}", name, hints)
            kind = base(hints[name])
            made[name] = kind.from_dict(held) if isinstance(held, Mapping) and hasattr(kind, "from_dict") else held
        return cls(**made)


def checked(function: Callable) -> Callable:
    """A function whose arguments are checked, and made plain, by their types."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: object, **options: object) -> object:
        bound = signature.bind(*args, **options)
        for name, given in bound.arguments.items():
            hint = signature.parameters[name].annotation
            bound.arguments[name] = given if hint is inspect.Parameter.empty else value(name, hint, given)
        return function(*bound.args, **bound.kwargs)

    return call


def value(name: str, hint: object, given: object, text: bool = False) -> object:
    """What was given for a field or an argument of this type, made plain; `UserError`, one line, if it does not fit.
    text: it is read as the command line and papermill have it: numbers as by `number`, lists without brackets too."""
    try:
        return _fit(hint, given, text)
    except Unfit as error:
        raise _refusal(name, hint, given, *error.args) from None


read = functools.partial(value, text=True)


def number(text: str, kind: type = float) -> int | float:
    """A number as people write it: 64, 1_000, 1,000, 1e4, 200k, 2M, .5. ValueError for any other text; 1.000, which is
    a thousand to some and one to others, is no whole number."""
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        raise ValueError(text)
    digits, exponent, power = (part or "" for part in found.groups())
    ambiguous = "." in digits and not exponent and not power
    exact = Decimal(re.sub("[,_]", "", digits) + exponent + _POWERS.get(power.lower(), ""))
    if math.isinf(float(exact)) or (kind is int and (ambiguous or exact % 1)):
        raise ValueError(text)
    return kind(exact)


_READ = {int: functools.partial(number, kind=int), float: number, str: str}
_READ |= dict.fromkeys((bool, types.NoneType), lambda text: _TRUTH[text.strip().lower()])


def said(hint: object) -> str:
    """What a type takes, to read: `a whole number from 1, or None`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return functools.reduce(lambda text, rule: rule.said(text), parts[1:], said(parts[0]))
    if origin in _UNIONS:
        return ", or ".join(dict.fromkeys(map(said, parts)))
    if origin is tuple:
        return f"{'a list' if parts[-1] is Ellipsis else f'{len(parts)} numbers'}, each {said(parts[0])}"
    return _CALLED.get(hint, f"a {getattr(hint, '__name__', hint)}")


def base(hint: object) -> object:
    """A type without its rules and without None: what a command line option of it is."""
    inner = typing.get_origin(hint) is Annotated or typing.get_origin(hint) in _UNIONS
    return base(typing.get_args(hint)[0]) if inner else hint


def _fit(hint: object, given: object, text: bool) -> object:
    """A value, or a text that is read, as its type has it; `Unfit`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return functools.reduce(lambda fitted, rule: rule.fit(fitted), parts[1:], _fit(parts[0], given, text))
    if origin in _UNIONS:
        broken = Unfit()
        # texts, which take every text, come last
        for part in sorted(parts, key=lambda part: (part is not types.NoneType, base(part) is str)):
            try:
                return _fit(part, given, text)
            except Unfit as error:
                broken = error
        raise broken
    if origin is tuple or hint in (tuple, list):
        return _several(hint, parts or (Any, ...), given, text)
    if text:
        try:
            given = _READ.get(hint, ast.literal_eval)(given)
        except (ValueError, KeyError, SyntaxError, MemoryError, RecursionError):
            if hint is not Any:
                raise Unfit from None
    if hint in (int, float):
        return _number(hint, given)
    given = given.item() if isinstance(given, (np.bool_, np.str_)) else given
    if hint is Any or not isinstance(hint, type) or isinstance(given, hint):
        return given
    raise Unfit


def _several(hint: object, parts: tuple, given: object, text: bool) -> tuple | list:
    if isinstance(given, str):
        bare = given.strip()
        if bare[:1] + bare[-1:] in ("[]", "()"):  # papermill's -p leaves a list so
            bare = bare[1:-1].strip().removesuffix(",")
        elif not text or not bare or set(bare) & set("[]()"):
            raise Unfit
        given, text = [one.strip(" \t\n'\"") for one in bare.split(",")] if bare else [], True
    if parts[-1] is Ellipsis and isinstance(given, Integral):  # papermill's -p makes a number of a list of one
        given = [given]
    if not (isinstance(given, (tuple, list)) or getattr(given, "ndim", 0) == 1):
        raise Unfit
    wanted = parts[:1] * len(given) if parts[-1] is Ellipsis else parts
    if len(given) != len(wanted):
        raise Unfit
    return (list if hint is list else tuple)(_fit(part, one, text) for part, one in zip(wanted, given, strict=True))


def _number(kind: type, given: object) -> int | float:
    if isinstance(given, np.floating):
        given = float(str(given))  # the shortest decimal: 0.1 in single precision is 0.1, and has its key
    given = given.item() if getattr(given, "shape", None) == () else given  # a scalar of numpy or torch
    if isinstance(given, bool) or not isinstance(given, Real):
        raise Unfit
    try:
        fitted = kind(given)
    except (ValueError, OverflowError):  # not finite, or too large
        raise Unfit from None
    if fitted != given and kind is int or kind is float and not math.isfinite(fitted):
        raise Unfit
    return fitted + 0  # -0.0 is 0.0


def _refusal(name: str, hint: object, given: object, rule: object = None) -> UserError:
    if isinstance(rule, OneOf) and isinstance(given, str):
        return unknown(name, given, rule.known, rule.near)
    shown = " ".join(repr(given.item() if getattr(given, "shape", None) == () else given).split())
    shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
    more = ", below 2**63" if isinstance(given, Real) and given >= _LARGEST else ""
    return UserError(f"{name} is {shown}: give {said(hint)}{more}")
