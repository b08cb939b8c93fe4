"""Dynamically quantised models as float ones with quantised weights' values, so that calibration can make them static.

`DynamicQuantizeLinear → MatMulInteger or ConvInteger → Cast → Mul by the scales` computes scales from each input
while it runs, which no integer-only program does. Here the activations stay real (scale 1, zero point 0) and the
weights become the real numbers they stand for; the multiplications by the weights' scales then fold into them.
What is dropped is the rounding of the activations: up to half a step of 1/255 of their range.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from qcompiler.frontend.onnx_node import Array

_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def without_dynamic_quantisation(graph: onnx.GraphProto, values: dict[str, Array]) -> onnx.GraphProto:
    """The graph without the DynamicQuantizeLinear nodes that only feed products with constant weights.

    values: the graph's constants by name; those of the new products and the scale 1 are added.
    """
    if not any(node.op_type == "DynamicQuantizeLinear" for node in graph.node):
        return graph
    result = onnx.GraphProto()
    result.CopyFrom(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in result.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in result.output}
    kept = []
    for node in result.node:
        products = readers.get(node.output[0], []) if node.op_type == "DynamicQuantizeLinear" else []
        if not products or not _is_replaceable(node, products, readers, values, outputs):
            kept.append(node)
            continue
        for product in products:
            name = f"{product.output[0]}.weight"
            values[name] = real_weight(product, values)
            product.op_type = _PRODUCTS[product.op_type]
            del product.input[:]
            product.input.extend([node.input[0], name])
        values[node.output[1]] = np.ones((), np.float32)
    del result.node[:]
    result.node.extend(kept)
    return result


def _is_replaceable(
    node: onnx.NodeProto,
    products: list[onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
    weights: Mapping[str, Array],
    outputs: set[str],
) -> bool:
    """Whether integers and zero point meet only in products of constant weights whose sums are cast to float."""
    if len(node.output) != 3 or not all(node.output):
        return False
    codes, _, zero = node.output
    if {codes, zero} & outputs:
        return False
    for product in [*products, *readers.get(zero, [])]:
        inputs = [*product.input, "", ""][:4]
        cast = readers.get(product.output[0], [])
        if (
            product.op_type not in _PRODUCTS
            or (inputs[0], inputs[2]) != (codes, zero)
            or inputs[1] not in weights
            or (inputs[3] and inputs[3] not in weights)
            or product.output[0] in outputs
            or [c.op_type for c in cast] != ["Cast"]
            or [a.i for a in cast[0].attribute if a.name == "to"] != [onnx.TensorProto.FLOAT]
        ):
            return False
    return True


def real_weight(product: onnx.NodeProto, weights: Mapping[str, Array]) -> Array:
    """The product's weight less its zero point, float32; a vector of zero points belongs to the output channels."""
    weight = weights[product.input[1]].astype(np.float32)
    if len(product.input) < 4 or not product.input[3]:
        return weight
    zero = weights[product.input[3]].astype(np.float32)
    if zero.size > 1 and product.op_type == "ConvInteger":
        return weight - zero.reshape((-1,) + (1,) * (weight.ndim - 1))
    return weight - (zero.reshape(()) if zero.size == 1 else zero)
