"""The trained model of the winner: its best run, trained once more."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from thalweg.studies.arms import KEYS
from thalweg.studies.arrange import arranged, backend_of, cut, tried
from thalweg.studies.execute import train_again
from thalweg.studies.factors import StudyError
from thalweg.studies.result import StudyResult
from thalweg.studies.spec import Run, plan
from thalweg.tasks import Task

__all__ = ["Trained", "best_run", "best_weights", "first_arm"]


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model.

    Attributes:
        weights: a state dictionary of ``task.model()``, on the CPU.
        run: which run it is: optimizer, learning rate, seed and levels of all factors.
        task: the task with these levels: model, loss, metric, and data as it was encoded.
        validation_loss, validation_metric: of these weights.
    """

    weights: dict[str, Tensor]
    run: Run
    task: Task
    validation_loss: float
    validation_metric: float

    def module(self) -> torch.nn.Module:
        """The model with these weights, in evaluation mode."""
        module = self.task.model()
        module.load_state_dict(self.weights)
        return module.eval()


def best_run(result: StudyResult) -> Run:
    """Of the first arm's chosen setting the run that does best on validation data.

    Raises:
        StudyError: if no setting was completed from every seed.
    """
    runs = result.runs.merge(first_arm(result.summary)[[*KEYS, "lr"]], on=[*KEYS, "lr"])
    sign = 1 if result.task.higher_is_better else -1
    order = sign * runs["validation_metric"], -runs["validation_loss"], runs["run"]
    _, _, chosen = max(zip(*order, strict=True))
    return next(run for run in plan(result.spec) if run.id == chosen)


def first_arm(summary: pd.DataFrame) -> pd.DataFrame:
    """The row of a summary that comes first, at the learning rate that was chosen.

    Raises:
        StudyError: if no setting was completed from every seed.
    """
    first = summary[summary["test_metric"].notna()].head(1)
    if first.empty:
        raise StudyError("task", "no setting was completed from every seed, so that none is best")
    return first


def best_weights(result: StudyResult) -> Trained:
    """Train the best run once more and keep its weights.

    It trains alone where that gives the validation metric on record. Where it does not, as with
    dropout, or where sums over several replicas round otherwise, the whole chunk that it was in
    trains with it.

    Args:
        result: of a study in this process, which has its tasks.

    Raises:
        StudyError: if no setting was completed from every seed.
    """
    run = best_run(result)
    spec, variant = result.spec, result.variants[run.levels]
    task = variant.task
    device = str(result.environment["device"])
    backend = backend_of(result.environment["backend"], spec.combinations.index(run.levels))
    ready = tried(spec, {run.levels: variant}, device)
    chunks = cut(spec, ready, device)[run.levels]
    its_own = next(chunk for chunk in chunks if run in chunk)
    on_record = result.runs.set_index("run").loc[run.id, "validation_metric"]
    for runs in ([run], its_own):
        (chunk,) = arranged(spec, {run.levels: [runs]}, ready, {run.levels: backend}, device)
        last = train_again(spec, chunk, runs.index(run), device)
        place = last.replicas.tolist().index(runs.index(run))
        if math.isclose(last.validation_metric[place], on_record, rel_tol=1e-6, abs_tol=1e-9):
            break
    return Trained(
        _state(task, last.weights[runs.index(run)]),
        run,
        task,
        float(last.validation_loss[place]),
        float(last.validation_metric[place]),
    )


def _state(task: Task, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary: as the module keeps it, shared tensors by all their names."""
    module = task.model()
    with torch.no_grad():
        for name, own in (*module.named_parameters(), *module.named_buffers()):
            own.copy_(tensors[name])
    return {name: t.detach().clone() for name, t in module.state_dict().items()}
