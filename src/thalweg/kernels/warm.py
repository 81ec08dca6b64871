"""``python -m thalweg.kernels.warm``: compile the kernels of a study into the disk cache."""

import numpy as np

from thalweg import rules
from thalweg.kernels import cpu, tape

__all__ = ["warm"]

# Those that take longest, of a network of linear layers with a softmax; the study's own process
# compiles the short ones meanwhile.
SLOW = ("product", "usual", "logsumexp", "copy", "sum", "gather", "argmax")


def warm() -> None:
    """Compile a tape's long operations, and the step of every rule as its defaults make it."""
    for operation in SLOW:
        tape.address(operation)
    nothing = np.zeros(0, dtype=np.int64)
    tape.run(
        np.zeros((0, tape.COLUMNS), dtype=np.int64),
        np.zeros(0, dtype=np.float32),
        np.zeros((0, 3), dtype=np.int64),
        tape.Workspace(1, 1, 1),
        nothing,
    )
    for name in rules.__all__:
        rule = getattr(rules, name)
        if isinstance(rule, rules.Rule):
            hyper = rule.complete({"lr": 1.0})
            rule = rule.resolve(hyper)
            cpu.step_function(rule.update, len(rule.state), len(rule.row(hyper, 1)) - 3)


if __name__ == "__main__":
    warm()
