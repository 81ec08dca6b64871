"""One batch through a task's model, alone, before anything is trained in earnest."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

from thalweg.tasks.blame import defined, first_line, place, quoted
from thalweg.tasks.losses import Loss
from thalweg.tasks.metrics import Metric
from thalweg.tasks.split import Batch, TaskError
from thalweg.tasks.task import Task

__all__ = [
    "FirstBatch",
    "NonFiniteError",
    "TensorKind",
    "called",
    "first_batch",
    "kinds",
    "same_start",
]

SEED = 0

# Samples at once, where all are looked at.
SWEEP = 1024


class NonFiniteError(TaskError):
    """Outputs, a loss or gradients that are NaN or infinite at the very start."""


@dataclass(frozen=True)
class TensorKind:
    """What a tensor is like.

    Attributes:
        name: its place among several, empty if it is alone.
        shape: the first is that of samples.
        dtype: as torch names it, float32 say.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}{': ' if self.name else ''}{self.shape} {self.dtype}"


@dataclass(frozen=True)
class FirstBatch:
    """What a model does with its first batch.

    Attributes:
        inputs, outputs, targets: what the tensors are like.
        parameters: numbers in all parameters, frozen ones among them.
        trainable: those that are trained.
        buffers: numbers in all buffers.
        loss: at start, in training mode.
        expected_loss: of outputs that know nothing: equal logits for classes, the mean of the
            targets for numbers; None where the outputs do not say which they are.
        gradient_norm: Euclidean, over all parameters.
        unused: names of parameters that no gradient reaches.
        metric: at start, of the first batch for validation.
        is_mean: whether the loss of a batch is the mean of the losses of its samples.
    """

    inputs: tuple[TensorKind, ...]
    outputs: tuple[TensorKind, ...]
    targets: tuple[TensorKind, ...]
    parameters: int
    trainable: int
    buffers: int
    loss: float
    expected_loss: float | None
    gradient_norm: float
    unused: tuple[str, ...]
    metric: float
    is_mean: bool


def first_batch(task: Task, batch_size: int | None = None) -> FirstBatch:
    """Run a task's model once: forward, loss and backward, then in evaluation mode the metric.

    The global random state is as before afterwards.

    Args:
        task: what to try.
        batch_size: samples to try it on, the task's by default.

    Raises:
        TaskError: in one sentence with the line of the person's file, if anything is in the way.
    """
    try:
        return _tried(task, min(batch_size or task.batch_size, len(task.train)))
    except TaskError as error:
        made = defined(task.model)
        if not made or made.partition(":")[0] in error.problem:
            raise
        # What is torch's own has no line there; the model next to it has.
        problem = f"{error.problem} (the task's model is made at {made})"
        raise type(error)(error.argument, problem) from error


def _tried(task: Task, size: int) -> FirstBatch:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training will give them
        torch.manual_seed(SEED)
        module = _module(task)
        x, y = task.train[:size]
        module.train()
        outputs = _outputs(task, module, x, "train")
        loss = _loss(task, module, outputs, y)
        is_mean = _is_mean(task.loss.of, outputs, y, loss)
        _refuse_classes(task, outputs, y)
        _refuse_broadcast(task, task.loss, outputs, y)
        gradients = _gradients(task, module, loss)
        expected = _expected(task, outputs, y)
        module.eval()
        metric = 0.0
        with torch.no_grad():
            for part, split in (("test", task.test), ("validation", task.validation)):
                metric = _metric(task, module, split[:size], part)
            _refuse_numbers(task, module)
    known = [g for g in gradients.values() if g is not None]
    return FirstBatch(
        kinds(x),
        kinds(outputs),
        kinds(y),
        sum(p.numel() for p in module.parameters()),
        sum(p.numel() for p in module.parameters() if p.requires_grad),
        sum(b.numel() for b in module.buffers()),
        loss.item(),
        expected,
        float(torch.stack([g.double().pow(2).sum() for g in known]).sum().sqrt()),
        tuple(name for name, g in gradients.items() if g is None),
        metric,
        is_mean,
    )


def kinds(given: Any) -> tuple[TensorKind, ...]:
    """What the tensors in a batch or in a model's outputs are like."""
    return tuple(
        TensorKind(".".join(_key(k) for k in path), tuple(t.shape), _dtype(t))
        for path, t in tree_flatten_with_path(given)[0]
        if isinstance(t, Tensor)
    )


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _described(given: Any) -> str:
    return ", ".join(map(str, kinds(given))) or f"a {type(given).__name__}"


def called(module: nn.Module, x: Batch | list[Any]) -> Any:
    """The outputs of a module for one batch, which several inputs are taken from."""
    if isinstance(x, dict):
        return module(**x)
    return module(*x) if isinstance(x, tuple | list) else module(x)


def same_start(task: Task) -> bool:
    """Whether the model's factory gives the same weights under the same seed."""
    with torch.random.fork_rng(devices=[]):
        states = []
        for _ in range(2):
            torch.manual_seed(SEED)
            states.append(task.model().state_dict())
    pairs = zip(states[0].values(), states[1].values(), strict=True)
    return all(
        torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


def _refuse(
    problem: str, cause: BaseException | None = None, error: type[TaskError] = TaskError
) -> NoReturn:
    raise error("task", problem) from cause


def _from(where: str) -> str:
    return f" ({where})" if where else ""


def _at(error: BaseException, otherwise: Callable[..., Any]) -> str:
    """The line that raised an error, else where a function of the person's own begins."""
    where = place(error)
    line = quoted(error)
    if where:
        return f" at {where}" + (f", `{line}`" if line else "")
    found = defined(otherwise)
    return f", from {found}" if found else ""


def _module(task: Task) -> nn.Module:
    """A fresh module."""
    made = _from(defined(task.model))
    name = getattr(task.model, "__name__", "Model").replace("<lambda>", "Model")
    try:
        inspect.signature(task.model).bind()
    except TypeError as error:
        _refuse(
            f"the model's factory{made} cannot be called without arguments ({error}); give "
            f"lambda: {name}(...) with all of them"
        )
    except ValueError:  # builtins without a signature
        pass
    try:
        module, other = task.model(), task.model()
    except Exception as error:
        _refuse(f"the model's factory raises {first_line(error)}{_at(error, task.model)}", error)
    if not isinstance(module, nn.Module):
        _refuse(
            f"the model's factory{made} returned "
            f"{'None' if module is None else f'a {type(module).__name__}'}, and not a "
            f"torch.nn.Module; is a return missing?"
        )
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        _refuse(
            f"the model{made} has lazy layers, whose shapes are not known before a first batch; "
            f"call it on one sample in its factory, or give the layers their sizes"
        )
    names = {id(p): name for name, p in module.named_parameters()}
    shared = [names[id(p)] for p in other.parameters() if id(p) in names]
    if module is other or shared:
        what = "the same module" if module is other else f"modules that share {shared[0]}"
        _refuse(
            f"the model's factory{made} gives {what} at every call, so that runs would train each "
            f"other's weights; make the layers inside the function"
        )
    if not any(p.requires_grad for p in module.parameters()):
        _refuse(
            f"the model{made} has no parameters to train; are its layers in a plain list or "
            f"dictionary, where nn.ModuleList or nn.ModuleDict is needed?"
        )
    return module


@contextmanager
def _entered(module: nn.Module) -> Iterator[list[str]]:
    """Which submodules are being called, the innermost last; as it was, once one has raised."""
    entered: list[str] = []
    hooks = []
    for name, part in module.named_modules():
        if not name or isinstance(part, torch.jit.ScriptModule):
            continue
        said = f"{name} ({type(part).__name__}({part.extra_repr()}))"
        hooks += [
            part.register_forward_pre_hook(lambda *_, said=said: entered.append(said)),
            part.register_forward_hook(lambda *_: entered.pop() and None),
        ]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(task: Task, module: nn.Module, x: Batch, part: str) -> Any:
    try:
        # Hooks keep a transformer's layers from their faster path: seen as it runs, then as it is.
        outputs = called(module, x)
    except Exception as error:
        layer, hint = "", _hint(error, module, x)
        with _entered(module) as entered:
            try:
                called(module, x)
            except Exception:
                layer = f" in layer {entered[-1]}" if entered else ""
        what = "" if part == "train" else f" in evaluation mode on the {part} data"
        _refuse(
            f"the model raises {first_line(error)}{layer}{_at(error, task.model)}{what}; its "
            f"inputs were {_described(x)}{hint}",
            error,
        )
    found = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
    if not found:
        _refuse(
            f"the model's forward{_from(_forward(module))} returned "
            f"{'None' if outputs is None else f'a {type(outputs).__name__}'}, and no tensor; is a "
            f"return missing?"
        )
    bad = [t for t in found if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        count = int((~bad[0].isfinite()).sum())
        _refuse(
            f"the model's outputs{_from(_forward(module))} are NaN or infinite at the very start, "
            f"{count} of {bad[0].numel()} on the {part} data{_first_bad(module, x)}; look for a "
            f"division by zero, the logarithm or root of what is not above 0, or a mask that "
            f"hides everything",
            error=NonFiniteError,
        )
    return outputs


def _refuse_numbers(task: Task, module: nn.Module) -> None:
    """Refuse whole numbers among the inputs that the model has no place for, in any sample."""
    if all(t.is_floating_point() for t in tree_leaves(task.train.x)):
        return
    for part in ("train", "validation", "test"):
        split = getattr(task, part)
        for first in range(0, len(split), SWEEP):
            x, _ = split[first : first + SWEEP]
            try:
                called(module, x)
            except Exception as error:
                _refuse(
                    f"the model raises {first_line(error)}{_at(error, task.model)} in evaluation "
                    f"mode on the {part} data, samples {first} to {first + len(x) - 1}"
                    f"{_beyond(module, x)}",
                    error,
                )


def _beyond(module: nn.Module, x: Batch) -> str:
    """The embedding that inputs are out of the range of."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(part: nn.Embedding | nn.EmbeddingBag, given: tuple[Tensor, ...]) -> None:
            low, high, rows = int(given[0].min()), int(given[0].max()), part.num_embeddings
            if not found and not 0 <= low <= high < rows:
                mend = f"give it {high + 1}, or " if low >= 0 else ""
                found.append(
                    f"; the inputs of layer {name} go from {low} to {high}, and it has {rows} "
                    f"rows, for 0 to {rows - 1}: {mend}number the inputs from 0"
                )

        return hook

    hooks = [
        part.register_forward_pre_hook(look(name))
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag)
    ]
    try:
        called(module, x)
    except Exception:
        return "".join(found)
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _forward(module: nn.Module) -> str:
    return defined(type(module).forward) or defined(type(module))


def _first_bad(module: nn.Module, x: Batch) -> str:
    """The first layer whose outputs are not finite though its inputs are."""
    found: list[str] = []

    def finite(given: Any) -> bool:
        tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.is_floating_point()]
        return all(bool(t.isfinite().all()) for t in tensors)

    def look(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, given: Any, made: Any) -> None:
            if not found and finite(given) and not finite(made):
                found.append(f", first in layer {name} ({type(part).__name__})")

        return hook

    hooks = [p.register_forward_hook(look(n)) for n, p in module.named_modules() if n]
    try:
        called(module, x)
    finally:
        for hook in hooks:
            hook.remove()
    return "".join(found)


def _hint(error: BaseException, module: nn.Module, x: Batch) -> str:
    """What is wrong with the type of inputs, if that is what an error is about."""
    weights = {p.dtype for p in module.parameters() if p.is_floating_point()}
    said = str(error)
    if isinstance(error, IndexError):
        return _beyond(module, x)
    about = any(word in said for word in ("dtype", "scalar type", "type (", "Long", "not implemen"))
    if isinstance(error, TypeError) and ("argument" in said or "missing" in said):
        given = "by name" if isinstance(x, dict) else "in order"
        return f", given {given}; a tuple gives a model several inputs, a dictionary by name"
    for tensor in tree_leaves(x) if about else []:
        if tensor.is_floating_point() and tensor.dtype not in weights and weights:
            own = str(next(iter(weights))).removeprefix("torch.")
            return (
                f", while the weights are {own}; give inputs of that type (x.to(torch.{own})), or "
                f"convert the model"
            )
        if "Long" in said and tensor.is_floating_point():
            return "; an embedding takes integers: give x.long(), or an integer array"
        if not tensor.is_floating_point():
            return "; layers other than embeddings take floating-point numbers: give x.float()"
    return ""


def _loss(task: Task, module: nn.Module, outputs: Any, y: Batch) -> Tensor:
    of, name = task.loss.of, task.loss.name
    made = _from(defined(of))
    try:
        loss = of(outputs, y)
    except TaskError as error:
        _refuse(error.problem, error)
    except Exception as error:
        _refuse_classes(task, outputs, y)
        _refuse_types(task, outputs, y)
        _refuse(
            f"the loss {name} raises {first_line(error)}{_at(error, of)}; the outputs were "
            f"{_described(outputs)}, the targets {_described(y)}",
            error,
        )
    if not isinstance(loss, Tensor):
        _refuse(
            f"the loss {name}{made} returned {_a(loss)}, and not a tensor; return what torch "
            f"computed, without .item() or float()"
        )
    if loss.numel() != 1 or loss.ndim:
        _refuse(
            f"the loss {name}{made} returned a tensor of shape {tuple(loss.shape)}, and not one "
            f"number; return the mean over the batch, loss.mean()"
        )
    if not bool(loss.isfinite()):
        _refuse_classes(task, outputs, y)
        _refuse(
            f"the loss {name}{made} is {loss.item()} at the very start, though the model's outputs "
            f"are finite ({_described(outputs)}); does it expect logits, probabilities or log "
            f"probabilities?",
            error=NonFiniteError,
        )
    if not loss.requires_grad:
        cut = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
        where = made if cut else _from(_forward(module))
        _refuse(
            f"the loss {name} does not depend on the parameters{where}; look for "
            f".detach(), .data, .item(), argmax, a conversion to NumPy or torch.no_grad()"
        )
    return loss


def _a(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _classes(task: Task, outputs: Any, y: Batch) -> int | None:
    """How many classes the outputs are logits of, if targets look like class numbers."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor) or y.is_floating_point():
        return None
    if not outputs.is_floating_point() or outputs.ndim != y.ndim + 1:
        return None
    if outputs.shape[:-1] == y.shape:
        return outputs.shape[-1]
    if (outputs.shape[0], *outputs.shape[2:]) == tuple(y.shape):  # as torch's own losses have them
        return outputs.shape[1]
    return None


def _refuse_classes(task: Task, outputs: Any, y: Batch) -> None:
    """Refuse targets that are no class of the outputs, in any part of the data."""
    count = _classes(task, outputs, y)
    if count is None or not isinstance(y, Tensor):
        return
    for part in ("train", "validation", "test"):
        targets = getattr(task, part).y
        low, high = int(targets.min()), int(targets.max())
        for value in (high, low):
            if not 0 <= value < count and not _takes(task, outputs, y, value):
                said = f"go up to {high}" if value == high else f"go down to {low}"
                _refuse(
                    f"the targets of the {part} data {said}, and the model has {count} outputs, "
                    f"for the classes 0 to {count - 1}; give the last layer an output a "
                    f"class{_from(defined(task.model))}, or number the classes from 0"
                )


def _takes(task: Task, outputs: Any, y: Tensor, value: int) -> bool:
    """Whether the loss takes a target, one that it ignores say, as its authors meant."""
    changed = y.clone()
    changed.view(-1)[0] = value
    try:
        found = task.loss.of(tree_map(lambda t: t.detach(), outputs), changed)
        return bool(torch.as_tensor(found).isfinite().all())
    except Exception:
        return False


def _refuse_types(task: Task, outputs: Any, y: Batch) -> None:
    """Refuse targets that are numbers where the loss takes classes."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor) or not y.is_floating_point():
        return
    if not bool((y == y.round()).all()) or outputs.shape == y.shape or outputs.ndim < 2:
        return
    try:
        task.loss.of(outputs, y.long())
    except Exception:
        return
    _refuse(
        f"the loss {task.loss.name} takes class numbers, integers, and the targets are "
        f"{_described(y)}; give y.astype('int64') or y.long()"
    )


def _refuse_broadcast(task: Task, judge: Loss | Metric, outputs: Any, y: Batch) -> None:
    """Refuse outputs and targets of which each would meet every other."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        return
    if abs(outputs.ndim - y.ndim) != 1 or not _crosswise(judge.of, outputs, y):
        return
    numbers = "y" if y.is_floating_point() else "y.float()"
    remedy = f"{numbers}.{'un' if outputs.ndim > y.ndim else ''}squeeze(1)"
    _refuse(
        f"the outputs are {tuple(outputs.shape)} and the targets {tuple(y.shape)}, so that "
        f"{judge.name} compares every output with every target; give {remedy} as targets, or "
        f"change the last layer{_from(defined(task.model))}"
    )


def _crosswise(of: Callable[[Any, Any], Any], outputs: Tensor, y: Tensor) -> bool:
    """Whether it makes no difference which output belongs to which target."""
    if len(y) < 2 or len(outputs) != len(y) or bool((y == y[:1]).all()):
        return False
    generator = torch.Generator().manual_seed(SEED)
    found = []
    try:
        # An accuracy may by chance be the same a few times.
        for _ in range(16):
            made_up = torch.randn(outputs.shape, generator=generator).to(outputs.dtype)
            found.append([float(of(o, y)) for o in (made_up, made_up.flip(0))])
        blind = found[-1][0] == float(of(made_up, y[:1].expand_as(y).contiguous()))
    except Exception:
        return False
    varies = not blind and any(one != found[0][0] for one, _ in found)
    return varies and all(abs(one - other) <= 1e-5 * abs(one) for one, other in found)


def _is_mean(of: Callable[[Any, Any], Any], outputs: Any, y: Batch, loss: Tensor) -> bool:
    """Whether the loss of a batch is the mean of those of its halves, weighted by samples."""
    n = len(tree_leaves(y)[0])
    leaves = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
    if n < 2 or any(t.ndim == 0 or len(t) != n for t in leaves):
        return True
    total = 0.0
    for part in (slice(0, n // 2), slice(n // 2, n)):
        try:
            one = of(*tree_map(lambda t, part=part: t[part], (outputs, y)))
        except Exception:  # it needs the whole batch: nothing can be said
            return True
        total += float(one.detach()) * (part.stop - part.start) / n
    whole = loss.item()
    return abs(total - whole) <= 1e-3 * max(abs(whole), abs(total)) + 1e-6


def _gradients(task: Task, module: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    try:
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    except Exception as error:
        _refuse(
            f"the backward pass raises {first_line(error)}{_at(error, task.model)}; look for "
            f"tensors that are changed in place",
            error,
        )
    gradients: dict[str, Tensor | None] = dict(zip(trained, found, strict=True))
    if all(g is None for g in found):
        _refuse(
            f"the loss {task.loss.name} does not depend on any parameter that is "
            f"trained{_from(_forward(module))}; look for .detach() or torch.no_grad()"
        )
    for name, g in gradients.items():
        if g is not None and not bool(g.isfinite().all()):
            _refuse(
                f"the gradient of {name} is NaN or infinite at the very start, though the loss is "
                f"{loss.item():.4g}{_from(_forward(module))}; look for a root, norm or logarithm "
                f"at 0",
                error=NonFiniteError,
            )
    return gradients


def _expected(task: Task, outputs: Any, y: Batch) -> float | None:
    """The loss of outputs that know nothing of their inputs."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor):
        return None
    if not outputs.is_floating_point():
        return None
    if _classes(task, outputs, y) is not None or not y.is_floating_point():
        known_nothing = torch.zeros_like(outputs)
    elif outputs.shape == y.shape:
        # Of the whole part, as a batch's own mean would already know something.
        mean = task.train.y.mean(0)  # type: ignore[union-attr]
        known_nothing = mean.expand_as(outputs).to(outputs.dtype).contiguous()
    else:
        return None
    try:
        value = float(task.loss.of(known_nothing, y).detach())
    except Exception:
        return None
    return value if abs(value) != float("inf") and value == value else None


def _metric(task: Task, module: nn.Module, batch: tuple[Batch, Batch], part: str) -> float:
    x, y = batch
    outputs = _outputs(task, module, x, part)
    of, name = task.metric.of, task.metric.name
    made = _from(defined(of))
    try:
        found = of(outputs, y)
    except Exception as error:
        _refuse(
            f"the metric {name} raises {first_line(error)}{_at(error, of)}; the outputs were "
            f"{_described(outputs)}, the targets {_described(y)}",
            error,
        )
    if not isinstance(found, Tensor):
        _refuse(
            f"the metric {name}{made} returned {_a(found)}, and not a tensor; return a tensor of "
            f"one number, without .item()"
        )
    if found.numel() != 1 or found.ndim:
        _refuse(
            f"the metric {name}{made} returned a tensor of shape {tuple(found.shape)}, and not one "
            f"number; return the mean over the batch, .float().mean()"
        )
    if not (found.is_floating_point() or found.dtype == torch.bool):
        _refuse(
            f"the metric {name}{made} returned {_dtype(found)}, a count; return the mean over the "
            f"batch, .float().mean()"
        )
    _refuse_broadcast(task, task.metric, outputs, y)
    return float(found)
