"""From a traced program to a tape, which the CPU kernel runs for one replica after another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from threading import local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from thalweg.kernels import tape
from thalweg.kernels.gemm import LANES
from thalweg.kernels.tape import Op

__all__ = ["Refused", "Tape", "lower"]

_aten = torch.ops.aten
_WHOLE = (torch.int64, torch.int32, torch.bool)  # kept as float32, exact up to `tape.EXACT`


class Refused(Exception):
    """The tape cannot hold this program; the message says what stands against it."""


@dataclass(frozen=True)
class _Value:
    """A tensor of the program: where each replica's part of it lies.

    Attributes:
        like: its shape and strides, on torch's meta device; replicas first, where it has them.
            Of float32, which holds all that is computed, or the int64 of an input.
        slot: of its memory.
        each: whether every replica has its own.
    """

    like: Tensor
    slot: int
    each: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.like.shape[1:] if self.each else self.like.shape)


@dataclass
class _Memory:
    """A slot of intermediate memory: bytes, and where in the workspace."""

    size: int
    place: int


class _Tables:
    """Instructions and memory, as they are laid down."""

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.code: list[list[int]] = []
        self.numbers: list[float] = [0.0]
        self.slots: list[_Memory | None] = []  # None for inputs and outputs
        self.panel = LANES
        self._free: dict[int, list[int]] = {}
        self._end = 0

    def slot(self, elements: int | None) -> int:
        """A new slot: of intermediate memory, or of memory that is given with each call."""
        if elements is None:
            self.slots.append(None)
            return len(self.slots) - 1
        size = -(-max(elements, 1) // LANES) * LANES
        free = self._free.get(size)
        if free:
            place = free.pop()
        else:
            place, self._end = self._end, self._end + size
        self.slots.append(_Memory(size, place))
        return len(self.slots) - 1

    def free(self, slot: int) -> None:
        """Let later results take the place of one that nothing reads any more."""
        memory = self.slots[slot]
        if memory is not None:
            self._free.setdefault(memory.size, []).append(memory.place)

    @property
    def memory(self) -> int:
        return self._end

    def add(
        self,
        op: Op,
        result: int,
        operands: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        strides: Sequence[int] = (),
        number: float = 0.0,
    ) -> None:
        line = [int(op), result, 0]
        for slot, offset in operands:
            line += [slot, offset]
        line += [result, 0] * (3 - len(operands))
        line += [*sizes, *[1] * (3 - len(sizes))]
        line += [*strides, *[0] * (5 - len(strides)), len(self.numbers)]
        self.numbers.append(number)
        self.code.append(line)


class Tape:
    """A program that runs for one replica after another.

    It takes tensors laid out as those that it was made from, for any number of replicas.
    """

    def __init__(
        self, tables: _Tables, inputs: list[_Value], results: list[tuple[_Value, _Value]]
    ) -> None:
        self._code = np.array(tables.code, dtype=np.int64)
        self._numbers = np.array(tables.numbers, dtype=np.float32)
        self._slots = tables.slots
        self._sizes = tables.memory, tables.panel
        self._inputs = [
            (v.like.dtype, v.like.stride()[1:] if v.each else v.like.stride(), v.each)
            for v in inputs
        ]
        self._results = [
            (value.slot, value.shape, value.like.stride()[1:], value.like.storage_offset())
            for value, _ in results
        ]
        self._owners = {owner.slot: prod(owner.shape) for _, owner in results}
        self._mine = local()

    def __call__(self, tensors: Sequence[Tensor], replicas: int) -> list[Tensor] | None:
        """Run it.

        Args:
            tensors: the inputs, those of each replica ``(replicas, *)``.
            replicas: how many.

        Returns:
            The results, ``(replicas, *)`` each, which the next call from the same thread
            overwrites; None for inputs that it does not take.
        """
        mine = self._workspace(replicas)
        for slot, (t, (kind, strides, each)) in enumerate(
            zip(tensors, self._inputs, strict=True)
        ):
            if t.dtype != kind or t.stride()[1 if each else 0 :] != strides:
                return None
            mine.base[slot] = t.data_ptr()
            mine.step[slot] = t.stride(0) * t.element_size() if each else 0
        done = tape.run(
            self._code, self._numbers, mine.base, mine.step, replicas, mine.workspace
        )
        return mine.results if done else None

    def _workspace(self, replicas: int) -> "_Mine":
        mine: _Mine | None = getattr(self._mine, "value", None)
        if mine is None or mine.replicas != replicas:
            mine = self._mine.value = self._new_workspace(replicas)
        return mine

    def _new_workspace(self, replicas: int) -> "_Mine":
        workspace = tape.Workspace(*self._sizes, len(self._slots))
        memory = workspace.memory.ctypes.data
        base = [memory + 4 * s.place if s is not None else 0 for s in self._slots]
        step = [0] * len(base)
        owners = {slot: torch.zeros(replicas, n) for slot, n in self._owners.items()}
        for slot, stack in owners.items():
            base[slot], step[slot] = stack.data_ptr(), 4 * stack.shape[1]
        results = [
            owners[slot].as_strided(
                (replicas, *shape), (owners[slot].shape[1], *strides), offset
            )
            for slot, shape, strides, offset in self._results
        ]
        return _Mine(
            replicas,
            workspace,
            np.array(base, dtype=np.int64),
            np.array(step, dtype=np.int64),
            results,
        )


@dataclass(frozen=True)
class _Mine:
    """What a thread needs to run a tape."""

    replicas: int
    workspace: tape.Workspace
    base: NDArray[np.int64]
    step: NDArray[np.int64]
    results: list[Tensor]


def lower(program: GraphModule, each: Sequence[bool], replicas: int) -> Tape:
    """The tape of a traced program.

    Args:
        program: straight, as `straighten` makes it.
        each: of every input, whether each replica has its own.
        replicas: how many it was traced with.

    Raises:
        Refused: for an operation, a layout or a type that the tape does not have.
    """
    return _Lowering(program, each, replicas).lay()


class _Lowering:
    """One pass over a program."""

    def __init__(self, program: GraphModule, each: Sequence[bool], replicas: int) -> None:
        self.tables = _Tables(replicas)
        self.values: dict[Node, _Value] = {}
        self.program = program
        self.inputs: list[_Value] = []
        self._each = list(each)
        self._temporary: list[int] = []

    def lay(self) -> Tape:
        nodes = list(self.program.graph.nodes)
        results = self._flat_results(nodes[-1])
        owner: dict[Node, Node] = {}
        for node in nodes:
            owner[node] = owner[node.args[0]] if _is_view(node) else node
        kept = {owner[node] for node in results}
        last = {owner[user]: node for node in nodes for user in node.all_input_nodes}
        dying: dict[Node, list[Node]] = {}
        for memory, node in last.items():
            dying.setdefault(node, []).append(memory)
        places = iter(self._each)
        for node in nodes:
            if node.op == "placeholder":
                value = node.meta.get("val")
                if not isinstance(value, Tensor):
                    raise Refused("an input is not a tensor")
                each = next(places)
                like = torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device="meta"
                )
                self.values[node] = _Value(like, self.tables.slot(None), each)
                self.inputs.append(self.values[node])
                self._check_steps(self.values[node], node)
            elif node.op == "call_function":
                self.values[node] = (
                    self._view(node) if _is_view(node) else self._compute(node, node in kept)
                )
            elif node.op != "output":
                raise Refused(f"{node.op} of {node.target}")
            for slot in self._temporary:
                self.tables.free(slot)
            self._temporary.clear()
            for memory in dying.get(node, ()):
                if memory in self.values:
                    self.tables.free(self.values[memory].slot)
        outputs = []
        for node in results:
            value = self.values[node]
            if not value.each or value.slot < len(self.inputs):
                raise Refused("a result is not computed by each replica")
            if node.meta["val"].dtype != torch.float32:
                raise Refused(f"a result is {node.meta['val'].dtype}")
            outputs.append((value, self.values[owner[node]]))
        return Tape(self.tables, self.inputs, outputs)

    def _flat_results(self, node: Node) -> list[Node]:
        flat, _ = torch.utils._pytree.tree_flatten(node.args)
        if not all(isinstance(r, Node) for r in flat):
            raise Refused("a result is not a tensor")
        return flat

    def _check_steps(self, value: _Value, node: Node) -> None:
        if node.meta["val"].dtype not in (torch.float32, *_WHOLE[:1]):
            raise Refused(f"an input is {node.meta['val'].dtype}")
        if value.each and value.like.shape[0] != self.tables.replicas:
            raise Refused("an input does not have the replicas first")

    def _view(self, node: Node) -> _Value:
        base = self.values[node.args[0]]  # type: ignore[index]
        target = _aten.view.default if node.target is _aten._unsafe_view.default else node.target
        like = target(base.like, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        value = _Value(like, base.slot, base.each)
        if base.each:
            own = like.shape[:1] == base.like.shape[:1] and like.stride(0) == base.like.stride(0)
            if not own:
                raise Refused(f"{node.target} moves the replicas")
        return value

    def _compute(self, node: Node, kept: bool) -> _Value:
        value = node.meta.get("val")
        make = _OPERATIONS.get(node.target)
        if make is None or not isinstance(value, Tensor):
            raise Refused(f"there is no {node.target} on the tape")
        if value.dtype not in (torch.float32, *_WHOLE):
            raise Refused(f"{node.target} gives {value.dtype}")
        each = any(self.values[n].each for n in node.all_input_nodes)
        if each and (not value.ndim or value.shape[0] != self.tables.replicas):
            raise Refused(f"{node.target} mixes the replicas")
        like = torch.empty(value.shape, device="meta")
        size = prod(value.shape[1:] if each else value.shape)
        if size == 0:
            raise Refused("a tensor is empty")
        result = _Value(like, self.tables.slot(None if kept else size), each)
        make(self, node, result)
        return result

    def strides(self, value: _Value, result: _Value) -> tuple[int, ...]:
        """Strides that spread a value over one replica's part of a result."""
        like, full = value.like, tuple(result.like.shape)
        if value.each and not (result.each and like.ndim == len(full)):
            raise Refused("replicas are not the first dimension throughout")
        try:
            strides = like.expand(full).stride()
        except RuntimeError as error:
            raise Refused(str(error)) from error
        if not result.each:
            return tuple(strides)
        if not value.each and strides[0] != 0:
            raise Refused("what all replicas share differs between them")
        return tuple(strides[1:])

    def operand(self, node: Any, result: _Value) -> tuple[int, int]:
        """Slot and offset of an operand, copied where it does not lie as the result does."""
        if not isinstance(node, Node):
            return self.constant(float(node), result)
        value = self.values[node]
        strides = self.strides(value, result)
        whole = value.like.dtype == torch.int64
        offset = self.offset(value)
        if not whole and _dense(result.shape, strides):
            return value.slot, offset
        slot = self.tables.slot(prod(result.shape))
        self._temporary.append(slot)
        self.copy(node, _Value(result.like, slot, result.each))
        return slot, 0

    def copy(self, node: Any, result: _Value) -> None:
        """Spread an operand over a result."""
        value = self.values[node]
        sizes, strides = _collapsed(result.shape, self.strides(value, result))
        op = Op.INTEGERS if value.like.dtype == torch.int64 else Op.COPY
        self.tables.add(op, result.slot, [(value.slot, self.offset(value))], sizes, strides)

    def offset(self, value: _Value) -> int:
        """Bytes from a slot's start."""
        return int(value.like.storage_offset()) * value.like.element_size()

    def constant(self, number: float, result: _Value) -> tuple[int, int]:
        slot = self.tables.slot(prod(result.shape))
        self._temporary.append(slot)
        self.tables.add(Op.FILL, slot, [], [prod(result.shape)], number=number)
        return slot, 0

    def alone(self, node: Node) -> tuple[_Value, tuple[int, int]]:
        """An operand in its own shape, contiguous."""
        value = self.values[node]
        own = _Value(torch.empty(value.like.shape, device="meta"), value.slot, value.each)
        return value, self.operand(node, own)

    def axes(self, value: _Value, given: Any) -> list[int]:
        """Dimensions of one replica's part, sorted; all of them if none are given."""
        shift = 1 if value.each else 0
        full = value.like.ndim
        listed = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        axes = sorted(int(d) % full - shift for d in listed) or list(range(full - shift))
        if any(d < 0 for d in axes) or axes != list(range(axes[0], axes[-1] + 1)):
            raise Refused("a reduction over these dimensions")
        return axes


def _is_view(node: Node) -> bool:
    if node.op != "call_function" or not node.args:
        return False
    if node.target is _aten._unsafe_view.default:
        return True
    schema = getattr(node.target, "_schema", None)
    returned = schema.returns[0].alias_info if schema is not None and schema.returns else None
    return returned is not None and not returned.is_write


def _kind(node: Any) -> torch.dtype:
    kind: torch.dtype = node.meta["val"].dtype
    return kind


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1:
            if stride != expected:
                return False
            expected *= n
    return True


def _collapsed(shape: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same walk through memory in three dimensions."""
    sizes: list[int] = []
    steps: list[int] = []
    for n, stride in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if sizes and steps[-1] == stride * n:
            sizes[-1], steps[-1] = sizes[-1] * n, stride
        else:
            sizes.append(n)
            steps.append(stride)
    if len(sizes) > 3:
        raise Refused("a tensor with more than three dimensions of its own")
    missing = 3 - len(sizes)
    return [1] * missing + sizes, [0] * missing + steps


# What each ATen operation becomes.

_Make = Callable[[_Lowering, Node, _Value], None]


def _plain(node: Node, allowed: Sequence[str] = ()) -> None:
    for name, value in node.kwargs.items():
        if name not in allowed and not (name in ("alpha", "beta") and value == 1):
            raise Refused(f"{node.target} with {name}={value}")


def _elementwise(op: Op, operands: int, number: int | None = None) -> _Make:
    def make(lowering: _Lowering, node: Node, result: _Value) -> None:
        _plain(node)
        expected = operands + (number is not None)
        if len(node.args) != expected:
            raise Refused(f"{node.target} with {len(node.args)} arguments")
        given = [lowering.operand(a, result) for a in node.args[:operands]]
        value = 0.0 if number is None else float(node.args[number])  # type: ignore[arg-type]
        lowering.tables.add(op, result.slot, given, [prod(result.shape)], number=value)

    return make


def _copy(lowering: _Lowering, node: Node, result: _Value) -> None:
    _plain(node, ("dtype", "device", "layout", "memory_format", "pin_memory", "non_blocking"))
    before, after = _kind(node.args[0]), _kind(node)
    if after in _WHOLE and before != after:
        raise Refused(f"{node.target} from {before} to {after}")
    lowering.copy(node.args[0], result)


def _filled(number: Callable[[Node], Any]) -> _Make:
    def make(lowering: _Lowering, node: Node, result: _Value) -> None:
        lowering.tables.add(
            Op.FILL, result.slot, [], [prod(result.shape)], number=float(number(node))
        )

    return make


def _squared_difference(lowering: _Lowering, node: Node, result: _Value) -> None:
    if len(node.args) < 3 or node.args[2] != 0:
        raise Refused(f"{node.target} of all elements together")
    given = [lowering.operand(a, result) for a in node.args[:2]]
    lowering.tables.add(Op.SQUARED_DIFFERENCE, result.slot, given, [prod(result.shape)])


def _product(lowering: _Lowering, node: Node, result: _Value) -> None:
    _plain(node)
    *start, left, right = node.args
    tables = lowering.tables
    if result.like.ndim != 3 or not result.each:
        raise Refused(f"{node.target} of other than matrices of each replica")
    if start:
        lowering.copy(start[0], result)
    m, n = result.shape
    depth = lowering.values[left].like.shape[-1]  # type: ignore[index]
    operands, strides = [], []
    for factor, shape in ((left, (m, depth)), (right, (depth, n))):
        value = lowering.values[factor]  # type: ignore[index]
        whole = _Value(torch.empty((tables.replicas, *shape), device="meta"), -1, True)
        strides += lowering.strides(value, whole)
        operands.append((value.slot, lowering.offset(value)))
        if _kind(factor) != torch.float32:
            raise Refused(f"{node.target} of {_kind(factor)}")
    tables.panel = max(tables.panel, -(-depth // LANES) * LANES * 4 * LANES)
    tables.add(Op.PRODUCT, result.slot, operands, [m, n, depth], [*strides, len(start)])


def _reduced(op: Op) -> _Make:
    def make(lowering: _Lowering, node: Node, result: _Value) -> None:
        _plain(node)
        value, given = lowering.alone(node.args[0])  # type: ignore[arg-type]
        axes = lowering.axes(value, node.args[1] if len(node.args) > 1 else None)
        shape = value.shape
        outer, n, inner = (
            prod(shape[: axes[0]]),
            prod(shape[axes[0] : axes[-1] + 1]),
            prod(shape[axes[-1] + 1 :]),
        )
        if op == Op.LOGSUMEXP and inner > 1:
            raise Refused("logsumexp over other than the last dimension")
        lowering.tables.panel = max(lowering.tables.panel, outer * (n + 1))
        lowering.tables.add(op, result.slot, [given], [outer, n, inner])

    return make


def _log_softmax(lowering: _Lowering, node: Node, result: _Value) -> None:
    value = lowering.values[node.args[0]]  # type: ignore[index]
    backward = node.target is _aten._log_softmax_backward_data.default
    dimension = node.args[2 if backward else 1]
    if lowering.axes(value, dimension) != [len(result.shape) - 1]:
        raise Refused("a softmax over other than the last dimension")
    n = result.shape[-1]
    given = [lowering.operand(a, result) for a in node.args[: 2 if backward else 1]]
    lowering.tables.panel = max(lowering.tables.panel, 3 * prod(result.shape))
    op = Op.LOG_SOFTMAX_BACKWARD if backward else Op.LOG_SOFTMAX
    lowering.tables.add(op, result.slot, given, [prod(result.shape) // n, n])


def _last(lowering: _Lowering, node: Node, value: _Value, indexed: tuple[int, ...]) -> None:
    shape = value.shape
    if lowering.axes(value, node.args[1]) != [len(shape) - 1] or shape[:-1] != indexed[:-1]:
        raise Refused(f"{node.target} along other than the last dimension")


def _gather(lowering: _Lowering, node: Node, result: _Value) -> None:
    _plain(node)
    value, given = lowering.alone(node.args[0])  # type: ignore[arg-type]
    _last(lowering, node, value, result.shape)
    index = lowering.operand(node.args[2], result)
    n, picks = value.shape[-1], result.shape[-1]
    lowering.tables.add(
        Op.GATHER, result.slot, [given, index], [prod(result.shape) // picks, n, picks]
    )


def _scatter(op: Op) -> _Make:
    def make(lowering: _Lowering, node: Node, result: _Value) -> None:
        _plain(node)
        index = lowering.values[node.args[2]]  # type: ignore[index]
        picked = (*result.like.shape[:-1], index.like.shape[-1])
        as_index = _Value(torch.empty(picked, device="meta"), -1, result.each)
        _last(lowering, node, result, as_index.shape)
        places = lowering.operand(node.args[2], as_index)
        source = lowering.operand(node.args[3], as_index)
        tables, size = lowering.tables, prod(result.shape)
        lowering.copy(node.args[0], result)
        n = result.shape[-1]
        tables.add(op, result.slot, [source, places], [size // n, n, picked[-1]])

    return make


_OPERATIONS: dict[Any, _Make] = {
    **dict.fromkeys((_aten.add.Tensor, _aten.add.Scalar), _elementwise(Op.ADD, 2)),
    **dict.fromkeys((_aten.sub.Tensor, _aten.sub.Scalar), _elementwise(Op.SUB, 2)),
    **dict.fromkeys((_aten.mul.Tensor, _aten.mul.Scalar), _elementwise(Op.MUL, 2)),
    **dict.fromkeys((_aten.div.Tensor, _aten.div.Scalar), _elementwise(Op.DIV, 2)),
    **dict.fromkeys((_aten.eq.Tensor, _aten.eq.Scalar), _elementwise(Op.EQUAL, 2)),
    **dict.fromkeys((_aten.ne.Tensor, _aten.ne.Scalar), _elementwise(Op.NOT_EQUAL, 2)),
    **dict.fromkeys((_aten.gt.Tensor, _aten.gt.Scalar), _elementwise(Op.GREATER, 2)),
    **dict.fromkeys((_aten.lt.Tensor, _aten.lt.Scalar), _elementwise(Op.LESS, 2)),
    _aten.maximum.default: _elementwise(Op.MAXIMUM, 2),
    _aten.minimum.default: _elementwise(Op.MINIMUM, 2),
    _aten.where.self: _elementwise(Op.WHERE, 3),
    _aten.relu.default: _elementwise(Op.RELU, 1),
    _aten.neg.default: _elementwise(Op.NEG, 1),
    _aten.exp.default: _elementwise(Op.EXP, 1),
    _aten.log.default: _elementwise(Op.LOG, 1),
    _aten.tanh.default: _elementwise(Op.TANH, 1),
    _aten.sigmoid.default: _elementwise(Op.SIGMOID, 1),
    _aten.abs.default: _elementwise(Op.ABSOLUTE, 1),
    _aten.sqrt.default: _elementwise(Op.SQRT, 1),
    _aten.threshold_backward.default: _elementwise(Op.THRESHOLD_BACKWARD, 2, number=2),
    _aten.tanh_backward.default: _elementwise(Op.TANH_BACKWARD, 2),
    _aten.sigmoid_backward.default: _elementwise(Op.SIGMOID_BACKWARD, 2),
    **dict.fromkeys((_aten._to_copy.default, _aten.clone.default), _copy),
    _aten.ones_like.default: _filled(lambda node: 1),
    _aten.zeros_like.default: _filled(lambda node: 0),
    _aten.new_zeros.default: _filled(lambda node: 0),
    _aten.scalar_tensor.default: _filled(lambda node: node.args[0]),
    _aten.full.default: _filled(lambda node: node.args[1]),
    _aten.full_like.default: _filled(lambda node: node.args[1]),
    _aten.mse_loss.default: _squared_difference,
    _aten.bmm.default: _product,
    _aten.baddbmm.default: _product,
    **dict.fromkeys((_aten.sum.dim_IntList, _aten.sum.default), _reduced(Op.SUM)),
    **dict.fromkeys((_aten.mean.dim, _aten.mean.default), _reduced(Op.MEAN)),
    _aten.amax.default: _reduced(Op.LARGEST),
    _aten.argmax.default: _reduced(Op.ARGMAX),
    _aten.logsumexp.default: _reduced(Op.LOGSUMEXP),
    _aten._log_softmax.default: _log_softmax,
    _aten._log_softmax_backward_data.default: _log_softmax,
    _aten.gather.default: _gather,
    _aten.scatter_add.default: _scatter(Op.SCATTER_ADD),
    _aten.scatter.value: _scatter(Op.SCATTER),
}
