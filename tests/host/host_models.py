"""Small graphs with values of the host, and feeds for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser

Feeds = dict[str, Any]


@dataclass(frozen=True)
class HostModel:
    """A graph in ONNX's text form, and feeds for several runs of one module of it."""

    text: str
    runs: Callable[[np.random.Generator], list[Feeds]]
    opset: int = 17

    def proto(self) -> onnx.ModelProto:
        head = f'<ir_version: 8, opset_import: ["" : {self.opset}]>\n'
        return onnx.parser.parse_model(head + self.text)


def strings(*texts: str) -> np.ndarray:
    return np.array(texts, object)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: int) -> np.ndarray:
    return np.array(value, np.int64)


MODELS: dict[str, HostModel] = {
    "strings pass through": HostModel(
        """g (string[n] s, int64[k] i) => (string[m] y, int64[1] size) {
            t = Gather(s, i)
            y = Concat<axis = 0>(t, s)
            size = Shape(y)
        }""",
        lambda rng: [
            {"s": strings("a", "bc", "ä"), "i": whole(2, -1, 0)},
            {"s": strings("x"), "i": whole()},
        ],
    ),
    "strings and numbers meet": HostModel(
        """g (string[n] s, float[n] x) => (float[n] y, bool[n] same) {
            word = Constant<value_strings = ["yes"]>()
            same = Equal(s, word)
            zero = Constant<value_float = 0.0>()
            z = Where(same, x, zero)
            y = Add(z, x)
        }""",
        lambda rng: [{"s": strings("yes", "no", "yes"), "x": normal(rng, 3)}],
        19,
    ),
    "numbers as text and back": HostModel(
        """g (int64[n] x, float[m] f) => (float[n] y, string[n] s, string[m] t) {
            s = Cast<to = 8>(x)
            y = Cast<to = 1>(s)
            t = Cast<to = 8>(f)
        }""",
        lambda rng: [
            {"x": whole(1, -20, 300), "f": np.array([0.1, -1e-7, 1e20, np.nan, -np.inf, 3], np.float32)}
        ],
    ),
    "moving strings": HostModel(
        """g (string[a,b] s, int64[2] shape) => (string[u,v] r, string[b,a] t, string[n] sl, string[p,q] e,
                string[one,a,b] w, string[x1] c, string[g1,g2] l, string[a,b2] k) {
            r = Reshape(s, shape)
            t = Transpose<perm = [1, 0]>(s)
            flat = Constant<value_ints = [-1]>()
            f = Reshape(s, flat)
            one = Constant<value_ints = [1]>()
            far = Constant<value_ints = [-100]>()
            zero = Constant<value_ints = [0]>()
            back = Constant<value_ints = [-1]>()
            sl = Slice(f, back, far, zero, back)
            first = Slice(s, zero, one, zero)
            e = Expand(first, shape)
            w = Unsqueeze(s, zero)
            odd = Constant<value_ints = [1, 0, 1]>()
            test = Cast<to = 9>(odd)
            c = Compress(f, test)
            l = Flatten<axis = 0>(s)
            k = Concat<axis = 1>(s, s)
        }""",
        lambda rng: [
            {"s": strings("a", "b", "c", "d", "e", "f").reshape(2, 3), "shape": whole(6, 1)},
            {"s": strings("a", "b").reshape(2, 1), "shape": whole(1, 2)},
        ][:1],
    ),
    "a sequence comes in and goes out": HostModel(
        """g (seq(float[n]) xs, int64 at) => (seq(float[m]) ys, float[k] x, int64 size) {
            x = SequenceAt(xs, at)
            y = Mul(x, x)
            ys = SequenceInsert(xs, y)
            size = SequenceLength(ys)
        }""",
        lambda rng: [
            {"xs": [normal(rng, 3), normal(rng, 5)], "at": scalar(1)},
            {"xs": [normal(rng, 2), normal(rng, 2), normal(rng, 2)], "at": scalar(-3)},
        ],
    ),
    "split, map, and join": HostModel(
        """g (float[n,m] x) => (float[k] y) {
            parts = SplitToSequence<axis = 0, keepdims = 0>(x)
            sums = SequenceMap<body = b (float[m] e) => (float[one] s) {
                axes = Constant<value_ints = [0]>()
                s = ReduceSum<keepdims = 1>(e, axes)
            }>(parts)
            y = ConcatFromSequence<axis = 0>(sums)
        }""",
        lambda rng: [{"x": normal(rng, 3, 4)}, {"x": normal(rng, 1, 7)}],
    ),
    "a loop whose tensor grows": HostModel(
        """g (int64 n, float[k] x) => (float[m] y, float[t,k2] all) {
            go = Constant<value = bool {1}>()
            y, all = Loop<body = b (int64 i, bool c, float[p] a) => (bool c2, float[q] a2, float[k] out) {
                c2 = Identity(c)
                f = Cast<to = 1>(i)
                out = Add(x, f)
                a2 = Concat<axis = 0>(a, out)
            }>(n, go, x)
        }""",
        lambda rng: [
            {"n": scalar(3), "x": normal(rng, 2)},
            {"n": scalar(1), "x": normal(rng, 4)},
            {"n": scalar(4), "x": normal(rng, 1)},
        ],
    ),
    "an If in a Loop with values from around both": HostModel(
        """g (int64 n, float[k] x, float[k] z) => (float[k] y) {
            y = Loop<body = b (int64 i, bool c, float[k] a) => (bool c2, float[k] a2) {
                two = Constant<value_int = 2>()
                none = Constant<value_int = 0>()
                r = Mod(i, two)
                even = Equal(r, none)
                a2 = If<
                    then_branch = t () => (float[k] u) { u = Add(a, z) },
                    else_branch = e () => (float[k] v) { w = Mul(a, x)
                                                         v = Sub(w, z) }
                >(even)
                three = Constant<value_int = 5>()
                c2 = Less(i, three)
            }>(n, , x)
        }""",
        lambda rng: [
            {"n": scalar(4), "x": normal(rng, 3), "z": normal(rng, 3)},
            {"n": scalar(40), "x": normal(rng, 3), "z": normal(rng, 3)},
            {"n": scalar(0), "x": normal(rng, 3), "z": normal(rng, 3)},
        ],
    ),
    "branches of unlike ranks in a branch that is known": HostModel(
        """g (float[4] x, int64[k] at, int64[1] kind) => (float[m] y, float[1] last) {
            one = Constant<value_int = 1>()
            kinds = Size(kind)
            single = Equal(kinds, one)
            y, last = If<
                then_branch = t () => (float[m1] u, float[1] l) {
                    ones = Constant<value_ints = [1]>()
                    alone = Equal(kind, ones)
                    v = If<
                        then_branch = t2 () => (float p) { p = ReduceMax<keepdims = 0>(x) },
                        else_branch = e2 () => (float[q] r) { r = Neg(x) }
                    >(alone)
                    u = Add(v, x)
                    back = Constant<value_ints = [-1]>()
                    l = Gather(x, back)
                },
                else_branch = e () => (float[m2] w, float[1] s) { w = Identity(x)
                                                                s = Gather(x, at) }
            >(single)
        }""",
        lambda rng: [
            {"x": normal(rng, 4), "at": whole(0), "kind": whole(1)},
            {"x": normal(rng, 4), "at": whole(2), "kind": whole(2)},
        ],
    ),
    "branches that are outer values": HostModel(
        """g (bool c, float[k] x, float[k] z) => (float[k] y, float[j] w)
           <float[2] held = {1.0, 2.0}> {
            s = Add(x, z)
            y = If<then_branch = t () => (float[k] u) { u = Identity(s) },
                   else_branch = e () => (float[k] v) { v = Identity(x) }>(c)
            w = If<then_branch = t2 () => (float[2] u2) { u2 = Identity(held) },
                   else_branch = e2 () => (float[1] v2) { v2 = Constant<value_floats = [3.0]>() }>(c)
        }""",
        lambda rng: [
            {"c": np.array(flag), "x": normal(rng, 3), "z": normal(rng, 3)} for flag in (True, False)
        ],
    ),
    "a loop that collects into a sequence": HostModel(
        """g (int64 n, float[k] x) => (seq(float[m]) ys, float[t] y) {
            none = SequenceEmpty<dtype = 1>()
            go = Constant<value = bool {1}>()
            ys = Loop<body = b (int64 i, bool c, seq(float[p]) s) => (bool c2, seq(float[q]) s2) {
                c2 = Identity(c)
                last = Constant<value_ints = [1]>()
                first = Constant<value_ints = [0]>()
                j = Reshape(i, last)
                e = Slice(x, first, j, first)
                s2 = SequenceInsert(s, e)
            }>(n, go, none)
            y = ConcatFromSequence<axis = 0>(ys)
        }""",
        lambda rng: [{"n": scalar(4), "x": normal(rng, 6)}, {"n": scalar(2), "x": normal(rng, 1)}],
    ),
    "an optional that may be absent": HostModel(
        """g (optional(float[n]) x, float[m] d) => (float[k] y) {
            there = OptionalHasElement(x)
            y = If<then_branch = t () => (float[a] u) { v = OptionalGetElement(x)
                                                         u = Neg(v) },
                   else_branch = e () => (float[b] w) { w = Abs(d) }>(there)
        }""",
        lambda rng: [{"x": normal(rng, 3), "d": normal(rng, 2)}],
        18,
    ),
    "a scan backwards over two inputs": HostModel(
        """g (float[2] s0, float[t,2] xs, float[2,t] ws) => (float[2] s, float[2,t] ys) {
            s, ys = Scan<num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [1, 0],
                         scan_output_axes = [1], scan_output_directions = [1],
                         body = b (float[2] a, float[2] x, float[2] w) => (float[2] a2, float[2] y) {
                p = Mul(x, w)
                a2 = Add(a, p)
                y = Sub(a2, x)
            }>(s0, xs, ws)
        }""",
        lambda rng: [
            {"s0": normal(rng, 2), "xs": normal(rng, n, 2), "ws": normal(rng, 2, n)} for n in (3, 5)
        ],
    ),
    "a loop that never runs": HostModel(
        """g (int64 n, float[3] x) => (float[3] y, float[t,3] all) {
            go = Constant<value = bool {0}>()
            y, all = Loop<body = b (int64 i, bool c, float[3] a) => (bool c2, float[3] a2, float[3] out) {
                c2 = Identity(c)
                a2 = Neg(a)
                out = Identity(a)
            }>(n, go, x)
        }""",
        lambda rng: [{"n": scalar(3), "x": normal(rng, 3)}],
    ),
    "sizes of 1 broadcast late": HostModel(
        """g (seq(float[n]) xs) => (float[m] y) {
            none = Constant<value_int = 0>()
            last = Constant<value_int = -1>()
            a = SequenceAt(xs, none)
            b = SequenceAt(xs, last)
            y = Mul(a, b)
        }""",
        lambda rng: [
            {"xs": [normal(rng, 3), normal(rng, 3)]},
            {"xs": [normal(rng, 3), normal(rng, 1)]},
            {"xs": [normal(rng, 1), normal(rng, 4)]},
            {"xs": [normal(rng, 5), normal(rng, 5)]},
        ],
    ),
    "axes out of the data": HostModel(
        """g (float[a,b] x, int64[r] axes) => (float[p,q] y, float[b,a] t) {
            y = ReduceSum<keepdims = 1>(x, axes)
            t = Transpose<perm = [1, 0]>(x)
        }""",
        lambda rng: [
            {"x": normal(rng, 2, 3), "axes": whole(0)},
            {"x": normal(rng, 4, 3), "axes": whole(-1)},
            {"x": normal(rng, 2, 3), "axes": whole(0, 1)},
        ],
    ),
    "axes that the graph works out": HostModel(
        """g (float[a,b] x, int64 k) => (float[p,q] y) {
            one = Constant<value_ints = [1]>()
            r = Reshape(k, one)
            axes = Mod(r, one)
            z = Exp(x)
            y = ReduceMax<keepdims = 1>(z, axes)
        }""",
        lambda rng: [{"x": normal(rng, 2, 3), "k": scalar(1)}],
        18,
    ),
}
