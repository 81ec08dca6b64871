"""Tensors of every kind: taken by the kernel, by torch operations, or refused."""

import pytest
import torch
from torch import nn

from tests.optim.cases import CASES, ROWS, TORCH_ROWS
from tests.optim.digits import distance, network, train
from thalweg import optim
from thalweg.kernels import addresses


def taken(optimizer):
    """How many parameters the kernel took at the last step, and how many torch operations."""
    plan = optimizer._plan
    return sum(len(b.counts) for b in plan.batches), len(plan.others)


def steps(tensors_of, entry, count=5):
    """Ours and torch's after some steps on equal tensors; gradients are made anew every step."""
    ends = []
    for constructor, arguments in (
        (entry.constructor, entry.valid[0].arguments),
        (entry.oracle, entry.valid[0].oracle),
    ):
        generator = torch.Generator().manual_seed(0)
        parameters, gradients_of = tensors_of(generator)
        optimizer = constructor(parameters, **arguments)
        for _ in range(count):
            for p, g in zip(parameters, gradients_of(), strict=True):
                p.grad = g
            optimizer.step()
        ends.append((optimizer, parameters))
    return ends


def relative(ends):
    (_, ours), (_, theirs) = ends
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def transposed_parameter(generator):
    p = torch.randn(5, 3, generator=generator, dtype=torch.float64).t()
    return [p], lambda: [torch.randn(3, 5, generator=generator, dtype=torch.float64)]


def transposed_gradient(generator):
    p = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return [p], lambda: [torch.randn(4, 4, generator=generator, dtype=torch.float64).t()]


def strided_view(generator):
    p = torch.randn(20, generator=generator, dtype=torch.float64)[::2]
    return [p], lambda: [torch.randn(10, generator=generator, dtype=torch.float64)]


def expanded_gradient(generator):
    p = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return [p], lambda: [torch.randn(4, generator=generator, dtype=torch.float64).expand(6, 4)]


def channels_last(generator):
    p = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    p = p.to(memory_format=torch.channels_last)
    return [p], lambda: [torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)]


def negative_bit(generator):
    # One element of a conjugate's imaginary part: contiguous, and stored with the other sign.
    p = torch.ones(1, dtype=torch.float64)
    z = torch.randn(1, generator=generator, dtype=torch.complex128)
    return [p], lambda: [z.conj().imag]


def overlapping(generator):
    whole = torch.randn(9000, generator=generator, dtype=torch.float64)
    parts = [whole[:6000], whole[3000:]]
    return parts, lambda: [torch.randn(6000, generator=generator, dtype=torch.float64)] * 2


@pytest.mark.parametrize(
    "kind",
    [
        transposed_parameter,
        transposed_gradient,
        strided_view,
        expanded_gradient,
        channels_last,
        negative_bit,
        overlapping,
    ],
)
@TORCH_ROWS
def test_what_the_kernel_does_not_take_goes_by_torch_operations(entry, kind):
    ends = steps(kind, entry)
    assert relative(ends) < entry.tolerance[1]
    kernel, loose = taken(ends[0][0])
    assert kernel == 0
    assert loose == len(ends[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@TORCH_ROWS
def test_half_precision_rounds_once_a_step(entry, dtype):
    """Against the same step in float64, rounded at its end; states are kept in half precision."""
    torch.manual_seed(0)
    p = torch.randn(200).to(dtype)
    optimizer = entry.constructor([p], lr=0.01)
    for _ in range(5):
        p.grad = torch.randn(200).to(dtype)
        exact = p.detach().double()
        state = {
            k: v.double().clone() if k != "step" else v.clone()
            for k, v in optimizer.state[p].items()
        }
        twin = entry.constructor([exact], lr=0.01)
        if state:
            twin.state[exact] = state
        exact.grad = p.grad.double()
        optimizer.step()
        twin.step()
        assert p.dtype == dtype
        torch.testing.assert_close(p, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert taken(optimizer) == ((0, 1) if entry.rule.whole else (1, 0))


def test_mixed_kinds_in_one_optimizer():
    parameters = [
        torch.ones(3),
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, 2).t(),
        torch.ones(()),
        torch.ones(0),
    ]
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer = optim.SGD(parameters, lr=0.5)
    optimizer.step()
    assert all((p == 0.5).all() for p in parameters)
    assert taken(optimizer) == (5, 1)


def test_a_gradient_that_becomes_strided_and_contiguous_again():
    p, q = torch.ones(4, 4), torch.ones(2)
    optimizer = optim.Adam([p, q], lr=0.1)
    where = []
    for strided in (False, True, False):
        p.grad = torch.ones(4, 8)[:, ::2] if strided else torch.ones(4, 4)
        q.grad = torch.ones(2)
        optimizer.step()
        where.append(taken(optimizer))
    assert where == [(2, 0), (1, 1), (2, 0)]
    torch.testing.assert_close(p, torch.full((4, 4), 0.7))
    torch.testing.assert_close(q, torch.full((2,), 0.7))
    assert optimizer.state[p]["step"] == optimizer.state[q]["step"] == 3


SPARSE = torch.eye(3).to_sparse()


@ROWS
def test_sparse_gradients_are_refused_by_name(entry):
    p = [torch.ones(3, 3) for _ in range(4)]
    optimizer = entry.constructor([{"params": p[:1]}, {"params": p[1:]}])
    for t in p:
        t.grad = torch.ones(3, 3)
    optimizer.step()
    before = [t.clone() for t in p]
    p[2].grad = SPARSE
    message = (
        f"{type(optimizer).__name__}, parameter group 1, parameter 1: the gradient is .*sparse"
    )
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(p, before, strict=True))


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex64"),
        (torch.ones(2, dtype=torch.int64), "int64"),
        (SPARSE, "sparse_coo"),
    ],
)
def test_parameters_of_another_kind_are_refused_at_once(tensor, what):
    with pytest.raises(TypeError, match=f"Adam, parameter group 0: parameter 1 is .*{what}"):
        optim.Adam([torch.ones(2), tensor])
    optimizer = optim.Adam([torch.ones(2)])
    with pytest.raises(TypeError, match=f"Adam, parameter group 1: parameter 0 is .*{what}"):
        optimizer.add_param_group({"params": [tensor]})
    assert len(optimizer.param_groups) == 1


def test_embedding_with_sparse_gradients_is_refused():
    layer = nn.Embedding(5, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="only dense tensors"):
        optim.SGD(layer.parameters()).step()


def _replaced(p):
    p.data = p.data.clone()


def _cast_and_back(p):
    p.data = p.data.float()
    p.data = p.data.double()


def _swapped(p):
    torch.utils.swap_tensors(p, nn.Parameter(p.detach().clone()))


def _resized_gradients(p):
    p.grad = None


@pytest.mark.parametrize("change", [_replaced, _cast_and_back, _swapped, _resized_gradients])
@TORCH_ROWS
def test_parameters_whose_storage_was_replaced(entry, change):
    ours, theirs = network(), network()
    a = entry.constructor(ours.parameters(), **entry.valid[0].arguments)
    b = entry.oracle(theirs.parameters(), **entry.valid[0].oracle)
    for model, optimizer in ((ours, a), (theirs, b)):
        for first in (0, 3, 6):
            train(model, optimizer, 3, first=first)
            if change is _cast_and_back:
                with torch.no_grad():
                    for p in model.parameters():
                        p.grad = None
            for p in model.parameters():
                change(p)
    held = [p.data_ptr() for p in ours.parameters()]
    assert [p.data_ptr() for p in a.param_groups[0]["params"]] == held
    tolerance = 1e-6 if change is _cast_and_back else entry.tolerance[1]
    assert distance(ours, theirs) < tolerance


def test_a_model_cast_in_mid_training():
    models = network(torch.float32), network(torch.float32)
    for model, constructor in zip(models, (optim.SGD, torch.optim.SGD), strict=True):
        optimizer = constructor(model.parameters(), lr=0.1)
        train(model, optimizer, 3)
        optimizer.zero_grad()
        model.double()
        train(model, optimizer, 3, first=3)
    assert models[0][0].weight.dtype == torch.float64
    assert distance(*models) < 1e-6


def test_tied_weights():
    models = []
    for constructor in (optim.Adam, torch.optim.Adam):
        model = network()
        model[2].weight = model[0].weight
        train(model, constructor(model.parameters(), lr=1e-2), 10)
        assert model[2].weight is model[0].weight
        models.append(model)
    assert distance(*models) < 1e-12


@pytest.mark.parametrize("state", [None, "8bit"])
@pytest.mark.parametrize("name", ["muon", "shampoo", "soap", "adafactor"])
def test_a_matrix_given_twice_takes_two_steps(name, state):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(20, 30, dtype=torch.float64, generator=generator) for _ in range(2)]
    twice, once = ([torch.nn.Parameter(v.clone()) for v in values] for _ in range(2))
    make = CASES[name].constructor
    with pytest.warns(UserWarning, match="duplicate parameters"):
        both = make([*twice, twice[0]], state=state)
    apart = [make([p], state=state) for p in once]
    for _ in range(4):
        for p, q in zip(twice, once, strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            q.grad = p.grad.clone()
        both.step()
        for optimizer in (*apart, apart[0]):
            optimizer.step()
    assert [float(both.state[p]["step"]) for p in twice] == [8, 4]
    for p, q, was in zip(twice, once, values, strict=True):
        gap = float((p - q).detach().norm() / (q - was).detach().norm())
        # What is rounded at random is another's where it is another's turn.
        assert gap < (0.1 if state and CASES[name].rule.moments else 1e-12)


def test_parameters_that_are_views_of_one_buffer():
    models = []
    for constructor in (optim.Adam, torch.optim.Adam):
        model = network()
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        first = 0
        for p in model.parameters():
            p.data = flat[first : first + p.numel()].view_as(p)
            first += p.numel()
        optimizer = constructor(model.parameters(), lr=1e-2)
        train(model, optimizer, 10)
        models.append(model)
        if constructor is optim.Adam:
            assert taken(optimizer) == (6, 0)
    assert distance(*models) < 1e-12


def test_addresses_are_the_same_asked_either_way(monkeypatch):
    assert addresses.COMPILED, "torch's C functions should be found on this platform"
    kinds = [torch.randn(n, requires_grad=True) for n in (0, 1, 5)] * 70
    for i, p in enumerate(kinds):
        p.grad = torch.randn(len(p)) if i % 3 else None
    states = [[torch.zeros_like(p) for p in kinds]]
    tables, answers = [], []
    for compiled in (True, False):
        monkeypatch.setattr(addresses, "COMPILED", compiled)
        counts = torch.ones(len(kinds)).numpy()
        located = addresses.Located(kinds, states, counts)
        table = torch.zeros(len(kinds), 4, dtype=torch.int64).numpy()
        found = [located.read(table), located.read(table)]
        tables.append(table)
        answers.append((found, located.present.tolist(), located.upcoming.tolist()))
        with_gradient = table[located.present == 1]
        assert (with_gradient[:, 1:][with_gradient[:, 1] != 0] != 0).all()
    assert (tables[0] == tables[1]).all()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("compiled", [True, False])
def test_training_is_the_same_asked_either_way(monkeypatch, compiled):
    monkeypatch.setattr(addresses, "COMPILED", compiled)
    ours, theirs = network(), network()
    train(ours, optim.Adam(ours.parameters()), 10)
    train(theirs, torch.optim.Adam(theirs.parameters()), 10)
    assert distance(ours, theirs) < 1e-12
