"""A training step as a straight line of ATen operations.

Under `vmap` every operation of every step is dispatched through the transforms again, which for
small models costs more than the arithmetic. Tracing pays that once (a tenth of a second, no
compiler) and leaves a program that a few rewrites shorten further. The rewrites change neither the
arithmetic nor its order: results are the same to the last bit, which the tests assert.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["straighten"]

_aten = torch.ops.aten
_RESHAPES = (_aten.expand.default, _aten.view.default, _aten._unsafe_view.default)


def straighten(function: Callable[..., Any], example: Sequence[Any]) -> GraphModule:
    """Trace a function of tensors into a shortened ATen program for inputs shaped as the example.

    Raises:
        Exception: whatever tracing raises where the function's control flow depends on values.
    """
    program = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)
    for rewrite in (
        _drop_identities,
        _cancel_transposes,
        _turn_product,
        _cancel_transposes,
        _fuse_bias,
    ):
        for node in list(program.graph.nodes):
            if node.op == "call_function":
                rewrite(node)
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def _value(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _drop_identities(node: Node) -> None:
    """Reshapes to the same shape, and the product with one that `vmap` makes of every bias."""
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
