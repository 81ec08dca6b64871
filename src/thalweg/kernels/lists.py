"""How a rule runs on many tensors at once: the same maths, every operation on a whole list.

`Tensors` computes as one number does, by torch's multi-tensor operations, so that a step takes as
many launches as the rule has operations, whatever the number of tensors. The same functions go
through ``torch.compile``, which makes a few kernels of them; coefficients are then data, so that no
change of a rate, a beta or the step compiles anything anew. Half precision is computed in float32
and rounded once, when it is stored.

Nothing here waits for the device.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thalweg.kernels.codecs import computed, decoded, encoded
from thalweg.kernels.cpu import Storage
from thalweg.kernels.storage import NEXT_ARRAY, NEXT_SEGMENT, RANDOM16, SCALED
from thalweg.rules.rule import HEAD, Rule, Sums, decay, prepare

__all__ = ["Columns", "Tensors", "compiled", "measure", "shift", "step"]

# For each state, its tensors or their scales, one for each parameter.
Columns: TypeAlias = Sequence[Sequence[Tensor]]

Seeds: TypeAlias = tuple[int | Tensor, int | Tensor]


class Tensors:
    """A list of tensors that computes as a number does, with numbers and with its like.

    The other operand may be a number, a tensor without dimensions, or as many tensors, of the same
    shapes or of none. What torch has no multi-tensor operation for is done one by one.
    """

    __slots__ = ("items",)

    # NumPy's numbers leave the arithmetic to this class.
    __array_ufunc__ = None

    def __init__(self, items: Sequence[Tensor]) -> None:
        self.items = list(items)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.items[0].device

    def _listed(self, other: Any) -> Any:
        """For operations that would take a tensor's value from the device to make it a number."""
        return [other] * len(self.items) if isinstance(other, Tensor) else _plain(other)

    def __neg__(self) -> "Tensors":
        return Tensors(torch._foreach_neg(self.items))

    def __add__(self, other: Any) -> "Tensors":
        if isinstance(other, Tensor):
            # By its name: torch._foreach_add would take the tensor for a number, and fetch it.
            return Tensors(torch.ops.aten._foreach_add.Tensor(self.items, other))
        return Tensors(torch._foreach_add(self.items, _plain(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Tensors":
        if isinstance(other, Tensor):
            return self.__add__(-other)
        return Tensors(torch._foreach_sub(self.items, _plain(other)))

    def __rsub__(self, other: Any) -> "Tensors":
        return (-self).__add__(other)

    def __mul__(self, other: Any) -> "Tensors":
        return Tensors(torch._foreach_mul(self.items, _plain(other)))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Tensors":
        return Tensors(torch._foreach_div(self.items, _plain(other)))

    def __rtruediv__(self, other: Any) -> "Tensors":
        return Tensors([other / t for t in self.items])

    def __pow__(self, other: Any) -> "Tensors":
        return Tensors(torch._foreach_pow(self.items, self._listed(other)))

    def __rpow__(self, other: Any) -> "Tensors":
        return Tensors([other**t for t in self.items])

    def sqrt(self) -> "Tensors":
        """Square root of every element."""
        return Tensors(torch._foreach_sqrt(self.items))

    def abs(self) -> "Tensors":
        """Absolute value of every element."""
        return Tensors(torch._foreach_abs(self.items))

    def sign(self) -> "Tensors":
        """-1, 0 or 1 for every element; 0 for NaN, as torch has it."""
        return Tensors(torch._foreach_sign(self.items))

    def maximum(self, other: Any) -> "Tensors":
        """The larger of two, NaN where either is."""
        return Tensors(torch._foreach_maximum(self.items, self._listed(other)))

    def minimum(self, other: Any) -> "Tensors":
        """The smaller of two, NaN where either is."""
        return Tensors(torch._foreach_minimum(self.items, self._listed(other)))

    def clamp(self, min: float | None = None, max: float | None = None) -> "Tensors":
        """Every element within bounds."""
        above = self if min is None else self.maximum(min)
        return above if max is None else above.minimum(max)

    def __lt__(self, other: Any) -> "Tensors":
        return _one_by_one(torch.lt, self, other)

    def __le__(self, other: Any) -> "Tensors":
        return _one_by_one(torch.le, self, other)

    def __gt__(self, other: Any) -> "Tensors":
        return _one_by_one(torch.gt, self, other)

    def __ge__(self, other: Any) -> "Tensors":
        return _one_by_one(torch.ge, self, other)

    def __eq__(self, other: Any) -> "Tensors":  # type: ignore[override]
        return _one_by_one(torch.eq, self, other)

    def __ne__(self, other: Any) -> "Tensors":  # type: ignore[override]
        return _one_by_one(torch.ne, self, other)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # An operator of torch's tensors gives way to that of this class.
        if function not in (torch.where, Tensor.maximum, Tensor.minimum):
            return NotImplemented
        return _one_by_one(function, *args)


def _plain(operand: Any) -> Any:
    """What torch's multi-tensor operations take."""
    return operand.items if isinstance(operand, Tensors) else operand


def _one_by_one(function: Callable[..., Tensor], *operands: Any) -> Tensors:
    count = next(len(o.items) for o in operands if isinstance(o, Tensors))
    return Tensors(
        [
            function(*(o.items[i] if isinstance(o, Tensors) else o for o in operands))
            for i in range(count)
        ]
    )


def _converted(some: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    if all(t.dtype == dtype for t in some):
        return list(some)
    made = [torch.empty_like(t, dtype=dtype) for t in some]
    torch._foreach_copy_(made, list(some))
    return made


def _opened(storage: Storage, states: Columns, scales: Columns, dtype: torch.dtype) -> list[Any]:
    """States as they are computed with."""
    found = []
    for kind, stored, its_scales in zip(storage.states, states, scales, strict=True):
        if kind in SCALED:
            stored = [decoded(kind, s, a) for s, a in zip(stored, its_scales, strict=True)]
        found.append(Tensors(_converted(stored, dtype)))
    return found


def _given(row: Sums | Tensor, count: int) -> tuple[Any, ...]:
    """Coefficients one by one; of each that is a vector, an entry for every tensor."""
    if isinstance(row, Tensor):
        # One for all is repeated, for torch.compile knows the operators of this class alone.
        return tuple(Tensors(c.unbind() if c.ndim else [c] * count) for c in row.unbind())
    return tuple(Tensors(c.unbind()) if isinstance(c, Tensor) and c.ndim else c for c in row)


def step(
    rule: Rule,
    storage: Storage,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Columns,
    scales: Columns,
    row: Sums | Tensor,
    extra: Sums | Tensor = (),
    seeds: Seeds = (0, 0),
) -> None:
    """One step of a resolved elementwise rule, in place.

    Args:
        rule: a resolved rule (`Rule.resolve`).
        storage: how parameters and states lie in memory.
        parameters: of one dtype, on one device, any shapes; at least one.
        gradients: same shapes, dtype and device.
        states: for each of the rule's states, its tensors.
        scales: for each of the rule's states, the scales of its tensors; empty if it has none.
        row: `Rule.row`, as numbers, as tensors without dimensions, or as one tensor
            ``(coefficients,)``; in the dtype that is computed in.
        extra: further coefficients (`Rule.go_on`), the same, or with a dimension more for a
            value of each tensor's own: tensors ``(len(parameters),)``.
        seeds: of what is rounded at random (`thalweg.kernels.storage.seeds`), numbers or int64
            tensors without dimensions.
    """
    dtype = computed(parameters[0].dtype)
    row = _given(row, len(parameters))
    p, g = (Tensors(_converted(some, dtype)) for some in (parameters, gradients))
    opened = _opened(storage, states, scales, dtype)
    new = rule.update(
        decay(p, row), prepare(p, g, row), *opened, *row[HEAD:], *_given(extra, len(p.items))
    )
    kinds = (storage.parameter, *storage.states)
    targets, their_scales = (parameters, *states), ((), *scales)
    for k, (kind, target, made) in enumerate(zip(kinds, targets, new, strict=True)):
        if kind in (RANDOM16, *SCALED):
            # Where the kernel has the gradient is nothing to store.
            _encode(kind, target, their_scales[k], made, k + (k > 0), seeds)
        else:
            torch._foreach_copy_(list(target), made.items)
    if storage.clear:
        torch._foreach_zero_(list(gradients))


def _encode(
    kind: str,
    target: Sequence[Tensor],
    scales: Sequence[Tensor],
    values: Tensors,
    array: int,
    seeds: Seeds,
) -> None:
    """Store the array of this number, rounded as the CPU kernel does."""
    place, turn = seeds
    for i, (stored, value) in enumerate(zip(target, values.items, strict=True)):
        own = place + (NEXT_SEGMENT * i + NEXT_ARRAY * array)
        made, scale = encoded(kind, value, own, turn)
        stored.copy_(made)
        if scale is not None:
            scales[i].copy_(scale)


def measure(
    rule: Rule,
    storage: Storage,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Columns,
    scales: Columns,
    row: Sums | Tensor,
) -> Tensor:
    """Sums of a rule's terms over every tensor, ``(terms, len(parameters))``, float64.

    The arguments are as `step` takes them.
    """
    assert rule.terms is not None
    dtype = computed(parameters[0].dtype)
    row = _given(row, len(parameters))
    p, g = (Tensors(_converted(some, dtype)) for some in (parameters, gradients))
    opened = _opened(storage, states, scales, dtype)
    terms = rule.terms(p, prepare(p, g, row), *opened, *row[HEAD:])
    return torch.stack(
        [torch.stack([t.sum(dtype=torch.float64) for t in term.items]) for term in terms]
    )


def shift(
    rule: Rule,
    storage: Storage,
    parameters: Sequence[Tensor],
    states: Columns,
    scales: Columns,
    row: Sums,
) -> None:
    """Move parameters, in place, to the point where the rule takes its gradient."""
    assert rule.point is not None
    dtype = computed(parameters[0].dtype)
    p = Tensors(_converted(parameters, dtype))
    made = rule.point(p, *_opened(storage, states, scales, dtype), *row[HEAD:])
    torch._foreach_copy_(list(parameters), made.items)


# Lists of different shapes, which each compile anew, that one rule may have in a process.
_MOST = 64


@cache
def compiled(
    what: str, rule: Rule, storage: Storage, backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """`step` or `measure` for a rule, by ``torch.compile``, which runs at the first call.

    The shapes of the lists are part of the code. Coefficients given as one tensor are data.

    Args:
        what: ``"step"`` or ``"measure"``.
        rule: a resolved rule.
        storage: how parameters and states lie in memory.
        backend: as ``torch.compile`` takes it.

    Returns:
        A function of the other arguments.
    """
    function: Callable[..., Any] = step if what == "step" else measure

    def call(*arguments: Any) -> Any:
        return function(rule, storage, *arguments)

    found: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
        call,
        dynamic=False,
        fullgraph=True,
        backend=backend,
        recompile_limit=_MOST,
        isolate_recompiles=True,
    )
    return found
