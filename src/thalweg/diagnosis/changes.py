"""Changes to a task that may mend it: of its data, its weights, its layers or its loss.

Each gives a task like the given one; nothing of that is touched.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from thalweg.diagnosis.arguments import DiagnosisError
from thalweg.landscape.activations import KINDS
from thalweg.tasks import LOSSES, Metric, Split, Task
from thalweg.tasks.metrics import ACCURACY, METRICS
from thalweg.tasks.trial import called

__all__ = [
    "classified",
    "cleaned",
    "from_weights",
    "has_activations",
    "initialised",
    "judged",
    "moved",
    "normalised",
    "of_probabilities",
    "rectified",
    "reset",
    "rounded",
    "standardised",
    "with_model",
    "without_end",
]

ERRORS = frozenset(METRICS[name].name for name in ("mae", "mse"))
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = frozenset(layer.__name__ for layer in LAYERS)
# What a layer's outputs go through decides how large its weights should be at the start.
GAINS: Mapping[str, float] = {
    **dict.fromkeys(("Tanh", "Softsign", "Hardtanh"), nn.init.calculate_gain("tanh")),
    **dict.fromkeys(
        ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "CELU", "GELU", "SiLU", "Mish"),
        nn.init.calculate_gain("relu"),
    ),
}


def with_model(task: Task, name: str, change: Callable[[nn.Module], nn.Module]) -> Task:
    """The task with a change to every module that its factory makes.

    Args:
        task: as it is.
        name: of the change, a word.
        change: from a fresh module to another, or the same one changed.
    """

    def model() -> nn.Module:
        return change(task.model())

    return _like(task, model=model, name=f"{task.name}, {name}")


def _like(task: Task, **fields: Any) -> Task:
    """A copy with other fields, whose data is not looked through again."""
    made = copy(task)
    for name in ("fingerprint", "parameters"):  # found once and kept
        made.__dict__.pop(name, None)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def cleaned(task: Task) -> Task:
    """Without the samples that have NaN or infinite values.

    If these are more than half of a part, values are filled in instead: by the median of those that
    are finite in the training data, by 0 where there are none. What has no target is left out all
    the same.
    """
    splits = {part: getattr(task, part) for part in PARTS}
    if any(float(_finite(split).double().mean()) < 0.5 for split in splits.values()):
        splits = {
            part: Split(tree_map(_filled, task.train.x, split.x), split.y)
            for part, split in splits.items()
        }
    finite = {part: _finite(split) for part, split in splits.items()}
    empty = [part for part, good in finite.items() if not bool(good.any())]
    if empty:
        raise DiagnosisError("task", f"all targets for {empty[0]} are NaN or infinite")
    whole = {part for part, good in finite.items() if bool(good.all())}
    parts = {p: s if p in whole else Split(*s[finite[p]]) for p, s in splits.items()}
    return _like(task, **parts)


def _filled(train: Tensor, given: Tensor) -> Tensor:
    if not given.is_floating_point():
        return given
    known = torch.where(train.isfinite(), train, torch.nan)
    median = known.nanmedian(0).values.nan_to_num()
    return torch.where(given.isfinite(), given, median)


PARTS = ("train", "validation", "test")


def _finite(split: Split) -> Tensor:
    """Which samples have finite values only, ``(samples,)``."""
    good = torch.ones(len(split), dtype=torch.bool)
    for tensor in split.tensors:
        if tensor.is_floating_point():
            good &= tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else tensor.isfinite()
    return good


def judged(task: Task) -> Task:
    """By accuracy, where targets are 0 or 1, the loss is that of logits, and errors were taken.

    How far logits are from 0 and 1 says nothing.
    """
    y, bce = task.train.y, LOSSES["bce"]
    if not isinstance(y, Tensor) or task.metric.name not in ERRORS or not y.is_floating_point():
        return task
    if not bool(((y == 0) | (y == 1)).all()):
        return task
    x, some = task.train[: min(256, len(task.train))]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        outputs = called(task.model().eval(), x)
    if not isinstance(outputs, Tensor) or outputs.shape != y[: len(outputs)].shape:
        return task
    if not bool(torch.isclose(task.loss.of(outputs, some), bce.of(outputs, some), rtol=1e-4)):
        return task
    return _like(task, metric=ACCURACY)


def standardised(task: Task) -> Task:
    """With every input at mean 0 and standard deviation 1 over the training data."""

    def scaled(train: Tensor, given: Tensor) -> Tensor:
        if not train.is_floating_point():
            return given
        mean, std = train.mean(0), train.std(0, correction=0)
        return (given - mean) / torch.where(std > 0, std, torch.ones_like(std))

    def part(split: Split) -> Split:
        return Split(tree_map(scaled, task.train.x, split.x), split.y)

    return _like(
        task, name=f"{task.name}, standardised", **{p: part(getattr(task, p)) for p in PARTS}
    )


def reset(task: Task) -> Task:
    """With the weights that torch's layers have by default; other matrices as Glorot has them."""

    def change(module: nn.Module) -> nn.Module:
        known = set()
        for part in module.modules():
            begin = getattr(part, "reset_parameters", None)
            if callable(begin):
                begin()
                known |= {id(p) for p in part.parameters(recurse=False)}
        for p in module.parameters():
            if id(p) not in known and p.ndim > 1:
                nn.init.xavier_uniform_(p)
        return module

    return with_model(task, "reset", change)


def initialised(task: Task, layers: pd.DataFrame) -> Task:
    """With weights whose outputs keep their size, and biases of 0.

    The variance is the gain's square over the number of inputs (`torch.nn.init.calculate_gain`):
    that of He et al. (2015, https://arxiv.org/abs/1502.01852) before ReLU and its kin, that of
    Glorot and Bengio (2010) before others.

    Args:
        task: as it is.
        layers: in the order of the forward pass, as `thalweg.landscape.flow.Flow.layers`.
    """
    gains = _gains(layers)

    def change(module: nn.Module) -> nn.Module:
        for name, part in module.named_modules():
            if isinstance(part, LAYERS):
                fan = part.weight[0].numel()
                nn.init.normal_(part.weight, std=gains.get(name, 1.0) / fan**0.5)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        return module

    return with_model(task, "initialised", change)


def _gains(layers: pd.DataFrame) -> dict[str, float]:
    """Of each layer with weights, by the activation that its outputs go through."""
    found, waiting = {}, ""
    for name, kind in zip(layers["layer"], layers["kind"], strict=True):
        if kind in WEIGHTED:
            waiting = name
        elif kind in GAINS and waiting:
            found[waiting] = GAINS[kind]
            waiting = ""
    return found


def normalised(task: Task) -> Task:
    """With every hidden layer's outputs normalised, sample by sample.

    Layer normalisation (Ba et al. 2016, https://arxiv.org/abs/1607.06450) after linear layers, over
    all channels after convolutions; the last layer stays.
    """

    def change(module: nn.Module) -> nn.Module:
        layers = [name for name, part in module.named_modules() if isinstance(part, LAYERS)]
        for name in layers[:-1]:
            layer: Any = module.get_submodule(name)
            width = len(layer.weight)
            norm: nn.Module = (
                nn.LayerNorm(width) if isinstance(layer, nn.Linear) else nn.GroupNorm(1, width)
            )
            _put(module, name, _Normalised(layer, norm))
        return module

    return with_model(task, "normalised", change)


class _Normalised(nn.Sequential):
    """A layer and what normalises its outputs, which still has the layer's attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.isdigit():
                raise
            return getattr(super().__getattr__("0"), name)


def rectified(task: Task, layers: pd.DataFrame) -> Task:
    """With leaky ReLU for every activation that is a module, and weights to go with it.

    Args:
        task: as it is.
        layers: as `initialised` takes them.
    """

    def change(module: nn.Module) -> nn.Module:
        for name, part in list(module.named_modules()):
            if type(part) in KINDS:
                _put(module, name, nn.LeakyReLU(0.01))
        return module

    kinds = layers["kind"].where(~layers["kind"].isin(KINDS.values()), "LeakyReLU")
    return initialised(with_model(task, "leaky ReLU", change), layers.assign(kind=kinds))


def has_activations(task: Task) -> bool:
    """Whether there is anything for `rectified` to exchange."""
    with torch.random.fork_rng(devices=[]):
        return any(type(part) in KINDS for part in task.model().modules())


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(module.get_submodule(above), last, part)


def without_end(task: Task, name: str, kind: str) -> Task:
    """Without the activation at a network's end.

    Args:
        task: as it is.
        name: of the last layer.
        kind: of it. A sigmoid that is no module is undone by its inverse; others stay.
    """

    def change(module: nn.Module) -> nn.Module:
        parts = dict(module.named_modules())
        if name in parts and type(parts[name]) in KINDS:
            _put(module, name, nn.Identity())
            return module
        return nn.Sequential(module, _Logit()) if kind == "Sigmoid" else module

    return with_model(task, "without end", change)


class _Logit(nn.Module):
    def forward(self, p: Tensor) -> Tensor:
        return p.logit(eps=1e-6)


def of_probabilities(task: Task) -> Task:
    """With the cross-entropy of outputs that are probabilities already."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return LOSSES["cross_entropy"].of(outputs.clamp_min(1e-7).log(), y)

    return task.with_loss(loss)


def classified(task: Task, classes: int) -> Task:
    """With an output for every class and the cross-entropy, in place of one number for them all."""

    def change(module: nn.Module) -> nn.Module:
        names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        last: Any = module.get_submodule(names[-1])
        wide = nn.Linear(last.in_features, classes, bias=last.bias is not None)
        if len(names) == 1 and not names[0]:
            return wide
        _put(module, names[-1], wide)
        return module

    def part(split: Split) -> Split:
        return Split(split.x, split.y.flatten().long())  # type: ignore[union-attr]

    made = with_model(task, "classified", change)
    return _like(
        made,
        **{p: part(getattr(task, p)) for p in PARTS},
        loss=LOSSES["cross_entropy"],
        metric=ACCURACY,
    )


def from_weights(task: Task, weights: Mapping[str, Tensor]) -> Task:
    """Starting from given weights, a state dictionary, whatever the seed."""

    def change(module: nn.Module) -> nn.Module:
        module.load_state_dict(dict(weights), strict=False)  # which may lack buffers
        return module

    return with_model(task, "from weights", change)


def moved(task: Task, direction: Mapping[str, Tensor], length: float) -> Task:
    """Starting a step away from where it does, along a direction by the parameters' names."""

    def change(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, p in module.named_parameters():
                if name in direction:
                    p.add_(direction[name].to(p), alpha=length)
        return module

    return with_model(task, "moved", change)


def rounded(task: Task) -> Task:
    """Judged by how often the nearest whole number is the target."""

    def right(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs.reshape(y.shape).round() == y).to(outputs.dtype).mean()

    return _like(
        task,
        name=f"{task.name}, rounded",
        metric=Metric("accuracy", right, percent=True, mean=True),
    )
