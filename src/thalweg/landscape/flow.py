"""Gradient flow: how large activations and gradients are in each layer, while a model trains.

What vanishes or explodes does so from layer to layer (Glorot and Bengio 2010, section 4; He et al.
2015, section 2.2), so sizes are compared between layers, and followed over steps.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite, isnan, nan, prod, sqrt
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedTensorMixin
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from thalweg.landscape.activations import KINDS, RECTIFIERS, SATURATED, kind_of_call
from thalweg.landscape.arguments import LandscapeError, positive, whole
from thalweg.optim.registry import OPTIMIZERS, key
from thalweg.tasks import Task

__all__ = ["INPUT", "Flow", "NonFinite", "WatchedTraining", "trained_under_watch", "watch"]

Array: TypeAlias = NDArray[np.float64]

EVERY = 10  # at which a step of a small network costs less than a fifth more
INPUT = "(input)"  # what the model is called with, as a layer before the first
MODEL = "(model)"  # the layer of parameters that the outermost module has itself
SAMPLE = 2048  # values of a tensor whose distribution is looked at; all of them if there are fewer
SEEN = 500  # samples from which on a unit that was silent for all of them is called dead
TINY = 1e-12  # a norm from which down squares in float32 vanish

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
COLUMNS = (
    "step", "depth", "layer", "kind", "what", "count", "rms", "mean", "std", *QUANTILES, "zeros",
    "saturated", "silent", "dead",
)  # fmt: skip


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
class _Seen:
    """What is kept of one tensor: its norm, and a sample of its values."""

    layer: str
    what: str
    norm: Tensor
    count: int
    sample: Tensor | None = None
    peak: Tensor | None = None  # of each unit
    samples: int = 0  # of the batch


@dataclass
class _Pass:
    """One forward pass, with what came back through it."""

    seen: list[_Seen] = field(default_factory=list)
    forward: set[str] = field(default_factory=set)  # layers recorded before any backward pass
    reached: bool = False
    over: bool = False


class Flow:
    """What is seen of a model under `watch`.

    Only the steps that are recorded have hooks; each is read off the device once, at its end.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self._every = every
        self._names: dict[nn.Module, str] = {}
        self._kinds: dict[str, str] = {INPUT: "input"}
        self._watched: set[nn.Module] = set()
        self._parameters: list[tuple[str, nn.Parameter, bool]] = []
        self._survey(model)
        self._order: dict[str, int] = {INPUT: 0}
        self._handles: list[RemovableHandle] = []
        self._stack: list[tuple[nn.Module, str, Counter[str]]] = []
        self._functions: _Functions | None = None
        self._channels_first: bool | None = None
        self._indices: dict[tuple[int, torch.device], Tensor] = {}
        self._begin_step()
        self._done = 0
        self._last = -1
        self._first: NonFinite | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._active: dict[str, list[tuple[int, int, NDArray[np.bool_]]]] = defaultdict(list)

    def _survey(self, model: nn.Module) -> None:
        """Names of modules, which of them are layers, and whose each parameter is."""
        for name, module in model.named_modules():
            if ".parametrizations." in f".{name}.":
                continue
            self._names[module] = name or MODEL
            whole_layer = (
                not any(True for _ in module.children())
                or isinstance(module, nn.MultiheadAttention)
                or parametrize.is_parametrized(module)
            )
            has_parameters = any(True for _ in module.parameters())
            if type(module) in KINDS or (whole_layer and has_parameters):
                self._watched.add(module)
            of = parametrize.type_before_parametrizations(module)
            self._kinds[name or MODEL] = of.__name__
        largest: dict[str, int] = {}
        owned = []
        for name, parameter in model.named_parameters():
            if isinstance(parameter, UninitializedTensorMixin):
                continue
            owner = name.rpartition(".")[0].partition(".parametrizations")[0] or MODEL
            owned.append((owner, parameter))
            largest[owner] = max(largest.get(owner, 0), parameter.numel())
        for owner, parameter in owned:
            main = parameter.numel() == largest.get(owner)
            if main:
                largest.pop(owner)
            self._parameters.append((owner, parameter, main))

    # ---- steps

    def step(self) -> None:
        """Say that the optimizer has taken a step; not needed where `watch` was given it."""
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
        for i, (_, parameter, _) in enumerate(self._parameters):
            if parameter.requires_grad:
                hook = partial(self._weight_gradient, i)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def _end_step(self) -> None:
        while self._stack:  # an interrupt came in between
            self._pop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        counted = [p for p in self._passes if p.reached] or self._passes
        seen = [one for p in counted for one in p.seen]
        seen = [*self._weights, *seen, *self._gradients.values()]
        for p in self._passes:
            p.over = True
        self._begin_step()
        if seen:
            self._read(seen)
            self._last = self._done

    def _begin_step(self) -> None:
        self._passes: list[_Pass] = []
        self._pass: _Pass | None = None
        self._weights: list[_Seen] = []
        self._gradients: dict[int, _Seen] = {}

    # ---- hooks

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        name = self._names.get(module)
        if name is None:  # a copy of the model, which took the hooks along
            return
        if not self._stack:
            self._begin_pass(args, kwargs)
        self._stack.append((module, name, Counter()))

    def _begin_pass(self, args: Any, kwargs: Any) -> None:
        if _in_backward():  # parts of it again, for a checkpoint
            self._pass = self._passes[-1] if self._passes else None
        elif not torch.is_grad_enabled():
            self._pass = None
        else:
            self._pass = _Pass()
            self._passes.append(self._pass)
            if not self._weights:
                self._record_weights()
            given = [t for t in tree_leaves((args, kwargs)) if _measurable(t)]
            self._pass.seen += [self._measure(INPUT, "activation", t) for t in given]
        if self._pass is not None:
            self._functions = _Functions(self)
            self._functions.__enter__()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self._names or not self._stack:
            return
        with torch._C.DisableTorchFunction():
            _, name, _ = self._stack[-1]
            if module in self._watched and output is not None:
                self._record(name, KINDS.get(type(module)), output)
                if any(True for _ in module.parameters(recurse=False)):
                    self._channels_first = isinstance(module, _ConvNd | _NormBase | nn.GroupNorm)
        self._pop()

    def _pop(self) -> None:
        self._stack.pop()
        if not self._stack and self._functions is not None:
            self._functions.__exit__(None, None, None)
            self._functions = None

    def called(self, function: Any, kind: str, output: Any) -> None:
        """A function of torch was called that is an activation."""
        if not self._stack or type(self._stack[-1][0]) in KINDS:
            return  # what a module of torch does inside
        _, owner, calls = self._stack[-1]
        calls[function.__name__] += 1
        times = calls[function.__name__]
        name = f"{function.__name__.strip('_')}(){f' {times}' if times > 1 else ''}"
        layer = name if owner == MODEL else f"{owner}.{name}"
        self._kinds[layer] = kind
        self._record(layer, kind, output)

    def _record(self, layer: str, kind: str | None, output: Any) -> None:
        self._order.setdefault(layer, len(self._order))
        run, again = self._pass, _in_backward()
        tensors = [t for t in tree_leaves(output) if _measurable(t)]
        if run is None or run.over or not torch.is_grad_enabled() or not tensors:
            return
        if again and layer in run.forward:
            return
        if not again:
            run.forward.add(layer)
        run.seen.append(self._measure(layer, "activation", tensors[0], kind in RECTIFIERS))
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._gradient, run, layer))

    def _gradient(self, run: _Pass, layer: str, gradient: Tensor) -> None:
        if not run.over:
            run.reached = True
            if _measurable(gradient):
                run.seen.append(self._measure(layer, "gradient", gradient))

    def _weight_gradient(self, i: int, parameter: Tensor) -> None:
        layer, _, main = self._parameters[i]
        if _measurable(parameter.grad):
            seen = self._measure(layer, "weight gradient", parameter.grad, sample=main)
            self._gradients[i] = seen

    # ---- measuring

    @torch.no_grad()
    def _measure(
        self, layer: str, what: str, tensor: Tensor, units: bool = False, sample: bool = True
    ) -> _Seen:
        values, count = tensor.detach(), tensor.numel()
        half = values.dtype in (torch.float16, torch.bfloat16)
        norm = torch.linalg.vector_norm(values, dtype=torch.float32 if half else None)
        seen = _Seen(layer, what, norm, count)
        if sample:
            place = (count, values.device)
            if count <= SAMPLE:
                # A copy, because what comes next may write to it.
                seen.sample = values.reshape(-1).clone()
            else:
                if place not in self._indices:
                    self._indices[place] = _spread(*place)
                seen.sample = torch.take(values, self._indices[place])
        if units and values.ndim > 1:
            channels = 1 if self._channels_first or values.ndim > 3 else values.ndim - 1
            others = [d for d in range(values.ndim) if d != channels]
            seen.peak, seen.samples = values.amax(others), len(values)
        return seen

    @torch.no_grad()
    def _record_weights(self) -> None:
        owned = [(layer, p) for layer, p, _ in self._parameters if _measurable(p)]
        if owned:
            norms = torch._foreach_norm([p for _, p in owned], 2, torch.float32)
            self._weights = [
                _Seen(layer, "weight", norm, p.numel())
                for (layer, p), norm in zip(owned, norms, strict=True)
            ]

    def _read(self, seen: Sequence[_Seen]) -> None:
        """Off the device, all at once, and to rows."""
        norms = _fetched([one.norm.reshape(1) for one in seen])
        samples = _fetched([one.sample for one in seen if one.sample is not None])
        peaks = _fetched([one.peak for one in seen if one.peak is not None])
        together: dict[tuple[str, str], list[int]] = defaultdict(list)
        sampled: dict[tuple[str, str], list[Array]] = defaultdict(list)
        active: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)
        batch: Counter[str] = Counter()
        for i, one in enumerate(seen):
            together[one.layer, one.what].append(i)
            if one.sample is not None:
                sampled[one.layer, one.what].append(next(samples))
            if one.peak is not None:
                active[one.layer].append(next(peaks) > 0)
                batch[one.layer] += one.samples
        sizes = [float(norm[0]) for norm in norms]
        if self._first is None:
            bad = next((o for o, n in zip(seen, sizes, strict=True) if not isfinite(n)), None)
            if bad is not None:
                kind = self._kinds[bad.layer]
                self._first = NonFinite(self._done, self._last, bad.layer, bad.what, kind)
        for layer, units in active.items():
            if len({len(u) for u in units}) == 1:
                self._active[layer].append((self._done, batch[layer], np.any(units, axis=0)))
        found = _distributions(sampled, self._kinds)
        nothing = (nan,) * (len(QUANTILES) + 5)
        for (layer, what), entries in together.items():
            count = sum(seen[i].count for i in entries)
            norm = sqrt(sum(sizes[i] ** 2 for i in entries))
            of_sample, *others = found.get((layer, what), nothing)
            rms = norm / sqrt(count)
            if norm < TINY and not isnan(of_sample):
                rms = of_sample
            units = active.get(layer, []) if what == "activation" else []
            silent = 1 - float(np.any(units, axis=0).mean()) if units else nan
            kind = self._kinds[layer]
            self._rows.append((self._done, layer, kind, what, count, rms, *others, silent))

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
                them), ``weight`` (all parameters of the layer itself) or ``weight gradient``.
            count: how many values; those of a layer called several times, or in several passes of
                one step, are taken together.
            rms: root of their mean square, of all values.
            mean, std, q05, q25, q50, q75, q95, zeros: mean, standard deviation, quantiles and the
                share that is exactly 0, of at most `SAMPLE` values of each tensor at fixed places
                (of a layer with several parameters the largest); NaN for weights.
            saturated: share of the same values of a bounded activation function at which its
                derivative is below `thalweg.landscape.activations.FLAT` of its maximum; NaN for
                others.
            silent: of a ReLU's units (channels, of a convolution) the share that no sample of the
                batch made positive; NaN for others.
            dead: the share that no sample recorded in this or any later step did; NaN where these
                are fewer than `SEEN` samples, too few to tell.
        """
        frame = pd.DataFrame(self._rows, columns=[c for c in COLUMNS if c not in ("depth", "dead")])
        last = len(self._order)
        others = {name: last + i for i, name in enumerate(self._kinds)}
        depths = others | self._order
        dead = {
            (step, layer): share
            for layer, seen in self._active.items()
            for step, share in _dead(seen)
        }
        places = zip(frame["step"], frame["layer"], frame["what"], strict=True)
        frame["dead"] = [
            dead.get((step, layer), nan) if what == "activation" else nan
            for step, layer, what in places
        ]
        frame["depth"] = frame["layer"].map(depths).astype(int)
        return frame[list(COLUMNS)].sort_values(
            ["step", "depth", "what"], kind="stable", ignore_index=True
        )

    @property
    def layers(self) -> pd.DataFrame:
        """A row a layer, in the order of the forward pass: ``depth, layer, kind``."""
        frame = self.frame[["depth", "layer", "kind"]].drop_duplicates()
        return frame.sort_values("depth", ignore_index=True)

    @property
    def first_nonfinite(self) -> NonFinite | None:
        """The first NaN or infinity in the order of time, or a norm beyond float32's range."""
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
            self._flow.called(func, kind, output)
        return output


@contextmanager
def watch(
    model: nn.Module, optimizer: Optimizer | None = None, *, every: int = EVERY
) -> Iterator[Flow]:
    """Record sizes and distributions of activations and gradients while a model is trained.

    The training loop stays as it is; what it computes, to the last bit, too. Recorded are passes
    with gradients enabled, and of these the ones that a backward pass follows, if any is; layers
    are modules without children that have parameters, and activation functions, be they modules or
    calls (``F.relu``, ``x.tanh()``) inside a module's call.

    Args:
        model: on any device.
        optimizer: whose steps are counted; without it, call ``flow.step()`` after each.
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
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise LandscapeError(
            "model", "is compiled, which leaves no layers; watch the module that was compiled"
        )
    flow = Flow(model, whole("every", every))
    counting = None
    if optimizer is not None:
        counting = optimizer.register_step_post_hook(lambda *_: flow.step())
    flow._arm()
    try:
        yield flow
    finally:
        if counting is not None:
            counting.remove()
        flow._end_step()


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
    if key(optimizer) not in OPTIMIZERS:
        raise LandscapeError(
            "optimizer", f"there is no {optimizer!r}; choose from {', '.join(OPTIMIZERS)}"
        )
    entry = OPTIMIZERS[key(optimizer)]
    rate = sqrt(prod(entry.lr_range)) if lr is None else positive("lr", lr)
    size = task.batch_size if batch_size is None else whole("batch_size", batch_size)
    if size > len(task.train):
        raise LandscapeError(
            "batch_size", f"{size} is more than the {len(task.train)} training samples"
        )
    steps = whole("steps", steps)
    data = task.train.to(device)
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=gpus), torch.enable_grad():
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
                    loss = task.loss.of(_called(model, x), y)
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


def _called(model: nn.Module, x: Any) -> Any:
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _measurable(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not isinstance(value, UninitializedTensorMixin)
        and value.numel() > 0
        and not value.is_meta
    )


def _spread(count: int, device: torch.device) -> Tensor:
    """`SAMPLE` different places of a tensor, one at random from each of as many equal parts.

    At regular intervals they could all be of one unit, or of the edge of images.
    """
    draw = torch.rand(SAMPLE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = ((torch.arange(SAMPLE) + draw) * (count / SAMPLE)).long()
    return places.clamp_(max=count - 1).to(device)


def _fetched(tensors: Sequence[Tensor]) -> Iterator[NDArray[Any]]:
    """All of them as arrays, by one copy from each device."""
    arrays: dict[int, NDArray[Any]] = {}
    for device in {t.device for t in tensors}:
        here = [i for i, t in enumerate(tensors) if t.device == device]
        joined = torch.cat([tensors[i].float() for i in here]).cpu().numpy()
        ends = np.cumsum([len(tensors[i]) for i in here])[:-1]
        arrays |= dict(zip(here, np.split(joined, ends), strict=True))
    return iter([arrays[i] for i in range(len(tensors))])


def _distributions(
    sampled: Mapping[tuple[str, str], Sequence[Array]], kinds: Mapping[str, str]
) -> dict[tuple[str, str], tuple[float, ...]]:
    """Of each sample: rms, mean, std, quantiles, zeros, saturated; those of one length together."""
    joined = {k: np.concatenate(v) if len(v) > 1 else v[0] for k, v in sampled.items()}
    by_length: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for k, values in joined.items():
        by_length[len(values)].append(k)
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for length, keys in by_length.items():
        table = np.stack([joined[k] for k in keys])
        table.sort(axis=1)
        with np.errstate(all="ignore"):  # of infinities
            wide = table.astype(np.float64)
            mean = wide.mean(1)
            square = np.einsum("ij,ij->i", wide, wide) / length
            std = np.sqrt(np.einsum("ij,ij->i", d := wide - mean[:, None], d) / length)
            at = np.array(list(QUANTILES.values())) * (length - 1)
            below, part = at.astype(int), at % 1
            above = np.minimum(below + 1, length - 1)
            quantiles = wide[:, below] * (1 - part) + wide[:, above] * part
        for i, k in enumerate(keys):
            row = table[i]
            bounds = SATURATED.get(kinds[k[0]]) if k[1] == "activation" else None
            saturated = nan
            if bounds:
                inside = np.searchsorted(row, bounds[1]) - np.searchsorted(row, bounds[0], "right")
                saturated = 1 - inside / length
            zeros = (np.searchsorted(row, 0.0, "right") - np.searchsorted(row, 0.0)) / length
            sizes = (sqrt(square[i]) if isfinite(square[i]) else nan, mean[i], std[i])
            found[k] = (*map(float, (*sizes, *quantiles[i], zeros, saturated)),)
    return found


def _dead(seen: Sequence[tuple[int, int, NDArray[np.bool_]]]) -> Iterator[tuple[int, float]]:
    """Share of units that are not active from a step on, where enough samples follow to tell."""
    if len({len(active) for _, _, active in seen}) != 1:
        return
    alive = np.zeros(len(seen[0][2]), dtype=bool)
    samples = 0
    for step, batch, active in reversed(seen):
        alive |= active
        samples += batch
        if samples >= SEEN:
            yield step, 1 - float(alive.mean())
