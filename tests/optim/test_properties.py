"""Whatever the shapes, groups, hyperparameters and gradients: what torch.optim does."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg import optim
from thalweg.kernels import cpu

SHAPES = [(), (0,), (1,), (3, 0, 2), (2, 3), (17,), (cpu.BLOCK - 1,), (cpu.BLOCK + 1,), (129, 130)]

unit = st.floats(0, 0.999)
small = st.floats(1e-10, 1e-2)
rate = st.floats(1e-5, 1.0)
decay = st.sampled_from([0.0, 1e-3, 0.3])
flag = st.booleans()


def arguments(**kwargs):
    return st.fixed_dictionaries({"lr": rate, "weight_decay": decay, "maximize": flag, **kwargs})


CLASSES = st.one_of(
    st.tuples(st.just("SGD"), arguments(momentum=unit, dampening=unit)),
    st.tuples(st.just("SGD"), arguments(momentum=st.floats(0.1, 0.99), nesterov=st.just(True))),
    st.tuples(
        st.just("Adagrad"),
        arguments(lr_decay=unit, initial_accumulator_value=st.floats(0, 2), eps=small),
    ),
    st.tuples(st.just("RMSprop"), arguments(alpha=st.floats(0.5, 0.999), eps=small, momentum=unit)),
    st.tuples(st.just("Adadelta"), arguments(rho=st.floats(0.5, 0.999), eps=small)),
    st.tuples(
        st.just("Adam"),
        arguments(
            betas=st.tuples(st.floats(0, 0.99), st.floats(0.5, 0.999)),
            eps=small,
            amsgrad=flag,
            decoupled_weight_decay=flag,
        ),
    ),
)


def run(constructor, shapes, options, per_group, gradients):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    half = len(parameters) // 2
    groups = [{"params": parameters[half:]}]
    if half:
        groups.append({"params": parameters[:half], **per_group})
    optimizer = constructor(groups, **options)
    for step in gradients:
        for p, g in zip(parameters, step, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()
    return parameters


@settings(max_examples=60, deadline=None)
@given(
    kind=CLASSES,
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6),
    other_rate=rate,
    missing=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5))),
)
def test_shapes_groups_and_hyperparameters(kind, shapes, other_rate, missing):
    name, options = kind
    generator = torch.Generator().manual_seed(1)
    gradients = [
        [
            None if (t, i) in missing else torch.randn(s, generator=generator, dtype=torch.float64)
            for i, s in enumerate(shapes)
        ]
        for t in range(4)
    ]
    own = {"lr": other_rate}
    ours = run(getattr(optim, name), shapes, options, own, gradients)
    theirs = run(getattr(torch.optim, name), shapes, options, own, gradients)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-11 * b.norm()


STRANGE = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.0, 1e200, 1e-200]


@settings(max_examples=60, deadline=None)
@given(
    kind=CLASSES,
    values=st.lists(
        st.lists(st.sampled_from(STRANGE), min_size=20, max_size=20), min_size=3, max_size=3
    ),
    start=st.sampled_from(STRANGE),
)
def test_nan_and_infinity_are_where_torch_has_them(kind, values, start):
    name, options = kind
    ends = []
    for constructor in (getattr(optim, name), getattr(torch.optim, name)):
        p = torch.full((20,), start, dtype=torch.float64)
        optimizer = constructor([p], **options)
        for gradient in values:
            p.grad = torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
        ends.append(p)
    ours, theirs = ends
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.isposinf(), theirs.isposinf())
    assert torch.equal(ours.isneginf(), theirs.isneginf())
