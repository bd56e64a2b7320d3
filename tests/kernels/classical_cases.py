"""The table of classical models: the operators of ai.onnx.ml that answer numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper
from operator_models import Array, Case

ML = "ai.onnx.ml"
NAN = float("nan")


def f32(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def floats(*values: float, dtype: Any = np.float32) -> Array:
    return np.array(values, dtype)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def spread(count: int, seed: int = 1) -> list[float]:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32).tolist()


def ml(
    name: str, op: str, inputs: Sequence[Array], outputs: int = 1, version: int = 1, **attributes: Any
) -> Case:
    symbolic = attributes.pop("symbolic", True)
    fixed = attributes.pop("fixed", ())
    attributes = {k: v for k, v in attributes.items() if not isinstance(v, list) or v}
    attributes = {
        k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()
    }
    return Case(
        name, op, tuple(inputs), attributes, fixed, outputs, 17, ML, version, symbolic, tolerance=2e-6
    )


X = f32(5, 3)
WIDE = f32(5, 3).astype(np.float64)
WHOLE = np.random.default_rng(3).integers(-4, 5, (5, 3))

PREPARATION = [
    ml("columns", "ArrayFeatureExtractor", [X, i64(2, 0, 2)]),
    ml("columns_of_vector", "ArrayFeatureExtractor", [X[0], i64(1, 2)]),
    ml("columns_constant", "ArrayFeatureExtractor", [X, i64(2, 0)], fixed=(1,), symbolic=False),
    ml("columns_matrix", "ArrayFeatureExtractor", [f32(2, 3, 4), i64(3, 1, 0, 2).reshape(2, 2)]),
    ml("columns_whole", "ArrayFeatureExtractor", [WHOLE, i64(0)]),
    ml("columns_wide", "ArrayFeatureExtractor", [WIDE, i64(0, 1)]),
    ml("default", "Binarizer", [X]),
    ml("threshold", "Binarizer", [X], threshold=0.25),
    ml("features", "FeatureVectorizer", [X, f32(5, 2)], inputdimensions=[3, 2]),
    ml("features_cut_and_filled", "FeatureVectorizer", [X, f32(5, 2)], inputdimensions=[2, 4]),
    ml("features_doubles", "FeatureVectorizer", [WIDE, WIDE], inputdimensions=[3, 3]),
    ml("features_whole", "FeatureVectorizer", [WHOLE], inputdimensions=[3]),
    ml("features_vectors", "FeatureVectorizer", [X[0], X[1]], inputdimensions=[3, 3]),
    ml("features_deep", "FeatureVectorizer", [f32(2, 3, 2)], inputdimensions=[6]),
    ml("one", "Scaler", [X], offset=[0.5], scale=[2.0]),
    ml("each", "Scaler", [X], offset=[0.5, -1.0, 2.0], scale=[2.0, 0.25, -1.0]),
    ml("each_wide", "Scaler", [WIDE], offset=[0.5, -1.0, 2.0], scale=[2.0, 0.1, -1.0]),
    ml("each_whole", "Scaler", [WHOLE], offset=[0.5, -1.0, 2.0], scale=[2.0, 0.1, -1.0]),
    ml("each_int32", "Scaler", [WHOLE.astype(np.int32)], offset=[0.5, -1.0, 2.0], scale=[2.0, 0.1, -1.0]),
    ml("vector", "Scaler", [X[0]], offset=[0.5, -1.0, 2.0], scale=[2.0, 0.25, -1.0]),
    ml("floats", "Imputer", [floats(1, 0, 2, 0).reshape(2, 2)], imputed_value_floats=[5.0, 6.0], replaced_value_float=0.0),
    ml("nan", "Imputer", [floats(1, NAN, NAN, 0).reshape(2, 2)], imputed_value_floats=[5.0, 6.0], replaced_value_float=NAN),
    ml("nan_one", "Imputer", [floats(1, NAN, NAN, 0).reshape(2, 2)], imputed_value_floats=[5.0], replaced_value_float=NAN),
    ml("other_count", "Imputer", [floats(1, NAN, NAN, 0).reshape(2, 2)], imputed_value_floats=[5.0, 6.0, 7.0], replaced_value_float=NAN),
    ml("ints", "Imputer", [i64(1, 0, 2, 0).reshape(2, 2)], imputed_value_int64s=[5, 6], replaced_value_int64=2),
    ml("ints_vector", "Imputer", [i64(1, 0, 2)], imputed_value_int64s=[5, 6, 7], replaced_value_int64=0),
    *(ml(f"norm_{norm}_{x.dtype}", "Normalizer", [x], norm=norm) for norm in ("MAX", "L1", "L2") for x in (X, WIDE, WHOLE, WHOLE.astype(np.int32))),
    ml("vector", "Normalizer", [X[0]], norm="L2"),
    ml("zeros", "Normalizer", [np.zeros((2, 3), np.float32)], norm="L2"),
    ml("zeros_max", "Normalizer", [np.array([[0, -1], [1, 2]], np.float32)], norm="MAX"),
]  # fmt: skip

ENCODERS = [
    ml("ints", "OneHotEncoder", [i64(1, 5, 3, 9)], cats_int64s=[3, 1, 5]),
    ml("matrix", "OneHotEncoder", [WHOLE], cats_int64s=[-1, 0, 1, 2]),
    ml("floats", "OneHotEncoder", [floats(1.5, -1.5, 3, 0.9)], cats_int64s=[1, -1, 0]),
    ml("doubles", "OneHotEncoder", [floats(1.5, -1.5, 3, 0.9, dtype=np.float64)], cats_int64s=[1, -1, 0]),
    ml("repeated", "OneHotEncoder", [i64(1, 2, 3)], cats_int64s=[1, 2, 1]),
    ml("strict", "OneHotEncoder", [i64(1, 2, 2)], cats_int64s=[1, 2], zeros=0),
    ml("one", "OneHotEncoder", [i64(1, 2)], cats_int64s=[2]),
    ml("int_to_int", "LabelEncoder", [i64(1, 5, 3, 9)], version=2, keys_int64s=[1, 5, 3], values_int64s=[7, 8, 9], default_int64=-5),
    ml("int_to_float", "LabelEncoder", [i64(1, 5, 3, 9)], version=2, keys_int64s=[1, 5, 3], values_floats=[0.5, 1.5, 2.5]),
    ml("float_to_int", "LabelEncoder", [floats(1, -0.5, 3, 9)], version=2, keys_floats=[1.0, -0.5, 3.0], values_int64s=[7, 8, 9]),
    ml("float_to_float", "LabelEncoder", [floats(1, -0.5, 3, 9)], version=2, keys_floats=[1.0, -0.5, 3.0], values_floats=[7.0, 8.0, 9.0], default_float=0.25),
    ml("repeated", "LabelEncoder", [i64(1, 2)], version=2, keys_int64s=[1, 2, 1], values_int64s=[7, 8, 9]),
    ml("nan_key", "LabelEncoder", [floats(1, NAN, 3, 9)], version=4, keys_floats=[1.0, NAN], values_int64s=[7, 8]),
    ml("doubles", "LabelEncoder", [floats(1, NAN, 3, dtype=np.float64)], version=4, keys_tensor=floats(NAN, 3, dtype=np.float64), values_tensor=floats(0.25, 0.5, dtype=np.float64), default_tensor=floats(7, dtype=np.float64)),
    ml("int_tensors", "LabelEncoder", [i64(1, 2, 3)], version=4, keys_tensor=i64(3, 1), values_tensor=i64(9, -9), default_tensor=i64(5)),
    ml("many", "LabelEncoder", [i64(*range(-3, 40))], version=2, keys_int64s=list(range(0, 60, 3)), values_int64s=list(range(20))),
]  # fmt: skip

LINEAR = [
    ml(
        f"{transform}_{labels}_{targets}",
        "LinearClassifier",
        [X],
        2,
        coefficients=spread(3 * targets),
        intercepts=spread(targets, 2),
        classlabels_ints=[10, 20, 30, 40][:labels],
        post_transform=transform,
        multi_class=1,
    )
    for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
    for labels, targets in ((3, 3), (2, 2), (2, 1), (0, 1))
    if (transform, labels, targets) != ("PROBIT", 2, 1)  # ONNX Runtime leaves half of the scores unwritten
]
LINEAR += [
    ml("vector", "LinearClassifier", [X[0]], 2, coefficients=spread(9), intercepts=spread(3), classlabels_ints=[0, 1, 2]),
    ml("doubles", "LinearClassifier", [WIDE], 2, coefficients=spread(9), intercepts=spread(3), classlabels_ints=[0, 1, 2]),
    ml("whole", "LinearClassifier", [WHOLE], 2, coefficients=spread(9), intercepts=spread(3), classlabels_ints=[0, 1, 2]),
    ml("ties", "LinearClassifier", [np.zeros((2, 3), np.float32)], 2, coefficients=spread(9), intercepts=[1.0, 1.0, 1.0], classlabels_ints=[5, 6, 7]),
    *(ml(f"{transform}_{targets}", "LinearRegressor", [X], coefficients=spread(3 * targets), intercepts=spread(targets), targets=targets, post_transform=transform)
      for transform in ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT") for targets in (1, 2)),
    ml("bare", "LinearRegressor", [X], coefficients=spread(6), targets=2),
    ml("vector", "LinearRegressor", [X[0]], coefficients=spread(3), intercepts=[0.5], targets=1),
]  # fmt: skip

KERNELS: dict[str, list[float]] = {
    "LINEAR": [0.5, 0.25, 3.0],
    "POLY": [0.5, 0.25, 3.0],
    "RBF": [0.3, 0.0, 3.0],
    "SIGMOID": [0.1, 0.2, 3.0],
}


def svc(
    name: str, classes: int, kernel: str, proba: bool, transform: str = "NONE", x: Array = X, **more: Any
) -> Case:
    sizes = [3, 2, 4, 2][:classes]
    duels = classes * (classes - 1) // 2
    attributes: dict[str, Any] = dict(
        classlabels_ints=[7, 8, 9, 10][:classes], coefficients=spread((classes - 1) * sum(sizes)), kernel_type=kernel,
        kernel_params=KERNELS[kernel], rho=spread(duels, 4), support_vectors=spread(3 * sum(sizes), 5),
        vectors_per_class=sizes, post_transform=transform,
    )  # fmt: skip
    if proba:
        attributes |= {"prob_a": [-v * v - 0.5 for v in spread(duels, 6)], "prob_b": spread(duels, 7)}
    return ml(name, "SVMClassifier", [x], 2, **(attributes | more))


SUPPORT = [
    *(svc(f"{kernel}_{classes}_{proba}", classes, kernel, proba) for kernel in KERNELS for classes in (2, 3, 4) for proba in (False, True)),
    *(svc(f"{transform}_{classes}", classes, "RBF", False, transform) for transform in ("SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO") for classes in (2, 3)),
    svc("doubles", 3, "RBF", True, x=WIDE),
    svc("whole", 3, "RBF", False, x=WHOLE),
    svc("vector", 3, "RBF", True, x=X[0]),
    svc("fourth_power", 2, "POLY", False, kernel_params=[0.5, 3.0, 4.0]),
    svc("square", 3, "POLY", False, kernel_params=[0.5, 0.25, 2.0]),
    *(ml(f"linear_{classes}_{transform}", "SVMClassifier", [X], 2, classlabels_ints=[7, 8, 9][:classes], coefficients=spread(3 * classes), rho=[0.25], kernel_params=[0.0, 0.0, 3.0], post_transform=transform)
      for classes in (2, 3) for transform in ("NONE", "LOGISTIC")),
    ml("linear_positive", "SVMClassifier", [X], 2, classlabels_ints=[7, 8], coefficients=[0.5, 0.25, 0.125, 0.5, 0.5, 1.0], rho=[0.25], kernel_params=[0.0, 0.0, 3.0]),
    *(ml(f"{kernel}_{one}", "SVMRegressor", [X], coefficients=spread(4), kernel_type=kernel, kernel_params=KERNELS[kernel], rho=[0.1], n_supports=4, support_vectors=spread(12), one_class=one)
      for kernel in KERNELS for one in (0, 1)),
    ml("linear", "SVMRegressor", [X], coefficients=spread(3), rho=[0.1], kernel_params=[0.0, 0.0, 3.0]),
]  # fmt: skip

CASES: list[Case] = [*PREPARATION, *ENCODERS, *LINEAR, *SUPPORT]
