"""ONNX's own node cases: the canonical model gives the answers that the case expects, expanded or not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import onnx
import pytest
from frontend_models import assert_same, run

from fusile.frontend import expand, load
from fusile.graph.cleanup import clean_up
from fusile.graph.proto import to_proto

# Random answers, or what neither ONNX Runtime nor ONNX's reference computes as the case expects.
SKIPPED = ("bernoulli", "image_decoder", "dft", "maxunpool_export_with_output_shape", "celu_bfloat16")

# ONNX defines these by others, some for the node at hand. Range's definition is a loop that no library runs.
DEFINED = frozenset(
    schema.name
    for schema in onnx.defs.get_all_schemas()
    if (schema.has_function or schema.has_context_dependent_function) and schema.name != "Range"
)


@cache
def cases() -> dict[str, list[Any]]:
    """The node cases by the operator of their first node."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    grouped: dict[str, list[Any]] = {}
    for case in found:
        if case.name.removeprefix("test_").startswith(SKIPPED) or case.model is None:
            continue
        grouped.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return grouped


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "operator" in metafunc.fixturenames:
        metafunc.parametrize("operator", sorted(cases()))


def feedable(case: Any) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """The data sets of a case that can be given to a session; types of a few bits come as messages."""
    names = [item.name for item in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        if not any(isinstance(value, onnx.TensorProto) for value in (*inputs, *outputs)):
            yield dict(zip(names, inputs)), outputs


def judge(case: Any, proto: onnx.ModelProto) -> None:
    for feeds, wanted in feedable(case):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                got = run(proto, feeds)
            except Exception:
                try:
                    run(case.model, feeds)
                except Exception:
                    continue  # nobody can run the original either
                if "bf16" in case.name or "bfloat16" in case.name:
                    continue  # the reference mixes up its bfloat16 types in newer opsets
                raise
            try:
                assert_same(got, wanted, max(case.rtol, 1e-3), max(case.atol, 1e-5))
            except AssertionError:
                # Where the library is wrong about the original too, it is not the canonical form that is.
                assert_same(got, run(case.model, feeds), 1e-3, 1e-5)


def test_the_canonical_form_gives_the_expected_answers(operator: str) -> None:
    for case in cases()[operator]:
        loaded = load(case.model)
        clean_up(loaded)
        if operator != "FlexAttention":  # the reference does not show an inner graph the outer values
            judge(case, to_proto(loaded))


@pytest.mark.parametrize("defined", sorted(DEFINED))
def test_definitions_give_the_expected_answers(defined: str) -> None:
    for case in cases().get(defined, []):
        loaded = load(case.model)
        left = expand(loaded, lambda domain, op_type: op_type not in DEFINED)
        assert left == []
        operators = {node.op_type for node in loaded.graph.all_nodes()}
        assert not operators & DEFINED
        judge(case, to_proto(loaded))


def test_expanding_reports_what_nothing_defines() -> None:
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], "n", domain="com.example")
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", 1, [2])], [onnx.ValueInfoProto(name="y")]
    )
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.example", 1)]
    loaded = load(onnx.helper.make_model(graph, opset_imports=imports))
    assert [node.name for node in expand(loaded, lambda domain, op_type: False)] == ["n"]
    assert expand(loaded, lambda domain, op_type: True) == []
