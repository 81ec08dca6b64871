"""Trainings of other kinds than `examples/broken.py` has: each is told by the first finding."""

import pytest
import torch
from sklearn import datasets
from torch import nn
from torch.nn import functional

import thalweg
from thalweg.report.diagnosis import diagnosis_html
from thalweg.tasks import Split, Task, load
from thalweg.tasks.networks import mlp


def _raw(name):
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)


def _scaled(name):
    x, y = _raw(name)
    return (x - x.mean(0)) / x.std(0), y


def _cancer(end=None, numbers=True, **more):
    x, y = _scaled("breast_cancer")
    targets = y.float()[:, None] if numbers else y

    def model():
        return nn.Sequential(*mlp(30, 16, 1)(), *([] if end is None else [end()]))

    return Task(model=model, train=(x, targets), **more)


def _friedman():
    x, y = datasets.make_friedman1(600, noise=0.5, random_state=0)
    x, y = (torch.as_tensor(part, dtype=torch.float32) for part in (x, y[:, None]))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


class Inside(nn.Module):
    """Its sigmoid is a function, at which no module can be taken out."""

    def __init__(self):
        super().__init__()
        self.layers = mlp(30, 16, 1)()

    def forward(self, x):
        return torch.sigmoid(self.layers(x))


def with_logits(outputs, y):
    return functional.binary_cross_entropy_with_logits(outputs, y)


def of_probabilities(outputs, y):
    return functional.binary_cross_entropy(outputs, y)


def likelihood(outputs, y):
    return functional.nll_loss(outputs, y)


def likelihood_of_logarithms(outputs, y):
    return functional.nll_loss(outputs, y, weight=torch.tensor([1.0, 2.0, 3.0]))


def differences(outputs, y):
    return functional.mse_loss(outputs, functional.one_hot(y, 3).float())


def weighted(outputs, y):
    return functional.cross_entropy(outputs, y, weight=torch.tensor([1.0, 3.0, 9.0]))


def negative(outputs, y):
    return -functional.mse_loss(outputs, y)


def _wine(end=None, **more):
    x, y = _scaled("wine")

    def model():
        return nn.Sequential(*mlp(13, 32, 3)(), *([] if end is None else [end()]))

    return Task(model=model, train=(x, y), **more)


def _trained_on_other_labels():
    task = load("wine")
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(5))
    return Task(
        model=task.model,
        train=Split(task.train.x, task.train.y[order]),
        validation=task.validation,
        test=task.test,
    )


def _by_luck():
    x, _ = datasets.make_classification(600, 20, n_informative=8, n_classes=4, random_state=0)
    y = torch.randint(0, 4, (600,), generator=torch.Generator().manual_seed(9))
    return Task(model=mlp(20, 64, 4), train=(torch.as_tensor(x, dtype=torch.float32), y))


def _raw_and_too_fast():
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    return Task(
        model=mlp(10, 32, 32, 1),
        train=(x.astype("float32"), y.astype("float32")[:, None]),
    )


def _without_a_feature():
    x, y = _scaled("wine")
    x[:, 4] = float("nan")
    return Task(model=mlp(13, 32, 3), train=(x, y))


def _nearly_zero():
    def model():
        network = mlp(13, 32, 32, 3)()
        for p in network.parameters():
            nn.init.normal_(p, std=1e-12)
        return network

    return Task(model=model, train=_scaled("wine"))


def _ends_in_relu():
    def model():
        return nn.Sequential(*mlp(10, 64, 1)(), nn.ReLU())

    return Task(model=model, train=_friedman(), loss="mse")


BROKEN = [
    ("wrong_loss", lambda: load("wine"), {"loss": "mae"}),
    ("wrong_loss", lambda: _wine(loss=differences), {}),
    ("wrong_loss", lambda: _cancer(nn.Sigmoid, loss="bce"), {}),
    ("wrong_loss", lambda: _cancer(nn.Sigmoid, loss=with_logits), {}),
    ("wrong_loss", lambda: Task(model=Inside, train=_cancer().train, loss="bce"), {}),
    ("wrong_loss", lambda: _wine(loss=likelihood), {"optimizer": "sgd", "lr": 0.1}),
    ("wrong_loss", lambda: _wine(lambda: nn.Softmax(-1), loss=likelihood), {}),
    ("wrong_loss", lambda: Task(model=mlp(10, 64, 1), train=_friedman(), loss=negative), {}),
    ("wrong_loss", _ends_in_relu, {}),
    ("labels_random", _trained_on_other_labels, {}),
    ("labels_random", _by_luck, {}),
    ("inputs_not_normalised", _raw_and_too_fast, {"optimizer": "sgd", "lr": 0.05}),
    (
        "inputs_not_normalised",
        lambda: Task(model=mlp(30, 32, 32, 2), train=_raw("breast_cancer")),
        {},
    ),
    ("nan_in_data", _without_a_feature, {}),
    ("zero_init", _nearly_zero, {}),
    (
        "vanishing_gradient",
        lambda: Task(model=mlp(13, *[32] * 24, 3), train=_scaled("wine")),
        {"optimizer": "sgd", "lr": 0.1},
    ),
    ("batch_too_large", lambda: load("digits"), {"batch_size": 538}),
    ("lr_too_high", lambda: load("wine"), {"lr": 1e5}),
]
HEALTHY = [
    (lambda: _cancer(loss=with_logits), {"lr": 0.003}),
    (lambda: _cancer(nn.Sigmoid, loss=of_probabilities), {"lr": 0.003}),
    (lambda: _cancer(loss="bce"), {"lr": 0.01}),
    (lambda: _wine(loss=weighted), {}),
    (lambda: _wine(lambda: nn.LogSoftmax(-1), loss=likelihood_of_logarithms), {}),
    (lambda: _wine(lambda: nn.LogSoftmax(-1), loss=likelihood), {}),
    (lambda: Task(model=mlp(10, 64, 1), train=_friedman(), loss="huber"), {}),
    (lambda: Task(model=mlp(4, 32, 3), train=_raw("iris"), batch_size=16), {}),
]


@pytest.mark.parametrize(("cause", "task", "how"), BROKEN)
def test_the_first_finding_is_what_is_wrong(cause, task, how):
    first = thalweg.diagnose(task, **how).findings[0]
    assert first.cause == cause
    assert first.advice


@pytest.mark.parametrize(("task", "how"), HEALTHY)
def test_nothing_wrong_is_said_so(task, how):
    (finding,) = thalweg.diagnose(task, **how).findings
    assert finding.cause == "healthy"
    assert finding.confidence >= 0.5


def test_a_loss_that_is_no_mean_over_samples_has_a_page():
    page = diagnosis_html(thalweg.diagnose(_wine(loss=weighted), epochs=5, seeds=2))
    assert "Where the first run ended" in page
    assert "by resampling samples" not in page


def test_where_nothing_learns_and_no_cause_is_known_nobody_is_sure():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp(13, 16, 3)()

        def forward(self, x):
            return self.layers(0 * x)

    task = Task(model=Blind, train=_scaled("wine"))
    (finding,) = thalweg.diagnose(task, epochs=5, seeds=2).findings
    assert finding.confidence < 0.5
    assert "None of the causes that are known was found" in finding.evidence


def summed(outputs, y):
    return functional.cross_entropy(outputs, y, reduction="sum") / 32


def test_a_loss_without_a_hessian_is_diagnosed_all_the_same():
    """A sum over samples, of which the operators have no mean, is a page without a spectrum."""
    found = thalweg.diagnose(lambda: _wine(loss=summed), epochs=10, seeds=2)
    assert found.findings
    assert "Where the first run ended" not in diagnosis_html(found)
