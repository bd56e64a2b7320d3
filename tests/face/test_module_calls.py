"""How a module is called: arguments by position, by name and as one dict, and what wrong feeds are told."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fusile.runtime.dlpack import from_dlpack
from fusile.runtime.module import FeedError, Port, Signature, type_of

A = Port.tensor("a", 1, ["N", 3])
B = Port.tensor("b", 7, ["N"])
X, Y = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
SIGNATURE = Signature([A, B])


@pytest.mark.parametrize(
    ("args", "named"),
    [((X, Y), {}), ((X,), {"b": Y}), ((), {"b": Y, "a": X}), (({"b": Y, "a": X},), {})],
)
def test_every_way_to_call(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    arranged = SIGNATURE.arrange(args, named)
    assert arranged[0] is X
    assert arranged[1] is Y


def test_arrays_that_fit_are_not_copied() -> None:
    ready = SIGNATURE.check([X, Y])
    assert ready[0] is X
    assert ready[1] is Y


@pytest.mark.parametrize(
    ("args", "named", "fault", "text"),
    [
        ((X,), {}, "missing", "Input 'b' is missing"),
        ((X, Y, Y), {}, "count", "Too many inputs"),
        ((X,), {"a": X, "b": Y}, "unknown", "'a' is given twice"),
        ((X, Y), {"c": Y}, "unknown", "no input 'c'"),
    ],
)
def test_wrong_calls(args: tuple[Any, ...], named: dict[str, Any], fault: str, text: str) -> None:
    with pytest.raises(FeedError, match=text) as raised:
        SIGNATURE.arrange(args, named)
    assert raised.value.fault == fault


@pytest.mark.parametrize(
    ("feeds", "fault", "text"),
    [
        ([X.astype(np.float64), Y], "dtype", r"expected tensor\(float\), got tensor\(double\)"),
        ([X, Y.astype(np.int32)], "dtype", r"\.astype\(np\.int64\)"),
        ([X[0], Y], "rank", r"expected \[N, 3\], got \[3\]"),
        ([np.zeros((2, 4), np.float32), Y], "dims", r"expected \[N, 3\], got \[2, 4\]"),
        ([X, np.zeros(5, np.int64)], "symbol", "Dimension 'N' has two sizes"),
        ([object(), Y], "kind", "an object of type object"),
        ([None, Y], "kind", "an object of type NoneType"),
        ([X, [1.5, 2.5]], "kind", "wrong kind"),
        ([X, [[1], [2, 3]]], "kind", "cannot become an array"),
        ([X], "count", "expected 2, got 1"),
    ],
)
def test_wrong_feeds_say_expected_and_got(feeds: list[Any], fault: str, text: str) -> None:
    with pytest.raises(FeedError, match=text) as raised:
        SIGNATURE.check(feeds)
    assert raised.value.fault == fault
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "feed",
    [X[::-1], np.asfortranarray(X), X.astype(">f4"), [[0, 0, 0], [0.0, 0, 0]], np.ma.masked_array(X)],
    ids=["reversed", "fortran", "big-endian", "list", "subclass"],
)
def test_other_layouts_become_plain_arrays(feed: Any) -> None:
    ready = SIGNATURE.check([feed, Y])[0]
    assert ready.flags.c_contiguous
    assert ready.dtype == np.float32
    assert ready.dtype.isnative
    np.testing.assert_array_equal(ready, X)


def test_unaligned_and_read_only_arrays() -> None:
    raw = np.zeros(25, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(2, 3)
    assert SIGNATURE.check([unaligned, Y])[0].flags.aligned
    read_only = X.copy()
    read_only.flags.writeable = False
    assert SIGNATURE.check([read_only, Y])[0] is read_only


def test_strings_scalars_and_unknown_ranks() -> None:
    signature = Signature(
        [Port.tensor("text", 8, [None]), Port.tensor("n", 7, []), Port.tensor("any", 1, None)]
    )
    text, number, anything = signature.check([["a", "b"], 5, np.zeros((1, 2, 3), np.float32)])
    assert text.dtype == object
    assert text.tolist() == ["a", "b"]
    assert number.shape == ()
    assert number.dtype == np.int64
    assert anything.shape == (1, 2, 3)
    assert signature.check([np.array(["a"]), 5, X])[0].dtype == object
    assert signature.check([np.array([b"\xc3\xa9"]), 5, X])[0].tolist() == ["é"]


def test_sequences_maps_and_optionals() -> None:
    signature = Signature(
        [
            Port("s", "seq(tensor(float))", None, None),
            Port("m", "map(int64,tensor(float))", None, None),
            Port("o", "optional(tensor(float))", None, None),
        ]
    )
    assert signature.check([[X], {1: X}, None]) == [[X], {1: X}, None]
    assert signature.arrange(([X], {1: X}), {}) == [[X], {1: X}, None]
    with pytest.raises(FeedError, match=r"seq\(tensor\(float\)\)"):
        signature.check([X, {}, None])
    only = Signature([Port("m", "map(int64,tensor(float))", None, None)])
    assert only.arrange(({1: X},), {}) == [{1: X}]
    assert only.arrange(({"m": {1: X}},), {}) == [{1: X}]


class Tensor:
    """A tensor of a library that knows DLPack only."""

    def __init__(self, array: Any, device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **arguments: Any) -> object:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)


def test_dlpack_tensors_are_read_in_place() -> None:
    ready = SIGNATURE.check([Tensor(X), Tensor(Y)])
    assert np.shares_memory(ready[0], X)
    with pytest.raises(FeedError, match="device type 2 number 0"):
        SIGNATURE.check([Tensor(X, device=2), Y])


def test_torch_tensors_are_read_in_place() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    ready = SIGNATURE.check([tensor, torch.zeros(2, dtype=torch.int64)])
    assert ready[0].ctypes.data == tensor.data_ptr()
    np.testing.assert_array_equal(SIGNATURE.check([tensor.T.reshape(3, 2).T, Y])[0], tensor.T.reshape(3, 2).T)
    with pytest.raises(FeedError, match=r"detach"):
        SIGNATURE.check([tensor.requires_grad_(), Y])
    half = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    array = from_dlpack(half)
    assert array.dtype == ml_dtypes.bfloat16
    assert array.ctypes.data == half.data_ptr()
    assert array.tolist() == [[1.5, -2.0]]
    del half
    assert array.tolist() == [[1.5, -2.0]]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float32, "tensor(float)"),
        (np.float64, "tensor(double)"),
        (np.bool_, "tensor(bool)"),
        (ml_dtypes.bfloat16, "tensor(bfloat16)"),
        (ml_dtypes.int4, "tensor(int4)"),
        (ml_dtypes.float8_e4m3fn, "tensor(float8e4m3fn)"),
        (object, "tensor(string)"),
        ("U3", "tensor(string)"),
    ],
)
def test_names_of_types(dtype: Any, name: str) -> None:
    assert type_of(np.zeros(1, dtype)) == name
