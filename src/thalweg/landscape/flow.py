"""Gradient flow: how large activations and gradients are in each layer, while a model trains.

What vanishes or explodes does so from layer to layer (Glorot and Bengio 2010, section 4; He et al.
2015, section 2.2), so sizes are compared between layers, and followed over steps.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from thalweg.landscape.activations import KINDS, RECTIFIERS, kind_of_call
from thalweg.landscape.arguments import LandscapeError, entry_of, positive, whole
from thalweg.landscape.sizes import QUANTILES, SAMPLE, VALUES, Seen, dead, digest, measure
from thalweg.tasks import Task
from thalweg.tasks.states import random_states
from thalweg.tasks.trial import called

__all__ = ["INPUT", "Flow", "NonFinite", "WatchedTraining", "trained_under_watch", "watch"]

Array: TypeAlias = NDArray[np.float64]

EVERY = 50  # at which a step costs less than a fifth more, of many small layers too
FRAME = (
    "step", "depth", "layer", "kind", "what", "count", "rms", "mean", "std", *QUANTILES, "zeros",
    "saturated", "silent", "dead",
)  # fmt: skip
WHAT = ("activation", "gradient", "weight", "weight gradient")
INPUT = "(input)"  # what the model is called with, as a layer before the first
MODEL = "(model)"  # the layer of parameters that the outermost module has itself
PASSES = 100  # of one step that are kept, the last ones
KEPT = 1 << 18  # values of samples on the device until they are read and summarised


@dataclass(frozen=True)
class NonFinite:
    """The first value that was not finite.

    Attributes:
        step: steps done before the one in which it was seen.
        since: steps done before the last one that was recorded and all finite; the next one after
            it at the earliest made the value. -1 if there was none.
        layer: where; `INPUT` if the model was given it.
        what: ``activation``, ``gradient``, ``weight gradient`` or ``weight``. A weight is looked
            at before the step, so the step before it made it so.
        kind: of the layer.
    """

    step: int
    since: int
    layer: str
    what: str
    kind: str


@dataclass
class _Pass:
    """One forward pass, with what came back through it."""

    seen: list[Seen] = field(default_factory=list)
    forward: set[str] = field(default_factory=set)  # layers recorded before any backward pass
    reached: bool = False
    over: bool = False


class Flow:
    """What is seen of a model under `watch`.

    The model has hooks in the steps that are recorded, and in no others. What they see stays on
    the device until there is much of it, or somebody asks.
    """

    def __init__(self, model: nn.Module, every: int, counted: bool = False) -> None:
        self._every = every
        self._counted = counted  # by an optimizer's steps
        self._names: dict[nn.Module, str] = {}
        self._kinds: dict[str, str] = {INPUT: "input"}
        self._watched: dict[nn.Module, str] = {}  # layers, with their kinds
        self._parameters: list[tuple[str, nn.Parameter]] = []
        self._survey(model)
        self._order: dict[str, int] = {INPUT: 0}
        self._handles: list[RemovableHandle] = []
        self._stack: list[tuple[nn.Module, str, dict[str, int]]] = []
        self._functions: _Functions | None = None
        self._channels_first: bool | None = None
        self._places: dict[tuple[int, torch.device], Tensor] = {}
        self._begin_step()
        self._done = 0
        self._several = False  # passes in one step
        self._steps: list[tuple[int, list[Seen]]] = []  # not yet summarised
        self._kept = 0
        self._last = -1
        self._first: NonFinite | None = None
        self._keys: list[tuple[int, str, str]] = []
        self._values: list[Array] = []
        self._active: dict[str, list[tuple[int, int, NDArray[np.bool_]]]] = defaultdict(list)

    def _survey(self, model: nn.Module) -> None:
        """Names of modules, which of them are layers, and whose each parameter is."""
        wholes: list[str] = []  # prefixes of layers whose parts are no layers
        for name, module in model.named_modules():
            if name.startswith(tuple(wholes)):
                continue
            self._names[module] = name or MODEL
            kind = parametrize.type_before_parametrizations(module).__name__
            self._kinds[name or MODEL] = kind
            attention = isinstance(module, nn.MultiheadAttention)
            if attention or parametrize.is_parametrized(module):
                wholes.append(f"{name}." if name else "")
            elif any(True for _ in module.children()):
                continue
            if type(module) in KINDS or any(True for _ in module.parameters()):
                self._watched[module] = kind
        largest: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            inside = next((w for w in wholes if name.startswith(w)), None)
            owner = (name.rpartition(".")[0] if inside is None else inside[:-1]) or MODEL
            if not is_lazy(parameter):
                other = largest.setdefault(owner, parameter)
                if parameter.numel() > other.numel():
                    largest[owner] = parameter
        self._parameters = list(largest.items())

    # ---- steps

    def step(self) -> None:
        """Say that the optimizer has taken a step.

        Raises:
            LandscapeError: where `watch` was given the optimizer, and counts its steps.
        """
        if self._counted:
            raise LandscapeError(
                "step", "the optimizer's steps are counted already; leave this call out"
            )
        self._advance()

    def _advance(self) -> None:
        self._end_step()
        self._done += 1
        if self._done % self._every == 0:
            self._arm()

    def _arm(self) -> None:
        for module in self._names:
            self._handles += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        for layer, parameter in self._parameters:
            if parameter.requires_grad:
                hook = partial(self._weight_gradient, layer)
                register = parameter.register_post_accumulate_grad_hook
                self._handles.append(register(hook))  # type: ignore[no-untyped-call]

    def _end_step(self) -> None:
        while self._stack:  # an interrupt came in between
            self._pop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        counted = [p for p in self._passes if p.reached] or self._passes
        seen = [one for p in counted for one in p.seen]
        seen = [*self._weights, *seen, *self._gradients.values()]
        self._several |= len(counted) > 1
        for p in self._passes:
            p.over = True
        self._begin_step()
        if seen:
            self._steps.append((self._done, seen))
            self._kept += sum(min(one.count, SAMPLE) for one in seen)
            if self._kept > KEPT:
                self._digest()

    def _digest(self) -> None:
        if not self._steps:
            return
        block = digest(self._steps, self._kinds)
        if self._first is None and block.bad is not None:
            step, one = block.bad
            before = [s for s, _ in self._steps if s < step]
            since = before[-1] if before else self._last
            self._first = NonFinite(step, since, one.layer, one.what, self._kinds[one.layer])
        self._last = self._steps[-1][0]
        self._keys += block.keys
        self._values.append(block.values)
        for layer, active in block.active.items():
            self._active[layer] += active
        self._steps, self._kept = [], 0

    def _begin_step(self) -> None:
        self._passes: list[_Pass] = []
        self._pass: _Pass | None = None
        self._weights: list[Seen] = []
        self._gradients: dict[str, Seen] = {}

    # ---- hooks

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self._names.get(module)
        if name is None:  # a copy of the model, which took the hooks along
            return
        if not self._stack:
            self._begin_pass(args, kwargs)
        self._stack.append((module, name, {}))

    def _begin_pass(self, args: Any, kwargs: Any) -> None:
        if _in_backward():  # parts of it again, for a checkpoint
            self._pass = self._passes[-1] if self._passes else None
        elif not torch.is_grad_enabled():
            self._pass = None
        else:
            self._pass = _Pass()
            self._passes.append(self._pass)
            if len(self._passes) > PASSES:
                self._passes.pop(0).over = True
            if not self._weights:
                self._weights = self._measure_weights()
            self._pass.seen += [
                measure(INPUT, "activation", given, self._places)
                for given in tree_leaves((args, kwargs))
                if _measurable(given)
            ]
        if self._pass is not None:
            self._functions = _Functions(self)
            self._functions.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self._names or not self._stack:
            return
        kind = self._watched.get(module)
        if kind is not None and output is not None and self._pass is not None:
            with torch._C.DisableTorchFunction():
                self._record(self._stack[-1][1], kind, output)
                if type(module) not in KINDS:
                    self._channels_first = isinstance(module, _ConvNd | _NormBase | nn.GroupNorm)
        self._pop()

    def _pop(self) -> None:
        self._stack.pop()
        if not self._stack and self._functions is not None:
            self._functions.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._functions = None

    def _activation(self, function: Any, kind: str, output: Any) -> None:
        """A function of torch was called that is an activation."""
        if not self._stack or type(self._stack[-1][0]) in KINDS:
            return  # what a module of torch does inside
        _, owner, calls = self._stack[-1]
        called = function.__name__.strip("_")
        calls[called] = times = calls.get(called, 0) + 1
        name = f"{called}(){f' {times}' if times > 1 else ''}"
        layer = name if owner == MODEL else f"{owner}.{name}"
        self._kinds[layer] = kind
        self._record(layer, kind, output)

    def _record(self, layer: str, kind: str, output: Any) -> None:
        self._order.setdefault(layer, len(self._order))
        run, again = self._pass, _in_backward()
        if run is None or not torch.is_grad_enabled() or (again and layer in run.forward):
            return
        leaves = [output] if isinstance(output, Tensor) else tree_leaves(output)
        tensors = [t for t in leaves if _measurable(t)]
        if not tensors:
            return
        if not again:
            run.forward.add(layer)
        units = None
        if kind in RECTIFIERS and tensors[0].ndim > 1:
            last = tensors[0].ndim - 1
            units = 1 if self._channels_first or last > 2 else last
        run.seen.append(measure(layer, "activation", tensors[0], self._places, units))
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._gradient, run, layer))

    def _gradient(self, run: _Pass, layer: str, gradient: Tensor) -> None:
        if not run.over:
            run.reached = True
            if _measurable(gradient):
                run.seen.append(measure(layer, "gradient", gradient, self._places))

    def _weight_gradient(self, layer: str, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None and _measurable(gradient):
            self._gradients[layer] = measure(layer, "weight gradient", gradient, self._places)

    @torch.no_grad()
    def _measure_weights(self) -> list[Seen]:
        owned = [(layer, p) for layer, p in self._parameters if _measurable(p)]
        if not owned:
            return []
        norms = torch._foreach_norm([p for _, p in owned], 2, torch.float32)
        return [
            Seen(layer, "weight", p.numel(), None, norm)
            for (layer, p), norm in zip(owned, norms, strict=True)
        ]

    # ---- what was seen

    @property
    def frame(self) -> pd.DataFrame:
        """All that was recorded, a row a step, layer and tensor.

        Columns:
            step: steps done before.
            depth: place of the layer in the order of the forward pass; `INPUT` is 0.
            layer: name of the module, or of the call of a function inside one (``block.relu()``).
            kind: ``Linear``, ``ReLU`` and so on.
            what: ``activation`` (the layer's outputs), ``gradient`` (of the loss with respect to
                them), ``weight`` (the largest parameter of the layer, before the step) or ``weight
                gradient`` (with respect to it, summed over a step's backward passes).
            count: how many values; those of a layer called several times, or in several passes of
                one step, are taken together.
            rms: root of their mean square, of all values.
            mean, std, q05, q25, q50, q75, q95, zeros: mean, standard deviation, quantiles and the
                share that is exactly 0, of each tensor's values, or of `SAMPLE` of them at fixed
                places if there are more; NaN for weights.
            saturated: share of the same values of a bounded activation function at which its
                derivative is below `thalweg.landscape.activations.FLAT` of its maximum; NaN for
                others.
            silent: of a ReLU's units (channels, of a convolution) the share that no sample of the
                batch made positive; NaN for others.
            dead: the share that no sample recorded in this or any later step did; NaN where these
                are fewer than `SEEN` samples, too few to tell.
        """
        self._digest()
        keys = pd.DataFrame(self._keys, columns=["step", "layer", "what"])
        values = np.concatenate([np.empty((0, len(VALUES))), *self._values])
        frame = keys.join(pd.DataFrame(values, columns=list(VALUES)))
        frame = frame.astype({"step": int, "count": int})
        frame["kind"] = frame["layer"].map(self._kinds)
        never = {name: len(self._order) + i for i, name in enumerate(self._kinds)}
        frame["depth"] = frame["layer"].map(never | self._order)
        gone = {
            (layer, step): share
            for layer, seen in self._active.items()
            for step, share in dead(seen)
        }
        places = zip(frame["layer"], frame["step"], strict=True)
        frame["dead"] = [gone.get(place, nan) for place in places]
        frame["dead"] = frame["dead"].where(frame["what"] == "activation")
        frame["what"] = pd.Categorical(frame["what"], WHAT, ordered=True)
        frame = frame.sort_values(["step", "depth", "what"], kind="stable", ignore_index=True)
        return frame.astype({"what": str})[list(FRAME)]

    @property
    def layers(self) -> pd.DataFrame:
        """A row a layer, in the order of the forward pass: ``depth, layer, kind``."""
        frame = self.frame[["depth", "layer", "kind"]].drop_duplicates()
        return frame.sort_values("depth", ignore_index=True)

    @property
    def first_nonfinite(self) -> NonFinite | None:
        """The first NaN or infinity in the order of time, or a norm beyond float32's range."""
        self._digest()
        return self._first


class _Functions(TorchFunctionMode):
    """Sees activation functions that are called inside of modules."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self._flow = flow

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        kind = kind_of_call(func, args, kwargs or {})
        if kind is not None:
            self._flow._activation(func, kind, output)
        return output


@contextmanager
def watch(
    model: nn.Module, optimizer: Optimizer | None = None, *, every: int = EVERY
) -> Iterator[Flow]:
    """Record sizes and distributions of activations and gradients while a model is trained.

    The training loop stays as it is, and so does what it computes, to the last bit. Layers are
    modules without children that have parameters, and activation functions: modules, or calls
    (``F.relu``, ``x.tanh()``, ``x.clamp(min=0)``) while a module is called. Recorded are passes
    with gradients enabled; where a backward pass follows some of a step's, these alone, and at
    most the last `PASSES`. Of a layer that returns several tensors, as an LSTM does, the first
    counts, with gradients all do.

    Args:
        model: on any device.
        optimizer: whose steps are counted; without it, call ``flow.step()`` after each of them.
        every: of so many steps one is recorded, from the first on. With 1, the first value that is
            not finite is found in its own step.

    Yields:
        A `Flow`, to be read at any time.

    Raises:
        LandscapeError: for a model that cannot be watched, or a number below 1.
    """
    if not isinstance(model, nn.Module):
        raise LandscapeError("model", f"must be a module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise LandscapeError("model", "is a ScriptModule, which takes no hooks; watch the original")
    if hasattr(model, "_orig_mod"):
        raise LandscapeError(
            "model", "is compiled, which leaves no layers; watch the module that was compiled"
        )
    flow = Flow(model, whole("every", every), optimizer is not None)
    counting = None
    if optimizer is not None:
        counting = optimizer.register_step_post_hook(lambda *_: flow._advance())
    flow._arm()
    try:
        yield flow
    finally:
        if counting is not None:
            counting.remove()
        flow._end_step()
    if flow._done == 0 and flow._several:
        raise LandscapeError(
            "step", "was not called in all this time; give watch the optimizer, or call flow.step()"
        )


@dataclass(frozen=True, eq=False)
class WatchedTraining:
    """A training that was watched.

    Attributes:
        flow: what was seen.
        losses: of each step's batch, before the step, ``(steps,)``; NaN once it has diverged so.
        model: as it was left.
    """

    flow: Flow = field(repr=False)
    losses: Array = field(repr=False)
    model: nn.Module = field(repr=False)


def trained_under_watch(
    task: Task,
    optimizer: str = "adam",
    lr: float | None = None,
    *,
    steps: int = 200,
    seed: int = 0,
    batch_size: int | None = None,
    every: int = 1,
    weights: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
) -> WatchedTraining:
    """Train one model of a task for some steps, and watch it.

    Initial weights and the order of batches are those of a study's run of the same seed. Training
    goes on through NaN.

    Args:
        task: what is trained.
        optimizer: a name in the registry.
        lr: its learning rate; by default the middle of its usual ones.
        steps: of it.
        seed: of the initial weights and of the order of batches.
        batch_size: samples a step; the task's by default.
        every: as `watch` takes it.
        weights: a state dictionary to begin with, in place of the seed's.
        device: as torch names it.

    Raises:
        LandscapeError: for an argument that cannot be used, naming it.
    """
    if not isinstance(task, Task):
        raise LandscapeError("task", f"must be a thalweg.Task, got {task!r}")
    entry = entry_of(optimizer)
    rate = entry.rule.usual_lr if lr is None else positive("lr", lr)
    size = task.batch_size if batch_size is None else whole("batch_size", batch_size)
    if size > len(task.train):
        raise LandscapeError(
            "batch_size", f"{size} is more than the {len(task.train)} training samples"
        )
    steps = whole("steps", steps)
    data = task.train.to(device)
    with random_states(), torch.enable_grad():
        torch.manual_seed(seed)
        model = task.model().train().to(device)
        if weights is not None:
            model.load_state_dict(dict(weights))
        stepper = entry.constructor([p for p in model.parameters() if p.requires_grad], lr=rate)
        losses = torch.full((steps,), nan, dtype=torch.float64, device=device)
        torch.manual_seed(0)  # of dropout
        with watch(model, stepper, every=every) as flow:
            for i, index in enumerate(_order(len(data), size, steps, seed)):
                x, y = data[index.to(device)]
                first: list[Tensor] = []

                def closure(x: Any = x, y: Any = y, first: list[Tensor] = first) -> Tensor:
                    stepper.zero_grad()
                    loss = task.loss.of(called(model, x), y)
                    loss.backward()  # type: ignore[no-untyped-call]
                    first.append(loss.detach())
                    return loss

                stepper.step(closure)
                losses[i] = first[0]
    return WatchedTraining(flow, losses.cpu().numpy(), model)


def _order(samples: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Samples of each step, as `thalweg.replicas` draws them."""
    generator = torch.Generator().manual_seed(seed)
    kept = samples // size * size
    for i in range(steps):
        if i * size % kept == 0:
            order = torch.randperm(samples, generator=generator)[:kept]
        yield order[i * size % kept :][:size]


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _measurable(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not is_lazy(value)
        and value.numel() > 0
        and not value.is_meta
    )
