"""torch.amp.GradScaler: it scales the loss, and skips a step whose gradients overflowed."""

import torch
from torch import nn

from tests.optim.cases import TORCH_ROWS
from tests.optim.digits import distance, loss_of, network


def train(model, optimizer, steps, overflows):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    scales = []
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step in overflows:
            next(model.parameters()).grad[0, 0] = float("inf")
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@TORCH_ROWS
def test_scaled_clipped_and_skipped_as_in_torch(entry):
    valid = entry.valid[0]
    ours, theirs = network(torch.float32), network(torch.float32)
    a = entry.constructor(ours.parameters(), **valid.arguments)
    b = entry.oracle(theirs.parameters(), **valid.oracle)
    scales = train(ours, a, 20, overflows={7})
    assert scales == train(theirs, b, 20, overflows={7})
    assert scales[7] == scales[6] / 2
    assert {float(state["step"]) for state in a.state.values()} == {19}
    assert distance(ours, theirs) < entry.tolerance[0]
