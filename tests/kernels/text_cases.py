"""The table of operators on strings, and of classical models whose labels or categories are strings."""

from __future__ import annotations

from typing import Any

import numpy as np
from classical_cases import ML, X, f32, floats, i64, ml, spread
from forest_cases import classifier, forest, samples
from operator_models import Array, Case


def texts(*values: Any) -> Array:
    return np.array(values, object)


def plain(
    name: str, op: str, *inputs: Array, outputs: int = 1, opset: int = 20, domain: str = "", **attributes: Any
) -> Case:
    return Case(name, op, inputs, attributes, (), outputs, opset, domain)


WORDS = texts("Monday", "tuesday", "MONDAY", "wednesday", "x1", "")

STRINGS = [
    plain("vectors", "StringConcat", texts("a", "b"), texts("x", "")),
    plain("broadcast", "StringConcat", texts(["a", "b"], ["c", "d"]), texts("x")),
    plain("scalars", "StringConcat", np.array("a", object), np.array("b", object)),
    plain("nothing", "StringConcat", texts(), texts()),
    plain("spaces", "StringSplit", texts("a b  c", " lead", "", "one"), outputs=2),
    plain("delimiter", "StringSplit", texts("a,b,,c", ",", "x"), outputs=2, delimiter=","),
    plain("most", "StringSplit", texts(["a b c d", "e f"], ["g", "h i j"]), outputs=2, maxsplit=2),
    plain("most_delimiter", "StringSplit", texts("a--b--c", "d"), outputs=2, maxsplit=1, delimiter="--"),
    *(plain(f"{action}_{sensitive}_{len(stops)}", "StringNormalizer", WORDS, case_change_action=action, is_case_sensitive=sensitive, locale="C", **({"stopwords": list(stops)} if stops else {}))
      for action in ("NONE", "LOWER", "UPPER") for sensitive in (0, 1) for stops in ((), ("monday", "x1"))),
    plain("row", "StringNormalizer", WORDS[None], case_change_action="LOWER", stopwords=["monday"], locale="C"),
    plain("all_stopped", "StringNormalizer", texts("a", "A"), stopwords=["a"], locale="C"),
    plain("all_stopped_row", "StringNormalizer", texts(["a", "A"]), stopwords=["a"], locale="C"),
]  # fmt: skip

PATTERNS = [
    plain("plain", "RegexFullMatch", texts("www.google.com", "www.facebook.com", "x"), pattern=r"www\.[\w.-]+\.\bcom\b"),
    plain("address", "RegexFullMatch", texts(["a@b.co", "a@b"], ["", "@"]), pattern=r"(\W|^)[\w.\-]{0,25}@(yahoo|b)\.co(\W|$)"),
    plain("letters", "RegexFullMatch", texts("äé", "a1", ""), pattern=r"\p{L}+"),
    plain("empty", "RegexFullMatch", texts("", "a"), pattern=""),
]  # fmt: skip

GRAMS = {
    "ngram_counts": [0, 3, 7],
    "ngram_indexes": [0, 2, 1, 4, 3, 6, 5],
    "max_skip_count": 0,
}


def tf_idf(name: str, x: Array, pool: list[Any], **more: Any) -> Case:
    key = "pool_strings" if isinstance(pool[0], str) else "pool_int64s"
    attributes = {"mode": "TF", "min_gram_length": 1, "max_gram_length": 2, key: pool, **GRAMS, **more}
    return plain(name, "TfIdfVectorizer", x, opset=9, **attributes)


NUMBERS = [1, 2, 3, 1, 2, 2, 3, 3, 1, 1, 1, 3, 4]
LETTERS = [chr(96 + n) for n in NUMBERS]
COUNTED = np.random.default_rng(0).integers(1, 5, (3, 12))


def counting(kind: str) -> list[Case]:
    strings = kind == "strings"
    pool: list[Any] = list(LETTERS[:11] if strings else NUMBERS[:11])
    x = np.vectorize(lambda n: chr(96 + n), otypes=[object])(COUNTED) if strings else COUNTED
    more = {"ngram_counts": [0, 3], "ngram_indexes": [0, 2, 1, 4, 3, 6, 5]}
    weights = [0.5, 1.5, 2.0, 3.0, 0.25, 1.0, 4.0]
    return [
        *(tf_idf(f"{kind}_{mode}_{skip}", x, pool, mode=mode, max_skip_count=skip, weights=weights, **more)
          for mode in ("TF", "IDF", "TFIDF") for skip in (0, 3)),
        tf_idf(f"{kind}_unweighed", x, pool, mode="IDF", **more),
        tf_idf(f"{kind}_pairs", x, pool, min_gram_length=2, max_skip_count=20, **more),
        tf_idf(f"{kind}_vector", x[0], pool, **more),
        tf_idf(f"{kind}_short", x[:, :1], pool, **more),
    ]  # fmt: skip


GRAMMAR = [
    *counting("strings"),
    *counting("integers"),
    tf_idf("int32", COUNTED.astype(np.int32), NUMBERS[:11], ngram_counts=[0, 3]),
]


def tokens(name: str, x: Array, **attributes: Any) -> Case:
    given = {"mark": 0, "mincharnum": 1, "pad_value": "#", **attributes}
    return plain(name, "Tokenizer", x, domain="com.microsoft", **given)


SENTENCES = texts("a cat, sat;on", "über alles", "", "x")
TOKENS = [
    tokens("characters", SENTENCES, separators=[""]),
    tokens("characters_marked", SENTENCES, separators=[""], mark=1),
    tokens("expression", SENTENCES, tokenexp="[a-zA-Z]+"),
    tokens("expression_long", SENTENCES, tokenexp="[a-z]+", mincharnum=2, mark=1),
    tokens("separators", SENTENCES, separators=[" ", "[,;]"]),
    tokens("separators_long", SENTENCES, separators=["[ ,;]+"], mincharnum=3),
    tokens("matrix", SENTENCES.reshape(2, 2), separators=[" "], mark=1),
    tokens("nothing_left", texts(",", ";"), separators=["[,;]"], mark=1),
]

NAMES = ["ams", "ber", "par"]
LABELS = [
    ml("strings_to_ints", "LabelEncoder", [texts("ber", "x", "ams")], version=2, keys_strings=NAMES, values_int64s=[5, 6, 7], default_int64=-9),
    ml("ints_to_strings", "LabelEncoder", [i64(2, 9, 1)], version=2, keys_int64s=[1, 2, 3], values_strings=NAMES, default_string="?"),
    ml("floats_to_strings", "LabelEncoder", [floats(2.5, np.nan, 1)], version=2, keys_floats=[2.5, 2.0, 3.0], values_strings=NAMES),
    ml("strings_to_floats", "LabelEncoder", [texts(["ber", "x"], ["par", ""])], version=2, keys_strings=NAMES, values_floats=[0.5, 1.5, 2.5]),
    ml("strings_to_strings", "LabelEncoder", [texts("ber", "x")], version=2, keys_strings=NAMES, values_strings=["A", "B", "C"]),
    ml("repeated", "LabelEncoder", [texts("ber", "x")], version=2, keys_strings=["ber", "ber"], values_int64s=[1, 2]),
    ml("nan_to_string", "LabelEncoder", [floats(np.nan, 1)], version=4, keys_floats=[float("nan"), 2.0], values_strings=["lost", "two"]),
    ml("classes_encoded", "LabelEncoder", [texts("par", "x")], classes_strings=NAMES),
    ml("classes_decoded", "LabelEncoder", [i64(1, 7)], classes_strings=NAMES),
    ml("to_ints", "CategoryMapper", [texts("ber", "x")], cats_strings=NAMES, cats_int64s=[4, 5, 6], default_int64=-7),
    ml("to_strings", "CategoryMapper", [i64(5, 1)], cats_strings=NAMES, cats_int64s=[4, 5, 6], default_string="none"),
    ml("strings", "OneHotEncoder", [texts("ber", "x", "par")], cats_strings=NAMES),
    ml("strings_matrix", "OneHotEncoder", [texts(["ber"], ["ams"])], cats_strings=[*NAMES, "ber"]),
    ml("strings", "ArrayFeatureExtractor", [texts(["a", "b", "c"], ["d", "e", "f"]), i64(2, 0)]),
    ml("strings_vector", "ArrayFeatureExtractor", [texts("a", "b", "c"), i64(2, 0)]),
]  # fmt: skip


def named(case: Case, integers: str, names: list[str]) -> Case:
    """The same classifier with labels that are strings."""
    attributes = {k: v for k, v in case.attributes.items() if k != integers}
    return Case(
        case.name,
        case.op,
        case.inputs,
        {**attributes, "classlabels_strings": names},
        (),
        2,
        17,
        ML,
        case.version,
    )


NAMED = [
    named(classifier("named", samples(9), forest(5, 3), [0, 1, 2], (0, 1, 2), 3), "classlabels_int64s", NAMES),
    named(classifier("named_two", samples(9), forest(5, 3), [0, 1], (0,)), "classlabels_int64s", NAMES[:2]),
    named(classifier("named_two_both", samples(9), forest(5, 3), [0, 1], (0, 1), 2), "classlabels_int64s", NAMES[:2]),
    named(ml("named", "LinearClassifier", [X], 2, coefficients=spread(9), intercepts=spread(3)), "classlabels_ints", NAMES),
    named(ml("named_one_score", "LinearClassifier", [X], 2, coefficients=spread(3), intercepts=spread(1)), "classlabels_ints", NAMES[:2]),
    named(ml("named", "SVMClassifier", [f32(4, 3)], 2, coefficients=spread(10), kernel_type="RBF", kernel_params=[0.3, 0.0, 3.0], rho=spread(3), support_vectors=spread(15), vectors_per_class=[2, 1, 2]), "classlabels_ints", NAMES),
]  # fmt: skip

CASES: list[Case] = [*STRINGS, *GRAMMAR, *LABELS, *NAMED]
BY_PATTERN: list[Case] = [*PATTERNS, *TOKENS]
