"""Any opset to the one canonical form: rules by version, defaults filled in, constants as initialisers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from itertools import groupby

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from fusile.errors import Gap, InvalidModelError, UnsupportedError, show_name, show_names
from fusile.frontend import gradients, rules_contrib, rules_ml, rules_nn, rules_tensor
from fusile.frontend.inline import inline_functions, normal_imports, stamp_versions, take_over
from fusile.frontend.names import Names, all_graphs, settle_names, sort_nodes
from fusile.frontend.rules import CANONICAL_OPSET, Rule, Site, add_initializer, gap
from fusile.frontend.types import declare_missing
from fusile.graph.opsets import keep_file_opsets

_ML = "ai.onnx.ml"
_IR_VERSION = 10  # older files must list their initialisers among the inputs

# Operators whose rules look at ranks or types, and the version from which they no longer apply.
_NEED_RANKS = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), 13),
    **dict.fromkeys(rules_tensor.ARITHMETIC, 7),
    "PRelu": 7,
    "Clip": 11,
    "Pad": 11,
    "LabelEncoder": 2,
}
_OLD_TREES = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})


@functools.cache
def _rules() -> Mapping[tuple[str, str], tuple[Rule, ...]]:
    """The rules of each operator, oldest first."""
    rows = (*rules_tensor.RULES, *rules_nn.RULES, *rules_contrib.RULES, *rules_ml.RULES)
    every = sorted(rows, key=lambda rule: (rule.domain, rule.op_type))
    grouped = groupby(every, key=lambda rule: (rule.domain, rule.op_type))
    return {name: tuple(sorted(group, key=lambda rule: rule.before)) for name, group in grouped}


def rewritten_operators() -> frozenset[tuple[str, str]]:
    """The operators that the canonical form may express by others, by domain and name."""
    return frozenset(_rules())


def rewritten(domain: str, op_type: str) -> bool:
    """Whether the canonical form may express an operator by others."""
    return (domain, op_type) in _rules()


def canonicalise(model: ir.Model) -> None:
    """Bring a model to the canonical form, in place.

    Raises InvalidModelError where it breaks ONNX's rules, UnsupportedError with every gap at once where
    an old operator has no newer form, UnsafeModelError where inlining its functions would explode.
    """
    _check_values(model)
    gradients.tie(model)
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        sort_nodes(graph)  # functions cannot be copied, nor types be inferred, in any other order
    _stamp(model)
    keep_file_opsets(model, model.graph.opset_imports)
    inline_functions(model)
    names = Names(model)
    _name_nodes(model, names)
    _lift_initializers(model, names)
    lift_constants(model, names, list(model.graph.all_nodes()))
    if any(_lacks_rank(node) for node in model.graph.all_nodes()):
        declare_missing(model)
    canonicalise_nodes(model, list(model.graph.all_nodes()), names)
    imports = _imports(model)
    for graph in all_graphs(model):
        graph.opset_imports.clear()
    model.graph.opset_imports.update(imports)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    settle_names(model)
    sort_nodes(model.graph)


def canonicalise_nodes(model: ir.Model, nodes: Iterable[ir.Node], names: Names) -> list[ir.Node]:
    """Bring `nodes`, stamped with their versions, to the canonical form, in place; what they are now."""
    gaps: list[Gap] = []
    done: list[ir.Node] = []
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        try:
            waiting += _canonicalise_node(node, model, names)
        except UnsupportedError as error:
            gaps += error.gaps
        if node.graph is not None:
            done.append(node)
    if gaps:
        raise UnsupportedError(gaps, "The model uses old operators in ways that have no newer form")
    return done


def _canonicalise_node(node: ir.Node, model: ir.Model, names: Names) -> list[ir.Node]:
    """Apply the rules of one node; returns new nodes, which are still to be given their defaults."""
    version = node.version
    if version is None or not _is_standard(node):
        return _take_apart(node, model, names)
    _check_schema(node, version)
    site = Site(node, model, names)
    defaults = _defaults(node.op_type, version, node.domain)
    _fill(node, defaults)
    for rule in _rules().get((node.domain, node.op_type), ()):
        if version < rule.before:
            rule.apply(site)
            if site.replaced:
                return site.emitted
    newest = _newest_version(node.domain, node.op_type, version)
    _fill(node, _defaults(node.op_type, newest, node.domain))
    schema = _schema(node.op_type, newest, node.domain)
    left = [name for name in node.attributes if schema is not None and name not in schema.attributes]
    if left and schema is not None:
        raise UnsupportedError(gap(node, f"its attributes {show_names(left)} have no newer form"))
    node.version = None
    return site.emitted


def _take_apart(node: ir.Node, model: ir.Model, names: Names) -> list[ir.Node]:
    """Apply the rules of an operator that is not ONNX's, where it has any."""
    site = Site(node, model, names)
    for rule in _rules().get((node.domain, node.op_type), ()):
        rule.apply(site)
        if site.replaced:
            break
    node.version = None
    return site.emitted


def _lacks_rank(node: ir.Node) -> bool:
    """Whether the rule for a node needs a type or a rank that the file does not declare."""
    before = _NEED_RANKS.get(node.op_type)
    if before is None or node.domain not in ("", _ML) or (node.version or 0) >= before:
        return False
    return any(value is not None and (value.type is None or value.shape is None) for value in node.inputs)


def _newest_version(domain: str, op_type: str, version: int) -> int:
    """The version a canonical node of this operator has."""
    if domain == "":
        return CANONICAL_OPSET
    if domain == _ML:
        return 4 if op_type in _OLD_TREES else 5
    return version


def _imports(model: ir.Model) -> dict[str, int]:
    """The versions of the domains that a canonical model uses."""
    found = {"": CANONICAL_OPSET}
    given = normal_imports(model.graph.opset_imports)
    for node in model.graph.all_nodes():
        if node.domain == _ML:
            newest = _newest_version(_ML, node.op_type, 0)
            found[_ML] = min(found.get(_ML, newest), newest)
        elif node.domain not in found:
            found[node.domain] = given.get(node.domain, 1)
    return found


def _stamp(model: ir.Model) -> None:
    """Check the opset imports, and stamp every node with the version that holds for it."""
    imports = normal_imports(model.graph.opset_imports)
    if not imports:
        imports = {"": 1}  # what files of the first IR versions mean
    for owner, found in [("The model", imports)] + [
        (f"Function {show_name(function.name)}", normal_imports(function.opset_imports))
        for function in model.functions.values()
    ]:
        version = found.get("", 1)
        if not 1 <= version <= CANONICAL_OPSET:
            raise UnsupportedError(
                (),
                f"{owner} uses ONNX opset {version}, and fusile knows 1 to {CANONICAL_OPSET}",
                todo="Export the model with one of these, or update fusile",
            )
    stamp_versions(model.graph.all_nodes(), imports, {})
    for function in model.functions.values():
        stamp_versions(function.all_nodes(), normal_imports(function.opset_imports), imports)
        function.opset_imports.clear()
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update(imports)
    nameless = [node for node in model.graph.all_nodes() if node.domain == "" and node.version is None]
    if nameless and nameless[0].op_identifier() not in model.functions:
        raise InvalidModelError(
            "The model does not say which version of the standard operators it uses",
            where=f"node {show_name(nameless[0].name)}",
            why="opset_import has no entry for the standard domain",
        )


def _check_values(model: ir.Model) -> None:
    """Every value that a node reads must belong to its graph or one around it."""
    stack: list[tuple[ir.Graph, frozenset[ir.Graph]]] = [(model.graph, frozenset({model.graph}))]
    while stack:
        graph, around = stack.pop()
        for node in graph:
            for value in node.inputs:
                if value is not None and value.graph not in around:
                    raise InvalidModelError(
                        "A node reads a value that nothing defines",
                        where=f"node {show_name(node.name)}",
                        why=show_name(value.name),
                    )
            for inner in _inner_graphs(node):
                stack.append((inner, around | {inner}))


def _inner_graphs(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _name_nodes(model: ir.Model, names: Names) -> None:
    """Name nodes that have no name after what they make, so that rules can build names on theirs."""
    for node in model.graph.all_nodes():
        if not node.name:
            made = node.outputs[0].name if node.outputs else ""
            node.name = names.node(f"{node.op_type}_{made}" if made else node.op_type)


# Constants and initialisers


def _lift_initializers(model: ir.Model, names: Names) -> None:
    """Initialisers are no inputs, and all are of the main graph, where inner graphs see them."""
    main = model.graph
    stored = [value for value in main.inputs if value.is_initializer()]
    for value in stored:
        main.inputs.remove(value)
    for graph in list(main.subgraphs()):
        for name, value in tuple(graph.initializers.items()):
            del graph.initializers[name]
            if value.is_graph_input():
                continue  # what the node around it passes in comes first
            tensor = value.const_value
            assert tensor is not None
            lifted = add_initializer(model, tensor, names.value(name))
            _stand_for(value, lifted, graph, names)


def lift_constants(model: ir.Model, names: Names, nodes: Iterable[ir.Node]) -> None:
    """The Constant nodes among `nodes` become initialisers of the main graph, in place."""
    for node in nodes:
        if node.op_type != "Constant" or node.domain != "" or node.graph is None:
            continue
        old = node.outputs[0]
        name, old.name = old.name or node.name or "constant", None
        graph = node.graph
        tensor = constant_tensor(node)
        tensor.name = name
        inner_output = old.is_graph_output() and graph is not model.graph
        lifted = add_initializer(
            model, tensor, names.value(name) if inner_output else _free(model, name, names)
        )
        if inner_output:
            old.name = name
        _stand_for(old, lifted, graph, names)
        graph.remove(node, safe=True)


def _free(model: ir.Model, name: str, names: Names) -> str:
    """The name of a Constant's output, which only another graph's constant or a definition's may have too."""
    found = name
    while found in model.graph.initializers or any(value.name == found for value in model.graph.inputs):
        found = names.value(name)
    return found


def _stand_for(old: ir.Value, new: ir.Value, graph: ir.Graph, names: Names) -> None:
    """Let an initialiser of the main graph stand for a value of `graph`, whose outputs need a node each."""
    if old.is_graph_output() and new.graph is not graph:
        copy = ir.Node(
            "", "Identity", [new], version=CANONICAL_OPSET, name=names.node(f"{old.name or new.name}/output")
        )
        graph.append(copy)
        take_over(old, copy.outputs[0])
        return
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol:
    """The value of a Constant node. Raises InvalidModelError where it has none or several."""
    given = [attribute for name, attribute in node.attributes.items() if name.startswith("value")]
    if len(given) != 1:
        raise InvalidModelError(
            "A Constant has no single value",
            where=f"node {show_name(node.name)}",
            why=f"attributes {show_names(node.attributes)}",
        )
    attribute = given[0]
    match attribute.type:
        case ir.AttributeType.TENSOR:
            tensor: ir.TensorProtocol = attribute.value  # as_tensor asks for a protocol, member by member
            return ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()), cache=True)
        case ir.AttributeType.INT | ir.AttributeType.INTS:
            return ir.tensor(np.array(attribute.value, np.int64))
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            return ir.tensor(np.array(attribute.value, np.float32))
        case ir.AttributeType.STRING:
            return ir.StringTensor([_encoded(attribute.value)], shape=ir.Shape([]))
        case ir.AttributeType.STRINGS:
            return ir.StringTensor(
                [_encoded(text) for text in attribute.value], shape=ir.Shape([len(attribute.value)])
            )
    raise InvalidModelError("A Constant has no single value", where=f"node {show_name(node.name)}")


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


# What ONNX says about an operator


@functools.cache
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


@functools.cache
def _defaults(op_type: str, version: int, domain: str) -> Mapping[str, ir.Attr]:
    """The attributes that have a default in this version of an operator."""
    schema = _schema(op_type, version, domain)
    if schema is None:
        return {}
    return {
        name: serde.deserialize_attribute(attribute.default_value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type
    }


def _fill(node: ir.Node, defaults: Mapping[str, ir.Attr]) -> None:
    for name, default in defaults.items():
        if name not in node.attributes:
            node.attributes[name] = default


@functools.cache
def _first_version(op_type: str, domain: str) -> int | None:
    """The version in which a standard operator appeared, None for what is none."""
    found = [
        schema.since_version
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == op_type and schema.domain == domain
    ]
    return min(found) if found else None


def _is_standard(node: ir.Node) -> bool:
    """Whether ONNX defines the operator. Raises UnsupportedError where it does so only in a later version."""
    version = node.version or 0
    if _schema(node.op_type, version, node.domain) is not None:
        return True
    first = _first_version(node.op_type, node.domain)
    if first is None:
        return False
    raise UnsupportedError(
        gap(
            node, f"the operator appeared in version {first}", f"Export the model with opset {first} or newer"
        )
    )


def _check_schema(node: ir.Node, version: int) -> None:
    """Check a node's inputs, outputs and attributes. Raises InvalidModelError."""
    schema = _schema(node.op_type, version, node.domain)
    assert schema is not None
    where = f"node {show_name(node.name)}, {node.op_type} of version {version}"
    given = len(node.inputs)
    while given and node.inputs[given - 1] is None:
        given -= 1
    if not schema.min_input <= given <= schema.max_input or len(node.outputs) > schema.max_output:
        raise InvalidModelError(
            "A node has a wrong number of inputs or outputs",
            where=where,
            why=f"{given} inputs and {len(node.outputs)} outputs, where there may be {schema.min_input} to "
            f"{schema.max_input} and {schema.min_output} to {schema.max_output}",
        )
    for index, formal in enumerate(schema.inputs[:given]):
        if formal.option == onnx.defs.OpSchema.FormalParameterOption.Single and node.inputs[index] is None:
            raise InvalidModelError(
                "A node lacks an input", where=where, why=f"{formal.name} is not optional"
            )
    for name, attribute in tuple(node.attributes.items()):
        if name not in schema.attributes:
            if name.startswith("__"):  # tools' own notes, which ONNX's checker passes over too
                del node.attributes[name]
                continue
            raise InvalidModelError(
                "A node has an attribute that its operator has not", where=where, why=show_name(name)
            )
        wanted = ir.AttributeType(int(schema.attributes[name].type))  # type: ignore[call-overload]
        if attribute.is_ref() or attribute.type != wanted:
            raise InvalidModelError(
                "An attribute is of a wrong type",
                where=where,
                why=f"{show_name(name)} is {attribute.type.name} and should be {wanted.name}",
            )
    missing = [
        name for name, item in schema.attributes.items() if item.required and name not in node.attributes
    ]
    if missing:
        raise InvalidModelError("A node lacks an attribute", where=where, why=show_names(missing))
