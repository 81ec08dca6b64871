"""What PyTorch's own suite asserts of its optimizers, asserted of ours of the same names.

After test/test_optim.py (`TestOptimRenewed`), test/optim/test_lrscheduler.py and
test/optim/test_swa_utils.py, with the arguments that they take from
``torch.testing._internal.common_optimizers``. Every class that is in both packages is tested; one
that is added to `thalweg.optim` needs no edit here.

Where torch compares two implementations of its own, or only asks whether the loss went the right
way, ours is stepped beside torch's for-loop in float64.

Not here, because nothing of ours answers to it: accelerators (several devices, peak memory, graph
capture: see test_device.py), ``differentiable`` and on the CPU ``capturable`` (refused, see
`test_what_is_refused`), optimizers that need a closure (LBFGS) or sparse gradients (SparseAdam;
ours are refused by name in test_layouts.py).
"""

import copy
import gc
import inspect
import io
import pickle
import re
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
    required,
)
from torch.testing._internal.common_optimizers import get_error_inputs_for_all_optims, optim_db

from thalweg import optim
from thalweg.optim import classes
from thalweg.optim.base import RuleOptimizer

INFOS = {info.name: info for info in optim_db if info.name in classes.__all__}
MATRICES_ALONE = {"Muon"}

# Largest ‖ours - torch's‖ / ‖torch's‖ of any parameter or state in float64.
TOLERANCE = dict.fromkeys(INFOS, 1e-12) | {
    "ASGD": 1e-5,  # torch keeps eta and mu in float32
    "NAdam": 1e-6,  # torch keeps mu_product in float32
    "Muon": 2e-2,  # torch iterates in bfloat16, which a sum in another order rounds elsewhere
}

# Numbers that torch keeps in float32, or casts to the parameter's dtype, and we do not.
IN_FLOAT64 = ("mu_product", "eta", "mu")


@dataclass(frozen=True)
class Case:
    """An optimizer, and arguments that torch's suite has for it."""

    name: str
    description: str
    kwargs: dict[str, Any]


def cases():
    """All arguments of torch's suite that are for a CPU; those have no capturable."""
    for name, info in INFOS.items():
        for given in info.optim_inputs_func(device="cpu"):
            kwargs = dict(given.kwargs)
            if isinstance(kwargs.get("lr"), torch.Tensor):
                # torch computes with it in its own precision.
                kwargs["lr"] = kwargs["lr"].double()
            yield Case(name, given.desc, kwargs)


def applies(error):
    """Whether an error of torch's suite can be one of ours.

    We take ``foreach`` and ignore it, so that nothing is at odds with it. Complex parameters have
    `test_complex_parameters`.
    """
    given = error.optimizer_error_input
    tensors = [p for p in given.params or () if isinstance(p, torch.Tensor)]
    return not given.kwargs.get("foreach") and not any(p.is_complex() for p in tensors)


def errors():
    for name, info in INFOS.items():
        for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            # Ours takes other shapes than matrices by AdamW.
            if applies(error) and "2D" not in str(error.error_regex):
                yield name, error


NAMES = pytest.mark.parametrize("name", INFOS)
ANY_SHAPE = pytest.mark.parametrize("name", [n for n in INFOS if n not in MATRICES_ALONE])
CASES = pytest.mark.parametrize("case", list(cases()), ids=lambda c: f"{c.name}-{c.description}")
# Products of matrices depend in the last place on where the memory lies; not to be had to the bit.
EXACT = [n for n in INFOS if not getattr(optim, n).rule.whole]
EXACT_NAMES = pytest.mark.parametrize("name", EXACT)
EXACT_CASES = pytest.mark.parametrize(
    "case",
    [c for c in cases() if c.name in EXACT],
    ids=lambda c: f"{c.name}-{c.description}",
)


def classes(name):
    """Ours and torch's."""
    return getattr(optim, name), getattr(torch.optim, name)


def accepts(name, argument):
    return argument in inspect.signature(getattr(torch.optim, name)).parameters


def pair(name, make, **kwargs):
    """Ours and torch's, each with parameters of its own: two tuples, of these and of those."""
    made = [make() for _ in range(2)]
    optimizers = [
        cls(m.parameters() if isinstance(m, nn.Module) else m, **copy.deepcopy(kwargs))
        for cls, m in zip(classes(name), made, strict=True)
    ]
    return optimizers, made


def network(name, dtype=torch.float64):
    torch.manual_seed(0)
    bias = name not in MATRICES_ALONE
    layers = nn.Linear(4, 5, bias), nn.Tanh(), nn.Linear(5, 3, bias)
    return nn.Sequential(*layers).to(dtype)


def loss_of(model, step):
    """Squared error on a batch of the step's own."""
    generator = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64).to(dtype)
    return (model(x) - x[:, :3].sin() - 1).pow(2).mean()


def train(model, optimizer, steps, first=0, after=lambda: None):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        after()
    return model


def random_steps(optimizer, steps=3):
    """Steps with gradients that are made from the parameters' shapes alone."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in parameters(optimizer):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def some_parameters(dtype=torch.float64):
    """Two matrices: Muon takes nothing else."""
    torch.manual_seed(2)
    return [torch.randn(2, 3, dtype=dtype, requires_grad=True) for _ in range(2)]


def gap(a, b):
    a, b = a.detach().double(), b.detach().double()
    difference = float((a - b).norm())
    return difference / max(float(b.norm()), 1e-300) if difference else 0.0


def assert_same(name, ours, theirs, tolerance=None):
    tolerance = TOLERANCE[name] if tolerance is None else tolerance
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert gap(a, b) <= tolerance, f"{place}: {a} is not {b}"


def assert_same_state(name, ours, theirs):
    """Parameters, and whatever state torch's optimizer has."""
    assert_same(name, parameters(ours), parameters(theirs))
    for p, q in zip(parameters(ours), parameters(theirs), strict=True):
        mine, its = ours.state.get(p, {}), theirs.state.get(q, {})
        assert set(its) <= set(mine)
        for key, value in its.items():
            assert isinstance(mine[key], type(value)), key
            if key in (*IN_FLOAT64, "step"):
                # torch keeps some in the default dtype, which may be float16.
                assert float(mine[key]) == pytest.approx(float(value), rel=1e-3)
                continue
            if name in EXACT and key != "step_size":  # which lies as the parameter does
                assert mine[key].stride() == value.stride(), key
            assert_same(name, [mine[key]], [value])


def equal(some, other):
    """Whether two nests of dicts, lists and tensors are the same, to the bit."""
    if isinstance(some, dict):
        return some.keys() == other.keys() and all(equal(v, other[k]) for k, v in some.items())
    if isinstance(some, list | tuple):
        return len(some) == len(other) and all(map(equal, some, other))
    if isinstance(some, torch.Tensor):
        # To the bit but for rules of matrices, whose products depend on where the memory lies.
        return some.dtype == other.dtype and (torch.equal(some, other) or gap(some, other) < 1e-13)
    return type(some) is type(other) and some == other


# Constructors


@NAMES
def test_signature(name):
    ours, theirs = (inspect.signature(cls).parameters for cls in classes(name))
    for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        wanted = [(p.name, p.default) for p in theirs.values() if p.kind == kind]
        found = [(p.name, p.default) for p in ours.values() if p.kind == kind]
        # What torch lacks comes after the star.
        assert found[: len(wanted)] == wanted
    assert not any(p.kind == p.VAR_KEYWORD for p in ours.values())


def another(value):
    """A valid value close to a default, but not it."""
    if isinstance(value, tuple):
        return tuple(map(another, value))
    if value is None or isinstance(value, bool | str):
        return value
    if value == 0:
        return 0.25
    return value + 1 if isinstance(value, int) else value * (1.01 if abs(value) >= 1 else 0.99)


@NAMES
def test_positional_arguments(name):
    _, *given = inspect.signature(getattr(torch.optim, name)).parameters.values()
    values = [another(p.default) for p in given if p.kind == p.POSITIONAL_OR_KEYWORD]
    ours, theirs = (cls(some_parameters(), *values) for cls in classes(name))
    assert theirs.defaults.items() <= ours.defaults.items()
    random_steps(ours)
    random_steps(theirs)
    assert_same_state(name, ours, theirs)


@CASES
def test_defaults_groups_and_printing(case):
    (ours, theirs), _ = pair(case.name, some_parameters, **case.kwargs)
    assert isinstance(ours, torch.optim.Optimizer)
    for mine, its in (
        (ours.defaults, theirs.defaults),
        (ours.param_groups[0], theirs.param_groups[0]),
        (ours.state_dict()["param_groups"][0], theirs.state_dict()["param_groups"][0]),
    ):
        assert its.keys() <= mine.keys()
        assert all(equal(mine[key], value) for key, value in its.items() if key != "params")
    printed = repr(ours).splitlines()
    assert printed[:2] == [f"{case.name} (", "Parameter Group 0"]
    assert set(repr(theirs).splitlines()) <= set(printed)


def numbers(value):
    if isinstance(value, tuple | list):
        return [repr(value), *(repr(v) for v in value)]
    return [repr(value)]


OF_THE_BASE_CLASS = {
    error.optimizer_error_input.desc
    for error in get_error_inputs_for_all_optims("cpu", torch.float32)
    if error.optimizer_error_input.params is not None
}


@pytest.mark.parametrize(
    ("name", "error"),
    list(errors()),
    ids=lambda x: x if isinstance(x, str) else x.optimizer_error_input.desc,
)
def test_errors(name, error):
    given = error.optimizer_error_input
    expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
    params = [torch.zeros(2, 2)] if given.params is None else given.params
    with expected(error.error_type) as raised:
        getattr(optim, name)(params, **given.kwargs)
    message = str(raised[0].message if expected is pytest.warns else raised.value)
    if given.desc in OF_THE_BASE_CLASS:
        assert re.search(error.error_regex, message)
    else:
        assert name in message
    if given.kwargs:
        argument, value = list(given.kwargs.items())[-1]
        assert argument in message
        assert any(number in message for number in numbers(value))


@NAMES
def test_no_parameters(name):
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        getattr(optim, name)([])


@NAMES
def test_what_is_refused(name):
    if accepts(name, "differentiable"):
        with pytest.raises(ValueError, match=rf"{name}: differentiable must be False"):
            getattr(optim, name)(some_parameters(), differentiable=True)
    else:
        with pytest.raises(TypeError, match="differentiable"):
            getattr(optim, name)(some_parameters(), differentiable=True)


@NAMES
def test_capturable_is_for_cuda(name):
    """Ours all take it, torch's not; which parameters can be captured a step finds out."""
    if not issubclass(getattr(optim, name), RuleOptimizer):
        with pytest.raises(TypeError, match="capturable"):
            getattr(optim, name)(some_parameters(), capturable=True)
        return
    optimizer = getattr(optim, name)(some_parameters(), capturable=True)
    with pytest.raises(ValueError, match=rf"{name}, parameter group 0, .* capturable=True, but"):
        random_steps(optimizer)


@CASES
def test_foreach_and_fused_have_no_effect(case):
    flags = {flag: True for flag in ("foreach", "fused") if accepts(case.name, flag)}
    made = [getattr(optim, case.name)(some_parameters(), **case.kwargs, **f) for f in ({}, flags)]
    for optimizer in made:
        random_steps(optimizer)
    assert all(made[1].param_groups[0][flag] for flag in flags)
    assert equal(parameters(made[0]), parameters(made[1]))


BAD_GROUPS = {
    "no dict": (lambda p: [p], TypeError, "param_group"),
    "a set": (lambda p: {"params": {p}}, TypeError, "ordered collections"),
    "no tensor": (lambda p: {"params": [1.0]}, TypeError, "can only optimize Tensors"),
    "no leaf": (lambda p: {"params": [2 * p]}, ValueError, "can't optimize a non-leaf Tensor"),
    "names": (lambda p: {"params": [("p", p)]}, ValueError, "cannot add param group with names"),
    "no params": (lambda p: {"lr": 0.1}, KeyError, "params"),
}


@pytest.mark.parametrize("bad", BAD_GROUPS.values(), ids=list(BAD_GROUPS))
@NAMES
def test_groups_that_cannot_be_added(name, bad):
    first, second = some_parameters()
    group, error, message = bad
    optimizer = getattr(optim, name)([first])
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group(second))
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        optimizer.add_param_group({"params": [first]})
    assert [len(g["params"]) for g in optimizer.param_groups] == [1]
    optimizer.add_param_group({"params": second})  # one tensor is a list of one
    assert optimizer.param_groups[1]["params"] == [second]


@NAMES
def test_a_required_argument(name):
    """A subclass's own, that has no default."""
    first, second = some_parameters()
    optimizer = getattr(optim, name)([first])
    optimizer.defaults["mine"] = required
    with pytest.raises(ValueError, match=r"didn't specify a value of required .* mine"):
        optimizer.add_param_group({"params": [second]})
    optimizer.add_param_group({"params": [second], "mine": 3})
    assert optimizer.param_groups[1]["mine"] == 3


@NAMES
def test_parameters_that_retain_their_gradient(name):
    """Not a leaf, and taken all the same."""
    ends = []
    for cls in classes(name):
        leaf = some_parameters()[0]
        p = 2 * leaf
        p.retain_grad()
        optimizer = cls([p])
        p.pow(2).sum().backward()
        with torch.no_grad():
            optimizer.step()
        ends.append([p])
    assert_same(name, *ends)


# The step, beside torch's


@CASES
def test_trajectory(case):
    """Seven steps, RAdam being another from the sixth on, with gradients that come and go."""
    kwargs = case.kwargs | ({"foreach": False} if accepts(case.name, "foreach") else {})
    optimizers, models = pair(case.name, lambda: network(case.name), **kwargs)
    for step in range(7):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model[2].requires_grad_(step not in (3, 4))
            if step != 2:
                loss_of(model, step).backward()
            optimizer.step()
        assert_same_state(case.name, *optimizers)
    assert not torch.equal(models[0][0].weight, network(case.name)[0].weight)


@pytest.mark.parametrize("contiguous", [True, False])
@CASES
def test_goes_the_right_direction(case, contiguous):
    def make():
        torch.manual_seed(0)
        last = 1 if case.name in MATRICES_ALONE else ()
        sizes = (10, 5), (10, *([1] if last else []))
        if contiguous:
            return [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in sizes]
        return [nn.Parameter(torch.randn(*s, 2, dtype=torch.float64)[..., 0]) for s in sizes]

    optimizers, made = pair(case.name, make, **case.kwargs)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    losses = []
    for optimizer, (weight, bias) in zip(optimizers, made, strict=True):
        for _ in range(20):

            def closure(o=optimizer, w=weight, b=bias):
                o.zero_grad()
                loss = (w.mv(x) + b.flatten()).pow(2).sum()
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
    assert (losses[19] > losses[0]) == case.kwargs.get("maximize", False)
    assert_same_state(case.name, *optimizers)


@CASES
def test_a_group_with_another_decay(case):
    optimizers = []
    for cls in classes(case.name):
        model = network(case.name)
        groups = [
            {"params": list(model[0].parameters()), **case.kwargs},
            {"params": list(model[2].parameters()), **case.kwargs, "weight_decay": 0.0},
        ]
        optimizers.append(cls(groups, **case.kwargs))
        train(model, optimizers[-1], 10)
    assert_same_state(case.name, *optimizers)


@CASES
def test_a_group_with_another_rate(case):
    optimizers = []
    for cls in classes(case.name):
        model, still = network(case.name), some_parameters()[0]
        groups = [
            {"params": list(model.parameters()), **{"lr": 1e-3, **case.kwargs}},
            {"params": [still]},
        ]
        # Rprop's steps have a least size, whatever the rate.
        least = {"step_sizes": (0, 50)} if case.name == "Rprop" else {}
        optimizers.append(cls(groups, **case.kwargs | {"lr": 1e-28, **least}))
        before = still.detach().clone()
        for step in range(10):
            model.zero_grad()
            still.grad = torch.ones_like(still)
            loss_of(model, step).backward()
            optimizers[-1].step()
        assert torch.equal(still, before)
    assert_same_state(case.name, *optimizers)


def float_rate(case):
    return float(case.kwargs.get("lr", 1e-3))


@pytest.mark.parametrize("shape", [(), (1, 1)], ids=str)
@CASES
def test_tensor_as_rate(case, shape):
    """Read at every step, so that it may be changed in place."""
    lr = torch.full(shape, float_rate(case), dtype=torch.float64)
    models = network(case.name), network(case.name)
    ours = getattr(optim, case.name)(models[0].parameters(), **case.kwargs | {"lr": lr})
    theirs = getattr(torch.optim, case.name)(
        models[1].parameters(), **case.kwargs | {"lr": lr.item()}
    )
    for factor in (1.0, 0.5):
        lr.mul_(factor)
        theirs.param_groups[0]["lr"] = lr.item()
        train(models[0], ours, 2)
        train(models[1], theirs, 2)
    assert ours.param_groups[0]["lr"] is lr
    assert_same_state(case.name, ours, theirs)


@pytest.mark.parametrize("name", [n for n in INFOS if n in ("Adam", "AdamW")])
def test_tensors_as_betas(name):
    """torch's suite has them of such shapes, for these two alone."""
    betas = torch.tensor([[[0.8]]]).double(), torch.tensor([[0.95]]).double()
    optimizers, _ = pair(name, some_parameters, betas=betas)
    for optimizer in optimizers:
        random_steps(optimizer)
    assert_same_state(name, *optimizers)


@pytest.mark.parametrize("default", [torch.float16, torch.float64], ids=str)
@NAMES
def test_default_dtype(name, default):
    """Step counts are float32, or float64 where that is the default dtype."""
    torch.set_default_dtype(default)
    try:
        optimizers, _ = pair(name, some_parameters)
        for optimizer in optimizers:
            random_steps(optimizer, 5)
        assert_same_state(name, *optimizers)
    finally:
        torch.set_default_dtype(torch.float32)


@NAMES
def test_dtypes_mixed_in_one_group(name):
    """Against torch's in float64: torch's own rounds after every operation."""
    dtypes = torch.float64, torch.float32, torch.float16, torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    exact = [torch.rand(2, 3, generator=generator, dtype=torch.float64) for _ in dtypes]
    # Values that bfloat16 has: the sets are the same numbers.
    exact = [p.bfloat16().double() for p in exact]
    mixed = [p.to(dtype) for p, dtype in zip(exact, dtypes, strict=True)]
    # As torch's suite has it: half precision has no 1e-8.
    eps = getattr(torch.optim, name)(some_parameters()).defaults.get("eps")
    kwargs = {"eps": 0.1} if isinstance(eps, float) else {}
    made = [
        cls(tensors, **kwargs) for cls, tensors in zip(classes(name), (mixed, exact), strict=True)
    ]
    for _ in range(7):
        for p, q in zip(mixed, exact, strict=True):
            q.grad = (1 + torch.rand(2, 3, generator=generator)).bfloat16().double()
            p.grad = q.grad.to(p.dtype)
        for optimizer in made:
            optimizer.step()
    for p, q in zip(mixed, exact, strict=True):
        tolerance = 8 * torch.finfo(p.dtype).eps
        assert gap(p, q) <= max(tolerance, TOLERANCE[name]), p.dtype


@CASES
def test_no_gradients(case):
    optimizer = getattr(optim, case.name)(some_parameters(), **case.kwargs)
    before = copy.deepcopy(parameters(optimizer))
    loss = torch.tensor([1.0])
    assert optimizer.step() is None
    assert optimizer.step(lambda: loss) is loss
    assert equal(parameters(optimizer), before)


@CASES
def test_gradients_of_zeros(case):
    """Nothing moves but by decay; averages stay zero."""
    optimizers, made = pair(case.name, some_parameters, **case.kwargs)
    for optimizer in optimizers:
        for p in parameters(optimizer):
            p.grad = torch.zeros_like(p)
        for _ in range(3):
            optimizer.step()
    assert_same_state(case.name, *optimizers)
    assert equal(made[0], some_parameters()) == equal(made[1], some_parameters())


@CASES
def test_gradients_are_left_as_they_are(case):
    optimizer = getattr(optim, case.name)(some_parameters(), **case.kwargs)
    gradients = [torch.randn_like(p) for p in parameters(optimizer)]
    before = copy.deepcopy(gradients)
    for p, g in zip(parameters(optimizer), gradients, strict=True):
        p.grad = g
    for _ in range(3):
        optimizer.step()
    for p, g in zip(parameters(optimizer), gradients, strict=True):
        assert p.grad is g
        assert g._version == 0
    assert equal(gradients, before)


@ANY_SHAPE
def test_shapes(name):
    shapes = (), (1,), (2, 3), (2, 1, 3)
    optimizers, _ = pair(name, lambda: [torch.ones(s, dtype=torch.float64) for s in shapes])
    for optimizer in optimizers:
        random_steps(optimizer)
    assert_same_state(name, *optimizers)


@ANY_SHAPE
def test_empty_parameters(name):
    """They change nothing for the others; torch's own Adafactor divides by their size."""
    ours = getattr(optim, name)([torch.zeros(0), *some_parameters(), torch.zeros(3, 0, 2)])
    theirs = getattr(torch.optim, name)(some_parameters())
    for optimizer in (ours, theirs):
        random_steps(optimizer)
    assert_same(name, parameters(ours)[1:3], parameters(theirs))


def transposed(p):
    return p.t()


def every_second(p):
    return torch.stack([p, p], dim=-1)[..., 0]


def channels_last(p):
    return p.reshape(1, *p.shape, 1).repeat(2, 1, 1, 2).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("gradient", ["like the parameter", "contiguous", "expanded"])
@pytest.mark.parametrize("layout", [transposed, every_second, channels_last])
@NAMES
def test_layouts(name, layout, gradient):
    if layout is channels_last and name in MATRICES_ALONE:
        layout = transposed
    optimizers, made = pair(name, lambda: [layout(p.detach()) for p in some_parameters()])
    assert not made[0][0].is_contiguous()
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        gradients = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in made[0]
        ]
        for tensors in made:
            for p, g in zip(tensors, gradients, strict=True):
                if gradient == "like the parameter":
                    p.grad = torch.empty_like(p).copy_(g)
                elif gradient == "contiguous":
                    p.grad = g.clone()
                else:
                    p.grad = g[..., :1].expand_as(g)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_state(name, *optimizers)


def refusal(make):
    """What the `TypeError` says, None if there is none."""
    try:
        make()
    except TypeError as error:
        return str(error)
    return None


@NAMES
def test_complex_parameters(name):
    """Refused by group and place, or stepped as pairs of real numbers."""
    real, other = some_parameters()
    z = torch.view_as_complex(torch.stack([real, other], -1).detach())
    message = refusal(lambda: getattr(optim, name)([real, z]))
    if message is not None:
        assert re.search(f"{name}, parameter group 0: parameter 1 is .*complex128", message)
        return
    ours = getattr(optim, name)([real, z])
    theirs = getattr(torch.optim, name)([real.detach().clone(), torch.view_as_real(z).clone()])
    for optimizer in (ours, theirs):
        for p in parameters(optimizer):
            p.grad = torch.ones_like(p) * (1 + 1j if p.is_complex() else 1)
        optimizer.step()
    assert_same(name, [real, torch.view_as_real(z)], parameters(theirs))


@NAMES
def test_a_parameter_given_twice(name):
    """It takes two steps at a time, as the warning at construction says it may not for long."""
    optimizers = []
    for cls in classes(name):
        p, between = some_parameters()
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizers.append(cls([p, between, p]))
        random_steps(optimizers[-1])
    assert_same_state(name, *optimizers)


@NAMES
def test_parameters_that_share_memory(name):
    """Each has a gradient and a state of its own, and they take their steps in turn."""
    optimizers = []
    for cls in classes(name):
        memory, between = some_parameters()
        rows = torch.cat([memory.detach(), memory.detach() + 1])
        some = [rows[k : k + 2].requires_grad_() for k in range(3)]
        optimizers.append(cls([*some[:2], between, some[2]]))
        random_steps(optimizers[-1])
    assert_same_state(name, *optimizers)


@NAMES
def test_closures(name):
    optimizers, models = pair(name, lambda: network(name))
    for model, optimizer in zip(models, optimizers, strict=True):
        for step in range(3):

            def closure(m=model, o=optimizer, s=step):
                assert torch.is_grad_enabled()
                o.zero_grad()
                loss = loss_of(m, s)
                loss.backward()
                return loss

            with torch.no_grad():
                wanted = loss_of(model, step)
            assert torch.equal(optimizer.step(closure=closure), wanted)
            with torch.no_grad():
                optimizer.step(closure)
    assert_same_state(name, *optimizers)
    with pytest.raises(ArithmeticError, match="on purpose"):
        optimizers[0].step(lambda: (_ for _ in ()).throw(ArithmeticError("on purpose")))


@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("set_to_none", [True, False])
@NAMES
def test_zero_grad(name, set_to_none, foreach):
    flags = {"foreach": foreach} if accepts(name, "foreach") else {}
    optimizers, models = pair(name, lambda: network(name), **flags)
    for model, optimizer in zip(models, optimizers, strict=True):
        for step in range(4):
            loss_of(model, step).backward()
            for p in model.parameters():  # as from backward(create_graph=True)
                p.grad = p.grad * torch.ones((), dtype=p.dtype, requires_grad=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            for p in model.parameters():
                if set_to_none:
                    assert p.grad is None
                else:
                    assert not p.grad.any()
                    assert not p.grad.requires_grad
            optimizer.step()
    assert_same_state(name, *optimizers)


@NAMES
def test_nothing_of_a_step_is_differentiable(name):
    model = network(name)
    optimizer = getattr(optim, name)(model.parameters())
    train(model, optimizer, 2)
    for p, state in optimizer.state.items():
        assert p.is_leaf
        assert p.requires_grad
        assert not any(v.requires_grad for v in state.values() if isinstance(v, torch.Tensor))


@NAMES
def test_a_group_added_in_mid_training(name):
    optimizers, models = pair(name, lambda: network(name))
    for cls, model in zip(classes(name), models, strict=True):
        optimizer = cls(model[0].parameters())
        train(model, optimizer, 3)
        if name == "Adagrad" and cls is torch.optim.Adagrad:  # torch forgets to start its state
            for p in model[2].parameters():
                optimizer.state[p] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(p)}
        optimizer.add_param_group({"params": model[2].parameters(), "lr": 1e-2})
        train(model, optimizer, 3, first=3)
        optimizers[models.index(model)] = optimizer
    assert_same_state(name, *optimizers)


# State and checkpoints


@CASES
def test_state(case):
    """A defaultdict; as with torch, a parameter that took no step has none, but in Adagrad."""
    optimizers, _ = pair(case.name, some_parameters, **case.kwargs)
    ours, theirs = optimizers
    assert isinstance(ours.state, defaultdict)
    assert len(ours.state) == len(theirs.state)
    for optimizer in optimizers:
        parameters(optimizer)[0].grad = torch.ones(2, 3, dtype=torch.float64)
        optimizer.step()
    assert (parameters(ours)[1] in ours.state) == (parameters(theirs)[1] in theirs.state)
    assert all(len(state) > 0 for state in ours.state.values())
    assert_same_state(case.name, *optimizers)
    assert ours.state[torch.zeros(1)] == {}


@CASES
def test_step_counts(case):
    optimizers, _ = pair(case.name, some_parameters, **case.kwargs)
    for optimizer in optimizers:
        random_steps(optimizer, 3)
    ours, theirs = optimizers
    for p, its in zip(parameters(ours), theirs.state.values(), strict=bool(theirs.state)):
        if "step" in its:
            count = ours.state[p]["step"]
            assert isinstance(count, torch.Tensor)
            assert (count.dtype, count.shape) == (torch.float32, ())
            assert count == its["step"] == 3


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@CASES
def test_a_saved_state_dict_is_the_same(case):
    optimizer = getattr(optim, case.name)(some_parameters(), **case.kwargs)
    random_steps(optimizer)
    state = optimizer.state_dict()
    assert list(state) == ["state", "param_groups"]
    assert state["param_groups"][0]["params"] == [0, 1]
    assert list(state["state"]) in ([0, 1], [])
    assert equal(through_a_file(state), state)


def loaded(case, named=(False, False)):
    """An optimizer after five steps, one that its state was loaded into, and their models."""
    # In float32: what loading casts to the parameters' dtype is float32 already.
    models = [network(case.name, torch.float32) for _ in range(2)]
    made = [
        getattr(optim, case.name)(m.named_parameters() if n else m.parameters(), **case.kwargs)
        for m, n in zip(models, named, strict=True)
    ]
    train(models[0], made[0], 5)
    models[1].load_state_dict(models[0].state_dict())
    made[1].load_state_dict(copy.deepcopy(made[0].state_dict()))
    return made, models


@EXACT_CASES
def test_a_loaded_optimizer_goes_on_the_same(case):
    made, models = loaded(case)
    assert isinstance(made[1].state, defaultdict)
    for step in range(5, 8):
        for model, optimizer in zip(models, made, strict=True):
            train(model, optimizer, 1, step)
        assert equal(*(list(m.parameters()) for m in models))
    assert equal(*(o.state_dict() for o in made))
    # A group given twice is written the same twice (pytorch/pytorch#36831).
    made[1].param_groups.extend(made[1].param_groups)
    assert equal(*made[1].state_dict()["param_groups"])


@pytest.mark.parametrize("named", [(False, True), (True, False), (True, True)], ids=str)
@EXACT_NAMES
def test_names_in_checkpoints(name, named):
    """Kept where either side has them; they choose nothing."""
    made, models = loaded(Case(name, "default", {}), named)
    names = [n for n, _ in models[0].named_parameters()]
    assert made[1].param_groups[0]["param_names"] == names
    for model, optimizer in zip(models, made, strict=True):
        train(model, optimizer, 3, first=5)
    assert equal(*(list(m.parameters()) for m in models))
    states = [o.state_dict() for o in made]
    for state in states:
        assert state["param_groups"][0].pop("param_names", names) == names
    assert equal(*states)


@CASES
def test_names_in_groups(case):
    first, second = some_parameters()
    optimizer = getattr(optim, case.name)([("first", first)], **case.kwargs)
    assert optimizer.param_groups[0]["params"] == [first]
    assert optimizer.param_groups[0]["param_names"] == ["first"]
    with pytest.raises(ValueError, match="cannot add param group without names"):
        optimizer.add_param_group({"params": [second]})
    optimizer.add_param_group({"params": [("second", second)]})
    assert [g["param_names"] for g in optimizer.param_groups] == [["first"], ["second"]]
    random_steps(optimizer)


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
@CASES
def test_checkpoints_interchange(case, direction):
    optimizers, models = pair(case.name, lambda: network(case.name), **case.kwargs)
    whole = train(models[1], optimizers[1], 6)
    model = network(case.name)
    first, second = classes(case.name)[:: 1 if direction == "to torch" else -1]
    before = first(model.parameters(), **case.kwargs)
    train(model, before, 3)
    after = second(model.parameters(), **case.kwargs)
    after.load_state_dict(through_a_file(before.state_dict()))
    train(model, after, 3, first=3)
    assert_same(case.name, model.parameters(), whole.parameters())


@CASES
def test_checkpoints_from_before_a_flag(case):
    """They lack what torch has added since, and what torch has added since is off."""
    optimizers, models = pair(case.name, lambda: network(case.name), **case.kwargs)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
        state = copy.deepcopy(optimizer.state_dict())
        for flag in INFOS[case.name].not_og_supported_flags:
            state["param_groups"][0].pop(flag, None)
        optimizer.load_state_dict(state)
        train(model, optimizer, 3, first=3)
    ours, theirs = (o.param_groups[0] for o in optimizers)
    for flag in INFOS[case.name].not_og_supported_flags:
        assert bool(ours.get(flag)) == bool(theirs.get(flag)), flag
    assert_same_state(case.name, *optimizers)


@NAMES
def test_checkpoints_from_before_decoupled_decay(name):
    """An AdamW that was saved before it was an Adam decays apart from the gradient still."""
    kwargs = {"weight_decay": 0.1} if accepts(name, "weight_decay") else {}
    optimizers, models = pair(name, lambda: network(name), **kwargs)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0].pop("decoupled_weight_decay", None)
        optimizer.load_state_dict(state)
        train(model, optimizer, 3, first=3)
    assert_same_state(name, *optimizers)


@CASES
def test_step_counts_that_are_numbers(case):
    optimizers, models = pair(case.name, lambda: network(case.name), **case.kwargs)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 3)
        state = copy.deepcopy(optimizer.state_dict())
        for entry in state["state"].values():
            if "step" in entry:
                entry["step"] = entry["step"].item()
        optimizer.load_state_dict(state)
        train(model, optimizer, 3, first=3)
    assert_same_state(case.name, *optimizers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@CASES
def test_state_is_cast_to_its_parameter(case, dtype):
    """All but the count of steps: at 256 and above bfloat16 has not every integer."""
    optimizers = []
    for cls in classes(case.name):
        before = cls(some_parameters(torch.float32), **case.kwargs)
        random_steps(before)
        state = before.state_dict()
        for entry in state["state"].values():
            if "step" in entry:
                entry["step"] = torch.tensor(257.0)
        kept = copy.deepcopy(state)
        after = cls(some_parameters(dtype), **case.kwargs)
        after.load_state_dict(state)
        assert equal(state, kept)
        optimizers.append(after)
    ours, theirs = (o.state_dict()["state"] for o in optimizers)
    for place, its in theirs.items():
        for key, value in its.items():
            mine = ours[place][key]
            kind = torch.float64 if key in IN_FLOAT64 else value.dtype
            assert (mine.dtype, mine.shape) == (kind, value.shape), key
    random_steps(optimizers[0], 1)
    counts = [s["step"] for s in optimizers[0].state.values() if "step" in s]
    assert all(count.dtype == torch.float32 and count == 258 for count in counts)


@NAMES
def test_state_dicts_of_another_shape(name):
    optimizer = getattr(optim, name)(some_parameters())
    random_steps(optimizer)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    halves = [{"params": [p]} for p in some_parameters()]
    wrong = [
        (getattr(optim, name)(halves), "different number of parameter groups"),
        (getattr(optim, name)(some_parameters()[:1]), "doesn't match the size"),
    ]
    for other, message in wrong:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
    for missing in ("state", "param_groups"):
        with pytest.raises(KeyError, match=missing):
            optimizer.load_state_dict({k: v for k, v in state.items() if k != missing})
    assert equal(optimizer.state_dict(), kept)


@NAMES
def test_keys_that_an_optimizer_does_not_know(name):
    """They are kept, and the step does not mind them."""
    plain, optimizer = (getattr(optim, name)(some_parameters(torch.float32)) for _ in range(2))
    random_steps(plain)
    random_steps(optimizer)
    state = optimizer.state_dict()
    state["param_groups"][0]["mine"] = "group"
    state["state"].setdefault(0, {})["mine"] = torch.tensor([1.0, 2.0, 3.0])
    state["state"]["mine"] = 1
    state["mine"] = "left out"
    optimizer.load_state_dict(state)
    random_steps(plain)
    random_steps(optimizer)
    assert equal(parameters(optimizer), parameters(plain))
    state = optimizer.state_dict()
    assert state["param_groups"][0]["mine"] == "group"
    assert state["state"]["mine"] == 1
    assert state["state"][0]["mine"].tolist() == [1, 2, 3]
    assert "mine" not in state


@NAMES
def test_a_parameter_whose_state_is_missing_starts_anew(name):
    optimizer = getattr(optim, name)(some_parameters())
    random_steps(optimizer)
    state = optimizer.state_dict()
    state["state"].pop(0, None)
    optimizer.load_state_dict(state)
    first, _ = parameters(optimizer)
    fresh = getattr(optim, name)([first.detach().clone()])
    random_steps(fresh, 1)
    random_steps(optimizer, 1)
    assert torch.equal(first, parameters(fresh)[0])


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=list(COPIES))
@EXACT_CASES
def test_a_copy_goes_on_the_same(case, duplicate):
    model = network(case.name)
    optimizer = getattr(optim, case.name)(model.parameters(), **case.kwargs)
    train(model, optimizer, 3)
    other, its = duplicate((model, optimizer))
    assert type(its) is type(optimizer)
    assert public(its) == public(optimizer)
    train(model, optimizer, 3, first=3)
    train(other, its, 3, first=3)
    assert equal(list(other.parameters()), list(model.parameters()))
    assert equal(its.state_dict(), optimizer.state_dict())


def public(optimizer):
    return {name for name in vars(optimizer) if not name.startswith("_")}


@NAMES
def test_it_goes_when_the_last_reference_does(name):
    """Without a cycle that would keep it, and the model's memory, until the next collection."""
    model = network(name)
    optimizer = getattr(optim, name)(model.parameters())
    train(model, optimizer, 2)
    weight, ours = weakref.ref(model[0].weight), weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer, model
        assert ours() is None
        assert weight() is None
    finally:
        gc.enable()


# Hooks


def mark(optimizer):
    optimizer.state["test"] = 1


def unmark(optimizer, state_dict):
    state_dict["marked"] = state_dict["state"].pop("test", None) == 1
    return state_dict


@NAMES
def test_state_dict_hooks(name):
    optimizer = getattr(optim, name)(some_parameters())
    post = optimizer.register_state_dict_post_hook(unmark)
    assert optimizer.state_dict()["marked"] is False
    pre = optimizer.register_state_dict_pre_hook(mark)
    assert optimizer.state_dict()["marked"] is True
    assert "test" not in optimizer.state_dict()["state"]
    random_steps(optimizer)  # with an entry in its state that is no parameter's
    post.remove()
    assert optimizer.state_dict()["state"]["test"] == 1
    pre.remove()
    seen = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("second"))
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("first"), prepend=True)
    optimizer.register_state_dict_post_hook(lambda _, __: seen.append("fourth"))
    optimizer.register_state_dict_post_hook(lambda _, __: seen.append("third"), prepend=True)
    optimizer.state_dict()
    assert seen == ["first", "second", "third", "fourth"]


def slower(optimizer, state_dict):
    state_dict["param_groups"][0]["lr"] = 0.002


def faster(optimizer, state_dict):
    state_dict = copy.deepcopy(state_dict)
    state_dict["param_groups"][0]["lr"] = 0.003
    return state_dict


@NAMES
def test_load_state_dict_hooks(name):
    optimizer = getattr(optim, name)(some_parameters())
    optimizer.register_load_state_dict_pre_hook(slower)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.002
    first = optimizer.register_load_state_dict_pre_hook(faster, prepend=True)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.002
    first.remove()
    optimizer.register_load_state_dict_pre_hook(faster)
    rates = []
    optimizer.register_load_state_dict_post_hook(
        lambda o: rates.append(("second", o.param_groups[0]["lr"]))
    )
    optimizer.register_load_state_dict_post_hook(lambda _: rates.append("first"), prepend=True)
    optimizer.load_state_dict(optimizer.state_dict())
    assert rates == ["first", ("second", 0.003)]
    # The step is by the rate that was loaded.
    wanted = getattr(optim, name)(some_parameters(), lr=0.003)
    random_steps(wanted)
    random_steps(optimizer)
    assert equal(parameters(optimizer), parameters(wanted))


@NAMES
def test_step_hooks(name):
    optimizers = [getattr(optim, name)(some_parameters()), torch.optim.SGD(some_parameters())]
    seen = []

    def noting(what):
        return lambda optimizer, args, kwargs: seen.append((what, optimizer))

    handles = [
        register_optimizer_step_pre_hook(noting("all before")),
        register_optimizer_step_post_hook(noting("all after")),
    ]
    for optimizer in optimizers:
        handles.append(optimizer.register_step_post_hook(noting("after")))
        handles.append(optimizer.register_step_pre_hook(noting("before")))
    order = "all before", "before", "after", "all after"
    try:
        for optimizer in (*optimizers, optimizers[0]):
            seen.clear()
            optimizer.step()
            assert seen == [(what, optimizer) for what in order]
    finally:
        for handle in handles:
            handle.remove()
    seen.clear()
    optimizers[0].step()
    assert not seen


@NAMES
def test_a_hook_may_change_the_arguments(name):
    optimizer = getattr(optim, name)(some_parameters())
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 2.0), {}))
    assert optimizer.step(lambda: 1.0) == 2.0
    handle.remove()
    assert optimizer.step(lambda: 1.0) == 1.0
    optimizer.register_step_pre_hook(lambda o, args, kwargs: "no arguments")
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()


@NAMES
def test_names_in_the_profiler(name):
    optimizer = getattr(optim, name)(some_parameters())
    with torch.autograd.profiler.profile() as profile:
        random_steps(optimizer, 1)
        optimizer.zero_grad()
    found = {event.key for event in profile.key_averages()}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= found


@NAMES
def test_subclasses(name):
    """One with a step of its own: hooks run once a step (torch's run around each of the two)."""
    ends = []
    for cls in classes(name):

        class Own(cls):
            def __init__(self, params, scale):
                super().__init__(params, lr=1e-3 * scale)
                self.scale = scale

            def step(self, closure=None):
                for p in parameters(self):
                    p.grad.mul_(self.scale)
                return super().step(closure)

        optimizer, seen = Own(some_parameters(), scale=2), []
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append(1))
        random_steps(optimizer)
        ends.append(optimizer)
        assert repr(optimizer).startswith("Own (")
        assert len(seen) == 3 or cls.__module__.startswith("torch")
    assert_same_state(name, *ends)


# With the rest of torch


def moves_momentum(name):
    return accepts(name, "momentum") or accepts(name, "betas")


# A class's name to what makes one of an optimizer and whether that has a momentum to cycle.
SCHEDULERS = {
    "LambdaLR": lambda o, _: lr_scheduler.LambdaLR(o, lambda step: 0.8**step),
    "MultiplicativeLR": lambda o, _: lr_scheduler.MultiplicativeLR(o, lambda step: 0.8),
    "StepLR": lambda o, _: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o, _: lr_scheduler.MultiStepLR(o, [2, 5, 9], 0.5),
    "ConstantLR": lambda o, _: lr_scheduler.ConstantLR(o, 0.4, 4),
    "LinearLR": lambda o, _: lr_scheduler.LinearLR(o, 0.4, 0.8, 4),
    "ExponentialLR": lambda o, _: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o, _: lr_scheduler.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda o, _: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "ReduceLROnPlateau": lambda o, _: lr_scheduler.ReduceLROnPlateau(o, patience=2),
    "CyclicLR": lambda o, momentum: lr_scheduler.CyclicLR(
        o, 1e-4, 1e-2, 3, cycle_momentum=momentum
    ),
    "OneCycleLR": lambda o, momentum: lr_scheduler.OneCycleLR(o, 1e-2, 13, cycle_momentum=momentum),
    "SequentialLR": lambda o, _: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.4, 4), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "ChainedScheduler": lambda o, _: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.4, 4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o, _: swa_utils.SWALR(o, swa_lr=1e-2, anneal_epochs=5),
}


def test_every_scheduler_of_torch_is_here():
    bases = {"LRScheduler", "_LRScheduler"}
    assert (
        set(SCHEDULERS) - {"SWALR"}
        == {
            name
            for name, thing in vars(lr_scheduler).items()
            if isinstance(thing, type) and issubclass(thing, lr_scheduler.LRScheduler)
        }
        - bases
    )


def advance(scheduler):
    """One step; a loss that never falls is a plateau."""
    plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    scheduler.step(*([1.0] if plateau else []))


@pytest.mark.parametrize("rate", [float, torch.tensor], ids=["float", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # SequentialLR's own
@NAMES
def test_schedulers(name, scheduler, rate):
    lr = rate(5e-3) if rate is float else rate(5e-3, dtype=torch.float64)
    optimizers, models = pair(name, lambda: network(name), lr=lr)
    rates = {}
    for model, optimizer in zip(models, optimizers, strict=True):
        made = SCHEDULERS[scheduler](optimizer, moves_momentum(name))
        seen = rates[optimizer] = []

        def after(s=made, o=optimizer, seen=seen):
            advance(s)
            seen.append(float(o.param_groups[0]["lr"]))

        train(model, optimizer, 12, after=after)
    ours, theirs = optimizers
    assert rates[ours] == rates[theirs]
    assert len(set(rates[ours])) > 1
    assert isinstance(ours.param_groups[0]["lr"], type(lr))
    assert_same_state(name, *optimizers)


@NAMES
def test_schedulers_that_torch_has_for_an_optimizer(name):
    """On two groups with rates of their own."""
    for schedulers in INFOS[name].scheduler_inputs:
        optimizers, models = [], (network(name), network(name))
        for cls, model in zip(classes(name), models, strict=True):
            groups = [
                {"params": list(model[0].parameters())},
                {"params": list(model[2].parameters()), "lr": 0.01},
            ]
            optimizers.append(cls(groups))
            made = [scheduler(optimizers[-1]) for scheduler in schedulers]
            train(model, optimizers[-1], 20, after=lambda m=made: [advance(s) for s in m])
        assert_same_state(name, *optimizers)


@NAMES
def test_a_scheduler_knows_whether_a_step_was_taken(name):
    optimizer = getattr(optim, name)(some_parameters())
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    optimizer = getattr(optim, name)(some_parameters())
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    random_steps(optimizer, 1)
    scheduler.step()  # without a warning, which would be an error here


@NAMES
def test_gradient_scaler(name):
    """A step whose gradients overflow is skipped, and the scale halved."""
    optimizers, models = pair(name, lambda: network(name))
    for model, optimizer in zip(models, optimizers, strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            if step == 2:
                model[2].weight.grad[0, 0] = torch.inf
            before = copy.deepcopy(list(model.parameters()))
            scaler.step(optimizer)
            scaler.update()
            assert equal(list(model.parameters()), before) == (step == 2)
        assert scaler.get_scale() == 2.0**10
    assert_same_state(name, *optimizers)


@pytest.mark.parametrize(
    "clip",
    [
        lambda p: nn.utils.clip_grad_norm_(p, 1e-2),
        lambda p: nn.utils.clip_grad_norm_(p, 1e-2, norm_type=torch.inf, foreach=True),
        lambda p: nn.utils.clip_grad_value_(p, 1e-3),
    ],
    ids=["norm", "inf", "value"],
)
@NAMES
def test_clipped_gradients(name, clip):
    optimizers, models = pair(name, lambda: network(name))
    for model, optimizer in zip(models, optimizers, strict=True):
        for step in range(5):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            clip(model.parameters())
            optimizer.step()
    assert_same_state(name, *optimizers)


@pytest.mark.parametrize(
    "average", [None, swa_utils.get_ema_multi_avg_fn(0.9)], ids=["equal", "exponential"]
)
@NAMES
def test_averaged_models(name, average):
    averages = []
    optimizers, models = pair(name, lambda: network(name))
    for model, optimizer in zip(models, optimizers, strict=True):
        averaged = swa_utils.AveragedModel(model, multi_avg_fn=average)
        scheduler = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)

        def after(m=model, a=averaged, s=scheduler):
            a.update_parameters(m)
            s.step()

        train(model, optimizer, 6, after=after)
        averages.append(list(averaged.parameters()))
    assert_same_state(name, *optimizers)
    assert_same(name, *averages)
    assert gap(averages[0][0], models[0][0].weight) > 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", ["Adam"])  # the compiler costs seconds, and sees a step of all
def test_a_compiled_training_step(name):
    """The step is as it is without the compiler, which finds nothing to warn of."""
    models = network(name), network(name)
    eager, compiled = (getattr(optim, name)(m.parameters()) for m in models)

    @torch.compile(backend="eager")
    def step(x):
        compiled.zero_grad()
        models[1](x).pow(2).mean().backward()
        compiled.step()

    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    for _ in range(3):
        step(x)
        eager.zero_grad()
        models[0](x).pow(2).mean().backward()
        eager.step()
    assert_same(name, *(m.parameters() for m in models))
    assert all(state["step"] == 3 for state in compiled.state.values())
