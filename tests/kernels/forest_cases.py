"""The table of tree ensembles, grown at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from classical_cases import ml
from onnx import numpy_helper
from operator_models import Array, Case

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
FEATURES = 4


def samples(count: int, seed: int = 0, dtype: Any = np.float32, missing: bool = False) -> Array:
    """Multiples of a half, so that thresholds are met exactly; some NaN."""
    random = np.random.default_rng([seed, count])
    x = random.integers(-4, 5, (count, FEATURES)).astype(np.float64)
    if np.dtype(dtype).kind == "f":
        x /= 2
    if missing:
        x[random.random(x.shape) < 0.2] = np.nan
    return x.astype(dtype)


def forest(
    trees: int,
    depth: int,
    modes: Sequence[str] = MODES[:1],
    seed: int = 0,
    missing: bool = False,
) -> dict[str, list[Any]]:
    """Nodes of random trees in the attributes of the old operators, parents before children."""
    random = np.random.default_rng([seed, trees, depth])
    out: dict[str, list[Any]] = {
        "nodes_" + k: []
        for k in ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    }
    for t in range(trees):
        first = len(out["nodes_modes"])

        def grow(left: int, t: int = t, first: int = first) -> int:
            here = len(out["nodes_modes"])
            leaf = left == 0 or (left < depth and random.random() < 0.25)
            out["nodes_treeids"].append(t)
            out["nodes_nodeids"].append(here - first)
            out["nodes_featureids"].append(0 if leaf else int(random.integers(FEATURES)))
            out["nodes_modes"].append("LEAF" if leaf else str(random.choice(list(modes))))
            out["nodes_values"].append(0.0 if leaf else float(random.integers(-3, 4) / 2))
            out["nodes_truenodeids"].append(0)
            out["nodes_falsenodeids"].append(0)
            if not leaf:
                out["nodes_falsenodeids"][here] = grow(left - 1) - first
                out["nodes_truenodeids"][here] = grow(left - 1) - first
            return here

        grow(depth)
    if missing:
        out["nodes_missing_value_tracks_true"] = random.integers(0, 2, len(out["nodes_modes"])).tolist()
    return out


def weighed(
    nodes: dict[str, list[Any]],
    prefix: str,
    targets: Sequence[int],
    each: int = 1,
    positive: bool = False,
    seed: int = 9,
) -> dict[str, Any]:
    """Weights for the leaves: `each` of them in a leaf, for targets in turn."""
    random = np.random.default_rng(seed)
    out: dict[str, list[Any]] = {f"{prefix}_{k}": [] for k in ("treeids", "nodeids", "ids", "weights")}
    turn = 0
    for k, mode in enumerate(nodes["nodes_modes"]):
        for _ in range(each if mode == "LEAF" else 0):
            out[f"{prefix}_treeids"].append(nodes["nodes_treeids"][k])
            out[f"{prefix}_nodeids"].append(nodes["nodes_nodeids"][k])
            out[f"{prefix}_ids"].append(targets[turn % len(targets)])
            w = float(np.float32(random.normal()))
            out[f"{prefix}_weights"].append(abs(w) / 4 if positive else w)
            turn += 1
    return {**nodes, **out}


def regressor(
    name: str, x: Array, nodes: dict[str, Any], targets: Sequence[int] = (0,), each: int = 1, **more: Any
) -> Case:
    attributes = {**weighed(nodes, "target", targets, each), "n_targets": max(targets) + 1, **more}
    return ml(name, "TreeEnsembleRegressor", [x], **attributes)


def classifier(
    name: str,
    x: Array,
    nodes: dict[str, Any],
    labels: Sequence[int],
    classes: Sequence[int],
    each: int = 1,
    positive: bool = False,
    **more: Any,
) -> Case:
    attributes = {
        **weighed(nodes, "class", classes, each, positive),
        "classlabels_int64s": list(labels),
        **more,
    }
    return ml(name, "TreeEnsembleClassifier", [x], 2, **attributes)


X = samples(7)
LOST = samples(9, missing=True)
AGGREGATES = ("SUM", "AVERAGE", "MIN", "MAX")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")

REGRESSORS = [
    *(regressor(mode, X, forest(3, 4, [mode])) for mode in MODES),
    *(regressor(f"{mode}_missing", LOST, forest(3, 4, [mode], missing=True)) for mode in MODES),
    *(regressor(f"{mode}_nan", LOST, forest(3, 4, [mode])) for mode in MODES),
    regressor("mixed", X, forest(5, 5, MODES)),
    regressor("mixed_missing", LOST, forest(5, 5, MODES, missing=True)),
    regressor("mixed_nan", LOST, forest(5, 5, MODES)),
    *(regressor(f"{a}_{transform}_1", X, forest(5, 3), aggregate_function=a, post_transform=transform, base_values=[0.3]) for a in AGGREGATES for transform in TRANSFORMS),
    *(regressor(f"{a}_{transform}_3", X, forest(5, 3), (0, 1, 2), 3, aggregate_function=a, post_transform=transform, base_values=[0.3, -0.2, 0.1]) for a in AGGREGATES for transform in TRANSFORMS[:4]),
    *(regressor(f"{a}_sparse", X, forest(3, 2), (0, 2, 1), 1, aggregate_function=a) for a in AGGREGATES),
    *(regressor(f"{a}_never", X, forest(3, 2), (0, 2), 1, aggregate_function=a, base_values=[1.0, 2.0, 3.0]) for a in AGGREGATES),
    regressor("leaves_alone", X, forest(4, 0)),
    regressor("one_tree", X, forest(1, 6)),
    regressor("deep", X, forest(2, 20)),
    regressor("many", X, forest(120, 3)),
    regressor("one_sample", samples(1), forest(30, 4)),
    regressor("no_sample", np.zeros((0, FEATURES), np.float32), forest(3, 3)),
    regressor("doubles", samples(7, dtype=np.float64), forest(9, 4), version=3),
    regressor("several_in_a_leaf", X, forest(3, 3), (0, 0), 2),
]  # fmt: skip


def as_tensors(case: Case, name: str) -> Case:
    """The same model with its numbers in tensors of doubles."""
    attributes = dict(case.attributes)
    prefix = "class" if "class_ids" in attributes else "target"
    for old in ("nodes_values", f"{prefix}_weights", "base_values"):
        if old in attributes:
            held = np.array(attributes.pop(old), np.float64) * (1 + 1e-9)
            attributes[old + "_as_tensor"] = numpy_helper.from_array(held)
    return Case(
        name,
        case.op,
        (samples(7, dtype=np.float64),),
        attributes,
        (),
        case.outputs,
        17,
        case.domain,
        3,
        tolerance=2e-6,
    )


TENSORS = [
    as_tensors(regressor("", X, forest(9, 4), base_values=[0.25]), "tensors"),
    as_tensors(classifier("", X, forest(9, 4), [3, 4, 5], (0, 1, 2), 3), "tensors"),
]

CLASSIFIERS = [
    *(classifier(f"{transform}_all_{base}", X, forest(5, 3), [7, 5, 9], (0, 1, 2), 3, post_transform=transform, base_values=base)
      for transform in TRANSFORMS[:4] for base in ([], [0.3, -0.2, 0.1])),
    classifier("sparse", X, forest(3, 2), [7, 5, 9], (0, 2, 1), 1),
    classifier("sparse_negative", X, forest(2, 3), [7, 5, 9, 1], (3, 1, 2), 1, base_values=[]),
    classifier("never", X, forest(3, 2), [7, 5, 9], (1, 2), 1),
    classifier("probabilities", samples(40), forest(60, 4), list(range(6)), tuple(range(6)), 6, positive=True),
    *(classifier(f"two_{transform}_{'positive' if positive else 'mixed'}_{''.join(map(str, classes))}_{len(base)}", X, forest(5, 3), [7, 5], classes, len(classes),
                 positive=positive, post_transform=transform, base_values=base)
      for transform in TRANSFORMS[:4] for positive in (False, True) for classes in ((0,), (1,), (0, 1)) for base in ([], [0.25], [0.25, 0.25])),
    classifier("two_uncertain", samples(20), forest(1, 4), [0, 1], (0, 1), 1),
    classifier("two_uncertain_based", samples(20), forest(1, 4), [0, 1], (0, 1), 1, base_values=[0.1, 0.2]),
    classifier("mixed_missing", LOST, forest(5, 5, MODES, missing=True), [0, 1, 2], (0, 1, 2), 3),
    classifier("doubles", samples(7, dtype=np.float64), forest(9, 4), [0, 1, 2], (0, 1, 2), 3),
    classifier("int64", samples(7, dtype=np.int64), forest(9, 4), [0, 1, 2], (0, 1, 2), 3),
    classifier("one_sample", samples(1), forest(30, 4), [0, 1, 2], (0, 1, 2), 3),
]  # fmt: skip


def ensemble(
    name: str,
    x: Array,
    trees: int,
    depth: int,
    targets: int = 1,
    members: bool = False,
    missing: bool = False,
    seed: int = 1,
    **more: Any,
) -> Case:
    """A TreeEnsemble, in which branches and leaves are in lists of their own."""
    random = np.random.default_rng([seed, trees, depth])
    nodes: list[list[Any]] = []
    leaves: list[tuple[int, float]] = []
    roots, lists = [], []

    def grow(left: int) -> tuple[int, int]:
        if left == 0 or (left < depth and random.random() < 0.25):
            leaves.append((int(random.integers(targets)), float(np.float32(random.normal()))))
            return len(leaves) - 1, 1
        here = len(nodes)
        mode = int(random.integers(7 if members else 6))
        nodes.append(
            [mode, int(random.integers(FEATURES)), float(random.integers(-3, 4) / 2), int(random.integers(2))]
        )
        if mode == 6:
            lists.extend([*(1 + random.choice(5, random.integers(1, 4), replace=False)).tolist(), np.nan])
        nodes[here] += [*grow(left - 1)]
        nodes[here] += [*grow(left - 1)]
        return here, 0

    for _ in range(trees):
        roots.append(len(nodes))
        grow(depth)
    mode, feature, split, nan, yes, yes_leaf, no, no_leaf = (list(c) for c in zip(*nodes))
    attributes: dict[str, Any] = dict(
        n_targets=targets, tree_roots=roots, nodes_modes=np.array(mode, np.uint8), nodes_featureids=feature,
        nodes_splits=np.array(split, x.dtype), nodes_truenodeids=yes, nodes_trueleafs=yes_leaf,
        nodes_falsenodeids=no, nodes_falseleafs=no_leaf, leaf_targetids=[t for t, _ in leaves],
        leaf_weights=np.array([w for _, w in leaves], x.dtype),
    )  # fmt: skip
    if members:
        attributes["membership_values"] = np.array(lists, x.dtype)
    if missing:
        attributes["nodes_missing_value_tracks_true"] = nan
    return ml(name, "TreeEnsemble", [x], version=5, **(attributes | more))


ENSEMBLES = [
    ensemble("plain", X, 4, 4),
    ensemble("targets", X, 4, 4, 3),
    ensemble("members", samples(30), 4, 4, members=True),
    ensemble("members_doubles", samples(30, dtype=np.float64), 4, 4, 2, members=True),
    ensemble("missing", LOST, 4, 4, missing=True, members=True),
    *(ensemble(f"aggregate_{a}", X, 4, 3, 2, aggregate_function=a) for a in range(4)),
    *(ensemble(f"transform_{t}", X, 4, 3, 3, post_transform=t) for t in (0, 3)),
]

CASES: list[Case] = [*REGRESSORS, *CLASSIFIERS, *TENSORS, *ENSEMBLES]
