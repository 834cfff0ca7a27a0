"""Arithmetic of launch grids as text: whole numbers, names, + - * // and cdiv, min, max; nothing else is evaluated."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping

_MAX_CHARACTERS = 200  # of one expression; also bounds how deep it can nest
_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"cdiv": lambda total, part: -(-total // part), "min": min, "max": max}


class BadExpression(ValueError):
    """The text is no such arithmetic, names something unknown, or divides by zero."""


def evaluate(expression: str, values: Mapping[str, int]) -> int:
    """The expression's value, as ``cdiv(rows, BLOCK)`` with ``{"rows": 5, "BLOCK": 4}`` gives 2.

    Raises:
        BadExpression: with the expression and the cause.
    """
    try:
        return _value(_parse(expression), values)
    except BadExpression as error:
        raise BadExpression(f"{expression!r}: {error}") from None
    except ZeroDivisionError:
        raise BadExpression(f"{expression!r}: division by zero") from None


def names(expression: str) -> frozenset[str]:
    """The variables that the expression needs.

    Raises:
        BadExpression: the text does not parse.
    """
    found = {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)}
    return frozenset(found - set(_FUNCTIONS))


@functools.lru_cache(maxsize=1024)
def _parse(expression: str) -> ast.expr:
    if len(expression) > _MAX_CHARACTERS:
        raise BadExpression(f"longer than {_MAX_CHARACTERS} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise BadExpression(f"{expression!r} is no expression: {error}") from None


def _value(node: ast.expr, values: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return _variable(node.id, values)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node.func.id, [_value(argument, values) for argument in node.args])
    raise BadExpression(f"{ast.unparse(node)} is not whole-number arithmetic")


def _variable(name: str, values: Mapping[str, int]) -> int:
    try:
        return operator.index(values[name])
    except KeyError:
        raise BadExpression(f"unknown name {name}; known are {', '.join(sorted(values)) or 'none'}") from None
    except TypeError:
        raise BadExpression(f"{name} is not a whole number") from None


def _call(name: str, arguments: list[int]) -> int:
    if name not in _FUNCTIONS or len(arguments) != 2:
        raise BadExpression(f"{name} with {len(arguments)} arguments; known are {', '.join(_FUNCTIONS)}, of two")
    return _FUNCTIONS[name](*arguments)
