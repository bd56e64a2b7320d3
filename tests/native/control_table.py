"""Small models with If, Loop and Scan in ONNX's own text form, and what they are fed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser

Array = np.ndarray[Any, np.dtype[Any]]


def f(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def i(*values: int) -> Array:
    return np.array(values, np.int64)


def n(value: int) -> Array:
    return np.array(value, np.int64)


TRUE, FALSE = np.array(True), np.array(False)

MODELS: dict[str, tuple[str, list[dict[str, Array]]]] = {
    "if_same_shape": (
        """(bool c, float[N, 3] x) => (float[N, 3] y) {
            y = If (c) <
                then_branch = a () => (p) { p = Mul(x, x) },
                else_branch = b () => (q) { q = Neg(x) }
            >
        }""",
        [{"c": TRUE, "x": f(2, 3)}, {"c": FALSE, "x": f(5, 3)}],
    ),
    "if_other_sizes": (
        """(bool c, float[N, 3] x) => (float[M, 3] y, float[M, 1] z) {
            y = If (c) <
                then_branch = a () => (p) { p = Concat<axis = 0>(x, x) },
                else_branch = b () => (q) { q = Relu(x) }
            >
            z = ReduceSum<keepdims = 1>(y, axes)
        }""",
        [{"c": TRUE, "x": f(2, 3)}, {"c": FALSE, "x": f(4, 3)}, {"c": TRUE, "x": f(1, 3)}],
    ),
    "if_hands_on_outer_values": (
        """(bool c, float[N] x, float[N] z) => (float[N] y) {
            y = If (c) <
                then_branch = a () => (p) { p = Identity(x) },
                else_branch = b () => (q) { q = Identity(z) }
            >
        }""",
        [{"c": TRUE, "x": f(4), "z": f(4, seed=1)}, {"c": FALSE, "x": f(4), "z": f(4, seed=1)}],
    ),
    "if_two_levels": (
        """(bool c, bool d, float[N] x) => (float[N] y, float[N] w) {
            z = Exp(x)
            y, w = If (c) <
                then_branch = a () => (p, r) {
                    r = Sqrt(z)
                    p = If (d) <
                        then_branch = e () => (s) { s = Add(z, r) },
                        else_branch = g () => (t) { t = Sub(z, x) }
                    >
                },
                else_branch = b () => (q, u) { q = Neg(z) u = Abs(x) }
            >
        }""",
        [{"c": c, "d": d, "x": f(7)} for c in (TRUE, FALSE) for d in (TRUE, FALSE)],
    ),
    "loop_sums": (
        """(int64 m, float[N] x) => (float[N] y) {
            y = Loop (m, , x) <
                body = b (int64 i, bool c, float[N] s) => (bool c2, float[N] s2) {
                    c2 = Identity(c)
                    t = Cast<to = 1>(i)
                    s2 = Add(s, t)
                }
            >
        }""",
        [{"m": n(k), "x": f(3)} for k in (4, 1, 0, 7)],
    ),
    "loop_while": (
        """(float[N] x, float limit) => (float[N] y, int64 steps) {
            total = ReduceSum<keepdims = 0>(x)
            start = Less(total, limit)
            zero = Constant<value = int64 {0}>()
            y, steps = Loop (, start, x, zero) <
                body = b (int64 i, bool c, float[N] s, int64 k) => (bool c2, float[N] s2, int64 k2) {
                    s2 = Add(s, s)
                    one = Constant<value = int64 {1}>()
                    k2 = Add(k, one)
                    sum = ReduceSum<keepdims = 0>(s2)
                    c2 = Less(sum, limit)
                }
            >
        }""",
        [{"x": np.abs(f(3)), "limit": np.array(v, np.float32)} for v in (100.0, 0.0, 3.0)],
    ),
    "loop_grows": (
        """(int64 m, float[N, 2] x) => (float[M, 2] y, float[M, 1] z) {
            y = Loop (m, , x) <
                body = b (int64 i, bool c, float[K, 2] s) => (bool c2, float[L, 2] s2) {
                    c2 = Identity(c)
                    s2 = Concat<axis = 0>(s, x)
                }
            >
            z = ReduceSum<keepdims = 1>(y, axes)
        }""",
        [{"m": n(k), "x": f(3, 2)} for k in (3, 0, 1)],
    ),
    "loop_collects": (
        """(int64 m, float[N] x) => (float[N] last, float[M, N] all) {
            last, all = Loop (m, , x) <
                body = b (int64 i, bool c, float[N] s) => (bool c2, float[N] s2, float[N] row) {
                    c2 = Identity(c)
                    s2 = Mul(s, x)
                    row = Add(s, x)
                }
            >
        }""",
        [{"m": n(k), "x": f(5)} for k in (6, 1)],
    ),
    "loop_collects_until": (
        """(int64 m, float[N] x) => (int64 last, float[M, N] all, float[N] sums) {
            start = Constant<value = bool {1}>()
            zero = Constant<value = int64 {0}>()
            last, all = Loop (m, start, zero) <
                body = b (int64 i, bool c, int64 k) => (bool c2, int64 k2, float[N] row) {
                    one = Constant<value = int64 {1}>()
                    five = Constant<value = int64 {5}>()
                    k2 = Add(k, one)
                    c2 = Less(k2, five)
                    t = Cast<to = 1>(i)
                    row = Add(x, t)
                }
            >
            none = Constant<value = int64[1] {0}>()
            sums = ReduceSum<keepdims = 0>(all, none)
        }""",
        [{"m": n(k), "x": f(5)} for k in (3, 9)],
    ),
    "loop_collects_what_it_grows": (
        """(int64 m, float[N, 2] x) => (float[M, K, 2] all) {
            none, all = Loop (m, , x) <
                body = b (int64 i, bool c, float[K, 2] s) => (bool c2, float[K, 2] s2, float[L, 2] row) {
                    c2 = Identity(c)
                    twice = Concat<axis = 0>(s, x)
                    first = Constant<value = int64[1] {0}>()
                    three = Constant<value = int64[1] {3}>()
                    s2 = Slice(twice, first, three)
                    row = Relu(s2)
                }
            >
        }""",
        [{"m": n(k), "x": f(4, 2)} for k in (3, 1)],
    ),
    "loop_reads_rows": (
        """(float[N, 3] x) => (float[M, 3] all, float[3] sum) {
            shape = Shape(x)
            first = Constant<value = int64 {0}>()
            m = Gather(shape, first)
            zero = Constant<value = float[3] {0.0, 0.0, 0.0}>()
            sum, all = Loop (m, , zero) <
                body = b (int64 i, bool c, float[3] s) => (bool c2, float[3] s2, float[3] row) {
                    c2 = Identity(c)
                    r = Gather<axis = 0>(x, i)
                    s2 = Add(s, r)
                    row = Identity(s2)
                }
            >
        }""",
        [{"x": f(4, 3)}, {"x": f(1, 3)}],
    ),
    "loop_in_loop": (
        """(int64 m, int64 k, float[N] x) => (float[N] y) {
            y = Loop (m, , x) <
                body = outer (int64 i, bool c, float[N] s) => (bool c2, float[N] s2) {
                    c2 = Identity(c)
                    s2 = Loop (k, , s) <
                        body = inner (int64 j, bool d, float[N] t) => (bool d2, float[N] t2) {
                            d2 = Identity(d)
                            p = Add(i, j)
                            q = Cast<to = 1>(p)
                            w = Mul(x, q)
                            t2 = Add(t, w)
                        }
                    >
                }
            >
        }""",
        [{"m": n(a), "k": n(b), "x": f(4)} for a, b in ((2, 3), (3, 0), (0, 2))],
    ),
    "loop_with_if": (
        """(int64 m, float[N] x) => (float[M] y) {
            y = Loop (m, , x) <
                body = b (int64 i, bool c, float[K] s) => (bool c2, float[L] s2) {
                    c2 = Identity(c)
                    two = Constant<value = int64 {2}>()
                    rest = Mod(i, two)
                    zero = Constant<value = int64 {0}>()
                    even = Equal(rest, zero)
                    s2 = If (even) <
                        then_branch = t () => (p) { p = Concat<axis = 0>(s, x) },
                        else_branch = e () => (q) { q = Neg(s) }
                    >
                }
            >
        }""",
        [{"m": n(k), "x": f(3)} for k in (0, 1, 4)],
    ),
    "loop_with_weights": (
        """(int64 m, float[B, 8] x) => (float[B, 8] y)
        <float[8, 8] w = {WEIGHTS}> {
            y = Loop (m, , x) <
                body = b (int64 i, bool c, float[B, 8] s) => (bool c2, float[B, 8] s2) {
                    c2 = Identity(c)
                    p = MatMul(s, w)
                    s2 = Tanh(p)
                }
            >
        }""".replace("WEIGHTS", ", ".join(f"{v:.3f}" for v in f(64, seed=3).tolist())),
        [{"m": n(k), "x": f(b, 8)} for k, b in ((3, 2), (1, 5), (0, 1))],
    ),
    "loop_starts_empty": (
        """(int64 m, float[N] x) => (float[M] y) {
            none = Constant<value = float[0] {}>()
            y = Loop (m, , none) <
                body = b (int64 i, bool c, float[K] s) => (bool c2, float[L] s2) {
                    c2 = Identity(c)
                    s2 = Concat<axis = 0>(s, x)
                }
            >
        }""",
        [{"m": n(k), "x": f(3)} for k in (2, 0)],
    ),
    "loop_finds_sizes": (
        """(int64 m, float[N] x) => (int64[1, M] y) {
            none = Constant<value = int64[1, 0] {}>()
            y = Loop (m, , none) <
                body = b (int64 i, bool c, int64[1, K] s) => (bool c2, int64[1, L] s2) {
                    c2 = Identity(c)
                    bound = Cast<to = 1>(i)
                    large = Greater(x, bound)
                    found = NonZero(large)
                    s2 = Concat<axis = 1>(s, found)
                }
            >
        }""",
        [{"m": n(k), "x": 3 * np.abs(f(6))} for k in (3, 0)],
    ),
    "scan_with_state": (
        """(float[3] h, float[T, 3] x) => (float[3] last, float[T, 3] all) {
            last, all = Scan <num_scan_inputs = 1,
                body = b (float[3] s, float[3] r) => (float[3] s2, float[3] o) {
                    s2 = Add(s, r)
                    o = Mul(s2, s2)
                }
            > (h, x)
        }""",
        [{"h": f(3), "x": f(4, 3)}, {"h": f(3), "x": f(1, 3)}],
    ),
    "scan_axes_and_directions": (
        """(float[3, T] x, float[T, 2] z) => (float[2, T] p, float[T, 3] q) {
            p, q = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0], scan_input_directions = [1, 0],
                scan_output_axes = [1, 0], scan_output_directions = [0, 1],
                body = b (float[3] r, float[2] u) => (float[2] v, float[3] w) {
                    s = ReduceSum<keepdims = 1>(r)
                    v = Add(u, s)
                    w = Neg(r)
                }
            > (x, z)
        }""",
        [{"x": f(3, 5), "z": f(5, 2)}],
    ),
}


def model(name: str) -> onnx.ModelProto:
    """The model of a name; those that reduce over `axes` get it as an initialiser."""
    text = MODELS[name][0]
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> g {text}')
    if "axes)" in text:
        made.graph.initializer.append(onnx.numpy_helper.from_array(i(0), "axes"))
    return made
