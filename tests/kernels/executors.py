"""Every executor on the same arrays."""

import numpy as np
import torch

from thalweg.kernels import cpu, reference, tensors


def start(rule, shape, seed=0, dtype=np.float64):
    """Parameter, gradient and plausible state; states named after squares are not negative."""
    random = np.random.default_rng(seed)
    p, g, *state = (random.normal(size=shape).astype(dtype) for _ in range(2 + len(rule.state)))
    return p, g, [np.abs(s) for s in state]


def by_reference(rule, p, g, state, hyper, count):
    return reference.step(rule, p, g, state, hyper, count)


def by_kernel(rule, p, g, state, hyper, count):
    arrays = [a.copy() for a in (p, g, *state)]
    segments = cpu.Segments.of([p.size], [0], len(state))
    segments.table[0, 1:] = [a.ctypes.data for a in arrays]
    cpu.run(rule, segments, np.array([rule.row(hyper, count)], dtype=p.dtype))
    assert np.array_equal(arrays[1], g, equal_nan=True)
    return arrays[0], *arrays[2:]


def by_tensors(rule, p, g, state, hyper, count):
    held = [torch.from_numpy(a.copy()) for a in (p, g, *state)]
    tensors.step(rule, held[0], held[1], held[2:], rule.row(hyper, count))
    return held[0].numpy(), *(t.numpy() for t in held[2:])


def gap(some, others):
    """Largest ‖a - b‖ / ‖b‖ over parameter and states."""
    return max(
        float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))
        for a, b in zip(some, others, strict=True)
    )
