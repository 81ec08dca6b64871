"""The loop: batches in, steps taken, from where it was."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from thalweg.tasks import Split, Task
from thalweg.tasks.losses import alone
from thalweg.train.arguments import FitError
from thalweg.train.batches import (
    Batches,
    InMemory,
    Loaded,
    Pair,
    random_state,
    seed_all,
    set_random_state,
    split_bytes,
)
from thalweg.train.evaluate import Evaluation, evaluate
from thalweg.train.parallel import ALONE, Ranks
from thalweg.train.recipe import Recipe, factors, make
from thalweg.train.step import Mark, Share, Step, in_precision, unmarked
from thalweg.train.tape import shortcut

__all__ = ["Engine"]

RESIDENT = 0.25  # of a GPU's free memory, that a data set may take for good
AHEAD = 2  # batches in flight, where it pays by default


class Engine:
    """A model in training.

    Args:
        task: what is trained.
        recipe: how; checked.
        epochs: of the whole training, which its schedule is cut to.
        ranks: who trains; alone by default.
        loader: batches to train on in place of the task's own.
        shard: whether each rank keeps its part of the weights alone.

    Attributes:
        model: the model itself.
        module: the same as it is called, on all ranks together.
        made: its optimizer.
        ranks: who trains.
        steps_per_epoch: the last may be of fewer batches.
        steps: of the whole training.
        samples: of each step that `advance` took last.
        step: how many have been taken.
        epoch: which epoch the last step was of, from 1; 0 before the first.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        epochs: int,
        *,
        ranks: Ranks = ALONE,
        loader: Iterable[Pair] | None = None,
        shard: bool = False,
    ) -> None:
        self._task, self._recipe, self.ranks = task, recipe, ranks
        seed_all(recipe.seed)
        self.model = task.model().to(ranks.device)
        if recipe.hybridize:
            from thalweg.train.hybrid import hybridize

            self.model = hybridize(self.model)
        self.module: nn.Module = ranks.wrap(self.model, shard).train()
        if ranks.rank:  # or all would drop the same units
            seed_all(recipe.seed + ranks.rank)
        self._batches: Batches = self._source(loader)
        # A loader without processes of its own would draw its random numbers beside the model's,
        # in an order that no seed gives.
        apart = getattr(loader, "num_workers", 0) > 0
        self._depth = AHEAD if apart or self._is_copied() else 0
        if recipe.prefetch is not None:
            self._depth = recipe.prefetch
        self.steps_per_epoch = -(-self._batches.count // recipe.accumulate)
        self.steps = epochs * self.steps_per_epoch
        self.made = make(recipe, [p for p in self.module.parameters() if p.requires_grad])
        self._groups = self.made.optimizer.param_groups
        self._rates = [float(group["lr"]) for group in self._groups]
        self._factors = factors(recipe.schedule, self.steps, self.steps_per_epoch)
        self.precision = in_precision(recipe.precision, ranks.device)
        self.taken = Step(
            self.module,
            alone(task.loss),
            self.made.optimizer,
            ranks,
            precision=recipe.precision,
            clip=self.made.clip,
            needs_closure=self.made.needs_closure,
        )
        plain = recipe.precision == "float32" and not recipe.hybridize
        if recipe.taped and plain and loader is None and ranks == ALONE:
            size = recipe.batch_size or task.batch_size
            sizes = {size, len(task.train) % size or size}
            self.taken.shortcut = shortcut(task, self.model, sizes)
        self.step = self.epoch = 0
        self.samples: list[int] = []
        self._used = 0  # batches of the present epoch
        self._open = ExitStack()
        self._present: Iterator[Pair] | None = None

    def _source(self, loader: Iterable[Pair] | None) -> Batches:
        if loader is not None:
            return Loaded(loader)
        split, device = self._task.train, self.ranks.device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if split_bytes(split) * len(split) < RESIDENT * free:
                split = Split(*tree_map(lambda t: t.to(device), (split.x, split.y)))
        size = self._recipe.batch_size or self._task.batch_size
        return InMemory(split, size, self._recipe.seed)

    def _is_copied(self) -> bool:
        """Whether batches have to be brought to the device."""
        batches, device = self._batches, self.ranks.device
        return isinstance(batches, InMemory) and batches.device.type != device.type

    @property
    def lr(self) -> float:
        """The learning rate of the last step, in the first group of parameters."""
        return float(self._groups[0]["lr"])

    @property
    def ends_epoch(self) -> bool:
        """Whether the last step was the last of an epoch."""
        return self._used >= self._batches.count

    def advance(self, steps: int, mark: Mark = unmarked) -> Tensor:
        """Train.

        Args:
            steps: how many to take, through epochs as they come.
            mark: called at the end of each part of a step, with its name: "data" (a batch was taken
                or waited for) and "copy" (it is on the device) of each batch, "forward" and
                "backward" of each, "optimizer".

        Returns:
            The loss at each step, ``(steps,)``, on the device; with several ranks each one's part,
            which add up to as many times the loss as there are ranks.
        """
        losses = []
        self.samples = []
        for _ in range(steps):
            window = self._window(mark)
            self._follow()
            losses.append(self.taken(window, mark))
            self.step += 1
        return torch.stack(losses)

    def window(self) -> list[Share]:
        """The batches of the next step, which `advance` would have taken, at its rates."""
        found = self._window(unmarked)
        self._follow()
        return found

    def _window(self, mark: Mark) -> list[Share]:
        if self._present is None or self.ends_epoch:
            self._begin(0)
            self.epoch += 1
        ranks, device, total = self.ranks, self.ranks.device, 0
        window: list[tuple[Any, Any, int]] = []
        present = self._present
        assert present is not None
        while len(window) < self._recipe.accumulate and self._used < self._batches.count:
            batch = next(present)
            mark("data")
            (x, y), count = ranks.part(batch)
            if device.type != "cpu":
                x, y = tree_map(lambda t: t.to(device, non_blocking=True), (x, y))
            mark("copy")
            window.append((x, y, count))
            total += len(tree_leaves(batch[1])[0])
            self._used += 1
        self.samples.append(total)
        return [(x, y, count * ranks.size / total) for x, y, count in window]

    def _begin(self, first: int) -> None:
        """An epoch, from its batch ``first`` on."""
        self._open.close()
        batches: Iterable[Pair] = self._batches.epoch(first)
        if self._depth:
            from thalweg.train.prefetch import prefetch

            ahead = prefetch(batches, self._depth, device=self.ranks.device)
            batches = self._open.enter_context(ahead)
        self._present = iter(batches)
        if isinstance(self._batches, Loaded):
            self._present = self.ranks.alike(self._present)
        self._used = first

    def _follow(self) -> None:
        """Set the rates of the next step."""
        if self._factors is not None:
            self._set_rates(float(self._factors[self.step]))

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self._groups, self._rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def evaluate(self, split: Split) -> Evaluation:
        """Loss and metric of the weights as they are, over one part of the data."""
        return evaluate(self.module, self._task, split, ranks=self.ranks, precision=self.precision)

    def to_answers(self) -> None:
        """Put the weights to evaluate and keep in place of those that are trained."""
        getattr(self.made.optimizer, "eval", _nothing)()

    def to_training(self) -> None:
        """Undo that."""
        getattr(self.made.optimizer, "train", _nothing)()

    def weights(self) -> dict[str, Tensor]:
        """Copies on the CPU of the weights as they are, under the model's own names."""
        return self.ranks.model_state(self.module)

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, copied: tensors on the CPU and plain values.

        To be taken with the weights to evaluate in place.
        """
        scaler = self.taken.scaler
        return {
            "model": self.weights(),
            "optimizer": self.ranks.optimizer_state(self.made.optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "used": self._used,
            "count": self._batches.count,
            "batches": self._batches.state(),
            "random": self.ranks.all_of(random_state()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from such a state, of any number of ranks, at this recipe's learning rates.

        Raises:
            FitError: if its batches came from elsewhere, or were another number an epoch.
        """
        self._batches.load(state["batches"])
        if state["count"] != self._batches.count:
            raise FitError(
                "loader" if isinstance(self._batches, Loaded) else "batch_size",
                f"an epoch of this training has {state['count']:,} batches and would now have "
                f"{self._batches.count:,}; train in batches as before, or begin another training "
                f"in another folder",
            )
        self.ranks.load_model(self.module, state["model"])
        # What a state dictionary holds may become the optimizer's own.
        self.ranks.load_optimizer(self.made.optimizer, copy.deepcopy(state["optimizer"]))
        self._groups = self.made.optimizer.param_groups
        self.to_training()
        self._set_rates(1.0)
        if self.taken.scaler is not None and state["scaler"]:
            self.taken.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch = state["step"], state["epoch"]
        if len(state["random"]) == self.ranks.size:
            set_random_state(state["random"][self.ranks.rank])
        self._open.close()
        self._present = None
        if self.epoch:
            self._begin(state["used"])

    def close(self) -> None:
        """End what goes on in the background."""
        self._open.close()


def _nothing() -> None:
    pass
