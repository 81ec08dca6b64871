"""From a traced program to the tables of a tape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from thalweg.kernels.gemm import LANES
from thalweg.kernels.tape import EXACT, Each, address

__all__ = ["Lowering", "Place", "Refused", "Tables", "Value"]

_aten = torch.ops.aten
_WHOLE = (torch.int64, torch.int32, torch.bool)  # kept as float32, exact up to `tape.EXACT`


class Refused(Exception):
    """The tape cannot hold this program; the message says what stands against it."""


@dataclass(frozen=True)
class Value:
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
        """Of one replica's part."""
        return tuple(self.like.shape[1:] if self.each else self.like.shape)

    @property
    def offset(self) -> int:
        """Bytes from the slot's start."""
        return int(self.like.storage_offset()) * self.like.element_size()


@dataclass(frozen=True)
class Place:
    """Scratch of a slot: elements."""

    start: int
    size: int


class Tables:
    """Instructions and slots, as they are laid down.

    Attributes:
        code, numbers: as `kernels.tape.run` takes them.
        slots: places in scratch; None for memory that is given with each call.
        memory: elements of scratch.
        panel: elements of the kernel's own scratch.
    """

    def __init__(self) -> None:
        self.code: list[list[int]] = []
        self.numbers: list[float] = []
        self.slots: list[Place | None] = []
        self.memory = 0
        self.panel = LANES
        self._free: dict[int, list[int]] = {}

    def slot(self, elements: int | None) -> int:
        """A new slot with so many elements of scratch, or None of them."""
        if elements is None:
            self.slots.append(None)
        else:
            size = -(-elements // LANES) * LANES
            free = self._free.get(size)
            start = free.pop() if free else self.memory
            self.memory = max(self.memory, start + size)
            self.slots.append(Place(start, size))
        return len(self.slots) - 1

    def free(self, slot: int) -> None:
        """Let later results take the place of one that nothing reads any more."""
        place = self.slots[slot]
        if place is not None:
            self._free.setdefault(place.size, []).append(place.start)

    def add(
        self,
        operation: str | Each,
        result: int,
        operands: Sequence[tuple[int, int]],
        sizes: Sequence[int],
        strides: Sequence[int] = (),
        number: float = 0.0,
    ) -> None:
        """Lay down an instruction; operands are slots and offsets in bytes."""
        if isinstance(operation, Each):
            operation, strides = operation.function, [int(operation)]
        places = [part for operand in operands for part in operand]
        places += [result, 0] * (3 - len(operands))
        sizes = [*sizes, *[1] * (3 - len(sizes))]
        strides = [*strides, *[0] * (5 - len(strides))]
        self.code.append([address(operation), result, 0, *places, *sizes, *strides])
        self.numbers.append(number)


class Lowering:
    """One pass over a program.

    Args:
        program: straight, as `straighten` makes it.
        each: of every input, whether each replica has its own.
        replicas: how many it was traced with.
        drawn: how many of the last inputs are batches, to be read from the data. The first result
            is then the loss, and the others, the gradients, stay in scratch.

    Attributes:
        tables: instructions and slots.
        inputs: those that are given with each call.
        data, order, batch: slots of the data that batches are drawn from and of the order of the
            samples, and the size of a batch.
        results: in their order.
        owners: for each of them the value whose memory it is a view of.

    Raises:
        Refused: for an operation, a layout or a type that tapes do not have.
    """

    def __init__(
        self, program: GraphModule, each: Sequence[bool], replicas: int, drawn: int = 0
    ) -> None:
        self.tables = Tables()
        self.replicas = replicas
        self.values: dict[Node, Value] = {}
        self.inputs: list[Value] = []
        self.data: list[int] = []
        self.order = self.batch = -1
        self._temporary: list[int] = []
        nodes = list(program.graph.nodes)
        made, _ = torch.utils._pytree.tree_flatten(nodes[-1].args)
        inputs = [node for node in nodes if node.op == "placeholder"]
        for node in (*made, *inputs):
            if not (isinstance(node, Node) and isinstance(node.meta.get("val"), Tensor)):
                raise Refused("an input or a result is not a tensor")
        owner: dict[Node, Node] = {}
        for node in nodes:
            owner[node] = owner[node.args[0]] if _is_view(node) else node
        kept = {owner[node] for node in (made[:1] if drawn else made)}
        last = {owner[user]: node for node in nodes for user in node.all_input_nodes}
        dying: dict[Node, list[Node]] = {}
        for memory, node in last.items():
            dying.setdefault(node, []).append(memory)
        given = len(inputs) - drawn
        for i, (node, own) in enumerate(zip(inputs, each, strict=True)):
            self.values[node] = self._input(node, own) if i < given else self._drawn(node, own)
        for node in nodes:
            if node.op == "call_function":
                view = _is_view(node)
                self.values[node] = self._view(node) if view else self._compute(node, node in kept)
            elif node.op not in ("placeholder", "output"):
                raise Refused(f"{node.op} of {node.target}")
            for slot in self._temporary:
                self.tables.free(slot)
            self._temporary.clear()
            for memory in dying.get(node, ()):
                self.tables.free(self.values[memory].slot)
        self.results = [self.values[node] for node in made]
        self.owners = [self.values[owner[node]] for node in made]
        for node, value in zip(made, self.results, strict=True):
            if not value.each or owner[node] in inputs or _kind(node) != torch.float32:
                raise Refused("a result is not computed by each replica")
        for i, value in enumerate(self.results if drawn else ()):
            dense = _dense(value.shape, value.like.stride()[1:])
            if not dense or (i == 0 and prod(self.owners[0].shape) > 1):
                raise Refused("a loss or a gradient is not laid out as a rule takes it")

    def _input(self, node: Node, each: bool) -> Value:
        given = self._checked(node, each)
        like = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device="meta")
        value = Value(like, self.tables.slot(None), each)
        self.inputs.append(value)
        return value

    def _drawn(self, node: Node, each: bool) -> Value:
        """Inputs or targets of a batch, read from the data by the order of the samples."""
        given = self._checked(node, each)
        if self.order < 0:
            self.order = self.tables.slot(None)
        self.data.append(self.tables.slot(None))
        self.batch, *rest = given.shape[1:] if each else given.shape
        slot = self.tables.slot(self.batch * prod(rest))
        op = "rows" if given.dtype == torch.float32 else "integer_rows"
        operands = [(self.data[-1], 0), (self.order, 0)]
        self.tables.add(op, slot, operands, [self.batch, prod(rest)])
        return Value(torch.empty(given.shape, device="meta"), slot, each)

    def _checked(self, node: Node, each: bool) -> Tensor:
        given: Tensor = node.meta["val"]
        if given.dtype not in (torch.float32, torch.int64):
            raise Refused(f"an input is {given.dtype}")
        if each and (not given.ndim or given.shape[0] != self.replicas):
            raise Refused("an input does not have the replicas first")
        return given

    def _view(self, node: Node) -> Value:
        base = self.values[node.args[0]]  # type: ignore[index]
        target = _aten.view.default if node.target is _aten._unsafe_view.default else node.target
        try:
            like = target(base.like, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        except RuntimeError as error:
            raise Refused(f"{node.target} of a tensor that lies otherwise: {error}") from error
        if base.each and (
            like.shape[:1] != base.like.shape[:1]
            or (self.replicas > 1 and like.stride(0) != base.like.stride(0))
        ):
            raise Refused(f"{node.target} moves the replicas")
        return Value(like, base.slot, base.each)

    def _compute(self, node: Node, kept: bool) -> Value:
        value = node.meta.get("val")
        make = _OPERATIONS.get(node.target)
        if make is None or not isinstance(value, Tensor):
            raise Refused(f"there is no {node.target} on the tape")
        if value.dtype not in (torch.float32, *_WHOLE):
            raise Refused(f"{node.target} gives {value.dtype}")
        each = any(self.values[n].each for n in node.all_input_nodes)
        if each and (not value.ndim or value.shape[0] != self.replicas):
            raise Refused(f"{node.target} mixes the replicas")
        like = torch.empty(value.shape, device="meta")
        size = prod(value.shape[1:] if each else value.shape)
        if size == 0:
            raise Refused("a tensor is empty")
        result = Value(like, self.tables.slot(None if kept else size), each)
        make(self, node, result)
        return result

    def strides(self, value: Value, result: Value) -> tuple[int, ...]:
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
        if not value.each and strides[0] != 0 and self.replicas > 1:
            raise Refused("what all replicas share differs between them")
        return tuple(strides[1:])

    def operand(self, node: Any, result: Value) -> tuple[int, int]:
        """Slot and offset of an operand, copied where it does not lie as the result does."""
        if not isinstance(node, Node):
            return self.constant(_constant(node), result)
        value = self.values[node]
        strides = self.strides(value, result)
        whole = value.like.dtype == torch.int64
        offset = value.offset
        if not whole and _dense(result.shape, strides):
            return value.slot, offset
        slot, _ = copied = self.scratch(result)
        self.copy(node, Value(result.like, slot, result.each))
        return copied

    def scratch(self, result: Value) -> tuple[int, int]:
        """Memory for one replica's part of a result, until the operation at hand is done."""
        slot = self.tables.slot(prod(result.shape))
        self._temporary.append(slot)
        return slot, 0

    def copy(self, node: Any, result: Value) -> None:
        """Spread an operand over a result."""
        value = self.values[node]
        sizes, strides = _collapsed(result.shape, self.strides(value, result))
        op = "integers" if value.like.dtype == torch.int64 else "copy"
        self.tables.add(op, result.slot, [(value.slot, value.offset)], sizes, strides)

    def constant(self, number: float, result: Value) -> tuple[int, int]:
        """A number in every element of one replica's part of a result."""
        slot, _ = filled = self.scratch(result)
        self.tables.add(Each.FILL, slot, [], [prod(result.shape)], number=number)
        return filled

    def alone(self, node: Node) -> tuple[Value, tuple[int, int]]:
        """An operand in its own shape, contiguous."""
        value = self.values[node]
        own = Value(torch.empty(value.like.shape, device="meta"), value.slot, value.each)
        return value, self.operand(node, own)

    def axes(self, value: Value, given: Any) -> list[int]:
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
    if schema is None or len(schema.returns) != 1 or not isinstance(node.meta.get("val"), Tensor):
        return False
    alias = schema.returns[0].alias_info
    return alias is not None and not alias.is_write


def _constant(number: Any) -> float:
    if isinstance(number, int) and abs(number) > EXACT:
        raise Refused(f"the integer {number}")
    return float(number)


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

_Make = Callable[[Lowering, Node, Value], None]


def _plain(node: Node, allowed: Sequence[str] = ()) -> None:
    for name, value in node.kwargs.items():
        if name not in allowed and not (name in ("alpha", "beta") and value == 1):
            raise Refused(f"{node.target} with {name}={value}")


_TRUTHS = (
    "where",
    Each.EQ,
    Each.NE,
    Each.GT,
    Each.LT,
    Each.GE,
    Each.LE,
)  # which may give other than float32


def _elementwise(op: Each | str, operands: int, number: int | None = None) -> _Make:
    def make(lowering: Lowering, node: Node, result: Value) -> None:
        _plain(node)
        expected = operands + (number is not None)
        if len(node.args) != expected:
            raise Refused(f"{node.target} with {len(node.args)} arguments")
        if op not in _TRUTHS and _kind(node) in _WHOLE:
            raise Refused(f"{node.target} of integers")
        given = [lowering.operand(a, result) for a in node.args[:operands]]
        value = 0.0 if number is None else _constant(node.args[number])
        lowering.tables.add(op, result.slot, given, [prod(result.shape)], number=value)

    return make


def _copy(lowering: Lowering, node: Node, result: Value) -> None:
    _plain(node, ("dtype", "device", "layout", "memory_format", "pin_memory", "non_blocking"))
    if not isinstance(node.args[0], Node):
        lowering.tables.add(
            Each.FILL, result.slot, [], [prod(result.shape)], number=_constant(node.args[0])
        )
        return
    before, after = _kind(node.args[0]), _kind(node)
    if after in _WHOLE and before != after:
        raise Refused(f"{node.target} from {before} to {after}")
    lowering.copy(node.args[0], result)


def _filled(number: Callable[[Node], Any]) -> _Make:
    def make(lowering: Lowering, node: Node, result: Value) -> None:
        lowering.tables.add(
            Each.FILL, result.slot, [], [prod(result.shape)], number=_constant(number(node))
        )

    return make


def _squared_difference(lowering: Lowering, node: Node, result: Value) -> None:
    if len(node.args) < 3 or node.args[2] != 0:
        raise Refused(f"{node.target} of all elements together")
    given = [lowering.operand(a, result) for a in node.args[:2]]
    lowering.tables.add(Each.SQUARED_DIFFERENCE, result.slot, given, [prod(result.shape)])


def _squared_difference_backward(lowering: Lowering, node: Node, result: Value) -> None:
    gradient, ours, theirs, reduction = node.args
    if reduction != 0:
        raise Refused(f"{node.target} of all elements together")
    size, tables = [prod(result.shape)], lowering.tables
    difference, doubled = lowering.scratch(result), lowering.scratch(result)
    tables.add(Each.SUB, difference[0], [lowering.operand(a, result) for a in (ours, theirs)], size)
    tables.add(Each.ADD, doubled[0], [difference, difference], size)
    tables.add(Each.MUL, result.slot, [doubled, lowering.operand(gradient, result)], size)


def _huber(scaled: bool) -> _Make:
    """Of Huber's loss, or of the smooth one, which is Huber's divided by its bound."""

    def make(lowering: Lowering, node: Node, result: Value) -> None:
        ours, theirs, reduction, bound = _filled_up(node.args, (None, None, 1, 1.0))
        if reduction != 0:
            raise Refused(f"{node.target} of all elements together")
        size, tables = [prod(result.shape)], lowering.tables
        given = [lowering.operand(a, result) for a in (ours, theirs)]
        tables.add(Each.HUBER, result.slot, given, size, number=_bound(node, bound))
        if scaled:
            operands = [(result.slot, 0), lowering.constant(_bound(node, bound), result)]
            tables.add(Each.DIV, result.slot, operands, size)

    return make


def _huber_backward(scaled: bool) -> _Make:
    def make(lowering: Lowering, node: Node, result: Value) -> None:
        gradient, ours, theirs, reduction, bound = node.args
        if reduction != 0:
            raise Refused(f"{node.target} of all elements together")
        size, tables = [prod(result.shape)], lowering.tables
        difference, slope = lowering.scratch(result), lowering.operand(gradient, result)
        operands = [lowering.operand(a, result) for a in (ours, theirs)]
        tables.add(Each.SUB, difference[0], operands, size)
        if scaled:
            divided = lowering.scratch(result)
            operands = [slope, lowering.constant(_bound(node, bound), result)]
            tables.add(Each.DIV, divided[0], operands, size)
            slope = divided
        operands, number = [slope, difference], _bound(node, bound)
        tables.add(Each.HUBER_BACKWARD, result.slot, operands, size, number=number)

    return make


def _filled_up(given: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """Arguments, and the defaults of those that were left out."""
    return [*given, *defaults[len(given) :]]


def _bound(node: Node, bound: Any) -> float:
    if not bound > 0:
        raise Refused(f"{node.target} with a bound of {bound}")
    return float(bound)


def _softplus(op: Each, operands: int) -> _Make:
    def make(lowering: Lowering, node: Node, result: Value) -> None:
        beta, threshold = _filled_up(node.args[operands:], (1, 20))
        if beta != 1:
            raise Refused(f"{node.target} with beta={beta}")
        given = [lowering.operand(a, result) for a in node.args[:operands]]
        number = _constant(threshold)
        lowering.tables.add(op, result.slot, given, [prod(result.shape)], number=number)

    return make


def _clamp(lowering: Lowering, node: Node, result: Value) -> None:
    """To bounds that are numbers, of which either may be missing."""
    value, *bounds = node.args
    low, high = (
        (*bounds, None)[:2] if node.target is not _aten.clamp_max.default else (None, *bounds)
    )
    given, size = lowering.operand(value, result), [prod(result.shape)]
    for op, bound in ((Each.MAXIMUM, low), (Each.MINIMUM, high)):
        if bound is not None:
            operands = [given, lowering.constant(_constant(bound), result)]
            lowering.tables.add(op, result.slot, operands, size)
            given = result.slot, 0


def _product(lowering: Lowering, node: Node, result: Value) -> None:
    _plain(node)
    *start, left, right = node.args
    tables = lowering.tables
    if result.like.ndim != 3 or not result.each:
        raise Refused(f"{node.target} of other than matrices of each replica")
    if start:
        lowering.copy(start[0], result)
    m, n = result.shape
    depth = lowering.values[left].like.shape[-1]  # type: ignore[index]
    operands: list[tuple[int, int]] = []
    strides: list[int] = []
    for factor, shape in ((left, (m, depth)), (right, (depth, n))):
        value = lowering.values[factor]  # type: ignore[index]
        whole = Value(torch.empty((lowering.replicas, *shape), device="meta"), -1, True)
        strides += lowering.strides(value, whole)
        operands.append((value.slot, value.offset))
        if _kind(factor) != torch.float32:
            raise Refused(f"{node.target} of {_kind(factor)}")
    tables.panel = max(tables.panel, -(-depth // LANES) * LANES * 4 * LANES)
    tables.add("product", result.slot, operands, [m, n, depth], [*strides, len(start)])


def _reduced(op: str) -> _Make:
    def make(lowering: Lowering, node: Node, result: Value) -> None:
        _plain(node)
        value, given = lowering.alone(node.args[0])  # type: ignore[arg-type]
        axes = lowering.axes(value, node.args[1] if len(node.args) > 1 else None)
        shape = value.shape
        outer, n, inner = (
            prod(shape[: axes[0]]),
            prod(shape[axes[0] : axes[-1] + 1]),
            prod(shape[axes[-1] + 1 :]),
        )
        if op == "logsumexp" and inner > 1:
            raise Refused("logsumexp over other than the last dimension")
        lowering.tables.panel = max(lowering.tables.panel, outer * (n + 2))
        share = 1 / n if op == "mean" else 1.0
        name = "sum" if op == "mean" else op
        lowering.tables.add(name, result.slot, [given], [outer, n, inner], number=share)

    return make


def _softmax(op: str, operands: int) -> _Make:
    def make(lowering: Lowering, node: Node, result: Value) -> None:
        value = lowering.values[node.args[0]]  # type: ignore[index]
        if lowering.axes(value, node.args[operands]) != [len(result.shape) - 1]:
            raise Refused("a softmax over other than the last dimension")
        n = result.shape[-1]
        given = [lowering.operand(a, result) for a in node.args[:operands]]
        lowering.tables.panel = max(lowering.tables.panel, 3 * prod(result.shape))
        lowering.tables.add(op, result.slot, given, [prod(result.shape) // n, n])

    return make


def _last(lowering: Lowering, node: Node, value: Value, indexed: tuple[int, ...]) -> None:
    shape = value.shape
    if lowering.axes(value, node.args[1]) != [len(shape) - 1] or shape[:-1] != indexed[:-1]:
        raise Refused(f"{node.target} along other than the last dimension")


def _gather(lowering: Lowering, node: Node, result: Value) -> None:
    _plain(node)
    value, given = lowering.alone(node.args[0])  # type: ignore[arg-type]
    _last(lowering, node, value, result.shape)
    index = lowering.operand(node.args[2], result)
    n, picks = value.shape[-1], result.shape[-1]
    lowering.tables.add(
        "gather", result.slot, [given, index], [prod(result.shape) // picks, n, picks]
    )


def _scatter(op: str) -> _Make:
    def make(lowering: Lowering, node: Node, result: Value) -> None:
        _plain(node)
        index = lowering.values[node.args[2]]  # type: ignore[index]
        picked = (*result.like.shape[:-1], index.like.shape[-1])
        as_index = Value(torch.empty(picked, device="meta"), -1, result.each)
        _last(lowering, node, result, as_index.shape)
        places = lowering.operand(node.args[2], as_index)
        source = lowering.operand(node.args[3], as_index)
        tables, size = lowering.tables, prod(result.shape)
        lowering.copy(node.args[0], result)
        n = result.shape[-1]
        tables.add(op, result.slot, [source, places], [size // n, n, picked[-1]])

    return make


_OPERATIONS: dict[Any, _Make] = {
    **dict.fromkeys((_aten.add.Tensor, _aten.add.Scalar), _elementwise(Each.ADD, 2)),
    **dict.fromkeys((_aten.sub.Tensor, _aten.sub.Scalar), _elementwise(Each.SUB, 2)),
    **dict.fromkeys((_aten.mul.Tensor, _aten.mul.Scalar), _elementwise(Each.MUL, 2)),
    **dict.fromkeys((_aten.div.Tensor, _aten.div.Scalar), _elementwise(Each.DIV, 2)),
    **dict.fromkeys((_aten.eq.Tensor, _aten.eq.Scalar), _elementwise(Each.EQ, 2)),
    **dict.fromkeys((_aten.ne.Tensor, _aten.ne.Scalar), _elementwise(Each.NE, 2)),
    **dict.fromkeys((_aten.gt.Tensor, _aten.gt.Scalar), _elementwise(Each.GT, 2)),
    **dict.fromkeys((_aten.lt.Tensor, _aten.lt.Scalar), _elementwise(Each.LT, 2)),
    **dict.fromkeys((_aten.ge.Tensor, _aten.ge.Scalar), _elementwise(Each.GE, 2)),
    **dict.fromkeys((_aten.le.Tensor, _aten.le.Scalar), _elementwise(Each.LE, 2)),
    _aten.maximum.default: _elementwise(Each.MAXIMUM, 2),
    _aten.minimum.default: _elementwise(Each.MINIMUM, 2),
    _aten.where.self: _elementwise("where", 3),
    _aten.relu.default: _elementwise(Each.RELU, 1),
    _aten.neg.default: _elementwise(Each.NEG, 1),
    _aten.exp.default: _elementwise(Each.EXP, 1),
    _aten.log.default: _elementwise(Each.LOG, 1),
    _aten.tanh.default: _elementwise(Each.TANH, 1),
    _aten.sigmoid.default: _elementwise(Each.SIGMOID, 1),
    _aten.abs.default: _elementwise(Each.ABS, 1),
    **dict.fromkeys((_aten.sgn.default, _aten.sign.default), _elementwise(Each.SGN, 1)),
    _aten.log1p.default: _elementwise(Each.LOG1P, 1),
    _aten.pow.Tensor_Scalar: _elementwise(Each.POW, 1, number=1),
    _aten.softplus.default: _softplus(Each.SOFTPLUS, 1),
    _aten.softplus_backward.default: _softplus(Each.SOFTPLUS_BACKWARD, 2),
    **dict.fromkeys(
        (_aten.clamp.default, _aten.clamp_min.default, _aten.clamp_max.default), _clamp
    ),
    _aten.sqrt.default: _elementwise(Each.SQRT, 1),
    _aten.threshold_backward.default: _elementwise(Each.THRESHOLD_BACKWARD, 2, number=2),
    _aten.tanh_backward.default: _elementwise(Each.TANH_BACKWARD, 2),
    _aten.sigmoid_backward.default: _elementwise(Each.SIGMOID_BACKWARD, 2),
    **dict.fromkeys((_aten._to_copy.default, _aten.clone.default), _copy),
    _aten.ones_like.default: _filled(lambda node: 1),
    _aten.zeros_like.default: _filled(lambda node: 0),
    _aten.new_zeros.default: _filled(lambda node: 0),
    _aten.scalar_tensor.default: _filled(lambda node: node.args[0]),
    _aten.full.default: _filled(lambda node: node.args[1]),
    _aten.full_like.default: _filled(lambda node: node.args[1]),
    _aten.mse_loss.default: _squared_difference,
    _aten.mse_loss_backward.default: _squared_difference_backward,
    _aten.huber_loss.default: _huber(scaled=False),
    _aten.huber_loss_backward.default: _huber_backward(scaled=False),
    _aten.smooth_l1_loss.default: _huber(scaled=True),
    _aten.smooth_l1_loss_backward.default: _huber_backward(scaled=True),
    _aten.bmm.default: _product,
    _aten.baddbmm.default: _product,
    **dict.fromkeys((_aten.sum.dim_IntList, _aten.sum.default), _reduced("sum")),
    **dict.fromkeys((_aten.mean.dim, _aten.mean.default), _reduced("mean")),
    _aten.amax.default: _reduced("amax"),
    _aten.argmax.default: _reduced("argmax"),
    _aten.logsumexp.default: _reduced("logsumexp"),
    _aten._softmax.default: _softmax("softmax", 1),
    _aten._softmax_backward_data.default: _softmax("softmax_backward", 2),
    _aten._log_softmax.default: _softmax("log_softmax", 1),
    _aten._log_softmax_backward_data.default: _softmax("log_softmax_backward", 2),
    _aten.gather.default: _gather,
    _aten.scatter_add.default: _scatter("scatter_add"),
    _aten.scatter.value: _scatter("scatter"),
}
