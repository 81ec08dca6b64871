"""Operators of a network's curvature against the matrices themselves, by torch.func in float64."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from thalweg import Split
from thalweg.errors import ArgumentError
from thalweg.landscape import operators
from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.operators import empirical_fisher, gauss_newton, hessian
from thalweg.tasks.networks import resnet

# Sums of some hundreds of terms of size 1 in float64.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}

N = 23  # samples; no batch size here divides it


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


class Tied(nn.Module):
    """One weight in two places, as language models have it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        rows = x[:, None] * torch.arange(1, 4)[:, None]
        return self.last(self.attention(rows, rows, rows)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(2, 3, batch_first=True)
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.cells(x.reshape(-1, 2, 2))[0][:, -1])


MODELS = {
    "mlp": mlp,
    "normalised": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(5, 3)
    ),
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.Softplus(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 3),
    ),
    "tied": Tied,
    "attention": Attention,
    "recurrent": Recurrent,
}  # fmt: skip


def data():
    torch.manual_seed(1)
    return torch.randn(N, 4, dtype=torch.float64), torch.randint(3, (N,))


def made(name="mlp"):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    if name == "normalised":
        model(torch.randn(50, 4, dtype=torch.float64))  # statistics other than 0 and 1
    return model


class Dense:
    """A model's loss and outputs as functions of one vector."""

    def __init__(self, model, loss=functional.cross_entropy, names=None):
        self.model, self.loss = model, loss
        self.names = names or [name for name, _ in model.named_parameters()]
        self.whole = dict(model.named_parameters())
        self.vector = torch.cat([self.whole[n].detach().flatten() for n in self.names])

    def outputs(self, vector, x):
        sizes = [self.whole[n].numel() for n in self.names]
        parts = zip(self.names, vector.split(sizes), strict=True)
        return functional_call(
            self.model, {n: part.reshape(self.whole[n].shape) for n, part in parts}, (x,)
        )

    def hessian(self, x, y):
        # By reverse mode twice, which all operations have, but built row by row.
        return torch.autograd.functional.hessian(
            lambda v: self.loss(self.outputs(v, x), y), self.vector
        ).numpy()

    def jacobian(self, x):
        found = torch.autograd.functional.jacobian(lambda v: self.outputs(v, x), self.vector)
        return found.numpy()  # (samples, classes, parameters)

    def gradients(self, x, y):
        def losses(v):
            out = self.outputs(v, x)
            return torch.stack([self.loss(out[i : i + 1], y[i : i + 1]) for i in range(len(y))])

        return torch.autograd.functional.jacobian(losses, self.vector).numpy()


@pytest.fixture(params=MODELS)
def case(request):
    model = made(request.param)
    reference = made(request.param).eval()
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
        yield model, Dense(reference)


def whole(op):
    return op @ np.eye(op.shape[0])


def test_hessian(case):
    model, dense = case
    x, y = data()
    expected = dense.hessian(x, y)
    vectors = np.random.default_rng(0).standard_normal((len(expected), 11))
    for batch_size in (None, 7):
        op = hessian(model, functional.cross_entropy, (x, y), batch_size=batch_size)
        assert op.names == tuple(dense.names)
        assert op.dtype == np.float64
        np.testing.assert_allclose(whole(op), expected, **CLOSE)
        np.testing.assert_allclose(op @ vectors, expected @ vectors, **CLOSE)
        for i in (0, 1):  # the second time by graphs that were kept
            np.testing.assert_allclose(op @ vectors[:, i], expected @ vectors[:, i], **CLOSE)
        np.testing.assert_allclose(vectors.T @ (op.T @ vectors), vectors.T @ expected @ vectors)
        step = 0.1 * vectors[:, 0]
        moved = dense.loss(dense.outputs(dense.vector + torch.from_numpy(step), x), y)
        assert op.loss(step) == pytest.approx(float(moved.detach()), rel=1e-12)
        mean = dense.gradients(x, y).mean(0)
        np.testing.assert_allclose(op.gradient(), mean, **CLOSE)
        np.testing.assert_array_equal(op.point(), dense.vector.numpy())


def test_gauss_newton(case):
    """Jᵀ H J with the Hessian of cross-entropy by hand, diag(p) - p pᵀ."""
    model, dense = case
    x, y = data()
    p = dense.outputs(dense.vector, x).softmax(-1).detach().numpy()
    j = dense.jacobian(x)
    inner = np.einsum("nk,kl->nkl", p, np.eye(3)) - np.einsum("nk,nl->nkl", p, p)
    expected = np.einsum("nkp,nkl,nlq->pq", j, inner, j) / N
    for batch_size in (None, 7):
        op = gauss_newton(model, "cross_entropy", (x, y), batch_size=batch_size)
        np.testing.assert_allclose(whole(op), expected, **CLOSE)
        np.testing.assert_allclose(op @ expected[0], expected @ expected[0], **CLOSE)


def test_empirical_fisher(case):
    model, dense = case
    x, y = data()
    g = dense.gradients(x, y)
    for batch_size in (None, 7):
        op = empirical_fisher(model, "cross_entropy", (x, y), batch_size=batch_size)
        np.testing.assert_allclose(whole(op), g.T @ g / N, **CLOSE)
        np.testing.assert_allclose(op @ g[0], g.T @ (g @ g[0]) / N, **CLOSE)


def test_gauss_newton_is_the_fisher_information():
    """Mean of g gᵀ over targets drawn from the model: each class by its probability."""
    model, (x, _) = made(), data()
    dense = Dense(model)
    p = dense.outputs(dense.vector, x).softmax(-1).detach().numpy()
    drawn = [dense.gradients(x, torch.full((N,), k)) for k in range(3)]
    fisher = sum(np.einsum("n,np,nq->pq", p[:, k], g, g) for k, g in enumerate(drawn)) / N
    found = whole(gauss_newton(model, "cross_entropy", (x, torch.zeros(N, dtype=torch.int64))))
    np.testing.assert_allclose(found, fisher, **CLOSE)


def test_of_a_linear_model_by_hand():
    """With outputs X w the mean squared error's Hessian is 2 XᵀX / N, and so Gauss-Newton's."""
    model, (x, _) = nn.Linear(4, 1, bias=False).double(), data()
    y = torch.randn(N, 1, dtype=torch.float64)
    by_hand = 2 * (x.T @ x).numpy() / N
    np.testing.assert_allclose(whole(hessian(model, "mse", (x, y), batch_size=5)), by_hand, **CLOSE)
    np.testing.assert_allclose(whole(gauss_newton(model, "mse", (x, y))), by_hand, **CLOSE)


def test_of_a_loss_without_second_derivatives():
    """Of |X w - y| the Hessian is zero, and per-sample gradients are plus or minus X."""
    model, (x, _) = nn.Linear(4, 1, bias=False).double(), data()
    y = torch.randn(N, 1, dtype=torch.float64)
    assert not whole(hessian(model, "mae", (x, y))).any()
    assert not whole(gauss_newton(model, "mae", (x, y))).any()
    found = whole(empirical_fisher(model, "mae", (x, y)))
    np.testing.assert_allclose(found, (x.T @ x).numpy() / N, **CLOSE)


@pytest.mark.parametrize("make", [hessian, gauss_newton, empirical_fisher])
def test_choice_of_parameters_is_a_block(make):
    model, (x, y) = made(), data()
    every = make(model, "cross_entropy", (x, y))
    # First weights and bias (25 numbers), then the others (18).
    full = whole(every)
    biases = [*range(20, 25), *range(40, 43)]
    choices = [("0", slice(25)), (["2"], slice(25, 43)), (("2.bias", "0.bias"), biases)]
    for chosen, rows in choices:
        op = make(model, "cross_entropy", (x, y), parameters=chosen)
        np.testing.assert_allclose(whole(op), full[rows][:, rows], **CLOSE)
    assert op.names == ("0.bias", "2.bias")
    parts = op.split(np.arange(8))
    assert {name: t.tolist() for name, t in parts.items()} == {
        "0.bias": [0, 1, 2, 3, 4], "2.bias": [5, 6, 7],
    }  # fmt: skip
    model[0].requires_grad_(False)
    frozen = make(model, "cross_entropy", (x, y))
    assert frozen.names == ("2.weight", "2.bias")
    np.testing.assert_allclose(whole(frozen), full[25:, 25:], **CLOSE)
    assert make(model, "cross_entropy", (x, y), parameters="0").shape == (25, 25)
    assert not model[0].weight.requires_grad


def test_unused_parameters_have_no_curvature():
    model, (x, y) = made(), data()
    model.other = nn.Linear(2, 2).double()
    model.forward = lambda inputs: model[2](model[1](model[0](inputs)))
    found = whole(hessian(model, "cross_entropy", (x, y)))
    assert found.shape == (49, 49)
    assert not found[43:].any()


def test_data_in_any_form():
    model, (x, y) = made(), data()
    expected = whole(hessian(model, "cross_entropy", (x, y)))
    dataset = TensorDataset(x, y)
    batches = list(zip(x.split(9), y.split(9), strict=True))
    forms = [
        Split(x, y), dataset, DataLoader(dataset, batch_size=4, shuffle=True),
        batches, iter(batches), [list(batch) for batch in batches],
    ]  # fmt: skip
    for form in forms:
        found = whole(hessian(model, functional.cross_entropy, form, batch_size=4))
        np.testing.assert_allclose(found, expected, **CLOSE)
    op = hessian(model, "cross_entropy", batches, batch_size=4)
    assert (op.samples, op.batch_size) == (N, 4)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, left, right):
        return {"logits": self.layers(torch.cat([left, right], 1))}


@pytest.mark.parametrize("make", [hessian, gauss_newton, empirical_fisher])
def test_several_inputs_and_outputs_by_name(make):
    (x, y), model = data(), made()
    torch.manual_seed(0)
    named = Named().double()
    expected = whole(make(model, "cross_entropy", (x, y)))

    def loss(outputs, targets):
        return functional.cross_entropy(outputs["logits"], targets)

    for inputs in ((x[:, :2], x[:, 2:]), {"right": x[:, 2:], "left": x[:, :2]}):
        op = make(named, loss, (inputs, y), batch_size=9)
        np.testing.assert_allclose(whole(op), expected, **CLOSE)
        assert op.loss(np.zeros(43)) == op.loss()


def test_float32_and_float64():
    model, (x, y) = made().float(), data()
    single = hessian(model, "cross_entropy", (x.float(), y))
    double = hessian(model, nn.CrossEntropyLoss(torch.ones(3)), (x.float(), y), dtype="float64")
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    exact = Dense(made().float().double()).hessian(x.float().double(), y)
    np.testing.assert_allclose(whole(double), exact, **CLOSE)
    # Sums of N terms of size 1, rounded at 6e-8 each.
    np.testing.assert_allclose(whole(single), exact, atol=2e-6)
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize("make", [hessian, gauss_newton, empirical_fisher])
def test_nothing_is_touched(make):
    """Bit for bit: weights, gradients, buffers, modes, and all random states."""
    model, (x, y) = made("normalised"), data()
    model[0].weight.grad = torch.full_like(model[0].weight, 7)
    model[1].eval()  # a mode of its own, in a model that trains
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)

    def state():
        return [
            {name: t.clone() for name, t in model.state_dict().items()},
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [p.requires_grad for p in model.parameters()],
            [module.training for module in model.modules()],
            [p._version for p in (*model.parameters(), *model.buffers())],
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
            torch.get_rng_state(),
        ]

    before = state()
    op = make(model, "cross_entropy", loader, batch_size=5)
    op @ np.ones(op.shape[0])
    op @ np.ones((op.shape[0], 3))
    op.loss(np.ones(op.shape[0]))
    op.gradient()
    after = state()
    assert before[2:7] == after[2:7]
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name])
    for one, other in zip(before[1], after[1], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert torch.equal(before[7], after[7])


def test_of_the_weights_as_they_were():
    model, (x, y) = made(), data()
    op = hessian(model, "cross_entropy", (x, y), batch_size=9)
    vector = np.ones(op.shape[0])
    before = op @ vector
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    np.testing.assert_array_equal(op @ vector, before)


def test_in_whatever_mode_the_caller_is():
    model, (x, y) = made(), data()
    expected = whole(hessian(model, "cross_entropy", (x, y)))
    for mode in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            np.testing.assert_array_equal(whole(hessian(model, "cross_entropy", (x, y))), expected)


class Odd(torch.autograd.Function):
    """A tanh of a person's own that cannot be vmapped: its pass back looks at numbers."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        assert gradient.sum().item() is not None
        return gradient * (1 - x.tanh() ** 2)


class WithOdd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        return self.layers[2](Odd.apply(self.layers[0](x)))


@pytest.mark.parametrize("make", [hessian, gauss_newton, empirical_fisher])
def test_operations_that_are_not_vmapped(make):
    torch.manual_seed(0)
    model, (x, y) = WithOdd().double(), data()

    def loss(outputs, targets):
        assert float(outputs.detach().sum()) < 1e9  # looks at its numbers
        return functional.cross_entropy(outputs, targets)

    expected = whole(make(made(), "cross_entropy", (x, y)))
    np.testing.assert_allclose(whole(make(model, loss, (x, y), batch_size=9)), expected, **CLOSE)


def test_graphs_beyond_the_memory_for_them_are_made_again(monkeypatch):
    model, (x, y) = made(), data()
    expected = whole(hessian(model, "cross_entropy", (x, y)))
    op = hessian(model, "cross_entropy", (x, y), batch_size=5)
    monkeypatch.setattr(operators, "KEPT", 2 * 5 * op.bytes_per_sample)
    op = hessian(model, "cross_entropy", (x, y), batch_size=5)
    for _ in range(2):
        np.testing.assert_allclose(whole(op), expected, **CLOSE)
    assert len(op._kept) == 2
    # By default a batch has as many samples as there is room for.
    monkeypatch.setitem(operators.BATCH, "cpu", 6 * op.bytes_per_sample)
    assert hessian(model, "cross_entropy", (x, y)).batch_size == 6


def test_what_a_batch_needs_is_said_before():
    """A thousand hidden units hold at least their outputs, of 8 bytes, and there are 3 uses."""
    torch.manual_seed(0)
    model, (x, y) = (
        nn.Sequential(nn.Linear(4, 1000), nn.Tanh(), nn.Linear(1000, 3)).double(),
        data(),
    )
    per_sample = hessian(model, "cross_entropy", (x, y)).bytes_per_sample
    assert 1000 * 8 <= per_sample <= 6 * 1000 * 8


def test_a_batch_that_does_not_fit(monkeypatch):
    model, (x, y) = made(), data()
    size = hessian(model, "cross_entropy", (x, y)).bytes_per_sample
    monkeypatch.setattr(operators, "available_memory", lambda: 10 * size / operators.SHARE)
    with pytest.raises(LandscapeError, match=r"batch_size: 23 samples take .*; about 10 fit"):
        hessian(model, "cross_entropy", (x, y), batch_size=100)
    assert hessian(model, "cross_entropy", (x, y)).batch_size == 10


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        return functional.dropout(self.layers(x), 0.5, training=True)


@pytest.mark.parametrize(
    ("change", "argument", "says"),
    [
        ({"model": "mlp"}, "model", "must be a torch.nn.Module, got 'mlp'"),
        ({"model": nn.Flatten()}, "model", "has no parameters"),
        ({"model": mlp().requires_grad_(False)}, "model", "all its parameters are frozen"),
        ({"model": nn.LazyLinear(3)}, "model", "lazy parameters"),
        ({"model": Noisy()}, "model", "draws random numbers in evaluation mode"),
        ({"model": nn.Linear(5, 3)}, "model", "fails on the first samples: RuntimeError"),
        ({"loss": "hinge"}, "loss", "there is no loss 'hinge'"),
        ({"loss": lambda o, t: o.sum(1)}, "loss", "a scalar tensor; got (2,)"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, "loss", "must be a mean over the samples"),
        ({"loss": lambda o, t: o.mean() / 0}, "loss", "on the first samples"),
        ({"parameters": "layer"}, "parameters", "none of the name 'layer'"),
        ({"parameters": "2.wieght"}, "parameters", "there are 2.weight"),
        ({"parameters": []}, "parameters", "is empty"),
        ({"batch_size": 0}, "batch_size", "at least 1, got 0"),
        ({"dtype": "float16"}, "dtype", "must be float32 or float64, got 'float16'"),
        ({"data": 3}, "data", "got int"),
        ({"data": []}, "data", "has no batch"),
        ({"data": [torch.ones(3, 4)]}, "data", "must give pairs (x, y), and gave Tensor"),
        ({"data": (torch.ones(3, 4), torch.ones(2))}, "data", "it has 3 and 2"),
        ({"data": (torch.ones(3, 4), [0, 1, 2])}, "data", "must be of tensors"),
    ],
)
def test_what_cannot_be_used(change, argument, says):
    x, y = data()
    given = {"model": mlp(), "loss": "cross_entropy", "data": (x.float(), y), **change}
    with pytest.raises(ArgumentError, match=re.escape(says)) as caught:
        hessian(given.pop("model"), given.pop("loss"), given.pop("data"), **given)
    assert caught.value.argument == argument


def test_samples_that_batch_normalisation_mixes():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    x, y = data()
    with pytest.raises(LandscapeError, match="BatchNorm1d without running statistics mixes"):
        empirical_fisher(model, "cross_entropy", (x.float(), y))
    assert hessian(model, "cross_entropy", (x.float(), y)).shape == (21, 21)


def test_memory_grows_with_the_parameters_and_not_their_square():
    """A matrix of its 75,000 parameters would take 22 GB; a product takes some batches' graphs."""
    torch.manual_seed(0)
    images = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    op = hessian(resnet((1, 8, 8), 10)(), "cross_entropy", images)

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            for t in found if isinstance(found, tuple | list) else [found]:
                if isinstance(t, torch.Tensor):
                    Largest.seen = max(Largest.seen, t.untyped_storage().nbytes())
            return found

    with Largest():  # of any tensor that an operation makes
        op @ np.ones((op.shape[0], 8), np.float32)
    # Eight vectors, or eight times the largest activation of eight samples, whichever is more.
    assert 0 < Largest.seen <= 8 * max(4 * op.shape[0], 8 * op.bytes_per_sample)
