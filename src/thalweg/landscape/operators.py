"""The Hessian of a network's loss and its kin, as operators that multiply vectors.

By reverse mode twice, with plain autograd: the gradient is recorded with its own graph, and a
product is one more pass back through it (Pearlmutter 1994, "Fast exact multiplication by the
Hessian", https://doi.org/10.1162/neco.1994.6.1.147). Any operation that torch differentiates twice
will do, and where memory allows the graphs stay, so that a product costs little more than a
gradient.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from difflib import get_close_matches
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from thalweg.landscape.arguments import LandscapeError, whole
from thalweg.tasks import Loss, Split
from thalweg.tasks.blame import first_line
from thalweg.tasks.losses import as_loss
from thalweg.tasks.memory import SHARE, available_memory, shown
from thalweg.tasks.samples import of_dataset, of_loader
from thalweg.tasks.states import gpus, random_states
from thalweg.tasks.trial import called

__all__ = ["NetworkOperator", "empirical_fisher", "gauss_newton", "hessian"]

Array: TypeAlias = NDArray[Any]
# Of a vector, or of several in rows at once.
Product: TypeAlias = Callable[[Tensor, bool], Tensor]
LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
LossLike: TypeAlias = str | Loss | LossFunction
# From loss, outputs and targets of a batch, and parameters, to products.
Recorder: TypeAlias = Callable[[LossFunction, Any, Any, list[Tensor]], Product]

# Bytes: of the graphs that are kept, as a share of the memory that is free and at most; and of
# that of one batch, unless a person gives a batch size.
KEPT, KEPT_SHARE = 1 << 30, 0.125
BATCH = {"cpu": 16 << 20, "cuda": 256 << 20}
TOGETHER = 32  # vectors
# Bytes of a batch's graph, beyond which on a CPU vectors are faster one after the other: several at
# once are out of its cache.
CACHE = 256 << 10


class NetworkOperator(LinearOperator):  # type: ignore[misc]
    """A symmetric matrix of a network's curvature, known by its products with vectors.

    Of the model as it was when the operator was made, in evaluation mode: it works on a copy, and
    neither the model nor its gradients, mode, buffers or the random state are touched. Vectors are
    the parameters' numbers in order, flattened. Data may be on another device than the model;
    batches are moved.

    Attributes:
        kind: ``Hessian``, ``Gauss-Newton`` or ``empirical Fisher``.
        names: of the parameters, in the order of the vectors.
        samples: that the mean is over.
        batch_size: samples at once.
        bytes_per_sample: what the recorded graph of a sample takes, in bytes.
    """

    def __init__(
        self,
        kind: str,
        record: Recorder,
        model: nn.Module,
        loss: LossLike,
        data: Any,
        parameters: str | Sequence[str] | None,
        batch_size: int | None,
        dtype: "torch.dtype | str | None",
    ) -> None:
        self.kind = kind
        self._record = record
        with random_states():
            batches = _batches(data)
            self._copied(model, parameters, dtype)
            super().__init__(_numpy(self._dtype), (self._size, self._size))
            self._loss = self._loss_of(loss, batches[0][1])
            self.samples = sum(_count(y) for _, y in batches)
            with self._apart():
                self.bytes_per_sample = self._tried(batches[0])
        self.batch_size = self._fitting(batch_size)
        self._batches = [
            tuple(tree_map(lambda t, i=i: t[i : i + self.batch_size], (x, y)))
            for x, y in batches
            for i in range(0, _count(y), self.batch_size)
        ]
        self._shares = [_count(y) / self.samples for _, y in self._batches]
        self._kept: dict[int, Product] = {}
        graph = self.bytes_per_sample * self.batch_size
        self._room = int(min(KEPT, KEPT_SHARE * self._free()) / graph)
        self._together = max(1, min(TOGETHER, self._room))
        self._vmapped = self._device.type != "cpu" or graph <= CACHE

    def split(self, vector: Any) -> dict[str, Tensor]:
        """A vector's parts in the shapes of the parameters, by their names."""
        flat = torch.as_tensor(vector, dtype=self._dtype, device=self._device).reshape(self._size)
        pieces = zip(torch.split(flat, self._sizes), self._parameters, strict=True)
        return dict(zip(self.names, (t.reshape(p.shape) for t, p in pieces), strict=True))

    def loss(self, step: Any = None) -> float:
        """Mean over all samples, with the parameters moved by ``step``, a vector, if given."""
        at = dict(zip(self.names, self._parameters, strict=True))
        if step is not None:
            at = {name: at[name] + part for name, part in self.split(step).items()}
        total = 0.0
        with self._apart(), torch.no_grad():
            for x, y in map(self._ready, self._batches):
                given = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,),)
                outputs = torch.func.functional_call(self._model, at, *given)
                total += float(self._loss(outputs, y)) * _count(y)
        return total / self.samples

    def gradient(self) -> Array:
        """Of the mean loss, a vector."""
        total = torch.zeros(self._size, dtype=self._dtype, device=self._device)
        with self._apart():
            for x, y in map(self._ready, self._batches):
                loss = self._loss(called(self._model, x), y)
                found = _gradient([loss], self._parameters, [torch.ones_like(loss)], False)
                total += _flat(found) * (_count(y) / self.samples)
        return np.asarray(total.cpu().numpy())

    def point(self) -> Array:
        """The parameters, a vector."""
        return np.asarray(_flat(self._parameters).detach().cpu().numpy())

    def _matvec(self, vector: Array) -> Array:
        found: Array = self._times(np.reshape(vector, (1, -1)))[0]
        return found

    def _matmat(self, matrix: Array) -> Array:
        step = self._together
        parts = [self._times(matrix.T[i : i + step]) for i in range(0, matrix.shape[1], step)]
        return np.concatenate(parts).T

    def _adjoint(self) -> "NetworkOperator":
        return self

    def _times(self, rows: Array) -> Array:
        """Products with several vectors, each a row."""
        with _plain(self._device):
            flat = torch.tensor(np.ascontiguousarray(rows, self.dtype), device=self._device)
            of_batches = (
                self._each(self._product(i), flat) * share for i, share in enumerate(self._shares)
            )
            total = reduce(Tensor.add_, of_batches)
        return np.asarray(total.cpu().numpy())

    def _each(self, product: Product, rows: Tensor) -> Tensor:
        """Products with several vectors: at once where that is faster."""
        if self._vmapped and len(rows) > 1:
            try:
                return product(rows, True)
            except RuntimeError:  # an operation of a person's own that cannot be vmapped
                self._vmapped = False
        return torch.stack([product(row, False) for row in rows])

    def _product(self, i: int) -> Product:
        if i in self._kept:
            return self._kept[i]
        with self._apart():
            product = self._recorded(*self._ready(self._batches[i]))
        if len(self._kept) < self._room:
            self._kept[i] = product
        return product

    def _recorded(self, x: Any, y: Any) -> Product:
        return self._record(self._loss, called(self._model, x), y, self._parameters)

    def _copied(
        self,
        model: nn.Module,
        parameters: str | Sequence[str] | None,
        dtype: "torch.dtype | str | None",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LandscapeError("model", f"must be a torch.nn.Module, got {model!r}")
        if any(is_lazy(p) for p in model.parameters()):
            raise LandscapeError("model", "has lazy parameters; call it once with inputs before")
        chosen = _chosen(dict(model.named_parameters()), parameters)
        with torch.inference_mode(False), torch.no_grad():
            self._dtype = _dtype(dtype, [p.dtype for p in chosen.values()])
            self._device = next(iter(chosen.values())).device
            try:
                copy = deepcopy(model)
            except Exception as error:
                raise LandscapeError("model", f"cannot be copied ({first_line(error)})") from None
            self._model = copy.to(self._dtype).eval()
        own = dict(self._model.named_parameters())
        for name, parameter in own.items():
            parameter.grad = None
            parameter.requires_grad_(name in chosen)
        self.names = tuple(chosen)
        self._parameters: list[Tensor] = [own[name] for name in self.names]
        self._sizes = [p.numel() for p in self._parameters]
        self._size = sum(self._sizes)

    def _loss_of(self, given: LossLike, targets: Any) -> LossFunction:
        of = as_loss(given, targets).of
        if isinstance(of, nn.Module):
            of = deepcopy(of).to(self._device, self._dtype)
        return of

    def _ready(self, batch: Any) -> Any:
        def moved(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            return t.to(self._device, self._dtype if t.is_floating_point() else None)

        return tree_map(moved, batch)

    def _tried(self, batch: Any) -> int:
        """Bytes of the graph of a sample; refuses what products would be wrong of."""
        x, y = self._ready(tree_map(lambda t: t[:2], batch))
        before = _torch_states()
        try:
            outputs = called(self._model, x)
            loss = self._loss(outputs, y)
        except LandscapeError:
            raise
        except Exception as error:
            raise LandscapeError(
                "model", f"it or the loss fails on the first samples: {first_line(error)}"
            ) from None
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise LandscapeError("loss", f"must return one number, a scalar tensor; got {kind}")
        if not bool(loss.isfinite()):
            raise LandscapeError("loss", f"is {float(loss.detach()):g} on the first samples")
        if not all(map(torch.equal, before, _torch_states())):
            raise LandscapeError(
                "model",
                "it or the loss draws random numbers in evaluation mode too, so that the loss is "
                "another each time and has no one Hessian; take out what draws them",
            )
        self._refuse_sums(outputs, y, loss)
        try:
            self._recorded(x, y)(torch.zeros_like(_flat(self._parameters)), False)
            once, twice = (self._bytes(*tree_map(_repeated(n), (x, y))) for n in (1, 2))
        except RuntimeError as error:
            raise LandscapeError(
                "model", f"its {self.kind} cannot be had from torch: {first_line(error)}"
            ) from None
        return max(1, (twice - once) // _count(y))

    def _bytes(self, x: Any, y: Any) -> int:
        """That the recorded graph of a batch holds on to."""
        sizes: dict[int, int] = {}
        held = []  # lest two of them have the same place, one after the other

        def seen(t: Tensor) -> Tensor:
            held.append(t)
            storage = t.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
            self._recorded(x, y)
        return sum(sizes.values())

    def _refuse_sums(self, outputs: Any, y: Any, loss: Tensor) -> None:
        try:
            doubled = float(self._loss(*tree_map(_repeated(2), (outputs, y))).detach())
        except Exception:  # it asks for a batch as it is, of which nothing can be said
            return
        once = float(loss.detach())
        if abs(doubled - once) > 1e-3 * max(abs(once), abs(doubled)):
            raise LandscapeError(
                "loss",
                f"must be a mean over the samples of a batch; it is {once:.4g} of the first "
                f"samples and {doubled:.4g} of the same samples twice",
            )

    def _fitting(self, batch_size: int | None) -> int:
        room = SHARE * self._free()
        if batch_size is None:
            room = min(room, BATCH.get(self._device.type, BATCH["cpu"]))
            return max(1, min(self.samples, int(room / self.bytes_per_sample)))
        size = min(whole("batch_size", batch_size), self.samples)
        if size * self.bytes_per_sample > room:
            raise LandscapeError(
                "batch_size",
                f"{size} samples take about {shown(size * self.bytes_per_sample)} for a product, "
                f"where {shown(room)} may be used; about {int(room / self.bytes_per_sample)} fit",
            )
        return size

    def _free(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._device)[0])
        return available_memory()

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Record what can be differentiated twice."""
        with (
            _plain(self._device),
            # What else there is for recurrent layers and attention is not differentiated twice.
            torch.backends.cudnn.flags(enabled=self._device.type == "cpu"),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield


def _torch_states() -> list[Tensor]:
    """Of the CPU, and of GPUs, on which a model there draws."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, gpus())]


def _plain(device: torch.device) -> ExitStack:
    """Work whatever mode the caller's code is in.

    What is plain already is left, as entering takes longer than a small network's kernels.
    """
    modes = ExitStack()
    if torch.is_inference_mode_enabled():
        modes.enter_context(torch.inference_mode(False))
    if not torch.is_grad_enabled():
        modes.enter_context(torch.enable_grad())
    if torch.is_autocast_enabled(device.type):
        modes.enter_context(torch.autocast(device.type, enabled=False))
    return modes


def hessian(
    model: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    parameters: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    dtype: "torch.dtype | str | None" = None,
) -> NetworkOperator:
    """The Hessian of a network's mean loss over a data set.

    Args:
        model: where it is, CPU or GPU, is where products are computed; in evaluation mode.
        loss: ``(outputs, targets) -> scalar``, a mean over the batch; or a name of one in
            `thalweg.tasks.LOSSES`.
        data: ``(x, y)`` tensors, a `thalweg.Split`, a ``Dataset`` or ``DataLoader`` (of which all
            samples are read once), or an iterable of batches ``(x, y)``.
        parameters: names, or names of layers, of those to take; by default all that are trained.
        batch_size: samples at once; it changes the cost only, and by default follows the memory
            that a sample needs. The batches of an iterable are split, not joined.
        dtype: ``float32`` or ``float64``; by default float64 for a model that is, else float32.

    Raises:
        LandscapeError, TaskError: for an argument that cannot be used, naming it.
    """
    return NetworkOperator(
        "Hessian", _second, model, loss, data, parameters, batch_size, dtype
    )  # fmt: skip


def gauss_newton(
    model: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    parameters: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    dtype: "torch.dtype | str | None" = None,
) -> NetworkOperator:
    """The generalised Gauss-Newton matrix, the mean of Jᵀ H J over samples.

    J is the Jacobian of the outputs and H the Hessian of the loss by the outputs: the Hessian
    without the network's own second derivatives, positive semidefinite for a convex loss, and for
    cross-entropy the Fisher information (Schraudolph 2002,
    https://doi.org/10.1162/08997660260028683; Martens 2020, arXiv:1412.1193).

    Args and errors are those of `hessian`.
    """
    return NetworkOperator(
        "Gauss-Newton", _gauss_newton, model, loss, data, parameters, batch_size, dtype
    )


def empirical_fisher(
    model: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    parameters: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    dtype: "torch.dtype | str | None" = None,
) -> NetworkOperator:
    """The mean over samples of g gᵀ, with each sample's own gradient g.

    It is not the Fisher information, whose targets are drawn from the model (Kunstner, Balles and
    Hennig 2019, arXiv:1905.12558). No gradient of a sample is ever made: a product takes the
    directional derivatives of all losses of a batch, and their sum so weighted back.

    Args and errors are those of `hessian`.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if getattr(module, "track_running_stats", True) is False:
            raise LandscapeError(
                "model",
                f"its {type(module).__name__} without running statistics mixes samples, which "
                f"have no gradients of their own then",
            )
    return NetworkOperator(
        "empirical Fisher", _fisher, model, loss, data, parameters, batch_size, dtype
    )


def _gradient(
    of: list[Tensor], by: list[Tensor], weights: list[Tensor], several: bool, create: bool = False
) -> list[Tensor]:
    """Gradients of an inner product; ``weights`` of several, in rows, are taken several."""
    pairs = [(t, w) for t, w in zip(of, weights, strict=True) if t.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(by)
    if pairs:
        outputs, given = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            outputs,
            by,
            given,
            retain_graph=True,
            create_graph=create,
            allow_unused=True,
            is_grads_batched=several,
        )
    rows = weights[0].shape[:1] if several else ()
    return [
        t.new_zeros((*rows, *t.shape)) if g is None else g for t, g in zip(by, found, strict=True)
    ]


def _second(loss: LossFunction, outputs: Any, y: Any, parameters: list[Tensor]) -> Product:
    value = loss(outputs, y)
    slope = _flat(_gradient([value], parameters, [torch.ones_like(value)], False, create=True))
    return lambda vector, several: _flat(_gradient([slope], parameters, [vector], several), several)


def _gauss_newton(loss: LossFunction, outputs: Any, y: Any, parameters: list[Tensor]) -> Product:
    ends = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    held = [t.detach().requires_grad_() for t in ends]
    replaced = dict(zip(map(id, ends), held, strict=True))
    value = loss(tree_map(lambda t: replaced.get(id(t), t), outputs), y)
    slope = _gradient([value], held, [torch.ones_like(value)], False, create=True)
    forward = _forward(ends, parameters)

    def product(vector: Tensor, several: bool) -> Tensor:
        weights = _gradient(slope, held, forward(vector, several), several)
        return _flat(_gradient(ends, parameters, weights, several), several)

    return product


def _fisher(loss: LossFunction, outputs: Any, y: Any, parameters: list[Tensor]) -> Product:
    losses = _losses(loss, outputs, y)
    forward = _forward([losses], parameters)

    def product(vector: Tensor, several: bool) -> Tensor:
        (moved,) = forward(vector, several)
        return _flat(_gradient([losses], parameters, [moved / len(losses)], several), several)

    return product


def _losses(loss: LossFunction, outputs: Any, y: Any) -> Tensor:
    """Of each sample as a batch of its own, a vector."""

    def one(*sample: Any) -> Tensor:
        return loss(*tree_map(lambda t: t.unsqueeze(0), sample)).reshape(())

    try:
        found: Tensor = torch.vmap(one)(outputs, y)
    except (RuntimeError, ValueError):  # a loss that looks at its numbers
        count = _count(y)
        alone = [tree_map(lambda t, i=i: t[i], (outputs, y)) for i in range(count)]
        found = torch.stack([one(*sample) for sample in alone])
    return found


def _forward(
    ends: list[Tensor], parameters: list[Tensor]
) -> Callable[[Tensor, bool], list[Tensor]]:
    """Directional derivatives of a network's ends, by differentiating its pass back.

    That pass is linear in what it is given, so that its derivative by that is the Jacobian itself.
    """
    given = [torch.zeros_like(t, requires_grad=True) for t in ends]
    back = _flat(_gradient(ends, parameters, given, False, create=True))
    return lambda vector, several: _gradient([back], given, [vector], several)


def _flat(parts: list[Tensor], several: bool = False) -> Tensor:
    return torch.cat([t.flatten(1 if several else 0) for t in parts], -1)


def _repeated(times: int) -> Callable[[Any], Any]:
    """Samples several times over."""
    return lambda t: torch.cat([t] * times) if isinstance(t, Tensor) and t.ndim else t


def _count(batch: Any) -> int:
    return len(tree_leaves(batch)[0])


def _numpy(dtype: torch.dtype) -> Any:
    return np.dtype(str(dtype).removeprefix("torch."))


def _dtype(asked: "torch.dtype | str | None", own: list[torch.dtype]) -> torch.dtype:
    if asked is None:
        return torch.float64 if torch.float64 in own else torch.float32
    for dtype in (torch.float32, torch.float64):
        if asked in (dtype, str(dtype).removeprefix("torch.")):
            return dtype
    raise LandscapeError("dtype", f"must be float32 or float64, got {asked!r}")


def _chosen(
    named: dict[str, nn.Parameter], asked: str | Sequence[str] | None
) -> dict[str, nn.Parameter]:
    """Parameters by their names or those of their layers, in the model's order."""
    if not named:
        raise LandscapeError("model", "has no parameters")
    if asked is None:
        trained = {name: p for name, p in named.items() if p.requires_grad}
        if not trained:
            raise LandscapeError(
                "model", "all its parameters are frozen; name those to take as parameters"
            )
        return trained
    chosen: set[str] = set()
    for one in [asked] if isinstance(asked, str) else list(asked):
        found = [name for name in named if name == one or name.startswith(f"{one}.")]
        if not found:
            layers = {name.rpartition(".")[0] for name in named} - {""}
            near = get_close_matches(str(one), [*named, *layers], 3) or list(named)[:5]
            raise LandscapeError(
                "parameters", f"there is none of the name {one!r}; there are {', '.join(near)}"
            )
        chosen.update(found)
    if not chosen:
        raise LandscapeError("parameters", "is empty; name at least one")
    return {name: p for name, p in named.items() if name in chosen}


def _batches(data: Any) -> list[tuple[Any, Any]]:
    """Inputs and targets as tensors, of all samples at once or in the batches given."""
    if isinstance(data, Split):
        return [(data.x, data.y)]
    if isinstance(data, DataLoader):
        x, y, _ = of_loader("data", data, [])
        return [(x, y)]
    if isinstance(data, Dataset):
        return [of_dataset("data", data, [])]
    if isinstance(data, tuple) and len(data) == 2:
        return [_pair(data)]
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | dict | Tensor):
        raise LandscapeError(
            "data",
            f"must be (x, y), a Split, a Dataset, a DataLoader or batches (x, y), got "
            f"{type(data).__name__}",
        )
    found = [_pair(batch) for batch in data]
    if not found:
        raise LandscapeError("data", "has no batch")
    return found


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise LandscapeError("data", f"must give pairs (x, y), and gave {type(batch).__name__}")
    leaves = tree_leaves(batch)
    if not all(isinstance(t, Tensor) and t.ndim for t in leaves):
        raise LandscapeError("data", "must be of tensors, whose first dimension is that of samples")
    inputs, targets = (len(tree_leaves(side)) for side in batch)
    counts = {len(t) for t in leaves}
    if len(counts) != 1 or not inputs or not targets or not counts - {0}:
        raise LandscapeError(
            "data",
            f"needs as many targets as inputs, and at least one; it has "
            f"{' and '.join(str(len(t)) for t in leaves)}",
        )
    return batch[0], batch[1]
