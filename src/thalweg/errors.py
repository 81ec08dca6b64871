"""What is raised for a person's mistake."""

__all__ = ["ArgumentError"]


class ArgumentError(ValueError):
    """Something asked for that cannot be done.

    Attributes:
        argument: the argument at fault, ``batch_size`` say.
        problem: one sentence with the value, where it came from and what to do.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem
