"""Whether a task is ready to be studied: one batch through it, and what that says."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from thalweg.replicas import Program, probe
from thalweg.tasks import LOSSES, Task, TaskError, load
from thalweg.tasks.blame import defined, raised
from thalweg.tasks.trial import FirstBatch, called, first_batch, same_start

__all__ = ["Check", "Finding", "Status", "check"]

Status: TypeAlias = Literal["ok", "warn", "fail"]

# At start a loss may be this many times that of outputs that know nothing, or this part of it.
FAR = 1.5

# A batch is learnt by heart once its loss is this part of what it was.
LEARNT = 0.05

# What does not even get here has learnt nothing.
UNMOVED = 0.9

LEARNING_RATES = (1e-3, 1e-2)
STEPS = 300
SAMPLES = 32
# Of the processor, a thread: how busy the machine is shall not change what is found.
SECONDS = 20.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: a few words.
        status: fail for what makes a study pointless, warn for what is worth a look.
        evidence: what was seen, with numbers.
        advice: what to do, and where; empty if it is well.
    """

    what: str
    status: Status
    evidence: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """What trying a task found.

    Attributes:
        task: its name.
        findings: in the order in which they were looked at.
        batch: what the first batch was like; None if it could not be run.
    """

    task: str
    findings: tuple[Finding, ...]
    batch: FirstBatch | None

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(finding.status != "fail" for finding in self.findings)

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self) | {"ok": self.ok}, indent=2)

    def __str__(self) -> str:
        """A line a finding, with advice below those that need it."""
        width = max(len(f.what) for f in self.findings)
        lines = [f"{self.task}: {'ready' if self.ok else 'not ready'}"]
        for f in self.findings:
            lines.append(f"{f.status:<4}  {f.what:<{width}}  {f.evidence}")
            lines += [f"{'':<6}{'':<{width}}  -> {f.advice}"] if f.advice else []
        return "\n".join(lines)


def check(task: str | Task) -> Check:
    """Try a task on one batch, and say whether it is ready to be studied.

    The global random state is left as it was.

    Args:
        task: what `thalweg.tasks.load` takes, or a `thalweg.Task`.

    Raises:
        TaskError: if that is no task.
    """
    if isinstance(task, str):
        task = load(task)
    if not isinstance(task, Task):
        raise TaskError("task", f"must be a name or a thalweg.Task, got {task!r}")
    with torch.random.fork_rng(devices=[]):
        try:
            batch = first_batch(task)
        except TaskError as error:
            seen, _, advice = error.problem.rpartition("; ")
            failed = Finding("first batch", "fail", seen or advice, advice if seen else "")
            return Check(task.name, (_data(task), failed), None)
        findings = (
            _data(task),
            _shapes(batch),
            _parameters(task, batch),
            _start(task, batch),
            _gradient(batch),
            *_mean(task, batch),
            *_weights(task),
            _overfit(task),
            *_replicas(task),
        )
    return Check(task.name, findings, batch)


def _data(task: Task) -> Finding:
    counts = ", ".join(
        f"{len(getattr(task, part)):,} {part}" for part in ("train", "validation", "test")
    )
    notes = "".join(f"; {note}" for note in task.notes)
    few = min(len(task.validation), len(task.test))
    seen = f"samples: {counts}; batches of {task.batch_size}{notes}"
    if few < 30:
        return Finding(
            "data",
            "warn",
            seen,
            f"with {few} samples a validation or test result says little; give more if you can",
        )
    return Finding("data", "ok", seen)


def _shapes(batch: FirstBatch) -> Finding:
    sides = {"inputs": batch.inputs, "outputs": batch.outputs, "targets": batch.targets}
    seen = "; ".join(f"{name} {', '.join(map(str, side))}" for name, side in sides.items())
    return Finding("shapes", "ok", seen)


def _parameters(task: Task, batch: FirstBatch) -> Finding:
    frozen = batch.parameters - batch.trainable
    seen = f"{batch.trainable:,} trained"
    seen += f", {frozen:,} frozen" if frozen else ""
    seen += f", {batch.buffers:,} numbers in buffers" if batch.buffers else ""
    if batch.unused:
        names = ", ".join(batch.unused[:3]) + (", ..." if len(batch.unused) > 3 else "")
        where = defined(task.model)
        return Finding(
            "parameters",
            "warn",
            f"{seen}; no gradient reaches {names}",
            f"use these layers in forward, or take them out{f' ({where})' if where else ''}",
        )
    return Finding("parameters", "ok", seen)


def _start(task: Task, batch: FirstBatch) -> Finding:
    loss, expected = batch.loss, batch.expected_loss
    seen = f"{task.loss.label} {loss:.4g}"
    if expected is None:
        return Finding("loss at start", "ok", f"{seen}; what to expect is not known for its kind")
    classes = task.loss.name == "cross_entropy" and len(batch.outputs) == 1
    why = (
        f"ln {batch.outputs[0].shape[-1]}, of equal logits"
        if classes
        else "of outputs that know nothing"
    )
    seen += f", where {expected:.4g} is expected ({why})"
    where = defined(task.model)
    place = f" ({where})" if where else ""
    if loss > FAR * expected + 0.1:
        remedy = (
            f"make the weights of the last layer smaller at start{place}, and standardise inputs"
            if classes or not _is_offset(task, batch)
            else f"standardise targets, or start the last bias at their mean{place}"
        )
        return Finding("loss at start", "warn", seen, remedy)
    if loss < expected / FAR - 0.1:
        return Finding(
            "loss at start",
            "warn",
            seen,
            f"an untrained model knows this much: do inputs hold the target, or is the model "
            f"pretrained{place}?",
        )
    return Finding("loss at start", "ok", seen)


def _is_offset(task: Task, batch: FirstBatch) -> bool:
    """Whether targets are far from zero, where outputs begin."""
    y = task.train.y
    return isinstance(y, Tensor) and y.is_floating_point() and bool(y.double().pow(2).mean() > 4)


def _gradient(batch: FirstBatch) -> Finding:
    seen = f"norm {batch.gradient_norm:.3g} over all parameters"
    if batch.gradient_norm == 0:
        return Finding(
            "gradient",
            "fail",
            seen,
            "nothing can be learnt: look for dead ReLUs, weights that are all 0, a saturated loss",
        )
    if batch.gradient_norm > 1e3:
        return Finding(
            "gradient", "warn", seen, "standardise inputs and targets, or clip gradients"
        )
    return Finding("gradient", "ok", seen)


def _mean(task: Task, batch: FirstBatch) -> Iterator[Finding]:
    if not batch.is_mean:
        where = defined(task.loss.of)
        yield Finding(
            "loss",
            "warn",
            f"{task.loss.name} of a batch is not the mean over its samples, so that values of "
            f"batches and parts of other sizes do not compare",
            f"return a mean and no sum{f' ({where})' if where else ''}",
        )


def _weights(task: Task) -> Iterator[Finding]:
    if not same_start(task):
        where = defined(task.model)
        yield Finding(
            "weights",
            "warn",
            "the model starts from other weights under the same seed, so that runs do not repeat "
            "and optimizers do not start alike",
            f"draw them with torch and not with NumPy or Python{f' ({where})' if where else ''}",
        )


@dataclass(frozen=True)
class _Learning:
    """How a model took to one batch at one learning rate."""

    lr: float
    steps: int
    first: float
    last: float
    right: float | None
    shares: bool

    @property
    def learnt(self) -> bool:
        small = self.last <= LEARNT * self.first if self.first > 0 else self.last < self.first
        return math.isfinite(self.last) and (small or self.right == 1.0)


def _overfit(task: Task) -> Finding:
    """Whether a model learns one batch by heart, as one without a mistake in it can."""
    count = min(SAMPLES, len(task.train))
    until = process_time() + SECONDS * torch.get_num_threads()
    tries = []
    for lr in LEARNING_RATES:
        try:
            tries.append(_learn(task, count, lr, until))
        except Exception as error:
            seen = f"the first batch passes, and later training raises {raised(error)}"
            advice = "a study would end there: mend that line, or what leads to it"
            return Finding("overfits one batch", "fail", seen, advice)
        if tries[-1].learnt or process_time() > until:
            break
    best = min(tries, key=lambda t: (not t.learnt, t.last if math.isfinite(t.last) else math.inf))
    right = "" if best.right is None else f", {best.right:.0%} right"
    seen = (
        f"{count} samples with Adam at lr {best.lr:g}: loss {best.first:.3g} to {best.last:.3g}"
        f"{right}, in {best.steps} steps"
    )
    if best.learnt:
        return Finding("overfits one batch", "ok", seen)
    if best.steps < STEPS and math.isfinite(best.last):
        advice = f"not settled in {SECONDS:g} s, as a step of this model takes long"
        return Finding("overfits one batch", "warn", seen, advice)
    where = defined(task.loss.of) or defined(task.model)
    place = f" (begin at {where})" if where else ""
    if best.shares and _of_logits(task):
        made = defined(task.model)
        advice = (
            f"outputs are probabilities, and {task.loss.name} takes them for logits: leave out the "
            f"softmax at the end of the model{f' ({made})' if made else ''}"
        )
        status: Status = "warn" if best.last < UNMOVED * best.first else "fail"
        return Finding("overfits one batch", status, seen, advice)
    if not best.last < UNMOVED * best.first and best.first > 0:
        return Finding(
            "overfits one batch",
            "fail",
            seen,
            f"it learns nothing from 32 samples, which any sound model can: look for targets that "
            f"do not belong to the inputs, a softmax before cross-entropy, detached layers{place}",
        )
    return Finding(
        "overfits one batch",
        "warn",
        seen,
        f"a sound model of enough size learns a batch by heart: look for equal inputs with "
        f"different targets, a model that is too small, or inputs of very different scales{place}",
    )


def _learn(task: Task, count: int, lr: float, until: float) -> _Learning:
    from thalweg.optim import Adam

    torch.manual_seed(0)
    module = task.model().train()
    _without_dropout(module)
    optimizer = Adam([p for p in module.parameters() if p.requires_grad], lr=lr)
    x, y = task.train[:count]
    first = last = math.nan
    right, shares = None, False
    steps = 0
    for step in range(STEPS + 1):
        outputs = called(module, x)
        loss = task.loss.of(outputs, y)
        last, right, steps = loss.item(), _right(outputs, y), step
        first = last if step == 0 else first
        shares = _are_shares(outputs)
        so_far = _Learning(lr, steps, first, last, right, shares)
        if (step and so_far.learnt) or not math.isfinite(last):
            break
        if step == STEPS or process_time() > until:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _Learning(lr, steps, first, last, right, shares)


def _of_logits(task: Task) -> bool:
    """Whether a loss makes probabilities itself: ours of classes, and torch's by its name."""
    y, known = task.train.y, LOSSES.get(task.loss.name.partition("=")[0])
    if known is not None and getattr(task.loss.of, "func", task.loss.of) is known.of:
        return isinstance(y, Tensor) and not y.is_floating_point()
    return task.loss.name.lower().replace("_", "") in ("crossentropy", "crossentropyloss")


def _are_shares(outputs: Any) -> bool:
    """Whether outputs look like probabilities of classes."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[-1] < 2:
        return False
    sums = outputs.detach().double().sum(-1)
    return bool((outputs >= 0).all()) and bool((sums - 1).abs().max() < 1e-3)


def _without_dropout(module: nn.Module) -> None:
    """Leave out what hides a part of a batch; the rest, BatchNorm say, stays as in training."""
    for part in module.modules():
        if isinstance(part, _DropoutNd):
            part.eval()
        elif isinstance(part, nn.MultiheadAttention | nn.RNNBase):
            part.dropout = 0.0


def _right(outputs: Any, y: Any) -> float | None:
    """Which part of class numbers is predicted, if that is what targets are."""
    if not isinstance(outputs, Tensor) or not isinstance(y, Tensor) or y.is_floating_point():
        return None
    if outputs.ndim != y.ndim + 1 or outputs.shape[:-1] != y.shape or outputs.shape[-1] < 2:
        return None
    return float((outputs.argmax(-1) == y).double().mean())


def _replicas(task: Task) -> Iterator[Finding]:
    """Whether runs can train together, and how fast a way there is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training will give them
        try:
            program = probe(task, min(task.batch_size, len(task.train)), "cpu")
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            seen = f"{type(error).__name__}: {first}"
            yield Finding("replicas", "fail", seen, "report this, as the model runs alone")
            return
    yield _together(program)
    yield _step(program)


def _together(program: Program) -> Finding:
    if program.backend == "one by one":
        advice = "a study works all the same, slower; another operation there may change that"
        return Finding("replicas", "warn", program.note, advice)
    if program.note.startswith("evaluation"):
        return Finding(
            "replicas", "warn", f"runs train together; {program.note}", "rewrite that in torch"
        )
    return Finding("replicas", "ok", "runs train together in one vectorised pass")


def _step(program: Program) -> Finding:
    if program.tape is not None:
        return Finding("step", "ok", "on the tape, the fastest way there is")
    if program.backend == "one by one" or "not traced" in program.note:
        why = program.note if "not traced" in program.note else "run as PyTorch runs it"
        return Finding("step", "ok", why)
    threads = ", in several threads" if program.concurrent else ", which draws random numbers"
    return Finding("step", "ok", f"traced{threads}; not on the tape, which lacks some operation")
