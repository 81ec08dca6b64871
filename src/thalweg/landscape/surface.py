"""The loss around a trained network, along one or two directions of its weights.

Li, Xu, Taylor, Studer and Goldstein (2018), arXiv:1712.09913: of the millions of directions a line
or a plane is chosen, and the loss evaluated at every point of a grid on it. All points are replicas
of one model, evaluated together.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from thalweg.landscape.arguments import LandscapeError, positive, seed_of, whole
from thalweg.landscape.operators import NetworkOperator, hessian
from thalweg.landscape.spectrum import eigenvalues
from thalweg.landscape.training_path import Array, TrainingPath, Weights, task_of
from thalweg.replicas.program import Model, Program, build, stack
from thalweg.replicas.train import piece
from thalweg.tasks import Batch, Loss, Metric, Split, Task
from thalweg.tasks.trial import first_batch

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "Plane",
    "Surface",
    "barrier",
    "between",
    "curvature_plane",
    "evaluate",
    "path_plane",
    "random_plane",
    "surface",
    "task_of_module",
]

# Copies of weights that are evaluated together by one thread; more than fit its cache gain nothing.
BYTES = 1 << 19
MARGIN = 0.25  # of its length, by which a line or a plane goes on beyond what it was laid through


@dataclass(frozen=True, eq=False)
class Plane:
    """A line or a plane in the space of weights: ``origin + alpha * first + beta * second``.

    Attributes:
        origin: weights by name, parameters and buffers.
        directions: one or two, by name, of the shapes of ``origin``; a tensor that is left out
            stays as it is.
        labels: what axes call them.
        spans: lowest and highest coordinate of each.
        marks: points of interest, a row each: ``name, alpha, beta`` (``beta`` 0 on a line), and
            of a training path also ``step``.
        note: a sentence on how it was laid, for captions.
        values: of each direction, a training path's share of variance along it, or the
            eigenvalue of an eigenvector; empty of others.
    """

    origin: Weights = field(repr=False)
    directions: tuple[Weights, ...] = field(repr=False)
    labels: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]
    marks: pd.DataFrame = field(repr=False)
    note: str
    values: tuple[float, ...] = ()

    def weights(self, *coordinates: float) -> dict[str, Tensor]:
        """The weights at a point."""
        found = {}
        for name, start in self.origin.items():
            value = start.double() if start.is_floating_point() else start
            for c, direction in zip(coordinates, self.directions, strict=True):
                if name in direction:
                    value = value + c * direction[name].double()
            found[name] = value.to(start.dtype)
        return found


@dataclass(frozen=True, eq=False)
class Surface:
    """The loss on a line or a plane.

    Attributes:
        task: its title.
        loss: as axes print it.
        metric: of the task.
        plane: where it was evaluated.
        grid: a row a point: ``alpha``, ``beta`` (0 on a line), ``train_loss, train_metric,
            validation_loss, validation_metric``, means over whole sets in evaluation mode.
        marks: the plane's, with the same four columns at their places on it.
        note: that and why points were evaluated one after another, or nothing.
    """

    task: str
    loss: str
    metric: Metric
    plane: Plane = field(repr=False)
    grid: pd.DataFrame = field(repr=False)
    marks: pd.DataFrame = field(repr=False)
    note: str = ""

    def figure(self, kind: str = "contour") -> "go.Figure":
        """The picture: of a line its curve, of a plane a ``contour`` or a rotatable ``surface``."""
        from thalweg.figures import networks

        metric = self.metric.name, self.metric.percent
        if len(self.plane.directions) == 1:
            return networks.interpolation(
                self.grid, self.marks, self.plane.labels[0], self.loss, *metric
            )
        draw = {"contour": networks.loss_contour, "surface": networks.loss_surface}.get(kind)
        if draw is None:
            raise LandscapeError("kind", f"must be contour or surface, got {kind!r}")
        return draw(self.grid, self.marks, self.plane.labels, self.loss)


def surface(task: str | Task, plane: Plane, points: int = 25) -> Surface:
    """Evaluate the loss on a line or a plane of weights.

    Losses and metrics are those of the whole training and validation sets, in evaluation mode:
    batch normalisation uses the statistics in ``plane.origin`` (which `between` moves along with
    the weights), and dropout is off.

    Args:
        task: name of a built-in task, or a `thalweg.Task`; `task_of_module` makes one of a module.
        plane: where.
        points: of the grid in each direction, at least 2.

    Raises:
        LandscapeError: for an argument that cannot be used.
    """
    found = task_of(task)
    first_batch(found)
    if whole("points", points) < 2:
        raise LandscapeError("points", f"must be at least 2, got {points}")
    axes = [np.linspace(low, high, points) for low, high in plane.spans]
    mesh = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    marked = plane.marks[["alpha", "beta"]].to_numpy(dtype=float)[:, : len(axes)]
    scores, note = evaluate(found, plane, np.concatenate([mesh, marked]))
    flat = np.zeros((len(mesh), 2))
    flat[:, : len(axes)] = mesh
    grid = pd.DataFrame(flat, columns=["alpha", "beta"])
    return Surface(
        found.title,
        found.loss.label,
        found.metric,
        plane,
        grid.join(scores.iloc[: len(mesh)]),
        plane.marks.join(scores.iloc[len(mesh) :].reset_index(drop=True)),
        note,
    )


def evaluate(task: Task, plane: Plane, coordinates: Array) -> tuple[pd.DataFrame, str]:
    """Losses and metrics at points of a line or a plane.

    Args:
        task: whose data, loss and metric.
        plane: where.
        coordinates: ``(points, directions)``.

    Returns:
        A row a point: ``train_loss, train_metric, validation_loss, validation_metric``; and that
        and why points were evaluated one after another, or nothing.

    Raises:
        LandscapeError: for weights that are not the model's.
    """
    model, _, _ = stack(task, [0], "cpu")
    check(task, model.train, plane.origin)
    origin = {name: plane.origin[name].detach() for name in (*model.parameters, *model.constants)}
    size = sum(t.numel() * t.element_size() for t in origin.values())
    threads = torch.get_num_threads()
    count = max(1, min(BYTES // size, -(-len(coordinates) // threads)))
    at = partial(_stacked, model, origin, plane.directions)
    # Two points are enough to trace with, where what is traced then takes any number of them.
    few = at(np.repeat(coordinates[:1], 2, axis=0))
    batch = task.train[: min(len(task.train), task.batch_size)]
    program = build(task, model, *few, batch, shared=True, backend="eager")
    scores, note = partial(_scores, task, program, count), program.note
    workers = threads if program.concurrent else 1
    if program.backend != "one by one":
        other = build(task, model, *few, batch, shared=True, backend="one by one")
        single = partial(_scores, task, other, 1)
        # As it is for convolutions, which vmap makes slower.
        if _seconds(single, few) < _seconds(scores, few):
            scores, workers = single, 1
            note = "points were evaluated one after another, which is faster for this model"
    # Chunks of one size, as otherwise it is traced for a number of replicas.
    padded = -(-len(coordinates) // count) * count
    places = np.pad(coordinates, ((0, padded - len(coordinates)), (0, 0)), mode="edge")

    def run(i: int) -> Array:
        return scores(*at(places[i : i + count]))

    try:
        with ThreadPoolExecutor(workers, initializer=partial(_cores, threads // workers)) as pool:
            found = np.concatenate(list(pool.map(run, range(0, padded, count))))
    finally:
        _cores(threads)
    columns = ["train_loss", "train_metric", "validation_loss", "validation_metric"]
    return pd.DataFrame(found[: len(coordinates)], columns=columns), note


def _cores(count: int) -> None:
    torch.set_num_threads(count)


def _seconds(
    scores: Callable[[list[Tensor], list[Tensor]], Array],
    stacks: tuple[list[Tensor], list[Tensor]],
) -> float:
    """Of one evaluation on one core, after a first that traces."""
    threads = torch.get_num_threads()
    _cores(1)
    try:
        scores(*stacks)
        start = perf_counter()
        scores(*stacks)
        return perf_counter() - start
    finally:
        _cores(threads)


def check(task: Task, module: nn.Module, weights: Weights) -> None:
    """Refuse weights that are not those of a task's model."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name not in weights or weights[name].shape != tensor.shape:
            got = f"of shape {tuple(weights[name].shape)}" if name in weights else "missing"
            raise LandscapeError(
                "weights",
                f"{name!r} of the model of {task.name!r} is {tuple(tensor.shape)}, and is {got}; "
                f"give the weights of this model by their names",
            )


def _stacked(
    model: Model, origin: Weights, directions: Sequence[Weights], places: Array
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and constants at some points, ``(points, *shape)`` each."""

    def at(name: str) -> Tensor:
        start = origin[name]
        along = [(k, d[name]) for k, d in enumerate(directions) if name in d]
        if not along or not start.is_floating_point():
            return start.expand(len(places), *start.shape).contiguous()
        factors = torch.as_tensor(places[:, [k for k, _ in along]], dtype=start.dtype)
        moved = torch.stack([d.to(start.dtype).flatten() for _, d in along])
        found = torch.addmm(start.flatten()[None], factors, moved)
        return found.reshape(len(places), *start.shape)

    return [at(n) for n in model.parameters], [at(n) for n in model.constants]


def _scores(
    task: Task, program: Program, together: int, parameters: list[Tensor], constants: list[Tensor]
) -> Array:
    """Loss and metric on training and on validation data, ``(replicas, 4)``."""
    found = []
    for split in (task.train, task.validation):
        # A metric that is no mean over samples is taken of all of them at once.
        size = piece(split, together, len(split)) if task.metric.mean else len(split)
        sums = np.zeros((2, len(parameters[0])))
        for i in range(0, len(split), size):
            x, y = split[i : i + size]
            pair = program.evaluate(parameters, constants, x, y)
            share = (min(i + size, len(split)) - i) / len(split)
            sums += share * np.stack([t.double().numpy() for t in pair])
        found.append(sums)
    return np.concatenate(found).T


def random_plane(weights: Weights, seed: int = 0, count: int = 2, span: float = 1.0) -> Plane:
    """A plane, or a line, along random filter-normalised directions.

    Every direction is Gaussian, and each of its filters (the weights of one output of a layer) is
    given the norm that this filter has in the network, so that networks of other scales may be
    compared. What has one dimension, biases and the parameters of normalisation, stays as it is
    (Li et al. 2018, section 4).

    Args:
        weights: of the network, by name; the origin.
        seed: of the directions.
        count: 2 for a plane, 1 for a line.
        span: how far to go either way; at 1 each filter has moved by its own norm.

    Raises:
        LandscapeError: for another count, seed or span that cannot be used.
    """
    seed, span = seed_of(seed), positive("span", span)
    if count not in (1, 2):
        raise LandscapeError("count", f"must be 1 for a line or 2 for a plane, got {count!r}")
    draw = torch.Generator().manual_seed(seed)
    directions = tuple(_filter_normalised(weights, draw) for _ in range(count))
    return Plane(
        weights,
        directions,
        tuple(f"random direction {i + 1}" for i in range(count)),
        ((-span, span),) * count,
        _marks([("trained network", 0.0, 0.0)]),
        "Random directions, filter-normalised: at 1 the weights of each unit have moved by their "
        "own norm; biases and normalisation parameters stay.",
    )


def _filter_normalised(weights: Weights, draw: torch.Generator) -> dict[str, Tensor]:
    found = {}
    for name, tensor in weights.items():
        if tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
        norms = torch.linalg.vector_norm(tensor.double().flatten(1), dim=1)
        own = torch.linalg.vector_norm(noise.flatten(1), dim=1)
        shape = (-1, *[1] * (tensor.ndim - 1))
        found[name] = (noise * (norms / own).reshape(shape)).to(tensor.dtype)
    return found


def between(
    first: Weights,
    second: Weights,
    third: Weights | None = None,
    names: Sequence[str] = ("first", "second", "third"),
) -> Plane:
    """The line through two solutions, or the plane through three.

    On the line ``alpha`` is 0 at the first and 1 at the second. On the plane the axes are at right
    angles and in units of the distance of the first two, which stand at (0, 0) and (1, 0) (Garipov
    et al. 2018, arXiv:1802.10026, appendix A.1). Buffers that are numbers move along, so that each
    solution has the batch normalisation that it was trained with.

    Args:
        first: weights by name, at (0, 0).
        second: weights of the same model, at (1, 0).
        third: likewise; None for the line through the others.
        names: what the solutions are called.

    Raises:
        LandscapeError: for solutions of other shapes, or which lie on one line.
    """
    moved = _difference(first, second, "second")
    length = _norm(moved)
    if not length > 0:
        raise LandscapeError("second", "has the same weights as the first; there is no line")
    if third is None:
        return Plane(
            first,
            (moved,),
            (f"from {names[0]} (0) to {names[1]} (1)",),
            ((-MARGIN, 1 + MARGIN),),
            _marks([(names[0], 0.0, 0.0), (names[1], 1.0, 0.0)]),
            f"The straight line between two solutions, {length:.3g} apart.",
        )
    other = _difference(first, third, "third")
    along = _dot(other, moved) / length**2
    across = {name: other[name] - along * moved[name] for name in other}
    height = _norm(across)
    if not height > 1e-6 * _norm(other):
        raise LandscapeError("third", "lies on the line through the others; there is no plane")
    across = {name: t * (length / height) for name, t in across.items()}
    far = height / length
    wide = (min(0.0, along), max(1.0, along))
    return Plane(
        first,
        (moved, across),
        (f"from {names[0]} (0) to {names[1]} (1)", f"towards {names[2]}, at right angles"),
        (_wider(*wide), _wider(0.0, far)),
        _marks([(names[0], 0.0, 0.0), (names[1], 1.0, 0.0), (names[2], along, far)]),
        f"The plane through three solutions; a unit is the distance of the first two, "
        f"{length:.3g}.",
    )


def barrier(line: Surface, of: str = "train_loss") -> float:
    """How far the loss between two solutions rises above the straight line between their losses.

    Max over alpha in [0, 1] of L(alpha) - ((1 - alpha) L(0) + alpha L(1)), on the grid (Entezari et
    al. 2022, arXiv:2110.06296, definition 2.1).

    Args:
        line: of `between` two solutions.
        of: which column.
    """
    ends = line.marks[of].to_numpy()
    inside = line.grid[(line.grid["alpha"] >= 0) & (line.grid["alpha"] <= 1)]
    alpha = inside["alpha"].to_numpy()
    straight = (1 - alpha) * ends[0] + alpha * ends[1]
    return float(max(0.0, (inside[of].to_numpy() - straight).max()))


def path_plane(path: TrainingPath) -> Plane:
    """The plane that holds most of a training path: its first two principal components.

    The components are those of the weights along the path, about their mean; the plane goes through
    the last weights, so that these stand on their own loss, and earlier ones where they project to
    (Li et al. 2018, section 7). Buffers stay as at the end.

    Args:
        path: with at least three moments.

    Raises:
        LandscapeError: for fewer, or a path that is a straight line.
    """
    origin = path.at(-1)
    names = path.parameters
    moments = len(path.curve)
    flat = torch.cat([path.weights[n].double().flatten(1) for n in names], 1)
    offsets = (flat - flat[-1]).numpy()
    centred = offsets - offsets.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    if moments < 3 or not values[1] > 1e-9 * values[0]:
        raise LandscapeError("path", "is a straight line or a point, which no plane is fitted to")
    shares = tuple((values**2 / (values**2).sum())[:2].tolist())
    # Signs are the solver's choice: here the start is to the left and below.
    axes = axes[:2] * np.where(axes[:2] @ offsets[0] > 0, -1.0, 1.0)[:, None]
    where = offsets @ axes.T
    directions = []
    for axis in axes:
        parts = np.split(axis, np.cumsum([origin[n].numel() for n in names])[:-1])
        directions.append(
            {
                n: torch.as_tensor(part).reshape(origin[n].shape).to(origin[n].dtype)
                for n, part in zip(names, parts, strict=True)
            }
        )
    marks = pd.DataFrame(
        {
            "name": ["start", *["on the path"] * (moments - 2), "end"],
            "alpha": where[:, 0],
            "beta": where[:, 1],
            "step": path.curve["step"],
            "own_loss": path.curve["train_loss"],
        }
    )
    return Plane(
        origin,
        tuple(directions),
        tuple(f"principal component {i + 1} ({100 * s:.0f} %)" for i, s in enumerate(shares)),
        tuple(_wider(*ends) for ends in zip(where.min(0), where.max(0), strict=True)),
        marks,
        f"The plane of the first two principal components of the weights along the path, through "
        f"the last of them: {100 * shares[0]:.1f} % and {100 * shares[1]:.1f} % of the path's "
        f"variance. Earlier weights are drawn where they project to. A unit is 1 in the norm of "
        f"the weights.",
        shares,
    )


def _wider(low: float, high: float) -> tuple[float, float]:
    margin = MARGIN * (high - low)
    return (float(low - margin), float(high + margin))


def curvature_plane(task: str | Task, weights: Weights, span: float = 0.25) -> Plane:
    """The plane along which the training loss curves most: the top two Hessian eigenvectors.

    Both are given the norm of the weights, so that a unit is about as far as on `random_plane`. The
    largest eigenvalue comes first.

    Args:
        task: whose training loss, in evaluation mode.
        weights: of the network, by name; the origin.
        span: how far to go either way, in norms of the weights.

    Raises:
        LandscapeError: for weights that are not the model's.
    """
    found, span = task_of(task), positive("span", span)
    operator = hessian_at(found, weights)
    top = eigenvalues(operator, 2, "LA")
    size = math.sqrt(math.fsum(float(weights[n].double().square().sum()) for n in operator.names))
    # The largest first; as a solver's signs are its choice, the largest part of each is positive.
    directions = [
        operator.split(size * v * np.sign(v[np.abs(v).argmax()])) for v in top.vectors.T[::-1]
    ]
    values = tuple(top.values[::-1].tolist())
    return Plane(
        weights,
        tuple(directions),
        tuple(f"eigenvector {i + 1} (eigenvalue {v:.3g})" for i, v in enumerate(values)),
        ((-span, span),) * 2,
        _marks([("trained network", 0.0, 0.0)]),
        f"Along the two eigenvectors of the training loss's Hessian with the largest eigenvalues, "
        f"{values[0]:.3g} and {values[1]:.3g}. A unit is the norm of the weights, {size:.3g}.",
        values,
    )


def hessian_at(task: Task, weights: Weights, dtype: str | None = None) -> NetworkOperator:
    """The Hessian of a task's training loss, in evaluation mode, at some weights.

    Args:
        task: whose model and loss.
        weights: by name.
        dtype: as `hessian` takes it.
    """
    return hessian(module_at(task, weights), task.loss, task.train, dtype=dtype)


def module_at(task: Task, weights: Weights) -> nn.Module:
    """A task's module with some weights."""
    with torch.random.fork_rng(devices=[]):
        module = task.model()
    check(task, module, weights)
    module.load_state_dict(weights, strict=False)  # which may have buffers that are not kept
    return module


def task_of_module(
    model: nn.Module,
    loss: "str | Loss | Callable[[Any, Any], Tensor]",
    data: "Split | tuple[Batch, Batch]",
    validation: "Split | tuple[Batch, Batch] | None" = None,
    metric: "str | Metric | Callable[[Any, Any], Tensor] | None" = None,
) -> tuple[Task, dict[str, Tensor]]:
    """A person's own trained module as a task, and its weights by name.

    Args:
        model: the module; it is copied, and never changed.
        loss: name or function ``(outputs, targets) -> scalar``, a mean over the batch.
        data: inputs and targets that it was trained with.
        validation: others; those that it was trained with by default.
        metric: name or function; the usual one of these targets by default.

    Raises:
        TaskError: for data, a loss or a metric that cannot be used.
    """
    kept = deepcopy(model).eval()
    task = Task(
        model=partial(deepcopy, kept),
        train=data,
        validation=data if validation is None else validation,
        test=data,
        loss=loss,
        metric=metric,
        name=type(model).__name__,
    )
    tensors = {**dict(kept.named_parameters()), **dict(kept.named_buffers())}
    return task, {name: t.detach().cpu() for name, t in tensors.items()}


def _difference(first: Weights, other: Weights, argument: str) -> dict[str, Tensor]:
    for name, tensor in first.items():
        if name not in other or other[name].shape != tensor.shape:
            raise LandscapeError(
                argument, f"must have the tensors of the first, and has no {name!r} of its shape"
            )
    return {
        name: other[name] - tensor for name, tensor in first.items() if tensor.is_floating_point()
    }


def _dot(a: Weights, b: Weights) -> float:
    return math.fsum(float((a[name].double() * b[name].double()).sum()) for name in a)


def _norm(a: Weights) -> float:
    return math.sqrt(_dot(a, a))


def _marks(rows: Sequence[tuple[str, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["name", "alpha", "beta"])
