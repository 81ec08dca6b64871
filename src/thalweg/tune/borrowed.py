"""A range test of a person's own model and optimizer, which it only ever sees copies of."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from thalweg.replicas import Factors
from thalweg.tasks.states import random_states
from thalweg.tasks.trial import called
from thalweg.tune.arguments import TuneError
from thalweg.tune.curve import Array, diverged

__all__ = ["Borrowed"]

POINTS = 10  # of the curve of a rate that is checked


class Borrowed:
    """A model with its optimizer, loss and data, none of which is ever touched.

    Args:
        model: as it stands; copies start from its weights.
        optimizer: any, over its parameters. Of several groups the ratios of their rates are kept:
            a rate is that of the largest.
        loss: ``(outputs, targets) -> scalar``.
        data: batches ``(inputs, targets)``, to be gone through again and again.

    Raises:
        TuneError: for what cannot be copied or gone through, naming it.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, loss: Callable[..., Tensor], data: Any
    ) -> None:
        self._model, self._optimizer, self._loss, self._data = model, optimizer, loss, data
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if not max(rates) > 0:
            raise TuneError(
                "optimizer", f"its learning rates are {rates}; the largest must be above 0"
            )
        self._ratios = [rate / max(rates) for rate in rates]
        owned = {id(p) for p in model.parameters()}
        if not any(id(p) in owned for group in optimizer.param_groups for p in group["params"]):
            raise TuneError("optimizer", "holds no parameter of the model; make it from these")
        if isinstance(data, Iterator):
            raise TuneError(
                "data", "is an iterator, which a range test would use up; give what makes it"
            )
        # Not by iter(data): a loader draws from its generator to begin.
        if not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
            raise TuneError("data", f"must give batches when gone through, got {data!r}")

    def sweep(
        self, lr: float, factors: Factors, steps: int, seeds: Sequence[int]
    ) -> tuple[Array, pd.DataFrame]:
        """As `thalweg.tune.replicated.sweep`; seeds are of the order of batches, and of dropout."""
        rates = lr * factors(np.arange(steps))
        losses = np.full((len(seeds), steps), np.nan)
        for run, seed in enumerate(seeds):
            seen = self._run(rates, seed, lambda seen: bool(np.isfinite(diverged(seen)[0])))
            losses[run, : len(seen)] = seen
            step = diverged(losses[run : run + 1])[0]
            if np.isfinite(step):
                losses[run, int(step) :] = np.nan
        return losses, pd.DataFrame({"step": [], "run": [], "metric": []})

    def trials(self, lrs: Sequence[float], steps: int, seeds: Sequence[int]) -> pd.DataFrame:
        """As `thalweg.tune.replicated.trials`, with the training loss alone."""
        ends = np.unique(np.linspace(0, steps, POINTS + 1).astype(int))[1:].tolist()
        rows = []
        for lr in lrs:
            for seed in seeds:
                seen = np.full(steps, np.nan)
                found = self._run(np.full(steps, lr), seed, _broken)
                seen[: len(found)] = found
                start = 0
                for end in ends:
                    mean = float(seen[start:end].mean())
                    rows.append({"lr": lr, "seed": seed, "step": end, "train_loss": mean})
                    start = end
        return pd.DataFrame(rows).assign(loss=np.nan, metric=np.nan)

    def _run(self, rates: Array, seed: int, over: Callable[[Array], bool]) -> list[float]:
        """Losses of a copy that is trained at these rates, until it is over: ``(1, steps)``."""
        with _random_state(self._data) as own, torch.enable_grad():
            model, optimizer = self._copies()
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - what a person's own data may draw from
            random.seed(seed)
            for generator in own:
                generator.manual_seed(seed)
            if not model.training:  # parts of a model in training may be in evaluation mode
                model.train()
            getattr(optimizer, "train", _nothing)()
            batches = self._batches(next(model.parameters()).device)
            trained = [p for p in _parameters(model, optimizer) if p.requires_grad]
            originals = [p for p in _parameters(self._model, self._optimizer) if p.requires_grad]
            found: list[float] = []
            for rate in rates:
                for group, ratio in zip(optimizer.param_groups, self._ratios, strict=True):
                    if isinstance(group["lr"], Tensor):
                        group["lr"].fill_(float(rate) * ratio)
                    else:
                        group["lr"] = float(rate) * ratio
                x, y = next(batches)
                first: list[float] = []  # as some optimizers call it again, elsewhere

                def closure(x: Any = x, y: Any = y, first: list[float] = first) -> Tensor:
                    optimizer.zero_grad()
                    loss = self._loss(called(model, x), y)
                    if not isinstance(loss, Tensor) or loss.numel() != 1:
                        raise TuneError(
                            "loss",
                            f"must return one number, a scalar tensor; it returned "
                            f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss)}",
                        )
                    first.append(float(loss.detach()))
                    # No `backward`, which would fill the gradients of whatever else a loss uses.
                    gradients = torch.autograd.grad(loss, [*trained, *originals], allow_unused=True)
                    if any(g is not None for g in gradients[len(trained) :]):
                        raise TuneError(
                            "loss",
                            "uses parameters of the model itself, of which copies are trained; "
                            "leave a penalty to the optimizer's weight_decay, or give a "
                            "thalweg.Task",
                        )
                    for p, g in zip(trained, gradients, strict=False):
                        p.grad = g
                    return loss.detach()

                optimizer.step(closure)  # type: ignore[arg-type]
                found.append(first[0])
                if over(np.array([found])):
                    break
        return found

    def _copies(self) -> tuple[nn.Module, Optimizer]:
        try:
            memo: dict[int, Any] = {}
            model = deepcopy(self._model, memo)
            optimizer = deepcopy(self._optimizer, memo)
            _complete(optimizer, self._optimizer, memo)
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TuneError(
                "task",
                f"the model and its optimizer cannot be copied ({first}); give a thalweg.Task with "
                f"a function that makes the model",
            ) from None
        return model, optimizer

    def _batches(self, device: torch.device) -> Iterator[tuple[Any, Any]]:
        while True:
            empty = True
            for batch in self._data:
                empty = False
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    raise TuneError(
                        "data",
                        f"must give batches (inputs, targets), and gave {type(batch).__name__}",
                    )
                yield tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, tuple(batch))
            if empty:
                raise TuneError("data", "gives no batch at all; a loader with data is needed")


def _parameters(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    """Of both, each once."""
    every = [*model.parameters(), *(p for g in optimizer.param_groups for p in g["params"])]
    return list({id(p): p for p in every}.values())


def _broken(seen: Array) -> bool:
    return not np.isfinite(seen[0, -1])


def _complete(copy: Optimizer, original: Optimizer, memo: dict[int, Any]) -> None:
    """Copy what belongs to an optimizer besides its groups and state, as LBFGS has it.

    What can be called is left: the step that a scheduler has put there takes one of the original.
    """
    for name, value in vars(original).items():
        if isinstance(value, Optimizer) and name in vars(copy):
            _complete(vars(copy)[name], value, memo)
        elif name not in vars(copy) and not callable(value):
            setattr(copy, name, deepcopy(value, memo))


def _nothing() -> None:
    pass


@contextmanager
def _random_state(data: Any) -> Iterator[list[torch.Generator]]:
    """Leave all random states as they are found, also those of a loader's own generators: these."""
    batches = getattr(data, "batch_sampler", None)
    holders = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    own = {
        id(g): g
        for g in (getattr(holder, "generator", None) for holder in holders)
        if isinstance(g, torch.Generator)
    }
    before = [(g, g.get_state()) for g in own.values()]
    try:
        with random_states():
            yield list(own.values())
    finally:
        for generator, state in before:
            generator.set_state(state)
