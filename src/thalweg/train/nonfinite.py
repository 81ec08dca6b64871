"""Where a training's numbers cease to be finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thalweg.train.arguments import FitError
from thalweg.train.engine import Engine

__all__ = ["Culprit", "DivergenceError", "all_finite", "culprit", "is_stuck", "learned"]

LEAST_SCALE = 2.0**-24  # of the loss; 40 steps left out one after another lead to it
STATISTICS = ("running_mean", "running_var")


class DivergenceError(FitError):
    """A training whose loss or weights became NaN or infinite.

    Attributes:
        step: at which they did, from 1.
        epoch: which it is in, from 1.
        layer: name of the layer where they did first; None where that is not known.
    """

    def __init__(self, problem: str, step: int, epoch: int, layer: str | None) -> None:
        super().__init__("lr", problem)
        self.step, self.epoch, self.layer = step, epoch, layer


@dataclass(frozen=True)
class Culprit:
    """The first numbers of a training that are not finite.

    Attributes:
        step, epoch: when, from 1.
        layer: name of the layer, "" for the model itself; None outside of it.
        what: what they are, a clause.
        lr: learning rate of the step.
    """

    step: int
    epoch: int
    layer: str | None
    what: str
    lr: float


def all_finite(tensors: Any) -> bool:
    """Whether all numbers are."""
    return all(
        bool(t.isfinite().all())
        for t in tree_leaves(tensors)
        if isinstance(t, Tensor) and t.is_floating_point()
    )


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, and the running statistics of normalisation.

    Other buffers may be infinite on purpose, as masks are.
    """
    buffers = dict(model.named_buffers())
    return dict(model.named_parameters()) | {
        name: t for name, t in buffers.items() if name.rpartition(".")[2] in STATISTICS
    }


def is_stuck(engine: Engine) -> bool:
    """Whether float16 leaves out step after step, as no scale makes the gradients finite."""
    scaler = engine.taken.scaler
    return scaler is not None and scaler.get_scale() < LEAST_SCALE


def culprit(engine: Engine, safe: dict[str, Any], step: int) -> Culprit | None:
    """Train once more from where all was well, and look.

    Args:
        engine: of the training, which is somewhere else when this ends.
        safe: its state at an earlier step.
        step: from 1, after which something was seen not to be finite.

    Returns:
        None where it does not happen again.
    """
    engine.load(safe)
    while engine.step < step:
        loss = engine.advance(1)
        lost = is_stuck(engine) or not all_finite([loss, learned(engine.model)])
        if engine.ranks.most(lost):
            break
    else:
        return None
    first = engine.step
    engine.load(safe)
    if first - 1 > engine.step:
        engine.advance(first - 1 - engine.step)
    seen = [found for found in engine.ranks.all_of(_looked_at(engine)) if found is not None]
    return Culprit(first, engine.epoch, *seen[0], engine.lr) if seen else None


def _looked_at(engine: Engine) -> tuple[str | None, str] | None:
    """Take one step; the layer and what in it is not finite first."""
    window, step = engine.window(), engine.taken
    step.shortcut = None  # of whose layers nothing can be seen
    parameters = dict(engine.model.named_parameters())
    bad: list[str] = []
    with _watched(engine.model) as (outputs, reaching):
        if engine.made.needs_closure or step.scaler is not None:
            loss = step(window)
        else:
            loss = step.gradients(window)
            bad = [name for name, p in parameters.items() if not all_finite(p.grad)]
            step.update()
            step.forget()
    engine.step += 1
    if not all_finite([(x, y) for x, y, _ in window]):
        return None, "the inputs or targets of the batch"
    if outputs:
        return outputs[0]
    if not all_finite(loss):
        return None, "the values of the loss alone"
    if reaching:
        return reaching[0]
    if bad:  # the one nearest to the outputs comes first
        return bad[-1].rpartition(".")[0], f"the gradient's elements for {bad[-1]}"
    left = [name for name, t in learned(engine.model).items() if not all_finite(t)]
    return (
        (left[0].rpartition(".")[0], f"the elements of {left[0]} after the update")
        if left
        else None
    )


Found = list[tuple[str | None, str]]


@contextmanager
def _watched(module: nn.Module) -> Iterator[tuple[Found, Found]]:
    """Outputs of layers, and gradients that reach them, which are not finite; in order."""
    found: tuple[Found, Found] = [], []

    def look(name: str) -> Any:
        def forward(part: nn.Module, _: Any, outputs: Any) -> None:
            said = f"layer {name} ({type(part).__name__})" if name else type(part).__name__

            def backward(g: Tensor) -> None:
                if not all_finite(g):
                    found[1].append((name, f"the gradients that reach the outputs of {said}"))

            if not all_finite(outputs):
                found[0].append((name, f"the outputs of {said}"))
            for t in tree_leaves(outputs):
                if isinstance(t, Tensor) and t.requires_grad:
                    t.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    leaves = [(n, m) for n, m in module.named_modules() if not list(m.children())]
    hooks = [part.register_forward_hook(look(name)) for name, part in leaves]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
