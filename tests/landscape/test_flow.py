"""Sizes of activations and gradients against torch's own, and a model that never notices."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from thalweg.landscape.activations import FLAT, curve, kind_of_call
from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.flow import INPUT, trained_under_watch, watch
from thalweg.landscape.sizes import QUANTILES, SAMPLE, dead
from thalweg.landscape.symptoms import symptoms
from thalweg.replicas import Budget, Replica, Training
from thalweg.tasks import Task, load


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def mlp(*widths, act=nn.ReLU, init=None, norm=None):
    layers = []
    for i, (before, after) in enumerate(pairwise(widths)):
        linear = nn.Linear(before, after)
        if init is not None:
            init(linear.weight)
            nn.init.zeros_(linear.bias)
        layers.append(linear)
        if i < len(widths) - 2:
            layers += [norm(after)] if norm else []
            layers.append(act())
    return nn.Sequential(*layers)


def batch(samples=16, features=6, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=generator)
    return x, torch.randint(outputs, (samples,), generator=generator)


def train(model, optimizer, steps=3, every=1, x=None, y=None, **given):
    """A few steps of an ordinary loop, watched unless ``every`` is None."""
    if x is None:
        x, y = batch()
    losses = []

    def loop(flow=None):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())

    if every is None:
        loop()
        return losses, None
    with watch(model, optimizer, every=every, **given) as flow:
        loop()
    return losses, flow


def only(frame, layer, what, step=0):
    rows = frame[(frame["layer"] == layer) & (frame["what"] == what) & (frame["step"] == step)]
    assert len(rows) == 1, (layer, what, list(frame["layer"].unique()))
    return rows.iloc[0]


def rms(t):
    return float(t.detach().double().square().mean().sqrt())


class Retained(nn.Module):
    """A network whose inner tensors torch itself keeps, with their gradients."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 50), nn.Linear(50, 3)
        self.kept = {}

    def forward(self, x):
        self.kept = {"first": self.first(x)}
        self.kept["tanh()"] = torch.tanh(self.kept["first"])
        self.kept["second"] = self.second(self.kept["tanh()"])
        for t in self.kept.values():
            t.retain_grad()
        return self.kept["second"]


@pytest.mark.parametrize("samples", [16, 400])  # fewer values of a tensor than a sample, and more
def test_sizes_are_those_of_retained_tensors(samples):
    torch.manual_seed(0)
    model, (x, y) = Retained(), batch(samples)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with watch(model) as flow:
        functional.cross_entropy(model(x), y).backward()
        flow.step()
    frame = flow.frame
    assert (50 * samples > SAMPLE) == (samples == 400)
    for layer, kept in model.kept.items():
        assert only(frame, layer, "activation")["rms"] == pytest.approx(rms(kept), rel=1e-6)
        assert only(frame, layer, "gradient")["rms"] == pytest.approx(rms(kept.grad), rel=1e-6)
    for layer in ("first", "second"):
        weight = weights[f"{layer}.weight"]
        gradient = getattr(model, layer).weight.grad
        assert only(frame, layer, "weight")["rms"] == pytest.approx(rms(weight), rel=1e-6)
        assert only(frame, layer, "weight gradient")["rms"] == pytest.approx(
            rms(gradient), rel=1e-6
        )
        assert only(frame, layer, "weight")["count"] == weight.numel()
    assert only(frame, INPUT, "activation")["rms"] == pytest.approx(rms(x), rel=1e-6)
    assert list(flow.layers["layer"]) == [INPUT, "first", "tanh()", "second"]
    assert list(flow.layers["kind"]) == ["input", "Linear", "Tanh", "Linear"]


def test_distribution_is_numpys_where_all_values_are_looked_at():
    model, (x, y) = Retained(), batch()
    with watch(model) as flow:
        functional.cross_entropy(model(10 * x), y).backward()
    values = model.kept["tanh()"].detach().double().numpy().ravel()
    row = only(flow.frame, "tanh()", "activation")
    assert row["mean"] == pytest.approx(values.mean(), abs=1e-7)
    assert row["std"] == pytest.approx(values.std(), rel=1e-6)
    for name, q in QUANTILES.items():
        assert row[name] == pytest.approx(np.quantile(values, q), abs=1e-6)
    # tanh' = 1 - tanh² is below a twentieth; float32 of a value near the bound may fall either way
    assert row["saturated"] == pytest.approx((1 - values**2 < FLAT).mean(), abs=1 / len(values))
    assert 0.2 < row["saturated"] < 0.9
    assert math.isnan(only(flow.frame, "first", "activation")["saturated"])


def test_a_sample_of_a_large_tensor_is_a_fair_one():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    # channels and rows differ: a sample at regular intervals would see some of them alone
    x = (torch.arange(64)[:, None, None] - 31.5 + torch.zeros(16, 64, 32, 32)).requires_grad_()
    with watch(model) as flow:
        model(x).sum().backward()
    row = only(flow.frame, "1", "activation")
    assert row["count"] == 16 * 64 * 32 * 32
    # half of the channels: a share of 1024 values has a standard error of at most 1/64
    assert row["zeros"] == pytest.approx(0.5, abs=4 / 64)
    # torch adds up a million squares in float32
    assert row["rms"] == pytest.approx(rms(torch.relu(x)), rel=1e-3)
    assert row["silent"] == 0.5


def state(model, optimizer):
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    for moments in optimizer.state_dict()["state"].values():
        tensors += [v for v in moments.values() if isinstance(v, torch.Tensor)]
    return tensors


class Everything(nn.Module):
    """Modules and functions, in place, tied, with dropout, batch norm, several outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)
        self.tied, self.lstm = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True)
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.drop(self.act(self.norm(self.first(x))))
        x = functional.gelu(self.tied(x)) + self.tied(x).sigmoid_()
        x = x.unsqueeze(1).expand(-1, 4, -1)
        x, _ = self.lstm(x)
        x, _ = self.attention(x, x, x)
        return self.last(x.mean(1).clamp(min=0))


@pytest.mark.parametrize("every", [1, 2])
def test_the_model_never_notices(every):
    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Everything()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        losses, _ = train(model, optimizer, steps=4, every=every if watched else None)
        found.append([*losses, *state(model, optimizer), torch.get_rng_state()])
        assert not any(
            m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called
            for m in model.modules()
        )
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
        assert not optimizer._optimizer_step_post_hooks
    assert len(found[0]) == len(found[1])
    for plain, seen in zip(*found, strict=True):
        assert torch.equal(plain, seen)


def test_no_hooks_in_steps_that_are_not_recorded():
    model = mlp(6, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = batch()
    had = []
    with watch(model, optimizer, every=3) as flow:
        for _ in range(7):
            had.append(bool(model._forward_pre_hooks or model[1]._forward_hooks))
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert had == [True, False, False, True, False, False, True]
    assert sorted(set(flow.frame["step"])) == [0, 3, 6]


def test_hooks_go_when_training_fails():
    model = mlp(6, 5, 3)
    with pytest.raises(RuntimeError, match="shape"), watch(model):
        model(torch.zeros(2, 7))
    assert not model._forward_pre_hooks
    assert torch.overrides._get_current_function_mode_stack() == []
    with (
        pytest.raises(KeyboardInterrupt),
        watch(nn.Sequential(nn.Linear(6, 5), Interrupt())) as flow,
    ):
        next(iter(flow._names))(torch.zeros(2, 6))
    assert torch.overrides._get_current_function_mode_stack() == []


class Interrupt(nn.Module):
    def forward(self, x):
        raise KeyboardInterrupt


FORMS = {
    "F.relu": (functional.relu, "relu()", "ReLU"),
    "in place": (lambda x: functional.relu(x, inplace=True), "relu()", "ReLU"),
    "torch.relu": (torch.relu, "relu()", "ReLU"),
    "x.relu()": (lambda x: x.relu(), "relu()", "ReLU"),
    "x.relu_()": (lambda x: x.relu_(), "relu()", "ReLU"),
    "clamp": (lambda x: x.clamp(min=0), "clamp()", "ReLU"),
    "torch.clamp": (lambda x: torch.clamp(x, 0), "clamp()", "ReLU"),
    "torch.tanh": (torch.tanh, "tanh()", "Tanh"),
    "F.tanh": (functional.tanh, "tanh()", "Tanh"),
    "x.sigmoid()": (lambda x: x.sigmoid(), "sigmoid()", "Sigmoid"),
    "F.silu": (functional.silu, "silu()", "SiLU"),
    "F.gelu": (functional.gelu, "gelu()", "GELU"),
    "F.leaky_relu": (lambda x: functional.leaky_relu(x, 0.1), "leaky_relu()", "LeakyReLU"),
}


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner, self.function = nn.Linear(6, 3), function

    def forward(self, x):
        return self.function(self.function(self.inner(x)) + 0)


@pytest.mark.parametrize("form", FORMS)
def test_functions_called_inside_modules_are_seen(form):
    function, name, kind = FORMS[form]
    torch.manual_seed(0)
    model = nn.Sequential(Called(function))
    x, y = batch()
    with watch(model) as flow:
        outputs = model(x)
        functional.cross_entropy(outputs, y).backward()
    expected = [INPUT, "0.inner", f"0.{name}", f"0.{name} 2"]
    assert list(flow.layers["layer"]) == expected
    assert list(flow.layers["kind"]) == ["input", "Linear", kind, kind]
    assert only(flow.frame, expected[3], "activation")["rms"] == pytest.approx(
        rms(outputs), rel=1e-6
    )
    inner = function(model[0].inner(x))
    assert only(flow.frame, expected[2], "activation")["rms"] == pytest.approx(rms(inner), rel=1e-6)


def test_a_clamp_elsewhere_is_no_relu():
    x = torch.zeros(2)
    assert kind_of_call(torch.clamp, (x, 0), {}) == "ReLU"
    assert kind_of_call(torch.clamp, (x, 0, 1), {}) is None
    assert kind_of_call(torch.clamp, (x,), {"min": -1}) is None
    assert kind_of_call(torch.clamp, (x,), {"max": 0}) is None
    assert kind_of_call(torch.clamp_min, (x, x), {}) is None


def test_modules_in_place_give_what_others_give():
    frames = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = mlp(6, 5, 5, 3, act=lambda i=inplace: nn.ReLU(inplace=i))
        _, flow = train(model, torch.optim.SGD(model.parameters(), 0.1))
        frames.append(flow.frame)
    pd.testing.assert_frame_equal(*frames)


def test_a_view_written_to_leaves_the_layers_gradient_as_it_was():
    class Viewed(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.fc, self.inplace = nn.Linear(6, 6), inplace

        def forward(self, x):
            x = functional.relu(self.fc(x).view(-1, 2, 3), inplace=self.inplace)
            return x.sum(1)

    frames = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = Viewed(inplace)
        _, flow = train(model, torch.optim.SGD(model.parameters(), 0.1))
        frames.append(flow.frame)
    pd.testing.assert_frame_equal(*frames)


@pytest.mark.parametrize(
    ("module", "derivative"),
    [
        (nn.Tanh(), lambda y: 1 - y**2),
        (nn.Sigmoid(), lambda y: 4 * y * (1 - y)),
        (nn.Softsign(), lambda y: (1 - abs(y)) ** 2),
    ],
)
def test_saturated_is_where_the_derivative_is_a_twentieth_of_its_maximum(module, derivative):
    x = torch.linspace(-9, 9, 901)[None].requires_grad_()
    with watch(nn.Sequential(module)) as flow:
        next(iter(flow._watched))(x)
    y = module(x).detach().double().numpy()
    assert only(flow.frame, "0", "activation")["saturated"] == (derivative(y) < FLAT).mean()


def test_a_tied_layers_calls_are_taken_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            self.one = self.fc(x)
            self.two = self.fc(self.one)
            self.one.retain_grad()
            self.two.retain_grad()
            return self.two

    model, (x, y) = Tied(), batch()
    with watch(model) as flow:
        functional.cross_entropy(model(x), y).backward()
    activation, gradient = (only(flow.frame, "fc", what) for what in ("activation", "gradient"))
    assert activation["count"] == 2 * 16 * 6
    assert activation["rms"] == pytest.approx(rms(torch.cat([model.one, model.two])), rel=1e-6)
    # The tied layer's first output has a gradient through its second call alone.
    both = torch.cat([model.one.grad, model.two.grad])
    assert gradient["rms"] == pytest.approx(rms(both), rel=1e-6)


def test_layers_of_several_outputs():
    model = Everything()
    _, flow = train(model, torch.optim.SGD(model.parameters(), 0.1), steps=1)
    frame = flow.frame
    assert only(frame, "lstm", "activation")["count"] == 16 * 4 * 8
    assert only(frame, "attention", "activation")["count"] == 16 * 4 * 8
    assert only(frame, "lstm", "gradient")["count"] == 16 * 4 * 8  # its states lead nowhere
    order = ["first", "norm", "act", "tied", "gelu()", "sigmoid()", "lstm", "attention"]
    assert list(flow.layers["layer"]) == [INPUT, *order, "clamp()", "last"]


def test_evaluation_is_not_counted():
    torch.manual_seed(0)
    model = mlp(6, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = batch()
    with watch(model, optimizer, every=1) as flow:
        for _ in range(2):
            with torch.no_grad():
                model(100 * x)
            model(1000 * x)  # with gradients, but no backward pass comes
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert only(flow.frame, INPUT, "activation", 1)["rms"] == pytest.approx(rms(x), rel=1e-6)
    assert only(flow.frame, "0", "activation", 1)["count"] == 16 * 5


def test_backward_passes_of_one_step_are_taken_together():
    torch.manual_seed(0)
    model = mlp(6, 5, 3)
    x, y = batch()
    with watch(model, every=1) as flow:
        for part in (slice(0, 8), slice(8, 16)):
            (functional.cross_entropy(model(x[part]), y[part]) / 2).backward()
        flow.step()
    frame = flow.frame
    assert set(frame["step"]) == {0}
    assert only(frame, "0", "activation")["rms"] == pytest.approx(rms(model[0](x)), rel=1e-6)
    gradient = model[0].weight.grad
    assert only(frame, "0", "weight gradient")["rms"] == pytest.approx(rms(gradient), rel=1e-6)


def test_frozen_parameters_have_no_gradient():
    model = mlp(6, 5, 3)
    model[0].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    _, flow = train(model, torch.optim.SGD(trained, 0.1), steps=1)
    seen = set(zip(flow.frame["layer"], flow.frame["what"], strict=True))
    assert ("0", "weight") in seen
    assert ("0", "activation") in seen
    assert not {("0", "weight gradient"), ("0", "gradient"), ("1", "gradient")} & seen
    assert {("2", "weight gradient"), ("2", "gradient")} <= seen


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.reentrant = nn.Linear(6, 8), reentrant
        self.block, self.last = Called(torch.tanh), nn.Linear(3, 3)
        self.block.inner = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        if self.reentrant is None:
            return self.last(self.block(x))
        return self.last(checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_count_once(reentrant):
    frames = []
    for form in (None, reentrant):
        torch.manual_seed(0)
        model = Checkpointed(form)
        _, flow = train(model, torch.optim.SGD(model.parameters(), 0.1), steps=2)
        frames.append(flow.frame)
    # What is computed again may round otherwise, and does not here.
    pd.testing.assert_frame_equal(*frames)
    assert "block.tanh() 2" in set(frames[0]["layer"])


def test_small_gradients_do_not_vanish_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 400), nn.Linear(400, 3))
    x, y = batch()
    with watch(model) as flow:
        (1e-30 * functional.cross_entropy(model(x), y)).backward()
    found = only(flow.frame, "1", "weight gradient")
    assert found["count"] > SAMPLE
    # squares of 1e-30 are 0 in float32; a sample of 1024 of 1200 values stands in
    assert found["rms"] == pytest.approx(rms(model[1].weight.grad), rel=0.1)


def test_half_precision_sizes_do_not_overflow():
    model = nn.Sequential(nn.Linear(6, 4000)).to(torch.bfloat16)
    x, _ = batch()
    with watch(model) as flow:
        (model(x.bfloat16()) * 1000).sum().backward()
    found = only(flow.frame, "0", "activation")
    # 8 bits of mantissa in the values, float32 in their norm
    assert found["rms"] == pytest.approx(rms(model(x.bfloat16())), rel=1e-5)


def broken(at):
    """A training of four steps that breaks at the third, and where."""
    torch.manual_seed(0)
    model = mlp(6, 5, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = batch()
    targets = functional.one_hot(y, 3).float()
    with watch(model, optimizer, every=1) as flow:
        for step in range(4):
            optimizer.zero_grad()
            given, wanted = x.clone(), targets.clone()
            if step == 2 and at == "input":
                given[3, 2] = math.nan
            if step == 2 and at == "targets":
                wanted[3, 2] = math.nan
            if step == 2 and at == "weight":
                model[2].weight.data[1, 1] = math.inf
            handle = None
            if step == 2 and at == "forward":
                handle = model[3].register_forward_pre_hook(lambda m, args: args[0] / 0)
            if step == 2 and at == "backward":
                handle = model[1].register_full_backward_hook(lambda m, i, o: (i[0] * math.inf,))
            functional.cross_entropy(model(given), wanted).backward()
            optimizer.step()
            if handle is not None:
                handle.remove()
    return flow


@pytest.mark.parametrize(
    ("at", "layer", "what", "words"),
    [
        ("input", INPUT, "activation", "the inputs of step 2 are not finite"),
        ("targets", "4", "gradient", "the loss or its targets"),
        ("weight", "2", "weight", "the update before"),
        ("forward", "3", "activation", "the outputs of layer 3 (ReLU) are the first"),
        ("backward", "0", "gradient", "the gradient of layer 0 (Linear) is the first"),
    ],
)
def test_the_first_nonfinite_value_is_located(at, layer, what, words):
    flow = broken(at)
    first = flow.first_nonfinite
    assert (first.step, first.since, first.layer, first.what) == (2, 1, layer, what)
    assert symptoms(flow)[0].cause == "nonfinite"
    assert words in symptoms(flow)[0].evidence


def test_finite_training_has_none():
    assert broken("nowhere").first_nonfinite is None


def test_between_recorded_steps_the_range_is_said():
    torch.manual_seed(0)
    model = mlp(6, 5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = batch()
    with watch(model, optimizer, every=4) as flow:
        for step in range(9):
            functional.cross_entropy(model(x * (math.nan if step == 5 else 1)), y).backward()
            optimizer.step()
    first = flow.first_nonfinite
    assert (first.step, first.since, first.what) == (8, 4, "weight")
    assert "step 8, or at one from 5 on" in symptoms(flow)[0].evidence


def test_dead_units_are_those_no_sample_activates():
    torch.manual_seed(0)
    model = mlp(6, 20, 3)
    with torch.no_grad():
        model[0].bias[:7] = -100  # dead from the start
        model[0].bias[7] = 100
    x, y = batch(samples=250)
    _, flow = train(model, torch.optim.SGD(model.parameters(), 1e-9), steps=4, x=x, y=y)
    alive = (model[0](x) > 0).any(0)
    share = flow.frame.query("layer == '1' and what == 'activation'").set_index("step")
    assert share["silent"][0] == pytest.approx(1 - float(alive.float().mean()))
    assert not alive[:7].any()
    # 500 samples are two batches: at the last step there is one.
    assert list(share["dead"].notna()) == [True, True, True, False]
    assert share["dead"][0] == share["silent"][0]


def test_dead_is_over_all_later_samples():
    active = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]], bool)
    seen = [(step, 600, units) for step, units in enumerate(active)]
    assert dict(dead(seen)) == {2: 0.75, 1: 0.25, 0: 0.25}
    assert dict(dead([(0, 499, active[0])])) == {}


@pytest.mark.parametrize(
    ("layers", "shape", "units"),
    [
        ((nn.Conv2d(2, 5, 3), nn.ReLU()), (4, 2, 6, 6), 5),
        ((nn.Conv1d(2, 5, 3), nn.ReLU()), (4, 2, 6), 5),
        ((nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ReLU()), (4, 2, 6), 5),
        ((nn.Linear(6, 5), nn.ReLU()), (4, 3, 6), 5),
        ((nn.Linear(6, 5), nn.ReLU()), (4, 6), 5),
    ],
)
def test_units_are_channels_or_features(layers, shape, units):
    model = nn.Sequential(*layers)
    with watch(model) as flow:
        model(torch.randn(shape)).sum().backward()
    name = str(len(layers) - 1)
    assert len(flow._active[name]) == 0  # not read yet
    flow.frame  # noqa: B018 - reads it
    ((_, samples, active),) = flow._active[name]
    assert (samples, len(active)) == (shape[0], units)


def test_a_copy_of_the_model_has_a_life_of_its_own():
    model = mlp(6, 5, 3)
    x, y = batch()
    with watch(model) as flow:
        other = copy.deepcopy(model)
        functional.cross_entropy(other(x), y).backward()
        functional.cross_entropy(model(x), y).backward()
    assert only(flow.frame, "0", "activation")["count"] == 16 * 5


def test_lazy_and_reparametrised_layers():
    model = nn.Sequential(
        nn.LazyLinear(5), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    )
    x, y = batch()
    with watch(model, every=1) as flow:
        functional.cross_entropy(model(x), y).backward()
        flow.step()
    assert list(flow.layers["kind"])[1:] in (
        ["Linear", "ReLU", "Linear"], ["LazyLinear", "ReLU", "Linear"],
    )  # fmt: skip
    assert only(flow.frame, "2", "weight gradient")["count"] == 15


def test_several_inputs_and_integers():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(9, 4), nn.Linear(10, 3)

        def forward(self, words, numbers):
            return self.last(torch.cat([self.table(words), numbers], 1))

    model, (x, y) = Two(), batch()
    with watch(model) as flow:
        functional.cross_entropy(model(torch.arange(16) % 9, numbers=x), y).backward()
    assert only(flow.frame, INPUT, "activation")["count"] == x.numel()
    assert only(flow.frame, "table", "activation")["count"] == 16 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_as_on_the_cpu():
    frames = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = mlp(6, 50, 50, 3).to(device)
        x, y = (t.to(device) for t in batch(100))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        _, flow = train(model, optimizer, x=x, y=y)
        frames.append(flow.frame)
    pd.testing.assert_frame_equal(*frames, rtol=1e-3, atol=1e-6)


def test_mistakes_are_said():
    model = mlp(6, 5, 3)
    x, y = batch()
    for given, every, word in (
        (lambda x: x, 1, "model"),
        (model, 0, "every"),
        (model, 1.5, "every"),
    ):
        with pytest.raises(LandscapeError, match=word), watch(given, every=every):
            pass
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer) as flow, pytest.raises(LandscapeError, match="counted already"):
        flow.step()
    with pytest.raises(LandscapeError, match=r"call flow.step\(\)"), watch(model):
        train(model, optimizer, steps=2, every=None, x=x, y=y)
    compiled = torch._dynamo.OptimizedModule(model, lambda function: function)
    with pytest.raises(LandscapeError, match="compiled"), watch(compiled):
        pass


# --- a task's training, watched


def test_it_trains_as_a_study_does(digits):
    found = trained_under_watch(digits, "momentum", 0.01, steps=60, seed=3)
    from thalweg.optim.registry import OPTIMIZERS

    rule = OPTIMIZERS["momentum"].rule
    per_epoch = len(digits.train) // 32
    assert per_epoch < 60  # the order is drawn anew in between
    budget = Budget(60, 32, per_epoch)
    training = Training(digits, [Replica(rule, rule.complete({"lr": 0.01}), 3)], budget)
    losses = training.advance(60)[:, 0]
    # the same sums in another order, over sixty steps
    np.testing.assert_allclose(found.losses, losses, rtol=2e-3)
    assert list(found.flow.frame["step"].unique()) == list(range(60))


def test_a_training_begins_with_given_weights_and_leaves_the_random_state(digits):
    before = torch.get_rng_state()
    one = trained_under_watch(digits, "sgd", 0.1, steps=3, every=5)
    weights = one.model.state_dict()
    two = trained_under_watch(digits, "sgd", 0.1, steps=1, weights=weights)
    assert torch.equal(torch.get_rng_state(), before)
    x, y = digits.train[
        torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(0))[:32]
    ]
    expected = float(functional.cross_entropy(one.model(x), y).detach())
    assert two.losses[0] == pytest.approx(expected, rel=1e-5)
    assert len(one.losses) == 3


def test_a_training_goes_on_through_nan_and_with_closures(digits):
    found = trained_under_watch(digits, "sgd", 1e30, steps=5)
    assert np.isnan(found.losses[-1])
    assert found.flow.first_nonfinite.step <= 3


def test_a_trainings_mistakes_are_said(digits):
    for given, word in (
        ({"optimizer": "adamm"}, "adamm"),
        ({"steps": 0}, "steps"),
        ({"lr": -1}, "lr"),
        ({"batch_size": 10**6}, "batch_size"),
    ):
        with pytest.raises(LandscapeError, match=word):
            trained_under_watch(digits, **given)
    with pytest.raises(LandscapeError, match="task"):
        trained_under_watch("digits")


# --- what is wrong

TRAINING = {"steps": 60, "every": 5}


def xavier(weight):
    nn.init.xavier_uniform_(weight, nn.init.calculate_gain("tanh"))


def he(weight):
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def causes(digits, model, optimizer="adam", lr=1e-3, **given):
    found = trained_under_watch(replace(digits, model=model), optimizer, lr, **TRAINING | given)
    return [symptom.cause for symptom in symptoms(found.flow)]


HEALTHY = {
    "default, 3": lambda: mlp(64, *[64] * 2, 10),
    "default tanh, 3": lambda: mlp(64, *[64] * 2, 10, act=nn.Tanh),
    "default with batch norm, 8": lambda: mlp(64, *[64] * 7, 10, norm=nn.BatchNorm1d),
    "He, 20": lambda: mlp(64, *[64] * 19, 10, init=he),
    "Xavier tanh, 3": lambda: mlp(64, *[64] * 2, 10, act=nn.Tanh, init=xavier),
    "Xavier tanh, 20": lambda: mlp(64, *[64] * 19, 10, act=nn.Tanh, init=xavier),
    "bottleneck": lambda: mlp(64, 256, 16, 10, init=he),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-3), ("sgd", 0.05)])
def test_healthy_networks_have_no_symptoms(digits, name, optimizer, lr):
    assert causes(digits, HEALTHY[name], optimizer, lr) == []


def test_healthy_convolutional_networks_have_none(digits):
    from thalweg.tasks.networks import cnn, resnet

    for network in (cnn((1, 8, 8), 10), resnet((1, 8, 8), 10)):

        def model(network=network):
            return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), network())

        assert causes(digits, model, steps=30) == []


def test_inputs_of_any_size_are_no_fault_of_the_layers(digits):
    train = (100 * digits.train.x, digits.train.y)
    large = replace(digits, train=train, model=HEALTHY["default, 3"])
    found = trained_under_watch(large, "sgd", 1e-6, **TRAINING)
    assert symptoms(found.flow) == []


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-3), ("sgd", 0.05)])
def test_deep_tanh_by_default_vanishes(digits, optimizer, lr):
    found = trained_under_watch(
        replace(digits, model=lambda: mlp(64, *[64] * 19, 10, act=nn.Tanh)),
        optimizer,
        lr,
        **TRAINING,
    )
    (symptom,) = symptoms(found.flow)
    assert (symptom.cause, symptom.layer) == ("vanishing_gradient", "0")
    assert found.losses[-10:].mean() > 1.5  # of 2.3: it does not train
    # Per layer a factor of sqrt(1/3) of the weights' variance, 1 / (3 n), at tanh's slope of 1.
    start = found.flow.frame.query("step == 0 and what == 'gradient' and kind == 'Linear'")
    slope = np.polyfit(np.arange(19), np.log10(start["rms"].to_numpy()[:19]), 1)[0]
    assert slope == pytest.approx(math.log10(3) / 2, rel=0.1)  # 64 units, not infinitely many


def test_large_weights_saturate_or_explode(digits):
    def large(std):
        return lambda weight: nn.init.normal_(weight, std=std)

    assert "saturation" in causes(
        digits, lambda: mlp(64, *[64] * 4, 10, act=nn.Tanh, init=large(0.5))
    )
    deep = causes(digits, lambda: mlp(64, *[64] * 7, 10, init=large(0.5)))
    assert deep == ["exploding_gradient"]


def test_dead_relus_are_found(digits):
    def model():
        network = mlp(64, *[64] * 3, 10, init=he)
        nn.init.constant_(network[2].bias, -50.0)
        return network

    found = trained_under_watch(
        replace(digits, model=model), "sgd", 0.05, **TRAINING | {"every": 2}
    )
    (symptom,) = symptoms(found.flow)
    assert (symptom.cause, symptom.layer, symptom.value) == ("dead_relu", "3", 1.0)
    assert symptom.evidence.startswith("100% of the units of layer 3 are active for no sample")


def test_nothing_recorded_is_no_symptom():
    with watch(mlp(6, 5, 3)) as flow:
        pass
    assert len(flow.frame) == 0
    assert symptoms(flow) == []


# --- activation functions


def test_curve_of_tanh():
    frame = curve()
    at = frame.iloc[(frame["x"] - 4).abs().idxmin()]
    assert at["x"] == 4.0
    assert at["derivative"] == pytest.approx(0.0013, abs=5e-5)  # SPEC.md, section 5
    assert at["derivative"] == pytest.approx(1 / math.cosh(4) ** 2, rel=1e-9)
    assert bool(at["flat"])
    # 1 - tanh² = 0.05 at artanh(sqrt(0.95))
    edge = math.atanh(math.sqrt(1 - FLAT))
    assert frame.loc[~frame["flat"], "x"].abs().max() == pytest.approx(edge, abs=12 / 480)
    relu = curve(torch.relu, -1, 1)
    assert list(relu["flat"]) == list(relu["x"] <= 0)


def test_tasks_with_several_inputs_train():
    x, y = batch(64)

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, a, b):
            return self.fc(a + b)

    for given in ((x, x), {"a": x, "b": x}):
        found = trained_under_watch(Task(model=Sum, train=(given, y)), "adam", steps=2)
        assert np.isfinite(found.losses).all()
