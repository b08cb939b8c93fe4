"""Which tensors an array with narrow operands reads, and so how many bits each of them may have.

Narrow are the operands of matrix work that is not depthwise, and what shares their scale because it is only moved
(`ranges.tied_groups`); nothing else. A byte is a byte in memory, whatever occurs in it: rounding the inputs of pools,
additions and depthwise convolutions, or the model's results, would lose accuracy and save nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qcompiler.passes.fuse import MATRIX, Fusion, has_weight
from qcompiler.passes.graph import Graph, Node
from qcompiler.sim.widths import Widths


def on_array(graph: Graph, node: Node) -> bool:
    """Whether the node is matrix work of the array: `sim.widths.on_array` of the operation that it becomes."""
    if node.op not in MATRIX:
        return False
    if node.op != "nn.conv2d" or node.inputs[1] not in graph.constants:
        return True
    groups, weight = int(node.attributes["groups"]), graph.constants[node.inputs[1]].shape
    return not (groups > 1 and weight[3] == 1 and weight[0] == groups)


def array_nodes(graph: Graph, fusion: Fusion) -> list[Node]:
    """The nodes that become work of the array."""
    return [n for n in graph.nodes if n.name not in fusion.reasons and on_array(graph, n)]


def port_bits(graph: Graph, node: Node, name: str, widths: Widths) -> int:
    """Bits that `node` leaves to its operand `name`, which is no weight with scales of its own."""
    bits = [8]
    if node.inputs[0] == name:
        bits.append(widths.activation_bits)
    if node.inputs[1] == name and not has_weight(graph, node):
        bits.append(widths.weight_bits)
    return min(bits)


def narrow_tensors(graph: Graph, fusion: Fusion, groups: Iterable[Sequence[str]], widths: Widths) -> dict[str, int]:
    """Bits of every int8 tensor that has fewer than 8. groups: the tensors that share a scale."""
    readers = array_nodes(graph, fusion)
    bits: dict[str, int] = {}
    for node in readers:
        for name in graph.tensor_inputs(node):
            bits[name] = min(bits.get(name, 8), port_bits(graph, node, name, widths))
    narrow: dict[str, int] = {}
    for group in groups:
        least = min((bits.get(n, 8) for n in group), default=8)
        if least < 8:
            narrow |= dict.fromkeys(group, least)
    return narrow
