"""``python -m thalweg.kernels.warm``: compile the kernels of a study into the disk cache."""

import numpy as np

from thalweg import rules
from thalweg.kernels import cpu, tape
from thalweg.rules.rule import HEAD

__all__ = ["warm"]

# Those that take longest, of a network of linear layers with a softmax; the study's own process
# compiles the short ones meanwhile.
SLOW = ("product", "usual", "logsumexp", "copy", "sum", "gather", "argmax")

# Those that a study compares unless told otherwise.
RULES = (
    rules.SGD,
    rules.MOMENTUM,
    rules.NAG,
    rules.ADAGRAD,
    rules.RMSPROP,
    rules.ADADELTA,
    rules.ADAM,
)


def warm() -> None:
    """Compile a tape's long operations, and the step of each of the `RULES`."""
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
    for rule in RULES:
        hyper = rule.complete({"lr": 1.0})
        rule = rule.resolve(hyper)
        coefficients = len(rule.row(hyper, 1)) - HEAD
        cpu.step_function(rule.update, len(rule.state), coefficients, bounded=False)


if __name__ == "__main__":
    warm()
