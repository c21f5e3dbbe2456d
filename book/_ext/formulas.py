"""What `claims.yaml` and `results.yaml` say over a run's metrics: expressions, and sentences with numbers in them."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from string import Formatter
from typing import Any

from editlib.text import metric, percent

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.Not: operator.not_, ast.And: operator.and_, ast.Or: operator.or_,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


class FormulaError(ValueError):
    """An expression or a sentence that cannot be read, or not be filled; one line."""


class MissingError(FormulaError):
    """A metric that is not there."""


def evaluate(expression: str, metrics: Mapping[str, Any]) -> Any:
    """The value of an expression of numbers, names of metrics, arithmetic, comparisons, and, or, not.

    Nothing else is understood, so no text can run code. Raises `FormulaError` for anything else, and for a metric that
    is not there.
    """
    try:
        return value_of(ast.parse(expression.strip(), mode="eval").body, metrics)
    except SyntaxError as error:
        raise FormulaError(f"{expression!r} is no expression") from error
    except ZeroDivisionError as error:
        raise FormulaError(f"{expression!r} divides by zero") from error


def value_of(node: ast.AST, metrics: Mapping[str, Any]) -> Any:
    """The value of one part of an expression."""

    def value(part: ast.AST) -> Any:
        return value_of(part, metrics)

    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return number_of(name, metrics)
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](value(left), value(right))
        case ast.UnaryOp(sign, operand) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](value(operand))
        case ast.BoolOp(sign, parts):
            return reduce(OPERATORS[type(sign)], (bool(value(part)) for part in parts))
        case ast.Compare(left, signs, others) if all(type(sign) in OPERATORS for sign in signs):
            pairs = pairwise(map(value, (left, *others)))
            return all(OPERATORS[type(sign)](*pair) for sign, pair in zip(signs, pairs, strict=True))
    raise FormulaError(f"{ast.unparse(node)!r} is neither a number, a metric, arithmetic nor a comparison")


def number_of(name: str, metrics: Mapping[str, Any]) -> float:
    """A metric as a number; manifests write those that are not finite as text, and a count that never ends as never."""
    try:
        return float("inf" if metrics[name] == "never" else metrics[name])
    except KeyError as error:
        raise MissingError(f"no metric {name!r}") from error
    except ValueError as error:
        raise FormulaError(f"metric {name!r} is no number but {metrics[name]!r}") from error


class Sentence(Formatter):
    """Fills `{metric}`, as pages write it, and `{metric:%}`, in per cent; looks no further into what it is given."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        if field_name not in kwargs:
            raise MissingError(f"no metric {field_name!r}")
        return (field_name, kwargs[field_name]), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        name, measured = value
        if format_spec not in ("", "%"):
            raise FormulaError(f"metric {name!r} can be shown as it is or in per cent (:%), not as {format_spec!r}")
        return percent(number_of(name, {name: measured})) if format_spec else metric(name, measured)


def fill(sentence: str, metrics: Mapping[str, Any]) -> str:
    """A sentence with its metrics; raises `FormulaError` for one that is not there."""
    return Sentence().vformat(sentence, (), metrics)


def named(metrics: Mapping[str, Any], *formulas: str) -> set[str]:
    """The metrics that expressions or sentences speak of."""
    return {word for formula in formulas for word in re.findall(r"\w+", formula)} & metrics.keys()
