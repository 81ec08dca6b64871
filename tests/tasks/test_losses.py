"""Losses against torch's own, in value and gradient, and on the tape."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.replicas.test_train import curves, replica
from thalweg import rules
from thalweg.replicas import Budget, Programs
from thalweg.tasks import LOSSES, Loss, Split, Task, TaskError, load
from thalweg.tasks.losses import alone, as_loss
from thalweg.tasks.metrics import METRICS, as_metric

programs_module = importlib.import_module("thalweg.replicas.program")

INDICES = torch.tensor([0])
NUMBERS = torch.tensor([0.5])

Function = Callable[[Tensor, Tensor], Tensor]


def one_hot(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.one_hot(y, outputs.shape[-1]).to(outputs.dtype)


def of_probabilities(loss: Callable[..., Tensor], **options: Any) -> Function:
    return lambda o, y: loss(o.softmax(-1), one_hot(o, y), **options)


def flat(loss: Callable[..., Tensor], **options: Any) -> Function:
    return lambda o, y: loss(o.reshape(-1, o.shape[-1]), y.reshape(-1), **options)


def lin_focal(gamma: float) -> Function:
    """The paper's formula, as it stands."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        log_p = outputs.log_softmax(-1).gather(-1, y.unsqueeze(-1))
        return (-((1 - log_p.exp()) ** gamma) * log_p).mean()

    return loss


# Of class indices, by torch's functions.
OF_CLASSES: dict[str, Function] = {
    "cross_entropy": flat(functional.cross_entropy),
    "label_smoothing": flat(functional.cross_entropy, label_smoothing=0.1),
    "label_smoothing=0.3": flat(functional.cross_entropy, label_smoothing=0.3),
    "label_smoothing=0": flat(functional.cross_entropy),
    "focal": lin_focal(2.0),
    "focal=1.5": lin_focal(1.5),
    "focal=0": flat(functional.cross_entropy),
    "mse": of_probabilities(functional.mse_loss),
    "mae": of_probabilities(functional.l1_loss),
    "huber": of_probabilities(functional.huber_loss),
    "huber=0.25": of_probabilities(functional.huber_loss, delta=0.25),
    "bce": lambda o, y: functional.binary_cross_entropy_with_logits(o, one_hot(o, y)),
}
# Of targets of the outputs' shape.
OF_NUMBERS: dict[str, Function] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
    "huber=0.25": lambda o, y: functional.huber_loss(o, y, delta=0.25),
    "bce": functional.binary_cross_entropy_with_logits,
}


def logits(*shape: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(int(scale))
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def equal(ours: Function, theirs: Function, outputs: Tensor, y: Tensor) -> None:
    found, wanted = [], []
    for loss, into in ((ours, found), (theirs, wanted)):
        leaf = outputs.clone().requires_grad_()
        value = loss(leaf, y)
        into += [value.detach(), *torch.autograd.grad(value, leaf)]
    assert found[0].ndim == 0
    # Sums of at most a few hundred float64 numbers of the logits' size, in another order.
    scale = max(1.0, float(outputs.abs().max()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14 * scale)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("shape", [(9, 4), (5, 3, 6), (3, 2, 2, 3)], ids=str)
@pytest.mark.parametrize("name", OF_CLASSES)
def test_of_class_indices_as_torch_has_it(name: str, shape: tuple[int, ...], scale: float) -> None:
    outputs = logits(*shape, scale=scale)
    y = torch.randint(0, shape[-1], shape[:-1], generator=torch.Generator().manual_seed(1))
    equal(as_loss(name, INDICES).of, OF_CLASSES[name], outputs, y)
    equal(as_loss(name, INDICES).of, OF_CLASSES[name], outputs, outputs.argmax(-1))
    fastest = alone(as_loss(name, INDICES))
    equal(lambda o, t: fastest(o, t.int()), OF_CLASSES[name], outputs, y)


def test_a_model_alone_gets_torchs_own_function_and_the_same_refusals() -> None:
    loss = alone(as_loss("cross_entropy", INDICES))
    outputs = torch.randn(3, 4, requires_grad=True)
    node = loss(outputs, torch.tensor([0, 3, 2])).grad_fn
    assert type(node).__name__ == "NllLossBackward0"
    for wrong in (-100, -1, 4):  # torch leaves out -100 by default
        with pytest.raises(IndexError):
            loss(outputs, torch.tensor([0, wrong, 2]))
    with pytest.raises(TaskError, match="takes integer class indices"):
        loss(outputs, torch.rand(3))


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("shape", [(9,), (9, 1), (5, 3)], ids=str)
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_of_numbers_as_torch_has_it(name: str, shape: tuple[int, ...], scale: float) -> None:
    outputs = logits(*shape, scale=scale)
    y = torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    equal(as_loss(name, NUMBERS).of, OF_NUMBERS[name], outputs, y)


@pytest.mark.parametrize("name", [*OF_CLASSES, "focal=0.5"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    y = torch.tensor([0, 3, 1, 2, 2])
    loss = as_loss(name, INDICES).of
    assert torch.autograd.gradcheck(
        lambda o: loss(o, y), logits(5, 4, scale=2.0).requires_grad_(), atol=1e-7
    )


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_gradients_of_regressions_are_those_of_finite_differences(name: str) -> None:
    y = torch.rand(5, 4, dtype=torch.float64)
    loss = as_loss(name, NUMBERS).of
    assert torch.autograd.gradcheck(
        lambda o: loss(o, y), logits(5, 4, scale=2.0).requires_grad_(), atol=1e-7
    )


def test_logits_of_a_hundred_by_hand() -> None:
    right, wrong = torch.tensor([[100.0, -100, 0]]), torch.tensor([[-100.0, 100, 0]])
    y = torch.tensor([0])
    # p is exp(-200) where it is wrong, and one less exp(-100) where it is right.
    expected = {
        "cross_entropy": (0, 200), "label_smoothing=0.3": (30, 170), "focal": (0, 200),
        "mse": (0, 2 / 3), "mae": (0, 2 / 3), "huber=0.5": (0, 0.25), "bce": (np.log(2) / 3,
        (200 + np.log(2)) / 3),
    }  # fmt: skip
    for name, values in expected.items():
        for outputs, value in zip((right, wrong), values, strict=True):
            leaf = outputs.double().requires_grad_()
            found = as_loss(name, INDICES).of(leaf, y)
            assert found.item() == pytest.approx(value, rel=1e-9, abs=1e-30), name
            (gradient,) = torch.autograd.grad(found, leaf)
            assert gradient.isfinite().all()
    # Below 1 the weight's derivative is infinite at p = 1, and is multiplied by nothing.
    for gamma in ("0.1", "0.5", "5"):
        leaf = (10 * right.double()).requires_grad_()
        (gradient,) = torch.autograd.grad(as_loss(f"focal={gamma}", INDICES).of(leaf, y), leaf)
        assert gradient.abs().max() < 1e-30


def test_binary_targets() -> None:
    z = logits(12, 1, scale=5.0)
    y = torch.arange(12) % 2
    expected = functional.binary_cross_entropy_with_logits(z[:, 0], y.double())
    of = LOSSES["bce"].of
    for outputs, targets in ((z, y), (z, y[:, None]), (z[:, 0], y), (z, y[:, None].double())):
        assert of(outputs, targets).item() == pytest.approx(expected.item(), rel=1e-14)
    # Two logits against the rest are not one.
    both = torch.cat([-z, z], 1)
    assert of(both, y).item() == pytest.approx(expected.item(), rel=1e-14)
    with pytest.raises(RuntimeError, match="out of bounds"):
        of(z, y + 1)


# Names.


@pytest.mark.parametrize(
    ("given", "name", "label"),
    [
        ("focal=1.5", "focal=1.5", "focal loss (γ = 1.5)"),
        ("focal=2.0", "focal", "focal loss"),
        ("focal", "focal", "focal loss"),
        (" huber = 3 ", "huber=3", "Huber loss (δ = 3)"),
        ("label_smoothing=1e-3", "label_smoothing=0.001", "cross-entropy with smoothed labels"),
        (None, "cross_entropy", "cross-entropy"),
    ],
)
def test_names(given: str | None, name: str, label: str) -> None:
    found = as_loss(given, INDICES)
    assert found.name == name
    assert found.label.startswith(label)


def test_defaults_follow_the_targets() -> None:
    assert as_loss(None, NUMBERS).name == "mse"
    assert as_metric(None, NUMBERS) is METRICS["mae"]
    assert as_metric(None, INDICES) is METRICS["accuracy"]
    answers = torch.tensor([0.0, 1.0])
    assert as_metric(None, answers) is METRICS["mae"]
    assert as_metric(None, answers, LOSSES["bce"]) is METRICS["accuracy"]


@pytest.mark.parametrize(
    ("given", "targets", "words"),
    [
        ("cross_entrpy", INDICES, "'cross_entrpy'; did you mean cross_entropy?"),
        ("zzz", INDICES, "choose from cross_entropy, mse, mae, huber, bce, label_smoothing, focal"),
        ("mse=2", INDICES, "has no parameter"),
        ("focal=-1", INDICES, "gamma must be a number at least 0, got '-1'"),
        ("focal=many", INDICES, "gamma must be a number at least 0, got 'many'"),
        ("focal=nan", INDICES, "gamma must be"),
        ("focal=inf", INDICES, "gamma must be"),
        ("focal=", INDICES, "gamma must be"),
        ("label_smoothing=1", INDICES, "smoothing must be a number at least 0 and below 1"),
        ("huber=0", NUMBERS, "delta must be a number above 0"),
        ("cross_entropy", NUMBERS, "these are float32; for these take mse, mae, huber or bce"),
        ("focal=3", NUMBERS, "takes integer class indices"),
        ("bce", torch.tensor([0.0, -2.5]), "between 0 and 1, and one of these is -2.5"),
        ("bce", torch.tensor([[0], [2]]), "between 0 and 1, and one of these is 2"),
        ("mse", {"a": NUMBERS}, "this task has a dict of them: give a function"),
        (None, (NUMBERS, NUMBERS), "this task has a tuple of them"),
    ],
)
def test_what_cannot_be_meant(given: Any, targets: Any, words: str) -> None:
    with pytest.raises(TaskError) as raised:
        as_loss(given, targets)
    assert raised.value.argument == "loss"
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("name", "outputs", "y", "words"),
    [
        ("mse", (4, 1), torch.zeros(4), r"outputs are \(4, 1\) and the targets \(4,\): give ta"),
        ("mae", (4,), torch.zeros(4, 1), r"outputs are \(4,\) .* \(4, 1\): give outputs.squeeze"),
        ("huber", (4, 2), torch.zeros(4, 3), "as many outputs as"),
        ("bce", (4, 1), torch.zeros(4), "targets.unsqueeze"),
        ("mse", (4, 1), torch.zeros(4).long(), r"give targets.float\(\).unsqueeze\(-1\), for"),
        ("mse", (4, 1), torch.zeros(4, 1).long(), r"give targets.float\(\), for"),
        ("cross_entropy", (4, 1), torch.zeros(4, 1).long(), r"take mse and targets.float\(\), for"),
        ("cross_entropy", (4, 3), torch.eye(4, 3).long(), r"by targets.argmax\(-1\)"),
        ("cross_entropy", (4, 3), torch.eye(4, 3), r"by targets.argmax\(-1\)"),
        ("cross_entropy", (4, 1), torch.zeros(4).long(), "take bce"),
        ("cross_entropy", (4, 3), torch.zeros(4, 1).long(), "targets.squeeze"),
        ("focal", (4, 3, 5, 6), torch.zeros(4, 5, 6).long(), r"outputs.movedim\(1, -1\)"),
        ("label_smoothing", (4, 3), torch.zeros(4), "integer class indices"),
        ("bce", (4, 3), torch.zeros(5).long(), r"targets are \(5,\) and the outputs \(4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit(name: str, outputs: Any, y: Tensor, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        LOSSES[name].of(torch.zeros(outputs), y)


# Metrics.


def test_accuracy_by_hand() -> None:
    of = METRICS["accuracy"].of
    z = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 0, 1]])
    assert of(z, torch.tensor([0, 2, 1, 1])).item() == 0.75
    assert of(z.view(2, 2, 3), torch.tensor([[0, 2], [1, 1]])).item() == 0.75
    one = torch.tensor([[0.1], [-3], [2], [-0.1]])
    for y in (torch.tensor([1, 0, 0, 1]), torch.tensor([[1.0], [0], [0], [1]])):
        assert of(one, y).item() == 0.5
    with pytest.raises(TaskError, match=r"outputs are \(4, 3\) and the targets \(5,\)"):
        of(z, torch.zeros(5).long())


def test_errors_by_hand() -> None:
    outputs, y = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, 6])
    assert METRICS["mae"].of(outputs, y).item() == pytest.approx(5 / 3)
    assert METRICS["mse"].of(outputs, y).item() == pytest.approx(13 / 3)
    with pytest.raises(TaskError, match=r"\(3, 1\) and the targets \(3,\)"):
        METRICS["mae"].of(outputs[:, None], y)


@pytest.mark.parametrize(
    ("given", "targets", "words"),
    [
        ("acuracy", INDICES, "did you mean accuracy?"),
        ("accuracy", NUMBERS, "take mae or mse"),
        ("mae", INDICES, "take accuracy for classes"),
        ("mae", {"a": INDICES}, "give a function"),
    ],
)
def test_metrics_that_cannot_be_meant(given: str, targets: Any, words: str) -> None:
    with pytest.raises(TaskError) as raised:
        as_metric(given, targets)
    assert raised.value.argument == "metric"
    assert words in str(raised.value)


# In replicas.

BUDGET = Budget(steps=6, batch_size=16, steps_per_epoch=3)


def binary() -> Task:
    task = load("breast_cancer")
    return replace(task, model=lambda: nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 1)))


def answers() -> Task:
    task = binary()
    split = lambda s: Split(s.x, s.y[:, None].float())  # noqa: E731
    parts = {p: split(getattr(task, p)) for p in ("train", "validation", "test")}
    return replace(task, loss="bce", **parts)


TRAINED: list[tuple[str, Callable[[], Task], str]] = [
    *((f"digits, {name}", lambda: load("digits"), name) for name in OF_CLASSES),
    *(
        (f"diabetes, {name}", lambda: load("diabetes"), name)
        for name in OF_NUMBERS
        if name != "bce"  # whose targets are probabilities
    ),
    ("one logit, bce", binary, "bce"),
    ("one logit of numbers, bce", answers, "bce"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "loss"), [t[1:] for t in TRAINED], ids=[t[0] for t in TRAINED])
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["one batch", "own batches"])
def test_training_is_on_a_tape_and_the_same_without(
    make: Callable[[], Task], loss: str, seeds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, programs = make().with_loss(loss), Programs()
    pair = [replica(rules.SGD, seed=s, lr=lr) for s, lr in zip(seeds, (0.01, 0.1), strict=True)]
    found = curves(task, pair, BUDGET, programs=programs)
    assert [p.tape is not None for p in programs.values()] == [True]
    with monkeypatch.context() as context:
        context.setattr(programs_module, "_tape", lambda *_: None)
        expected = curves(task, pair, BUDGET)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[:, :2], b[:, :2], rtol=1e-4)


def test_training_is_that_of_a_plain_loop() -> None:
    """With torch's own functions, outside of everything of ours."""
    task = load("digits")
    for name in ("mse", "focal=1.5", "bce"):
        torch.manual_seed(3)
        model = task.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(3))
        losses = []
        for i in range(3):
            index = order[16 * i : 16 * (i + 1)]
            loss = OF_CLASSES[name](model(task.train.x[index]), task.train.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        budget = Budget(steps=3, batch_size=16, steps_per_epoch=3)
        found = curves(task.with_loss(name), [replica(rules.SGD, seed=3, lr=0.1)], budget)[0]
        assert found[0, 0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_study_of_shapes_that_do_not_fit_says_so() -> None:
    import thalweg

    task = load("diabetes")
    flattened = replace(task, model=lambda: nn.Sequential(task.model(), nn.Flatten(0)))
    with pytest.raises(
        thalweg.StudyError, match=r"the outputs are \(32,\) and the targets \(32, 1\)"
    ):
        thalweg.study(flattened, ["sgd"], lr=[0.1], seeds=1, epochs=1)


def test_losses_of_other_parameters_are_other_tasks() -> None:
    task = load("digits")
    names = ["focal", "focal=1.5", "focal=3", "cross_entropy"]
    assert len({task.with_loss(name).fingerprint for name in names}) == 4
    assert task.with_loss("focal=2").fingerprint == task.with_loss("focal").fingerprint
    own = Loss("cross_entropy", LOSSES["cross_entropy"].of)
    assert task.with_loss(own).fingerprint == task.fingerprint
