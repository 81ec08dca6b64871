"""What every optimizer takes besides its rule's hyperparameters."""

from thalweg.rules.rule import Choice, Flag

__all__ = ["OPTIONS", "TORCHS"]

# How a step is carried out, for every rule.
OPTIONS: dict[str, Choice | Flag] = {
    option.name: option
    for option in (
        Choice(
            "state",
            None,
            (None, "bfloat16", "8bit"),
            "how moments are kept: as the parameter is, in bfloat16, or in eight bits with a "
            "scale for every 256 where those are enough; no effect on rules without moments",
        ),
        Flag(
            "stochastic_rounding",
            meaning="round bfloat16 parameters up or down at random, so that steps below their "
            "precision are not lost",
        ),
        Flag("clear_grad", meaning="set gradients to zero in the same pass"),
        Flag(
            "capturable",
            meaning="count steps on the device, so that a CUDA graph can be captured; CUDA only",
        ),
    )
}

# What torch.optim's classes take besides.
TORCHS = {
    "foreach": "on a GPU: by torch's multi-tensor operations, which need not compile and take "
    "longer; no effect on the CPU",
    "fused": "no effect: on every device there is one kernel",
    "differentiable": "must be False",
}
