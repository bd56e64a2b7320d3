"""Options: what is accepted, what is refused with which words, and what the cache key holds."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from fusile.errors import UsageError
from fusile.options import Options, make_options, parse_dim_sets, parse_dims


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"target": "abacus"}, "Choose one of native, numba"),
        ({"precision": "fp8"}, "Choose one of fp32, bf16"),
        ({"opt_level": 3}, "opt_level=3"),
        ({"opt_level": True}, "opt_level=True"),
        ({"threads": 0}, "threads=0"),
        ({"threads": "2"}, "threads='2'"),
        ({"dims": {"N": -1}}, "out of range"),
        ({"dims": {"N": 1.5}}, "no whole number"),
        ({"dims": {"": 1}}, "no name"),
        ({"dims": [1, 2]}, "not a mapping"),
        ({"cpu": "native; rm"}, "avx2,fma"),
        ({"target_triple": "x"}, "aarch64-unknown-linux-gnu"),
        ({"weights": 5}, "not a path"),
        ({"denormals": "perhaps"}, "flush, keep"),
        ({"seed": -1}, "seed=-1"),
        ({"optlevel": 2}, "'optlevel' is no option. The options are target, dims"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as raised:
        make_options(**values)
    assert raised.value.exit_code == 2


def test_options_are_values() -> None:
    one = Options(dims={"b": 2, "a": 1}, threads=2)
    other = Options(dims={"a": 1, "b": 2}, threads=2)
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert dict(one.dims) == {"a": 1, "b": 2}
    assert one.with_(threads=3).threads == 3
    with pytest.raises(AttributeError):
        one.threads = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.dims["a"] = 5  # type: ignore[index]


def test_the_key_holds_what_shapes_code_and_nothing_else() -> None:
    base = Options()
    same = Options(threads=7, seed=3, dump_ir="folder", weights="w.safetensors")
    assert base.key() == same.key()
    different = [
        Options(target="numba"),
        Options(dims={"N": 1}),
        Options(precision="bf16"),
        Options(opt_level=1),
        Options(cpu="avx2,fma"),
        Options(target_triple="aarch64-unknown-linux-gnu"),
        Options(denormals="keep"),
    ]
    assert len({options.key() for options in [base, *different]}) == 1 + len(different)
    assert Options(cpu="avx2,fma").key() == Options(cpu="fma,avx2").key()


@pytest.mark.parametrize(
    ("text", "dims"),
    [
        ("", {}),
        ("batch=1,seq=128", {"batch": 1, "seq": 128}),
        (" batch = 1 , seq = 2,", {"batch": 1, "seq": 2}),
        ("past + 1=3", {"past + 1": 3}),
        ("a=b=2", {"a=b": 2}),
    ],
)
def test_dims_as_text(text: str, dims: dict[str, int]) -> None:
    assert parse_dims(text) == dims


@pytest.mark.parametrize(
    "text", ["batch", "batch=", "=1", "batch=one", "batch=1,batch=2", "batch=-1", "batch=1.5"]
)
def test_dims_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_dims(text)


def test_sets_of_dims() -> None:
    assert parse_dim_sets("a=1;a=2,b=3") == [{"a": 1}, {"a": 2, "b": 3}]
    assert parse_dim_sets("") == []
