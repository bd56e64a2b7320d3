"""The transcendental functions in f32, as expressions of ours that every kernel backend shares.

Each is within 2 ulp of the true value (3 ulp on targets without fma), straight-line, without tables, and made
for vector loops. NaN, infinities and signed zeros come out as C's; results below the smallest normal number
may be 0.

The method is the same everywhere: reduce the argument exactly, evaluate a polynomial, put the result
together. Each coefficient table belongs to the function named in its comment and minimises the largest
relative error of the result over the interval given there; tests/tools/fit_functions.py computes them anew
(weighted least squares, reweighted towards the minimax solution, coefficients rounded to f32 one after
another with the rest fitted again) and prints them in this form.

`has_fma` tells a function that `fma` rounds once. Without it the constants of an argument reduction are cut
into shorter pieces.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from fusile.ir.expr import Expr, apply, cast, const, eq, maximum, minimum, ne, select
from fusile.ir.types import F32, F64, I32, I64, DType

INF, NAN = math.inf, math.nan

# (e^r - 1 - r) / r^2 over r in [0, ln 2]
EXP = (0.50000226, 0.1666321, 0.041854367, 0.007869288, 0.0019120505)
# (e^r - 1 - r) / r^2 over |r| <= ln 2 / 2
EXPM1 = (0.49999994, 0.16666521, 0.041668262, 0.008368672, 0.0013820999)
# (2^r - 1) / r over |r| <= 1/2
EXP2 = (0.6931472, 0.24022648, 0.055503596, 0.009618499, 0.0013390976, 0.00015329337)
# (log(1 + f) - f) / f^2 over sqrt(1/2) <= 1 + f <= sqrt 2
LOG = (-0.5, 0.3333391, -0.25001335, 0.199631, -0.16577654, 0.14914511, -0.14266914, 0.087003596)
# log2(1 + f) / f over the same, in f64
LOG2 = (
    1.44269504093935,
    -0.7213475252131633,
    0.4808983207271669,
    -0.3606728005535932,
    0.2885406437405133,
    -0.2405041739328262,
    0.2060962510103958,
    -0.179046951731625,
    0.1590015615763598,
    -0.1569823208149012,
    0.1548572460544153,
    -0.0863455695839624,
)
# (sin r / r - 1) / r^2 in r^2, over |r| <= pi / 2
SIN = (-0.1666666, 0.008333069, -0.00019809778, 2.6061034e-06)
# (tan r / r - 1) / r^2 in r^2, over |r| <= pi / 4
TAN = (0.33333156, 0.13338827, 0.053409554, 0.024434967, 0.0031136936, 0.00938843)
# (atan r / r - 1) / r^2 in r^2, over |r| <= 1
ATAN = (
    -0.33333153,
    0.19993767,
    -0.14211003,
    0.106657855,
    -0.07551724,
    0.043205857,
    -0.016364133,
    0.0029197228,
)
# (asin r / r - 1) / r^2 in r^2, over |r| <= 1/2
ASIN = (0.16666931, 0.0748812, 0.046353444, 0.019946778, 0.04910088)
# log(erfc y) / y - ERF_SLOPE over 0 <= y <= 3.93; ERF_SLOPE is -2 / sqrt(pi) in f32, the first coefficient
# the rest of it
ERF_SLOPE = -1.1283792
ERF = (
    5.8635383e-08,
    -0.6366195,
    -0.10277687,
    0.01914991,
    0.00016571154,
    -0.0016719657,
    0.0006353809,
    -0.000118319556,
    9.328999e-06,
)

LN2 = math.log(2)
LN2_HIGH, LN2_LOW = (
    0.693145751953125,
    1.4286068203094173e-06,
)  # the first has 16 bits: products with exponents are exact
SQRT_HALF_BITS = 0x3F3504F3
SMALLEST_NORMAL = 2.0**-126
ROUND32 = 1.5 * 2.0**23  # adding it rounds to an integer, which is then in the low bits
ROUND64 = 1.5 * 2.0**52
QUARTER_PI_EXCESS = 2.1855694e-08  # by how much pi / 4 in f32 is too large
# pi in two f64 numbers, and in three of which the first two have 30 bits
PI_WITH_FMA = (3.141592653589793, 1.2246467991473532e-16)
PI_WITHOUT_FMA = (3.141592651605606, 1.9841871583270443e-09, 1.034036596358821e-18)


def f32(value: float) -> Expr:
    """A literal, rounded to f32 here so that every backend sees the same number."""
    return const(struct.unpack("f", struct.pack("f", value))[0], F32)


def _fma(a: Expr, b: Expr | float, c: Expr | float) -> Expr:
    return apply("fma", a, _literal(b, a.dtype), _literal(c, a.dtype))


def _literal(value: Expr | float, dtype: DType) -> Expr:
    if isinstance(value, Expr):
        return value
    return f32(value) if dtype is F32 else const(value, dtype)


def _polynomial(t: Expr, coefficients: Sequence[float]) -> Expr:
    """c0 + t * (c1 + t * (c2 + ...))"""
    out = _literal(coefficients[-1], t.dtype)
    for c in reversed(coefficients[:-1]):
        out = _fma(t, out, c)
    return out


def _bits(x: Expr) -> Expr:
    return apply("bitcast", x, dtype=I32 if x.dtype is F32 else I64)


def _float(bits: Expr) -> Expr:
    return apply("bitcast", bits, dtype=F32 if bits.dtype is I32 else F64)


def _sign(x: Expr) -> Expr:
    """The sign bit of an f32 number, alone."""
    return _bits(x) & const(-(1 << 31), I32)


def _with_sign(magnitude: Expr, sign: Expr) -> Expr:
    """A number that is not negative, given a sign bit."""
    return _float(_bits(magnitude) | sign)


def _flip_sign(x: Expr, sign: Expr) -> Expr:
    return _float(apply("xor", _bits(x), sign))


def _shl(x: Expr, by: int) -> Expr:
    return apply("shl", x, const(by, x.dtype))


def _shr(x: Expr, by: int) -> Expr:
    return apply("shr", x, const(by, x.dtype))


# ---- exponentials ------------------------------------------------------------------------------------------


def exp(x: Expr, has_fma: bool) -> Expr:
    """e^x = 2^n * e^r with n = floor(x / ln 2), so that the exponents -127 (0) .. 128 (infinity) of 2^n are
    all there are."""
    y = minimum(maximum(x, f32(-88.0)), f32(88.8))
    # A little more than -1/2, so that n is 0 at 0.
    t = _fma(y, 1 / LN2, -0.499999) + f32(ROUND32 + 127)
    n = t - f32(ROUND32 + 127)
    r = _fma(n, -LN2_LOW, _fma(n, -LN2_HIGH, y))
    return _polynomial(r, (1.0, 1.0, *EXP)) * _float(_shl(_bits(t), 23))


def _reduced_exp(y: Expr, rate: float, bias: int) -> tuple[Expr, Expr]:
    """r and the bits of 2^n (with `bias` for 127) where rate * y = n * ln 2 + rate * r, for small y; r is in
    the unit of y."""
    t = _fma(y, rate / LN2, ROUND32 + bias)
    n = t - f32(ROUND32 + bias)
    return _fma(n, -LN2 / rate, y), _float(_shl(_bits(t), 23))


def tanh(x: Expr, has_fma: bool) -> Expr:
    """|tanh x| = ((1 - E) / 2) / ((1 + E) / 2) with E = e^-2|x|, where 1 - E keeps its relative precision
    down to 0."""
    y = minimum(apply("abs", x), f32(10.0))
    r, scale = _reduced_exp(y, -2.0, 127)
    # h = (1 - e^-2r) / 2 = r - 2 r^2 * EXPM1(-2r), and E = scale * (1 - 2 h)
    h = _fma(r * r, _polynomial(r, [c * (-2.0) ** (k + 1) for k, c in enumerate(EXPM1)]), r)
    less = _fma(scale, h, _fma(scale, -0.5, 0.5))
    more = _fma(apply("neg", scale), h, _fma(scale, 0.5, 0.5))
    return _with_sign(less / more, _sign(x))


def erf(x: Expr, has_fma: bool) -> Expr:
    """|erf x| = 1 - e^v with v = log(erfc |x|), a smooth function."""
    y = minimum(apply("abs", x), f32(4.0))
    v = _fma(y, ERF_SLOPE, y * _polynomial(y, ERF))
    r, scale = _reduced_exp(v, 1.0, 127 + 256)  # bit 8 of the biased exponent becomes the sign: scale = -2^n
    h = _fma(r * r, _polynomial(r, EXPM1), r)
    return _with_sign(_fma(scale, h, scale + 1.0), _sign(x))


# ---- logarithm and power -----------------------------------------------------------------------------------


def _split(x: Expr) -> tuple[Expr, Expr]:
    """(e, f) with x = 2^e * (1 + f) and sqrt(1/2) <= 1 + f < sqrt 2, for finite positive x."""
    tiny = x < SMALLEST_NORMAL
    i = _bits(select(tiny, x * 2.0**23, x)) - SQRT_HALF_BITS
    e = cast(_shr(i, 23), F32) + select(tiny, f32(-23.0), f32(0.0))
    f = _float((i & const((1 << 23) - 1, I32)) + SQRT_HALF_BITS) - 1.0
    return e, f


def log(x: Expr, has_fma: bool) -> Expr:
    """log x = e * ln 2 + f + f^2 * LOG(f)"""
    e, f = _split(x)
    y = f + _fma(f * f, _polynomial(f, LOG), e * f32(LN2_LOW))
    positive = select(x < INF, _fma(e, LN2_HIGH, y), x)
    return select(apply("le", x, f32(0.0)), select(eq(x, 0.0), f32(-INF), f32(NAN)), positive)


def power(x: Expr, y: Expr, has_fma: bool) -> Expr:
    """|x|^y = 2^(y * log2 |x|) with the logarithm and the product in f64; then C's special cases."""
    size = apply("abs", x)
    e, f = _split(size)
    wide = cast(f, F64)
    logarithm = _fma(wide, _polynomial(wide, LOG2), cast(e, F64))
    logarithm = select(eq(size, 0.0), const(-INF, F64), select(size < INF, logarithm, cast(size, F64)))
    # Finite, so that 1^y is 1; beyond 2^100 every power of another number is 0 or infinite already.
    finite = minimum(maximum(y, f32(-(2.0**100))), f32(2.0**100))
    p = minimum(maximum(cast(finite, F64) * logarithm, const(-200.0, F64)), const(200.0, F64))
    t = p + ROUND64
    r = cast(p - (t - ROUND64), F32)
    scale = _float(_shl(_bits(t + 1023.0), 52))
    result = cast(cast(_polynomial(r, (1.0, *EXP2)), F64) * scale, F32)
    whole = eq(apply("trunc", y), y)
    half = y * 0.5
    odd = whole & ne(apply("trunc", half), half)
    result = select(odd, _with_sign(result, _sign(x)), result)
    result = select((x < 0.0) & (f32(-INF) < x) & apply("not", whole), f32(NAN), result)
    return select(eq(x, 1.0) | eq(y, 0.0), f32(1.0), result)


# ---- trigonometric functions -------------------------------------------------------------------------------


def _reduce(n: Expr, x: Expr, unit: float, has_fma: bool) -> Expr:
    """x - n * unit * pi in f64: exact enough up to |x| = 1e14 with fma and 2e7 without.

    Far beyond, n is not the nearest integer any more; the result is kept close to half the unit, so that what
    follows stays a sine.
    """
    r = x
    for part in PI_WITH_FMA if has_fma else PI_WITHOUT_FMA:
        r = _fma(n, -part * unit, r)
    limit = unit * math.pi / 2 * 1.02
    return minimum(maximum(r, const(-limit, F64)), const(limit, F64))


def _sine(r: Expr) -> Expr:
    """sin r for |r| <= pi / 2. The zero that is added makes a factor +0 where r is 0, so that r keeps its
    sign."""
    z = r * r
    return _fma(r, _fma(z, _polynomial(z, SIN), 0.0), r)


def _parity(t: Expr) -> Expr:
    """The lowest bit of the integer in the low bits of an f64 number, as a sign bit."""
    return _shl(cast(_bits(t), I32), 31)


def sin(x: Expr, has_fma: bool) -> Expr:
    """sin x = (-1)^n * sin(x - n * pi)"""
    d = cast(x, F64)
    t = _fma(d, 1 / math.pi, ROUND64)
    return _flip_sign(_sine(cast(_reduce(t - ROUND64, d, 1.0, has_fma), F32)), _parity(t))


def cos(x: Expr, has_fma: bool) -> Expr:
    """cos x = (-1)^(n + 1) * sin(x - (n + 1/2) * pi)"""
    d = cast(x, F64)
    t = _fma(d, 1 / math.pi, -0.5) + (ROUND64 + 1)
    n = t - (ROUND64 + 1) + 0.5
    return _flip_sign(_sine(cast(_reduce(n, d, 1.0, has_fma), F32)), _parity(t))


def tan(x: Expr, has_fma: bool) -> Expr:
    """tan x = tan r or -1 / tan r with r = x - n * pi / 2; only the polynomial's part of tan r is computed
    in f32."""
    d = cast(x, F64)
    t = _fma(d, 2 / math.pi, ROUND64)
    wide = _reduce(t - ROUND64, d, 0.5, has_fma)
    r = cast(wide, F32)
    z = r * r
    near = wide + cast(r * z * _polynomial(z, TAN), F64)
    return cast(select(eq(_parity(t), 0), near, const(-1.0, F64) / near), F32)


def asin(x: Expr, has_fma: bool) -> Expr:
    """asin x directly up to 0.55, beyond it as pi / 2 - 2 * asin(sqrt((1 - x) / 2))"""
    y = apply("abs", x)
    near = y < 0.55
    z = select(near, x * x, _fma(y, -0.5, 0.5))
    s = select(near, y, apply("sqrt", z))
    a = s + _fma(s * z, _polynomial(z, ASIN), select(near, f32(0.0), f32(QUARTER_PI_EXCESS)))
    return _with_sign(select(near, a, _fma(a, -2.0, math.pi / 2)), _sign(x))


def acos(x: Expr, has_fma: bool) -> Expr:
    """acos x = pi / 2 - asin x up to 1/2, beyond it 2 * asin(sqrt((1 - |x|) / 2)) or pi less that"""
    y = apply("abs", x)
    near = y < 0.5
    z = select(near, x * x, _fma(y, -0.5, 0.5))
    s = select(near, x, apply("sqrt", z))
    a = _fma(s * z, _polynomial(z, ASIN), s)
    far = select(x < 0.0, _fma(a, -2.0, math.pi), a + a)
    return select(near, f32(math.pi / 2) - a, far)


def atan(x: Expr, has_fma: bool) -> Expr:
    """atan |x| directly up to 1, beyond it as pi / 2 - atan(1 / |x|)"""
    y = apply("abs", x)
    r = minimum(y, f32(1.0)) / maximum(y, f32(1.0))
    z = r * r
    a = _fma(r * z, _polynomial(z, ATAN), r)
    return _with_sign(select(f32(1.0) < y, f32(math.pi / 2) - a, a), _sign(x))


UNARY: dict[str, Callable[[Expr, bool], Expr]] = {
    "exp": exp, "log": log, "sin": sin, "cos": cos, "tan": tan, "asin": asin, "acos": acos, "atan": atan,
    "tanh": tanh, "erf": erf, }  # fmt: skip
