"""The few functions that a rule may use besides ``+ - * / **``.

Each works alike on a Python float, a NumPy array and a torch tensor; the CPU kernel compiles the
same names for its scalars (`thalweg.kernels.cpu`). What is not NumPy's or Python's is taken for a
torch tensor, or for many of them that compute as one (`thalweg.kernels.lists.Tensors`).
"""

from typing import Any

import numpy as np

__all__ = ["absolute", "maximum", "minimum", "sign", "sqrt", "where"]


# Not a union of them by |, which torch.compile cannot make.
_NUMPY = (np.ndarray, np.generic, float, int)


def _is_numpy(*values: Any) -> bool:
    return all(isinstance(x, _NUMPY) for x in values)


def sqrt(x: Any) -> Any:
    """Square root, elementwise; NaN for negative numbers."""
    return np.sqrt(x) if _is_numpy(x) else x.sqrt()


def absolute(x: Any) -> Any:
    """Absolute value, elementwise."""
    return np.abs(x) if _is_numpy(x) else x.abs()


def sign(x: Any) -> Any:
    """-1, 0 or 1, elementwise; NaN stays NaN, as NumPy has it (torch makes it 0)."""
    return np.sign(x) if _is_numpy(x) else x.sign() + 0.0 * x.clamp(min=-1.0, max=1.0)


def maximum(x: Any, y: Any) -> Any:
    """The larger of two, elementwise; NaN where either is NaN, as torch and NumPy have it."""
    if _is_numpy(x, y):
        return np.maximum(x, y)
    if _is_numpy(x):
        return y.clamp(min=x)
    return x.clamp(min=y) if _is_numpy(y) else x.maximum(y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller of two, elementwise; NaN where either is NaN, as torch and NumPy have it."""
    if _is_numpy(x, y):
        return np.minimum(x, y)
    if _is_numpy(x):
        return y.clamp(max=x)
    return x.clamp(max=y) if _is_numpy(y) else x.minimum(y)


def where(condition: Any, x: Any, y: Any) -> Any:
    """``x`` where the condition holds and ``y`` elsewhere; both are computed."""
    if isinstance(condition, (bool, np.bool_)):
        return x if condition else y  # which may be tensors
    if isinstance(condition, np.ndarray):
        return np.where(condition, x, y)
    import torch

    if _is_numpy(x, y):
        # Of two numbers torch would make a tensor of float32.
        x = torch.full((), x, dtype=torch.float64, device=condition.device)
    return torch.where(condition, x, y)
