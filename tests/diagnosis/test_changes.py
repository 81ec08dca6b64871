"""Changes do what they say, to a copy."""

import pandas as pd
import pytest
import torch
from torch import nn

from thalweg.diagnosis import changes
from thalweg.errors import ArgumentError
from thalweg.landscape.flow import trained_under_watch
from thalweg.tasks import Split, Task, load
from thalweg.tasks.data import nonfinite_taken
from thalweg.tasks.networks import mlp


def _task(x, y, **more):
    return Task(model=mlp(x.shape[1], 8, 2), train=(x, y), **more)


def test_standardised_by_the_training_data_alone():
    torch.manual_seed(0)
    x = 5 * torch.randn(100, 3) + 7
    x[:, 2] = 4.0  # says nothing, and is not divided by 0
    task = _task(x, torch.arange(100) % 2)
    made = changes.standardised(task)
    train = made.train.x
    assert train.mean(0).abs().max() < 1e-5
    assert torch.allclose(train.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5)
    mean, std = task.train.x.mean(0), task.train.x.std(0, correction=0)
    expected = (task.validation.x[:, 0] - mean[0]) / std[0]
    assert torch.allclose(made.validation.x[:, 0], expected)
    assert task.train.x[0, 0] != made.train.x[0, 0]


def test_cleaned_leaves_out_samples_and_no_more():
    x = torch.arange(60.0).reshape(20, 3)
    x[3, 1], x[7, 0] = float("nan"), float("inf")
    y = torch.arange(20) % 2
    rest = (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    with nonfinite_taken():
        task = _task(x, y, validation=rest, test=rest)
    made = changes.cleaned(task)
    keep = [i for i in range(20) if i not in (3, 7)]
    assert torch.equal(made.train.x, x[keep])
    assert torch.equal(made.train.y, y[keep])
    assert made.validation is task.validation


def test_initialised_keeps_the_size_of_activations():
    def model():
        layers = []
        for _ in range(12):
            layer = nn.Linear(256, 256)
            nn.init.normal_(layer.weight, std=0.001)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(256, 2))

    torch.manual_seed(0)
    x = torch.randn(300, 256)
    task = Task(model=model, train=(x, torch.arange(300) % 2))
    layers = trained_under_watch(task, steps=1).flow.layers
    made = changes.initialised(task, layers)

    def size(task):
        torch.manual_seed(1)
        body = task.model()[:-1]
        with torch.no_grad():
            return float(body(x).square().mean().sqrt())

    # He: the mean square of outputs of ReLU stays that of the inputs, here 1; twelve random layers
    # of 256 leave it within a factor of 2.
    assert size(task) < 1e-20
    assert 0.5 < size(made) < 2.0


def test_normalised_hidden_layers_have_mean_0_and_size_1():
    task = load("digits")
    made = changes.normalised(task)
    module = made.model()
    with torch.no_grad():
        hidden = module[0](10 * task.train.x[:50])
    assert hidden.mean(1).abs().max() < 1e-5
    assert torch.allclose(hidden.std(1, correction=0), torch.ones(50), atol=1e-3)
    assert isinstance(module[4], nn.Linear)  # the last stays
    assert module[0].weight.shape == (64, 64)  # still has the layer's attributes


def test_a_convolution_is_normalised_over_its_channels():
    model = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)
    )
    digits = load("digits")
    task = Task(model=model, train=(digits.train.x.reshape(-1, 1, 8, 8), digits.train.y))
    with torch.no_grad():
        out = changes.normalised(task).model()[0](task.train.x[:20])
    assert out.flatten(1).mean(1).abs().max() < 1e-5


def test_rectified_has_no_other_activation():
    model = lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))  # noqa: E731
    digits = load("digits")
    task = Task(model=model, train=digits.train)
    layers = pd.DataFrame({"layer": ["0", "1", "2"], "kind": ["Linear", "Tanh", "Linear"]})
    made = changes.rectified(task, layers).model()
    assert isinstance(made[1], nn.LeakyReLU)
    torch.manual_seed(0)
    weights = torch.cat([changes.rectified(task, layers).model()[0].weight for _ in range(20)])
    # He: variance 2 over the inputs; of 10,240 draws the variance is within 3 %.
    assert float(weights.detach().var()) == pytest.approx(2 / 64, rel=0.05)


def test_reset_undoes_what_was_done_to_weights():
    def zeros():
        module = mlp(4, 4, 2)()
        for p in module.parameters():
            nn.init.zeros_(p)
        return module

    x = torch.randn(30, 4)
    task = Task(model=zeros, train=(x, torch.arange(30) % 2))
    torch.manual_seed(3)
    made = changes.reset(task).model()
    torch.manual_seed(3)
    own = mlp(4, 4, 2)()  # draws once before it is reset
    own = own.apply(lambda m: getattr(m, "reset_parameters", lambda: None)())
    for a, b in zip(made.parameters(), own.parameters(), strict=True):
        assert a.shape == b.shape
        assert float(a.detach().abs().max()) > 0


def test_probabilities_have_the_cross_entropy_of_their_logits():
    digits = load("digits")
    soft = Task(model=lambda: nn.Sequential(nn.Linear(64, 10), nn.Softmax(-1)), train=digits.train)
    logits, y = torch.randn(50, 10), torch.arange(50) % 10
    found = changes.of_probabilities(soft).loss.of(logits.softmax(-1), y)
    assert torch.allclose(found, nn.functional.cross_entropy(logits, y), rtol=1e-4)


def test_classified_has_an_output_for_each_class():
    x, y = torch.randn(60, 5), (torch.arange(60) % 4).float().unsqueeze(1)
    task = Task(model=mlp(5, 8, 1), train=(x, y), loss="mse")
    made = changes.classified(task, 4)
    assert made.model()(x).shape == (60, 4)
    assert torch.equal(made.train.y, task.train.y.flatten().long())
    assert float(made.metric.of(torch.eye(4), torch.arange(4))) == 1.0
    judged = changes.rounded(task)
    outputs = torch.tensor([[0.4], [0.6], [2.5001], [3.0]])
    right = judged.metric.of(outputs, torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    assert float(right) == 0.75


def test_moved_is_a_step_from_the_given_weights():
    task = load("wine")
    torch.manual_seed(0)
    weights = task.model().state_dict()
    there = changes.from_weights(task, weights)
    name = "0.weight"
    moved = changes.moved(there, {name: torch.ones_like(weights[name])}, 0.25)
    torch.manual_seed(5)
    found = moved.model().state_dict()
    assert torch.equal(there.model().state_dict()[name], weights[name])
    assert torch.allclose(found[name], weights[name] + 0.25)
    assert torch.equal(found["0.bias"], weights["0.bias"])


def test_the_task_itself_stays():
    task = load("wine")
    before = task.fingerprint, Split(task.train.x.clone(), task.train.y.clone())
    for made in (
        changes.standardised(task),
        changes.normalised(task),
        changes.reset(task),
        changes.from_weights(task, task.model().state_dict()),
    ):
        assert made.fingerprint != task.fingerprint
    assert task.fingerprint == before[0]
    assert torch.equal(task.train.x, before[1].x)


def test_cleaned_fills_in_where_too_few_samples_would_be_left():
    x = torch.arange(60.0).reshape(20, 3)
    x[:, 1] = float("nan")
    x[:15, 2] = float("inf")
    y = torch.arange(20) % 2
    rest = (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    with nonfinite_taken():
        task = _task(x, y, validation=rest, test=rest)
    made = changes.cleaned(task)
    assert len(made.train) == 20
    assert torch.equal(made.train.x[:, 0], x[:, 0])
    assert torch.equal(made.train.x[:, 1], torch.zeros(20))
    # 47, 50, 53, 56, 59 are known, and 53 is in their middle.
    assert torch.equal(made.train.x[:15, 2], torch.full((15,), 53.0))
    assert torch.equal(made.train.x[15:, 2], x[15:, 2])


def test_without_targets_nothing_can_be_said():
    y = torch.full((20, 1), float("nan"))
    with nonfinite_taken():
        task = Task(model=mlp(3, 8, 1), train=(torch.zeros(20, 3), y), loss="mse")
    with pytest.raises(ArgumentError, match="all targets for train are NaN or infinite"):
        changes.cleaned(task)


def test_without_a_sigmoid_outputs_are_logits():
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    with_end = Task(
        model=lambda: nn.Sequential(mlp(3, 8, 1)(), nn.Sigmoid()), train=(x, torch.rand(20, 1))
    )
    taken_out, undone = (
        changes.without_end(with_end, name, "Sigmoid").model for name in ("1", "sigmoid()")
    )
    outputs = []
    for model in (with_end.model, taken_out, undone):
        torch.manual_seed(1)
        outputs.append(model()(x))
    assert torch.allclose(outputs[0], outputs[1].sigmoid())
    # The inverse of a rounded number: near a half its error is that of float32 times four.
    assert torch.allclose(outputs[1], outputs[2], atol=1e-5)
