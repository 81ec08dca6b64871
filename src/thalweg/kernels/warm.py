"""``python -m thalweg.kernels.warm``: compile the kernels of a study into the disk cache."""

import numpy as np

from thalweg import rules
from thalweg.kernels import cpu

__all__ = ["warm"]


def warm() -> None:
    """Compile, for float32 and one core, the step of every rule as its defaults make it."""
    for name in rules.__all__:
        rule = getattr(rules, name)
        if isinstance(rule, rules.Rule):
            hyper = rule.complete({"lr": 1.0})
            rule = rule.resolve(hyper)
            nothing = cpu.Segments.of([0], [0], len(rule.state))
            cpu.run(rule, nothing, np.array([rule.row(hyper, 1)], dtype=np.float32))


if __name__ == "__main__":
    warm()
