"""Decision trees as tables: one form for what the tree operators say in three ways, checked once.

Leaves come first, then branches. A sample walks by `child[node, case]`, where the case is how its feature
compares with the node's threshold; leaves are their own children, so that walking on changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusile.kernels.registry import Malformed, Unsupported

BELOW, EQUAL, ABOVE, UNORDERED = range(4)
"""The cases of a comparison."""

_HOLDS: dict[str, tuple[int, int, int, int]] = {
    "BRANCH_LEQ": (1, 1, 0, 0),
    "BRANCH_LT": (1, 0, 0, 0),
    "BRANCH_GTE": (0, 1, 1, 0),
    "BRANCH_GT": (0, 0, 1, 0),
    "BRANCH_EQ": (0, 1, 0, 0),
    "BRANCH_NEQ": (1, 0, 1, 1),
}
"""For which cases a test holds: below, equal, above, unordered (a NaN)."""
MODES = (*_HOLDS, "BRANCH_MEMBER")
"""The modes in the order of their numbers in TreeEnsemble."""
LEAF = "LEAF"

MOST_WEIGHTS = 1 << 27
"""Elements of a table of weights."""


@dataclass(frozen=True, slots=True)
class Forest:
    """`feature` and `threshold` by node, `child` [nodes, 4], `roots` by tree; `leaves` nodes are leaves;
    `depth` tests lead to the deepest. `uniform` is the mode of all branches, if they have one and none sends
    a NaN elsewhere than it says. `weights` has a row (leaf, target, weight) for everything that a leaf says,
    in order; `fallback` by leaf is what one that says nothing counts.
    """

    feature: np.ndarray
    threshold: np.ndarray
    child: np.ndarray
    roots: np.ndarray
    leaves: int
    depth: int
    uniform: str | None
    weight_leaf: np.ndarray
    weight_target: np.ndarray
    weight: np.ndarray
    fallback: np.ndarray

    @property
    def trees(self) -> int:
        return len(self.roots)

    @property
    def last_feature(self) -> int:
        return int(self.feature.max(initial=0))


@dataclass(slots=True)
class Nodes:
    """Nodes as an operator lists them, with positions in these lists as ids; `yes` and `no` count for
    branches alone. `nan_yes` says where a NaN goes on as if the test held.
    """

    mode: list[str]
    feature: np.ndarray
    threshold: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    nan_yes: np.ndarray


def build(
    nodes: Nodes, roots: Sequence[int], targets: tuple[np.ndarray, np.ndarray, np.ndarray], dtype: type
) -> Forest:
    """The tables of a forest; `targets` are (node, target, weight) in order, those of branches without
    effect.

    Raises Malformed for unknown modes, ids out of range, cycles and negative features.
    """
    count = len(nodes.mode)
    unknown = set(nodes.mode) - set(_HOLDS) - {LEAF}
    if unknown:
        raise Malformed(f"unknown mode of a node: {sorted(unknown)[0]!r}")
    is_leaf = np.array([m == LEAF for m in nodes.mode], bool)
    branch = np.flatnonzero(~is_leaf)
    for what, ids in (("true", nodes.yes[branch]), ("false", nodes.no[branch])):
        if ids.size and (ids.min() < 0 or ids.max() >= count):
            raise Malformed(f"a {what} branch leads to node {_first_outside(ids, count)}, which there is not")
    if branch.size and (nodes.feature[branch].min() < 0 or nodes.feature[branch].max() >= 1 << 31):
        raise Malformed("a node tests a feature of an impossible number")
    order = np.concatenate([np.flatnonzero(is_leaf), branch])
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    leaves = count - branch.size
    child = np.repeat(np.arange(count)[:, None], 4, axis=1)
    holds = np.array([_HOLDS[nodes.mode[k]] for k in branch], bool).reshape(-1, 4)
    holds[:, UNORDERED] |= nodes.nan_yes[branch]
    child[leaves:] = np.where(holds, place[nodes.yes[branch]][:, None], place[nodes.no[branch]][:, None])
    modes = {nodes.mode[k] for k in branch}
    feature = np.zeros(count, np.int64)
    threshold: np.ndarray = np.zeros(count, dtype)
    feature[leaves:] = nodes.feature[branch]
    threshold[leaves:] = nodes.threshold[branch]
    node, target, weight = targets
    told = is_leaf[node]
    return Forest(
        feature,
        threshold,
        child,
        place[np.asarray(roots, np.int64)],
        leaves,
        _depth(child, leaves),
        modes.pop() if len(modes) == 1 and not nodes.nan_yes[branch].any() else None,
        place[node[told]],
        target[told],
        weight[told].astype(dtype),
        nodes.threshold[order[:leaves]].astype(dtype),
    )


def _first_outside(ids: np.ndarray, count: int) -> int:
    return int(ids[(ids < 0) | (ids >= count)][0])


def _depth(child: np.ndarray, leaves: int) -> int:
    """The most tests on any way. Raises Malformed where a way does not end.

    Every round strikes off the branches whose children are all done, which takes as many rounds as the way
    is long and time for each edge once.
    """
    count = len(child)
    edges = np.unique(np.repeat(np.arange(leaves, count), 4) * count + child[leaves:].ravel())
    starts, ends = edges // count, edges % count
    by_end = np.argsort(ends, kind="stable")
    parents = starts[by_end]
    first = np.searchsorted(ends[by_end], np.arange(count + 1))
    waiting = np.bincount(starts - leaves, minlength=count - leaves)
    depth = np.zeros(count, np.int64)
    done, pending = leaves, list(range(leaves))
    left = waiting.tolist()
    while pending:
        node = pending.pop()
        for parent in parents[first[node] : first[node + 1]].tolist():
            depth[parent] = max(depth[parent], depth[node] + 1)
            left[parent - leaves] -= 1
            if not left[parent - leaves]:
                done += 1
                pending.append(parent)
    if done != count:
        raise Malformed("the nodes of a tree lead in a circle")
    return int(depth.max(initial=0))


# ---- what the operators say ----------------------------------------------------------------------


def _column(values: Sequence[float] | np.ndarray | None, count: int, what: str, dtype: type) -> np.ndarray:
    array: np.ndarray = np.zeros(0, dtype) if values is None else np.asarray(values, dtype).ravel()
    if array.size != count:
        raise Malformed(f"{array.size} {what} for {count} nodes")
    return array


def _flags(values: Sequence[int], count: int) -> np.ndarray:
    """Flags by node; those that a shorter list leaves out are off."""
    out = np.zeros(count, bool)
    given = np.asarray(values, np.int64)[:count]
    out[: given.size] = given == 1
    return out


def of_numbered_nodes(
    dtype: type,
    *,
    modes: Sequence[str],
    tree_ids: Sequence[int],
    node_ids: Sequence[int],
    features: Sequence[int],
    thresholds: Sequence[float] | np.ndarray | None,
    yes: Sequence[int],
    no: Sequence[int],
    missing: Sequence[int],
    target_trees: Sequence[int],
    target_nodes: Sequence[int],
    targets: Sequence[int],
    weights: Sequence[float] | np.ndarray | None,
) -> Forest:
    """The forest of TreeEnsembleRegressor and TreeEnsembleClassifier: nodes are named by a tree's number and
    one within it, and the first node of every run of a tree is its root.
    """
    count = len(modes)
    trees = _column(tree_ids, count, "tree ids", np.int64)
    numbers = _column(node_ids, count, "node ids", np.int64)
    places = {key: k for k, key in enumerate(zip(trees.tolist(), numbers.tolist(), strict=True))}
    if len(places) != count:
        raise Malformed("two nodes of a tree have one number")
    is_leaf = np.array([m == LEAF for m in modes], bool)

    def resolved(ids: Sequence[int], what: str) -> np.ndarray:
        found = _column(ids, count, what, np.int64)
        keys = zip(trees.tolist(), found.tolist(), is_leaf.tolist(), strict=True)
        return np.array([0 if leaf else places.get((t, i), -1) for t, i, leaf in keys], np.int64)

    nodes = Nodes(
        list(modes),
        _column(features, count, "features", np.int64),
        _column(thresholds, count, "values", dtype),
        resolved(yes, "true branches"),
        resolved(no, "false branches"),
        _flags(missing, count),
    )
    roots = (
        np.flatnonzero(np.concatenate([[True], trees[1:] != trees[:-1]])) if count else np.empty(0, np.int64)
    )
    said = len(targets)
    keys = list(zip(target_trees, target_nodes, strict=False))
    weight: np.ndarray = np.zeros(0, dtype) if weights is None else np.asarray(weights, dtype).ravel()
    if not len(target_trees) == len(target_nodes) == said == weight.size:
        raise Malformed(f"{said} targets, {weight.size} weights and {len(keys)} nodes for them")
    at = [places.get(key, -1) for key in keys]
    if -1 in at:
        tree, node = keys[at.index(-1)]
        raise Malformed(f"a weight belongs to node {node} of tree {tree}, which there is not")
    return build(
        nodes, roots.tolist(), (np.array(at, np.int64), np.asarray(targets, np.int64), weight), dtype
    )


def of_roots(
    dtype: type,
    *,
    roots: Sequence[int],
    modes: np.ndarray,
    features: Sequence[int],
    thresholds: np.ndarray,
    yes: Sequence[int],
    no: Sequence[int],
    yes_leaf: Sequence[int],
    no_leaf: Sequence[int],
    missing: Sequence[int],
    members: np.ndarray | None,
    targets: Sequence[int],
    weights: np.ndarray,
) -> Forest:
    """The forest of TreeEnsemble: branches and leaves in lists of their own. A test of membership becomes a
    chain of tests for equality.
    """
    count = len(features)
    kinds = _column(modes, count, "modes", np.int64)
    if kinds.size and (kinds.min() < 0 or kinds.max() >= len(MODES)):
        raise Malformed(f"a node has mode {_first_outside(kinds, len(MODES))}")
    split = _column(thresholds, count, "splits", dtype).copy()
    feature = _column(features, count, "features", np.int64)
    weight: np.ndarray = np.asarray(weights, dtype).ravel()
    leaves = weight.size
    if len(targets) != leaves:
        raise Malformed(f"{len(targets)} targets for {leaves} leaves")
    top = _column(roots, len(roots), "roots", np.int64)
    if top.size and (top.min() < 0 or top.max() >= count):
        raise Malformed(f"a tree starts at node {_first_outside(top, count)}, which there is not")
    # Chains of equalities come after the branches and before the leaves.
    links = _chains(kinds, members, dtype)
    extra = sum(len(v) - 1 for v in links.values())
    total = count + extra

    def resolved(ids: Sequence[int], leaf: Sequence[int], what: str) -> np.ndarray:
        found, ends = (
            _column(ids, count, what, np.int64),
            _column(leaf, count, what + " marks", np.int64) != 0,
        )
        bad = (found < 0) | (found >= np.where(ends, leaves, count))
        if bad.any():
            raise Malformed(f"the {what} {found[bad][0]} of a node is none that there is")
        return np.where(ends, found + total, found)

    to_yes, to_no = resolved(yes, yes_leaf, "true branch"), resolved(no, no_leaf, "false branch")
    names = [MODES[k] for k in kinds.tolist()]
    nan_yes = _flags(missing, count)
    more: list[tuple[int, float, int, int]] = []
    for k, values in links.items():
        names[k], split[k] = "BRANCH_EQ", values[0]
        last, at = to_no[k], k
        for v in values[1:]:
            here = count + len(more)
            if at == k:
                to_no[k] = here
            else:
                more[-1] = (*more[-1][:3], here)
            more.append((k, v, int(to_yes[k]), int(last)))
            at = here
    owner = np.array([k for k, *_ in more], np.int64)

    def joined(own: np.ndarray, chain: Sequence[float] | np.ndarray, fill: float = 0) -> np.ndarray:
        return np.concatenate([own, np.asarray(chain, own.dtype), np.full(leaves, fill, own.dtype)])

    nodes = Nodes(
        [*names, *["BRANCH_EQ"] * extra, *[LEAF] * leaves],
        joined(feature, feature[owner]),
        joined(split, [v for _, v, _, _ in more]),
        joined(to_yes, [y for _, _, y, _ in more]),
        joined(to_no, [n for _, _, _, n in more]),
        joined(nan_yes, nan_yes[owner]),
    )
    said = (np.arange(total, total + leaves), np.asarray(targets, np.int64), weight)
    return build(nodes, top.tolist(), said, dtype)


def _chains(kinds: np.ndarray, members: np.ndarray | None, dtype: type) -> dict[int, list[float]]:
    """The members by node that tests for them; each list ends with a NaN."""
    values: np.ndarray = np.zeros(0, dtype) if members is None else np.asarray(members, dtype).ravel()
    groups: list[list[float]] = [[]]
    for v in values.tolist():
        if v != v:
            groups.append([])
        else:
            groups[-1].append(v)
    asking = np.flatnonzero(kinds == MODES.index("BRANCH_MEMBER")).tolist()
    found: dict[int, list[float]] = {}
    for k, node in enumerate(asking):
        if k >= len(groups) or not groups[k]:
            raise Malformed(f"node {node} tests for membership and lists no members")
        found[node] = groups[k]
    return found


# ---- what leaves say -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """What leaves say about targets: `dense` [leaves, targets], or up to a few (target, weight) of each leaf
    as `slot_target` and `slot_weight` [leaves, slots], -1 for none. `always` by target: whether a tree says
    something about it for every sample.
    """

    dense: np.ndarray | None
    slot_target: np.ndarray | None
    slot_weight: np.ndarray | None
    has: np.ndarray | None
    always: np.ndarray
    never: np.ndarray


def said_of(forest: Forest, targets: int, fill: float = 0.0) -> Said:
    """The weights of leaves by target; `fill` stands where nothing is said. Raises Malformed for a target
    that there is not, Unsupported where the table would be too large.
    """
    at, which, weight = forest.weight_leaf, forest.weight_target, forest.weight
    if which.size and (which.min() < 0 or which.max() >= targets):
        raise Malformed(f"a leaf counts for {_first_outside(which, targets)} of {targets}")
    slots = int(np.bincount(at, minlength=1).max(initial=0))
    if forest.leaves * targets <= max(4 * weight.size, 1 << 16):
        has = np.zeros((forest.leaves, targets), bool)
        has[at, which] = True
        dense = np.zeros(has.shape, weight.dtype)
        np.add.at(dense, (at, which), weight)
        dense[~has] = fill
        always, never = _certain(forest, has)
        return Said(dense, None, None, has, always, never)
    if forest.leaves * slots > MOST_WEIGHTS or slots > 32:
        raise Unsupported(f"{targets} targets with up to {slots} weights in each of {forest.leaves} leaves")
    order = np.argsort(at, kind="stable")
    at, which, weight = at[order], which[order], weight[order]
    slot = np.arange(at.size) - np.searchsorted(at, at)
    slot_target = np.full((forest.leaves, slots), -1, np.int64)
    slot_weight = np.zeros((forest.leaves, slots), weight.dtype)
    slot_target[at, slot], slot_weight[at, slot] = which, weight
    return Said(None, slot_target, slot_weight, None, np.zeros(targets, bool), np.zeros(targets, bool))


def _certain(forest: Forest, has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per target: whether some tree always says something about it, and whether none ever does."""
    tree = _tree_of_leaf(forest)
    if tree is None:
        return np.zeros(has.shape[1], bool), np.asarray(~has.any(axis=0))
    reached = tree >= 0
    silent = np.zeros((forest.trees, has.shape[1]), bool)
    np.logical_or.at(silent, tree[reached], ~has[reached])
    return np.asarray((~silent).any(axis=0)), np.asarray(~has[reached].any(axis=0))


def _tree_of_leaf(forest: Forest) -> np.ndarray | None:
    """The tree of every leaf, -1 for one that no tree leads to; None where trees share nodes."""
    children, roots = forest.child.tolist(), forest.roots.tolist()
    tree = [-1] * len(children)
    pending = []
    for t, root in enumerate(roots):
        if tree[root] != -1:
            return None
        tree[root] = t
        pending.append(root)
        while pending:
            for node in children[pending.pop()]:
                if tree[node] == -1:
                    tree[node] = t
                    pending.append(node)
                elif tree[node] != t:
                    return None
    return np.array(tree[: forest.leaves], np.int64)
