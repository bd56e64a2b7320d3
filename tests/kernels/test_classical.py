"""Classical models against onnxruntime: with fixed sizes, and with symbols for the first input's."""

from __future__ import annotations

import time
from typing import Any

import classical_cases
import forest_cases
import numpy as np
import pytest
from classical_cases import ml
from operator_models import Case, assert_same, by_onnxruntime, feeds, interpreted, one_node

import fusile

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("case", [*classical_cases.CASES, *forest_cases.CASES], ids=str)
@pytest.mark.parametrize("sizes", ["fixed", "symbols"])
def test_classical(case: Case, sizes: str) -> None:
    if sizes == "symbols" and not case.symbolic:
        pytest.skip("takes fixed sizes")
    wanted = by_onnxruntime(one_node(case), feeds(case))
    got = interpreted(one_node(case, symbols=sizes == "symbols"), list(feeds(case).values()))
    largest = max(
        (float(np.nanmax(np.abs(y))) for y in wanted if y.size and y.dtype.kind == "f"), default=1.0
    )
    limit = largest if np.isfinite(largest) else 1.0
    assert_same(got, wanted, rtol=case.tolerance, atol=case.tolerance * limit)


def row_counts() -> list[Case]:
    every = {str(case): case for case in [*classical_cases.CASES, *forest_cases.CASES]}
    names = (
        "Scaler-each",
        "Normalizer-norm_L2_float64",
        "LabelEncoder-many",
        "OneHotEncoder-matrix",
        "LinearClassifier-SOFTMAX_3_3",
        "SVMClassifier-RBF_3_True",
        "SVMRegressor-POLY_0",
        "TreeEnsembleRegressor-mixed_missing",
        "TreeEnsembleRegressor-deep",
        "TreeEnsembleClassifier-two_LOGISTIC_mixed_0_0",
        "TreeEnsembleClassifier-probabilities",
        "TreeEnsemble-members",
    )
    return [every[name] for name in names]


@pytest.mark.parametrize("target", ["native", "numba"])
@pytest.mark.parametrize("case", row_counts(), ids=str)
def test_compiled_for_any_number_of_rows(case: Case, target: str) -> None:
    """One module for 0, 1 and many rows."""
    (x,) = case.inputs
    assert x is not None
    model = one_node(case)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    module = fusile.compile(model, target=target)
    one = by_onnxruntime(model, {"x0": x[:1]})
    for rows in (1, 0, 3, len(x), 70):
        given = np.resize(x, (rows, *x.shape[1:]))
        wanted = by_onnxruntime(model, {"x0": given}) if rows else [y[:0] for y in one]
        got = [np.asarray(y) for y in module.run([given])]
        assert_same(got, wanted, rtol=case.tolerance, atol=1e-5)


# ---- tables that lie -----------------------------------------------------------------------------


def lying(**changes: Any) -> Case:
    nodes = forest_cases.forest(2, 3)
    attributes = forest_cases.weighed(nodes, "target", (0,))
    return ml("lying", "TreeEnsembleRegressor", [forest_cases.X], **{**attributes, "n_targets": 1, **changes})


def changed(name: str, place: int, value: Any) -> dict[str, Any]:
    found = list(lying().attributes[name])
    found[place] = value
    return {name: found}


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "branch_to_nowhere": (changed("nodes_truenodeids", 0, 99), "node -1, which there is not"),
    "branch_below_zero": (changed("nodes_falsenodeids", 0, -1), "which there is not"),
    "circle": (changed("nodes_truenodeids", 1, 0), "circle"),
    "itself": (changed("nodes_truenodeids", 0, 0), "circle"),
    "feature_below_zero": (changed("nodes_featureids", 0, -1), "feature"),
    "feature_beyond": (changed("nodes_featureids", 0, 4), "feature 4 of 4"),
    "mode": (changed("nodes_modes", 0, "BRANCH_MAYBE"), "BRANCH_MAYBE"),
    "twice": (changed("nodes_nodeids", 1, 0), "one number"),
    "weight_of_no_node": (changed("target_nodeids", 0, 1000), "node 1000 of tree 0"),
    "target_beyond": (changed("target_ids", 0, 5), "other than|another than"),
    "aggregate": ({"aggregate_function": "MEDIAN"}, "MEDIAN"),
    "transform": ({"post_transform": "SQUARE"}, "SQUARE"),
    "short": ({"nodes_values": [1.0]}, "values for"),
}


@pytest.mark.parametrize("name", sorted(LIES))
def test_tables_that_lie_are_refused(name: str) -> None:
    changes, why = LIES[name]
    with pytest.raises(fusile.InvalidModelError, match=why):
        interpreted(one_node(lying(**changes)), [forest_cases.X])


def test_a_circle_of_many_nodes_is_found_soon() -> None:
    count = 200_000
    order = np.random.default_rng(0).permutation(count)
    following = np.empty(count, np.int64)
    following[order] = np.roll(order, -1)
    changes = {
        "nodes_treeids": [0] * count, "nodes_nodeids": list(range(count)), "nodes_featureids": [0] * count,
        "nodes_modes": ["BRANCH_LEQ"] * count, "nodes_values": [0.0] * count,
        "nodes_truenodeids": following.tolist(), "nodes_falsenodeids": following.tolist(),
        "target_treeids": [], "target_nodeids": [], "target_ids": [], "target_weights": [],
    }  # fmt: skip
    begun = time.monotonic()
    with pytest.raises(fusile.InvalidModelError, match="circle"):
        interpreted(one_node(lying(**changes)), [forest_cases.X])
    assert time.monotonic() - begun < 30


def test_a_tree_of_many_tests_in_a_row_takes_few_stages() -> None:
    """Node k tests whether the feature is at most k, and goes to its own leaf or on."""
    count = 5000
    leaves = count + 1
    attributes = {
        "nodes_treeids": [0] * (count + leaves), "nodes_nodeids": list(range(count + leaves)),
        "nodes_featureids": [0] * (count + leaves), "nodes_modes": ["BRANCH_LEQ"] * count + ["LEAF"] * leaves,
        "nodes_values": [float(k) for k in range(count)] + [0.0] * leaves,
        "nodes_truenodeids": [count + k for k in range(count)] + [0] * leaves,
        "nodes_falsenodeids": [*range(1, count), count + count] + [0] * leaves,
        "target_treeids": [0] * leaves, "target_nodeids": list(range(count, count + leaves)),
        "target_ids": [0] * leaves, "target_weights": [float(k) for k in range(leaves)], "n_targets": 1,
    }  # fmt: skip
    x = np.array([[-1.0], [0.5], [77.0], [4998.5], [1e9]], np.float32)
    case = ml("chain", "TreeEnsembleRegressor", [x], **attributes)
    got = interpreted(one_node(case), [x])[0].ravel().tolist()
    assert got == [0.0, 1.0, 77.0, 4999.0, 5000.0]


def test_categories_that_are_unknown_are_refused_in_a_run() -> None:
    case = ml("strict", "OneHotEncoder", [np.array([1, 3])], cats_int64s=[1, 2], zeros=0)
    with pytest.raises(fusile.RunError, match="OneHotEncoder_y0"):
        fusile.compile(one_node(case)).run([np.array([1, 3])])
