"""Forward and backward passes of many copies of one model at once."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from thalweg.replicas.trace import straighten
from thalweg.tasks import Batch, Task
from thalweg.tasks.blame import first_line, place, quoted

if TYPE_CHECKING:
    from thalweg.replicas.taped import Tape, TrainingTape

__all__ = ["ALONE", "Backend", "Model", "Program", "build", "stack"]

Backend: TypeAlias = Literal["eager", "compiled", "one by one"]
Tensors: TypeAlias = list[Tensor]
Step: TypeAlias = Callable[[Tensors, Tensors, Batch, Batch], tuple[Tensor, Tensors, Tensors]]
Evaluation: TypeAlias = Callable[[Tensors, Tensors, Batch, Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Model:
    """Where a model's tensors go.

    Attributes:
        train, evaluate: the module in each mode; their own tensors are never used.
        parameters: names of what is trained.
        constants: names of the rest: buffers and frozen parameters.
    """

    train: nn.Module
    evaluate: nn.Module
    parameters: tuple[str, ...]
    constants: tuple[str, ...]

    def call(self, module: nn.Module, parameters: Tensors, constants: Tensors, x: Batch) -> Any:
        """The outputs of one copy of the model for one batch."""
        tensors = dict(
            zip((*self.parameters, *self.constants), (*parameters, *constants), strict=True)
        )
        if isinstance(x, dict):
            return functional_call(module, tensors, (), x)
        return functional_call(module, tensors, x if isinstance(x, tuple) else (x,))

    def tensors_of(self, place: int, parameters: Tensors, constants: Tensors) -> dict[str, Tensor]:
        """Copies of one replica's tensors by name, from stacks ``(replicas, *shape)``."""
        names = (*self.parameters, *self.constants)
        stacks = zip(names, (*parameters, *constants), strict=True)
        return {name: stack[place].detach().clone() for name, stack in stacks}


@dataclass(frozen=True)
class Program:
    """The passes of a chunk, for its number of replicas and batch shape.

    Attributes:
        step: ``(parameters, constants, x, y) -> (losses, gradients, constants)``, all stacked over
            replicas along the first dimension.
        evaluate: ``(parameters, constants, x, y) -> (losses, metrics)`` of the same data for all.
        backend: how it runs.
        note: why it runs so, if not as asked.
        tape: the step on a tape, where that can hold it: float32 on the CPU, of known operations.
        single: one step on such a tape, likewise; its sums may round
            otherwise.
        line: the tape of `single`, from parameters, inputs and targets to losses and gradients.
        concurrent: whether several threads may run it at once: it is traced, so that no module's
            tensors are swapped, and draws no random numbers, whose stream is everybody's.
    """

    step: Step
    evaluate: Evaluation
    backend: Backend
    note: str = ""
    tape: "TrainingTape | None" = None
    single: Step | None = None
    line: "Tape | None" = None
    concurrent: bool = False


# Held while the global random state or a module's tensors are exchanged.
ALONE = RLock()


def stack(task: Task, seeds: Sequence[int], device: str) -> tuple[Model, Tensors, Tensors]:
    """Initial tensors of one replica per seed.

    Returns:
        The model's layout, its parameters and its constants, each ``(replicas, *shape)`` and
        contiguous. Replicas of one seed start from equal weights.
    """
    copies: dict[int, dict[str, Tensor]] = {}
    with ALONE, torch.random.fork_rng(devices=[]):
        for seed in sorted(set(seeds)):
            torch.manual_seed(seed)
            module = task.model()
            copies[seed] = dict(module.named_parameters()) | dict(module.named_buffers())
        train, evaluate = task.model().train().to(device), task.model().eval().to(device)
    trained = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    model = Model(train, evaluate, trained, tuple(n for n in copies[seed] if n not in trained))

    def stacked(name: str) -> Tensor:
        tensors = [copies[seed][name].detach() for seed in seeds]
        return torch.stack(tensors).contiguous().to(device)

    return model, [stacked(n) for n in model.parameters], [stacked(n) for n in model.constants]


def build(
    task: Task,
    model: Model,
    parameters: Tensors,
    constants: Tensors,
    batch: tuple[Batch, Batch],
    shared: bool,
    backend: Backend,
) -> Program:
    """Passes for replicas stacked as given.

    Args:
        task: for loss and metric.
        model: as `stack` gives it.
        parameters: ``(replicas, *shape)`` each.
        constants: ``(replicas, *shape)`` each.
        batch: an example of the inputs and targets of a step.
        shared: whether all replicas see the same batch, ``(batch, *)``, or each its own,
            ``(replicas, batch, *)``.
        backend: what is asked for; a model that `vmap` cannot take runs one by one instead.
    """

    def loss(parameters: Tensors, constants: Tensors, x: Batch, y: Batch) -> tuple[Tensor, Tensors]:
        # BatchNorm writes its running statistics in place: into copies, returned.
        constants = [c.clone() for c in constants]
        return task.loss.of(model.call(model.train, parameters, constants, x), y), constants

    def score(parameters: Tensors, constants: Tensors, x: Batch, y: Batch) -> tuple[Tensor, Tensor]:
        outputs = model.call(model.evaluate, parameters, constants, x)
        return task.loss.of(outputs, y), task.metric.of(outputs, y)

    own = None if shared else 0
    # Dropout draws anew for every replica.
    vectorised = _whole(vmap(loss, in_dims=(0, 0, own, own), randomness="different"))
    scored = _whole(vmap(score, in_dims=(0, 0, None, None), randomness="different"))

    def step(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensors, Tensors]:
        # No replica's loss depends on another's parameters, so that one backward pass serves all.
        leaves = [p.detach().requires_grad_() for p in parameters]
        losses, changed = vectorised(leaves, constants, x, y)
        gradients = torch.autograd.grad(
            losses, leaves, torch.ones_like(losses), allow_unused=True, materialize_grads=True
        )
        return losses.detach(), list(gradients), [c.detach() for c in changed]

    def each_step(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensors, Tensors]:
        leaves = [p.detach().requires_grad_() for p in parameters]
        losses, changed = [], []
        for i in range(len(parameters[0])):
            batch = (x, y) if shared else tree_map(lambda t, i=i: t[i], (x, y))
            value, buffers = loss([p[i] for p in leaves], [c[i] for c in constants], *batch)
            losses.append(value)
            changed.append(buffers)
        stacked = torch.stack(losses)
        gradients = torch.autograd.grad(
            stacked, leaves, torch.ones_like(stacked), allow_unused=True, materialize_grads=True
        )
        joined = [torch.stack(c).detach() for c in zip(*changed, strict=True)]
        return stacked.detach(), list(gradients), joined

    def each_score(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensor]:
        found = [
            score([p[i] for p in parameters], [c[i] for c in constants], x, y)
            for i in range(len(parameters[0]))
        ]
        losses, metrics = zip(*found, strict=True)
        return torch.stack(losses), torch.stack(metrics)

    if backend == "one by one":
        return Program(each_step, torch.no_grad()(each_score), backend)
    example = (parameters, constants, *batch)
    alone = batch if shared else tree_map(lambda t: t[0], batch)
    with ALONE, torch.random.fork_rng(devices=[]):
        try:
            step(*example)
        except Exception as error:
            each_step(*example)
            note = f"runs go one after another, because {_obstacle(error)}"
            return Program(each_step, torch.no_grad()(each_score), "one by one", note)
        try:
            torch.no_grad()(scored)(parameters, constants, *alone)
        except Exception as error:
            torch.no_grad()(each_score)(parameters, constants, *alone)
            program = _faster(model, step, each_score, example, shared, backend)
            # Never traced: NumPy's part in a metric leaves none in a trace.
            program = replace(program, evaluate=_alone(torch.no_grad()(each_score)))
            note = f"evaluation takes one run after another, because {_obstacle(error)}"
            return replace(program, note="; ".join(filter(None, (program.note, note))))
        return _faster(model, step, scored, example, shared, backend)


def _alone(evaluate: Evaluation) -> Evaluation:
    """An evaluation during which no other swaps a module's tensors."""

    def run(parameters: Tensors, constants: Tensors, x: Batch, y: Batch) -> tuple[Tensor, Tensor]:
        with ALONE:
            return evaluate(parameters, constants, x, y)

    return run


def _whole(mapped: Callable[..., Any]) -> Callable[..., Any]:
    """A function under `vmap`, with attention as the products that it has rules for.

    Recurrent layers could be unrolled likewise, and are not: at 28 steps of 32 units that measured
    twice as fast as one run after another, at 100 of 64 sixteen times as slow.

    What else it has no rule for, and takes apart into one replica after another, it warns of at
    every call: not what a person who trains a model can do anything about.
    """

    def run(*given: Any) -> Any:
        fast = torch.backends.mha.get_fastpath_enabled()
        backends = torch.backends.cuda
        flash: bool = backends.flash_sdp_enabled()  # type: ignore[no-untyped-call]
        sparing: bool = backends.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                torch.backends.mha.set_fastpath_enabled(False)
                backends.enable_flash_sdp(False)
                backends.enable_mem_efficient_sdp(False)
                return mapped(*given)
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)
                backends.enable_flash_sdp(flash)
                backends.enable_mem_efficient_sdp(sparing)

    return run


def _obstacle(error: BaseException) -> str:
    """Why `vmap` cannot take a model, and the line of the person's own that it stopped at."""
    said = str(error)
    operation = re.search(r"not implemented for (aten::\w+)", said)
    if operation:
        why = f"vmap has no rule for {operation[1]}"
    elif "data-dependent control flow" in said or ".item()" in said:
        why = "the model asks for the value of a tensor, which differs between runs"
    else:
        why = f"vmap cannot take this model ({first_line(error)})"
    where, line = place(error), quoted(error)
    return why + (f", at {where}, `{line}`" if where else "")


def _faster(
    model: Model,
    step: Step,
    scored: Evaluation,
    example: tuple[Tensors, Tensors, Batch, Batch],
    shared: bool,
    want: Backend,
) -> Program:
    """Trace, and compile if asked, as far as the model allows."""
    scored = torch.no_grad()(scored)
    parameters, constants, x, y = example
    try:
        with _watched(model.train) as seen:
            straight: Any = straighten(step, example)
            others = [straighten(step, example).code for _ in range(3)]
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        note = f"the step is not traced ({type(error).__name__}: {first})"
        return Program(step, scored, "eager", note)
    if any(code != straight.code for code in others) or any(
        a != b for a, b in zip(seen[::2], seen[1::2], strict=True)
    ):
        note = (
            "the step is not traced, because the model is another at every call: it changes its "
            "own attributes, or draws numbers that are not torch's"
        )
        return Program(step, scored, "eager", note)
    quick: Step = torch.no_grad()(_flat(straight))
    before = torch.get_rng_state()
    frozen = False
    for other in _others((x, y), 0 if shared else 1):
        torch.set_rng_state(before)
        found = quick(parameters, constants, *other)[0]
        draws = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
        frozen |= not _agree(found, step(parameters, constants, *other)[0])
    if frozen:
        note = (
            "the step is not traced, because it takes values out of a batch and back in by NumPy "
            "or Python, which a trace would freeze"
        )
        return Program(step, scored, "eager", note)
    scored = _straight_score(scored)
    eager = Program(quick, scored, "eager", concurrent=not draws)
    if want == "eager":
        return eager if draws else _taped(eager, straight, example, shared)
    try:
        with warnings.catch_warnings():
            # torch warns about its own deprecations while it compiles.
            warnings.simplefilter("ignore")
            compiled: Step = torch.no_grad()(_flat(torch.compile(straight, dynamic=False)))
            compiled(*example)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        return replace(eager, note=f"the step does not compile ({first})")
    return Program(compiled, scored, "compiled")


def _others(batch: tuple[Batch, Batch], dimension: int) -> Iterator[tuple[Batch, Batch]]:
    """Batches of the same shapes with other numbers: some samples several times, others not."""
    first = tree_leaves(batch)[0]
    place = torch.arange(first.shape[dimension], device=first.device)
    for index in (place.square() // len(place), len(place) - 1 - place // 2):
        yield tree_map(lambda t, index=index: t.index_select(dimension, index), batch)


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Any]]:
    """What is `_outside` before and after each call of a model, for as long as this lasts."""
    seen: list[Any] = []

    def note(*_: Any) -> None:
        seen.append(_outside(module))

    hooks = module.register_forward_pre_hook(note), module.register_forward_hook(note)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _outside(module: nn.Module) -> Any:
    """What a model may lean on besides tensors, and a trace would freeze as it found it."""
    found: list[Any] = []
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Generator):
                found.append(value.get_state().tolist())
            elif isinstance(value, (bool, int, float, str)):
                found.append((name, value))
    return found


def _straight_score(scored: Evaluation) -> Evaluation:
    """The evaluation, traced once for every shape of data it meets."""
    traced: dict[tuple[Any, ...], Evaluation] = {}

    def evaluate(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensor]:
        data = tuple(t.shape for t in tree_leaves((x, y)))
        counted = *data, len(parameters[0])
        with ALONE:
            if data not in traced and counted not in traced:
                stacks, example = (parameters, constants), (parameters, constants, x, y)
                try:
                    straight = straighten(scored, example)
                    kept = all(
                        all(map(_agree, straight(*stacks, *other), scored(*stacks, *other)))
                        for other in _others((x, y), 0)
                    )
                    taped = _taped_score(straight, example, untraced) if kept else None
                    if taped is not None:  # for any number of replicas
                        traced[data] = taped
                    else:
                        traced[counted] = straight if kept else untraced
                except Exception:  # a metric may read values where the loss does not
                    traced[counted] = untraced
            found = traced[data if data in traced else counted]
        return found(parameters, constants, x, y)

    def untraced(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensor]:
        with ALONE:
            return scored(parameters, constants, x, y)

    return torch.no_grad()(evaluate)


def _taped(
    eager: Program,
    straight: GraphModule,
    example: tuple[Tensors, Tensors, Batch, Batch],
    shared: bool,
) -> Program:
    """The same with the step on a tape, if one can hold it."""
    parameters, constants, *batch = example
    if constants:  # a module's buffers would have to go from step to step
        return eager
    drawn = tree_leaves(batch)
    loss, gradients, _ = straight(*example)
    each = [True] * len(parameters) + [not shared] * len(drawn)
    line = _tape(straight, [*parameters, *drawn], each, [loss, *gradients])
    if line is None:
        return eager
    from thalweg.replicas.taped import TrainingTape

    def single(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensors, Tensors]:
        found = line([*parameters, *tree_leaves((x, y))], len(parameters[0]))
        if found is None:
            return eager.step(parameters, constants, x, y)
        return found[0], found[1:], constants

    try:
        tape = TrainingTape(straight, len(drawn), shared, len(parameters[0]))
    except Exception:  # as in _tape
        return eager
    return replace(eager, tape=tape, single=single, line=line)


def _taped_score(
    straight: GraphModule,
    example: tuple[Tensors, Tensors, Batch, Batch],
    otherwise: Evaluation,
) -> Evaluation | None:
    """An evaluation on a tape, if one can hold it; inputs that it does not take go elsewhere."""
    parameters, constants, *batch = example
    stacked, data = [*parameters, *constants], tree_leaves(batch)
    each = [True] * len(stacked) + [False] * len(data)
    line = _tape(straight, [*stacked, *data], each, straight(*example))
    if line is None:
        return None

    def evaluate(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensor]:
        given = [*parameters, *constants, *tree_leaves((x, y))]
        results = line(given, len(parameters[0]))
        if results is None:
            return otherwise(parameters, constants, x, y)
        return results[0], results[1]

    return evaluate


def _tape(
    straight: GraphModule, inputs: Tensors, each: Sequence[bool], expected: Sequence[Tensor]
) -> "Tape | None":
    """A tape of a program, if one can hold it and gives what is expected."""
    if any(t.device.type != "cpu" for t in inputs):
        return None
    from thalweg.replicas.taped import Tape

    try:
        line = Tape(straight, each, len(inputs[0]))
    except Exception:  # Refused, or what nobody thought of: torch runs the program as it stands
        return None
    found = line(inputs, len(inputs[0]))
    return line if found is not None and all(map(_agree, found, expected)) else None


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether stacks are the same but for rounding, which a few replicas may have enlarged."""
    a, b = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    sound = b.isfinite().all(1)
    apart = (a - b).abs().amax(1) > 1e-3 * b.abs().amax(1) + 1e-6
    return bool((apart & sound).sum() <= 0.1 * sound.sum())


def _flat(program: Callable[..., Any]) -> Step:
    def run(
        parameters: Tensors, constants: Tensors, x: Batch, y: Batch
    ) -> tuple[Tensor, Tensors, Tensors]:
        losses, gradients, changed = program(parameters, constants, x, y)
        return losses, gradients, changed

    return run
