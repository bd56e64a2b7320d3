"""Helper functions of an emitted module: what scalar operations mean where Python's operators do not say
it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusile.backends.numba import scalars
from fusile.backends.numba.expressions import Context, Lines, Names, Printer
from fusile.capabilities import Capabilities
from fusile.ir.expr import Expr, cast, load
from fusile.ir.loops import Buffer
from fusile.ir.types import BY_NAME, F32, F64, I64, DType
from fusile.passes import functions
from fusile.passes.legalise import Legaliser

MINIMUM = """
@helper
def minimum(a, b):
    return b if b < a else a
"""
MAXIMUM = """
@helper
def maximum(a, b):
    return b if a < b else a
"""
CHECKED = '''
@helper
def checked(index, extent, site, error):
    """index where 0 <= index < extent; else 0, and the first such place is noted in `error`."""
    if 0 <= index < extent:
        return index
    if error[0] == 0:
        error[0] = 2
        error[1] = site
        error[2] = index
        error[3] = extent
    return 0
'''
FLOAT_MOD = """
@helper
def float_mod(a, b):
    r = fmod{suffix}(a, b)
    return r + b if r != 0 and (r < 0) != (b < 0) else r
"""
INTEGER: Mapping[str, str] = {
    "div": """
@helper
def div_{t}(a, b):
    if b == 0:
        return {t}(0)
    if b == -1:
        return {t}(-a)
    q = a // b
    return {t}(q + 1 if q < 0 and q * b != a else q)
""",
    "rem": """
@helper
def rem_{t}(a, b):
    if b == 0 or b == -1:
        return {t}(0)
    r = a % b
    return {t}(r - b if r != 0 and (r < 0) != (a < 0) else r)
""",
    "floordiv": """
@helper
def floordiv_{t}(a, b):
    if b == 0:
        return {t}(0)
    return {t}(-a if b == -1 else a // b)
""",
    "mod": """
@helper
def mod_{t}(a, b):
    return {t}(0) if b == 0 or b == -1 else {t}(a % b)
""",
    "shl": """
@helper
def shl_{t}(a, b):
    return {t}(a << b) if 0 <= b < {bits} else {t}(0)
""",
    "shr": """
@helper
def shr_{t}(a, b):
    if 0 <= b < {bits}:
        return {t}(a >> b)
    return {t}(-1) if a < 0 else {t}(0)
""",
    "pow": """
@helper
def pow_{t}(a, b):
    if b < 0:
        return {t}(1) if a == 1 else {t}(1 - 2 * (b & 1)) if a == -1 else {t}(0)
    out = {t}(1)
    while b > 0:
        if b & 1:
            out = {t}(out * a)
        a = {t}(a * a)
        b >>= 1
    return out
""",
}
UNSIGNED: Mapping[str, str] = {
    "div": """
@helper
def div_{t}(a, b):
    return {t}(0) if b == 0 else {t}(a // b)
""",
    "rem": """
@helper
def rem_{t}(a, b):
    return {t}(0) if b == 0 else {t}(a % b)
""",
    "shl": """
@helper
def shl_{t}(a, b):
    return {t}(a << b) if b < {t}({bits}) else {t}(0)
""",
    "shr": """
@helper
def shr_{t}(a, b):
    return {t}(a >> b) if b < {t}({bits}) else {t}(0)
""",
    "pow": """
@helper
def pow_{t}(a, b):
    out = {t}(1)
    while b > {t}(0):
        if b & {t}(1):
            out = {t}(out * a)
        a = {t}(a * a)
        b = {t}(b >> {t}(1))
    return out
""",
}
SATURATING = '''
@helper
def to_{t}(x):
    """A float as {t}: cut off, saturated, NaN is 0."""
    if x != x:
        return {t}(0)
    if x <= {low}:
        return {t}({lowest})
    if x >= {high}:
        return {t}({highest})
    return {t}(x)
'''
BITS = """
@helper
def bits_{t}(x):
    return np.{name}(x).view({numpy})
"""
OF_BITS = """
@helper
def {t}_of_bits(x):
    return np.{name}(x).view({numpy})
"""


@dataclass(slots=True)
class Helpers:
    """The helpers that a module uses, in an order in which each comes after those that it calls.

    `printed`: functions that are printed as expressions of ours; the others are imported.
    `of_bits`: whether views of bits are helpers.
    """

    printed: frozenset[str]
    of_bits: bool = True
    suffix: str = ""
    """Behind the names of helpers that plain Python runs."""
    texts: dict[str, str] = field(default_factory=dict)
    imports: dict[str, None] = field(default_factory=dict)

    def use(self, op: str, t: DType) -> str:
        """The name of a helper or function for values of type `t`."""
        if op == "checked":
            return self._add("checked", CHECKED)
        if op in ("min", "max"):
            return self._add("minimum", MINIMUM) if op == "min" else self._add("maximum", MAXIMUM)
        if t.is_int and op in INTEGER:
            return self._integer(op, t)
        if t.is_float and op == "mod":
            self._import("fmod", t)
            return self._add("float_mod", FLOAT_MOD.format(suffix=self.suffix))
        if t.is_float and op == "rem":
            return self._import("fmod", t)
        if "_to_" in op:
            return self._conversion(op)
        if op.startswith("to_"):
            return self._saturating(op.removeprefix("to_"))
        if op.startswith("bits_") or op.endswith("_of_bits"):
            return self._view(op, t)
        if t is F32 and op in self.printed:
            return self._function(op)
        return self._import(op, t)

    def _import(self, name: str, t: DType) -> str:
        own = f"{name}_f64" if t is F64 and (name in self.printed or name == "rint") else name
        self.imports[own] = None
        return own + self.suffix

    def _add(self, name: str, text: str) -> str:
        text = text.strip("\n")
        if self.suffix:
            text = re.sub(rf"\bdef {name}\(", f"def {name}{self.suffix}(", text.removeprefix("@helper\n"))
        self.texts.setdefault(name, text)
        return name + self.suffix

    def _integer(self, op: str, t: DType) -> str:
        table = UNSIGNED if t.kind == "u" else INTEGER
        source = {"floordiv": "div", "mod": "rem"}.get(op, op) if t.kind == "u" else op
        return self._add(f"{source}_{t.name}", table[source].format(t=t.name, bits=t.bits))

    def _saturating(self, name: str) -> str:
        t = BY_NAME[name]
        low, high = (
            (-(1 << (t.bits - 1)), (1 << (t.bits - 1)) - 1) if t.kind == "i" else (0, (1 << t.bits) - 1)
        )
        text = SATURATING.format(
            t=name, low=repr(float(low)), high=repr(float(high)), lowest=low, highest=high
        )
        return self._add(f"to_{name}", text)

    def _view(self, op: str, t: DType) -> str:
        if not self.of_bits:
            self.imports[op] = None
            return op + self.suffix
        if op.startswith("bits_"):
            to = BY_NAME[op.removeprefix("bits_")]
            source = {32: "float32", 64: "float64"}[to.bits]
            return self._add(op, BITS.format(t=to.name, name=source, numpy=scalars.numpy_name(to)))
        to = BY_NAME[op.removesuffix("_of_bits")]
        source = {32: "int32", 64: "int64"}[to.bits]
        return self._add(op, OF_BITS.format(t=to.name, name=source, numpy=scalars.numpy_name(to)))

    def _conversion(self, op: str) -> str:
        """f16_to_f32 and the like, on words."""
        source, to = (BY_NAME[x] for x in op.split("_to_"))
        x = Buffer("x", source, (), "local")
        bare = Legaliser(Capabilities(operations=scalars.CAPABILITIES.operations, saturating_casts=True))
        return self._expression(
            op,
            [x],
            bare(cast(load(x, ()), to)),
            f"{to} out of {source}." if to is F32 else f"The word of {to}.",
        )

    def _function(self, op: str) -> str:
        x = Buffer("x", F32, (), "local")
        if op == "pow":
            y = Buffer("y", F32, (), "local")
            return self._expression(
                "power",
                [x, y],
                functions.power(load(x, ()), load(y, ()), False),
                "x to the power of y, in f32.",
            )
        return self._expression(op, [x], functions.UNARY[op](load(x, ()), False), f"{op} x in f32.")

    def _expression(self, name: str, params: list[Buffer], body: Expr, doc: str) -> str:
        if name in self.texts:
            return name + self.suffix
        lines = Lines(1)
        names = Names((*scalars.NUMPY_NAMES, "np", "math", name))
        heads = [names.name(p, p.name) for p in params]
        printer = Printer(Context(lines, names, self.use), [body])
        lines.add(f"return {printer.text(body).text}")
        text = "\n".join(["@helper", f"def {name}({', '.join(heads)}):", f'    """{doc}"""', *lines.lines])
        return self._add(name, text)


__all__ = ["I64", "Helpers"]
