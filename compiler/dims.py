"""Dimensions that are arithmetic over others, such as `past + 1`: how exporters name what they worked out."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

NAMELESS = frozenset({"", "?", "-1", "None"})
"""What exporters write where a dimension has no name: two of them need not be of one size."""
MOST_CHARACTERS = 200
"""Longer names are names, whatever is in them: what is parsed here comes from models."""
OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}
"""The arithmetic that is understood. Sizes are whole numbers, so both divisions round down."""


def parse(text: str) -> ast.expr | None:
    """The expression that a dimension's name is, of names, numbers and OPERATORS alone; else None."""
    if len(text) > MOST_CHARACTERS or not re.fullmatch(r"[\w\s+\-*/()]+", text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if _understood(tree) else None


def fix(text: str, sizes: Mapping[str, int]) -> int | str:
    """A dimension with the sizes put in: a number where all of it is known."""
    if text in sizes:
        return sizes[text]
    tree = parse(text)
    if tree is None or not any(isinstance(node, ast.Name) and node.id in sizes for node in ast.walk(tree)):
        return text
    known = evaluate(text, sizes)
    return known if known is not None else ast.unparse(_Placed(sizes).visit(tree))


def evaluate(text: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a dimension, or None where it is no arithmetic over known sizes."""
    tree = parse(text)
    try:
        return None if tree is None else _number(tree, sizes)
    except (KeyError, ZeroDivisionError):
        return None


class _Placed(ast.NodeTransformer):
    """Numbers in the place of names."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.sizes[node.id]) if node.id in self.sizes else node


def _understood(tree: ast.expr) -> bool:
    match tree:
        case ast.Name():
            return True
        case ast.Constant(value=int()):
            return True
        case ast.BinOp(left=left, op=op, right=right):
            return type(op) in OPERATORS and _understood(left) and _understood(right)
    return False


def _number(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    match tree:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_number(left, sizes), _number(right, sizes))
    raise TypeError(f"{type(tree).__name__} is no arithmetic")
