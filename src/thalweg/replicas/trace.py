"""A training step as a straight line of ATen operations.

Under `vmap` every operation of every step is dispatched through the transforms again, which for
small models costs more than the arithmetic. Tracing pays that once (a tenth of a second, no
compiler) and leaves a program that a few rewrites shorten further. They leave the arithmetic as it
is: results are the same to the last bit, which the tests assert.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = ["straighten"]

_aten = torch.ops.aten
_RESHAPES = (_aten.expand.default, _aten.view.default, _aten._unsafe_view.default)


def straighten(function: Callable[..., Any], example: Sequence[Any]) -> GraphModule:
    """Trace a function of tensors into a shortened ATen program for inputs shaped as the example.

    Args:
        function: of nested lists and tuples of tensors, to the same.
        example: its arguments.

    Returns:
        A program with the function's arguments and results. ``meta["val"]`` of its nodes has the
        shapes, strides and types, on torch's meta device.

    Raises:
        Branches: where the function asks for the value of a tensor.
    """
    recorder = _Recorder()
    flat, structure = tree_flatten(tuple(example))
    # Fresh tensors: one given twice, or part of another, is still two inputs.
    inputs = [t.detach().clone(memory_format=torch.preserve_format) for t in flat]
    for i, t in enumerate(inputs):
        recorder.keep(t, recorder.graph.placeholder(f"input_{i}"))
    with recorder:
        results = function(*tree_unflatten(inputs, structure))
    made, shape = tree_flatten(results)
    graph = recorder.graph
    graph.output([recorder.node_of(r) for r in made])
    for rewrite in (
        _drop_identities,
        _cancel_transposes,
        _turn_product,
        _cancel_transposes,
        _fuse_bias,
    ):
        for node in list(graph.nodes):
            if node.op == "call_function":
                rewrite(node)
    graph.eliminate_dead_code()
    graph.set_codegen(
        _PyTreeCodeGen(
            _PyTreeInfo(
                [f"argument_{i}" for i in range(len(example))],
                tree_flatten((tuple(example), {}))[1],
                shape,
            )
        )
    )
    return GraphModule(recorder.constants, graph)


class Branches(RuntimeError):
    """The function asks for the value of a tensor, which is another at every step."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation that reaches ATen, below autograd and vmap.

    What ``make_fx`` does as well, by way of the compiler, whose import takes as long as a third of
    a short study.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self.constants = nn.Module()
        self._nodes: dict[int, Node] = {}
        self._alive: list[Tensor] = []  # so that no address is given out twice

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler to say that it is not to compile this

    def keep(self, tensor: Tensor, node: Node) -> None:
        """Remember which node made a tensor."""
        node.meta["val"] = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)

    def node_of(self, value: Any) -> Any:
        """The node that made a tensor; a constant of the function gets one of its own."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:
            name = f"constant_{len(self._nodes)}"
            self.constants.register_buffer(name, value.detach())
            self.keep(value, self.graph.create_node("get_attr", name))
        return self._nodes[id(value)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags
        ):
            raise Branches(f"{func} depends on the values of a tensor")
        result = func(*args, **kwargs)
        node = self.graph.call_function(
            func, tree_map(self.node_of, args), tree_map(self.node_of, kwargs)
        )
        if isinstance(result, Tensor):
            self.keep(result, node)
        else:
            for i, part in enumerate(result if isinstance(result, (tuple, list)) else ()):
                if isinstance(part, Tensor):
                    self.keep(part, self.graph.call_function(operator.getitem, (node, i)))
        return result


def _value(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _drop_identities(node: Node) -> None:
    """Reshapes to the same shape, what autograd saves, and the product of every bias with one."""
    if node.target in (_aten.detach.default, _aten.alias.default):
        _replace(node, node.args[0])  # type: ignore[arg-type]
        return
    times_one = node.target is _aten.mul.Scalar and node.args[1] == 1
    if not (node.target in _RESHAPES or times_one):
        return
    before, after = _value(node.args[0]), _value(node)
    if before is None or after is None:
        return
    same = before.shape == after.shape and before.stride() == after.stride()
    if same and before.dtype == after.dtype:
        _replace(node, node.args[0])  # type: ignore[arg-type]


def _cancel_transposes(node: Node) -> None:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return
    if node.target is not _aten.transpose.int or source.target is not _aten.transpose.int:
        return
    value = _value(node)
    if value is None:
        return
    dimensions = {int(d) % value.ndim for d in node.args[1:]}  # type: ignore[arg-type]
    if dimensions == {int(d) % value.ndim for d in source.args[1:]}:  # type: ignore[arg-type]
        _replace(node, source.args[0])  # type: ignore[arg-type]


def _is_transpose(node: Any) -> bool:
    """Of the matrices of a stack."""
    value = _value(node)
    return (
        value is not None
        and node.target is _aten.transpose.int
        and value.ndim == 3
        and {int(d) % 3 for d in node.args[1:]} == {1, 2}
    )


def _turn_product(node: Node) -> None:
    """``(a b)'`` is ``b' a'``, and comes out contiguous, as the optimizer needs a gradient."""
    product = node.args[0] if node.args else None
    if not (_is_transpose(node) and isinstance(product, Node) and len(product.users) == 1):
        return
    if product.target is not _aten.bmm.default:
        return
    graph = node.graph
    with graph.inserting_before(node):
        factors = []
        for factor in reversed(product.args):
            turned = graph.call_function(_aten.transpose.int, (factor, 1, 2))
            turned.meta["val"] = factor.meta["val"].transpose(1, 2)  # type: ignore[union-attr]
            factors.append(turned)
        result = graph.call_function(_aten.bmm.default, tuple(factors))
    result.meta["val"] = node.meta["val"].contiguous()
    _replace(node, result)


def _fuse_bias(node: Node) -> None:
    """``bias + bmm(a, b)`` is one call, ``baddbmm(bias, a, b)``."""
    if node.target is not _aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return
    for product, bias in (node.args, node.args[::-1]):
        if not (isinstance(product, Node) and product.target is _aten.bmm.default):
            continue
        out, added, value = _value(product), _value(bias), _value(node)
        if out is None or added is None or value is None or len(product.users) != 1:
            continue
        if value.shape == out.shape and value.dtype == out.dtype == added.dtype:
            with node.graph.inserting_before(node):
                fused = node.graph.call_function(
                    _aten.baddbmm.default,
                    (bias, *product.args),
                )
            fused.meta = node.meta
            _replace(node, fused)
            return
