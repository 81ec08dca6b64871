"""Every executor on the same arrays: all that an optimizer has is one of them."""

import numpy as np
import torch

from thalweg.kernels import cpu, lists, reference, tensors
from thalweg.rules.rule import HEAD


def start(rule, shape, seed=0, dtype=np.float64):
    """Parameter, gradient and plausible state; states named after squares are not negative."""
    random = np.random.default_rng(seed)
    shape = (shape,) if isinstance(shape, int) else shape
    p, g = (random.normal(size=shape).astype(dtype) for _ in range(2))
    if rule.whole:  # whose states have to fit each other
        return p, g, list(reference.start(rule, p, rule.defaults))
    return p, g, [np.abs(random.normal(size=shape)).astype(dtype) for _ in rule.state]


def by_reference(rule, p, g, state, hyper, count, scalars=()):
    return reference.step(rule, p, g, state, hyper, count, scalars)


def by_kernel(rule, p, g, state, hyper, count, scalars=()):
    arrays = [a.copy() for a in (p, g, *state)]
    segments = cpu.Segments.of([p.size], [0], len(state))
    segments.table[0, 1:] = [a.ctypes.data for a in arrays]
    bounded = hyper["clip_value"] is not None
    row = rule.row(hyper, count, scalars)
    sums = ()
    if rule.terms is not None:
        sums = tuple(cpu.measure(rule, segments, np.array([row], p.dtype), bounded)[0])
    extra, scalars = rule.go_on(hyper, count, sums, scalars)
    cpu.run(rule, segments, np.array([[*row, *extra]], dtype=p.dtype), bounded)
    assert np.array_equal(arrays[1], g, equal_nan=True)
    return (arrays[0], *arrays[2:]), scalars


def by_tensors(rule, p, g, state, hyper, count, scalars=()):
    held = [torch.from_numpy(a.copy()) for a in (p, g, *state)]
    if rule.whole:
        held = [t[None] for t in held]
    row = rule.row(hyper, count, scalars)
    sums = ()
    if rule.terms is not None:
        sums = tuple(float(s) for s in tensors.measure(rule, held[0], held[1], held[2:], row))
    extra, scalars = rule.go_on(hyper, count, sums, scalars)
    tensors.step(rule, held[0], held[1], held[2:], row, extra)
    assert len(row) >= HEAD
    found = [t[0] if rule.whole else t for t in (held[0], *held[2:])]
    return tuple(t.numpy() for t in found), scalars


def by_lists(rule, p, g, state, hyper, count, scalars=(), data=False):
    """As a list of slices; with ``data`` all coefficients are in one tensor."""
    held = [list(torch.from_numpy(a.copy()).unbind()) for a in (p, g, *state)]
    storage = cpu.Storage("", ("",) * len(state))
    scales = [[] for _ in state]
    row = rule.row(hyper, count, scalars)
    given = torch.tensor(row, dtype=held[0][0].dtype) if data else row
    sums = ()
    if rule.terms is not None:
        every = lists.measure(rule, storage, held[0], held[1], held[2:], scales, given)
        sums = tuple(every.sum(1).tolist())
    extra, scalars = rule.go_on(hyper, count, sums, scalars)
    extra = tuple(map(float, extra))
    if data:
        extra = torch.tensor(extra, dtype=given.dtype)
    lists.step(rule, storage, held[0], held[1], held[2:], scales, given, extra)
    found = [torch.stack(slices).numpy() for slices in (held[0], *held[2:])]
    return tuple(found), scalars


def gap(some, others):
    """Largest ‖a - b‖ / ‖b‖ over parameter and states."""
    return max(
        float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))
        for a, b in zip(some, others, strict=True)
    )
