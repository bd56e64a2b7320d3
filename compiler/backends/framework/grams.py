"""The row of TfIdfVectorizer: it is the same in both frameworks."""

from __future__ import annotations

from fusile.backends.framework.code import Code, Plain
from fusile.backends.framework.site import Site


def count_grams(n: Site) -> Code:
    """How often the known sequences of items occur, weighed where asked."""
    strings = n.node.attributes.get("pool_strings")
    pool: list[Plain] = [*strings.value] if strings is not None else [*n.integers("pool_int64s")]
    starts, places = n.integers("ngram_counts"), n.integers("ngram_indexes")
    ends = [*starts[1:], len(pool)]
    grams: list[Plain] = []
    columns: list[Plain] = []
    at = 0
    for length, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        count = (end - start) // length
        known = [pool[start + k * length : start + (k + 1) * length] for k in range(count)]
        if known and n.integer("min_gram_length", 1) <= length <= n.integer("max_gram_length", length):
            grams.append(known)
            columns.append(places[at : at + count])
        at += count
    size = max(places, default=-1) + 1
    out = n.helper("count_grams")(n.tensor(0), grams, columns, size, n.integer("max_skip_count"))
    mode, held = n.string("mode", "TF"), n.node.attributes.get("weights")
    scale: list[float] = [1.0] * size
    for place, weight in zip(places, held.as_floats() if held is not None else (), strict=False):
        scale[place] = weight
    if mode == "TF":
        return out
    made = n.helper("weigh_grams")(out, [float(w) for w in scale], mode == "IDF")
    return made
