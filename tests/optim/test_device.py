"""Parameters on a device, without one: on the CPU as if it were one, and on ``meta``.

A meta tensor has no values, so that whatever looked at one, as a wait for a GPU does, would raise.
What a CUDA graph does, replay the operations of one step and nothing of Python, a recorder does
here. Launches, kernels and times are measured by ``python -m benchmarks gpu``.
"""

import copy
import io
import shutil
import warnings
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tests.optim.cases import ALL, CASES, name_of
from thalweg import optim
from thalweg.optim import device, from_rule, plan
from thalweg.rules.rule import Number, Rule

SHAPES = [(4, 5), (3,), (), (2, 3, 4)]
ELEMENTWISE = [(case, v) for case, v in ALL if not case.resolved(v.arguments, (4, 5)).whole]
PAIRS = pytest.mark.parametrize("pair", ELEMENTWISE, ids=name_of)
# One of each update, for what takes long.
DISTINCT = list({case.resolved(v.arguments).update: (case, v) for case, v in ELEMENTWISE}.values())


@pytest.fixture
def on_device(monkeypatch):
    """The CPU is no host any more, but a device."""
    monkeypatch.setattr(device, "HOSTS", set())


@pytest.fixture
def compiled(on_device, monkeypatch):
    """And steps compile for it, without code being made; whatever compiles is counted."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(device, "BACKEND", counting)
    monkeypatch.setattr(device, "COMPILING", {"cpu"})
    return graphs


def made(case, arguments, dtype=torch.float64, **more):
    """An optimizer of some tensors, and a generator of gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(s, generator=generator).to(dtype) for s in SHAPES]
    return case.constructor(parameters, **arguments, **more), parameters, generator


def go(optimizer, parameters, generator, steps=12, missing=()):
    """Some steps; at those in ``missing`` the second parameter has no gradient."""
    for k in range(steps):
        for p in parameters:
            g = torch.randn(p.shape, generator=generator).to(p.dtype)
            if p.grad is None:
                p.grad = g
            else:
                p.grad.copy_(g)
        if k in missing:
            parameters[1].grad = None
        optimizer.step(lambda: 0.0)
    return parameters


def gap(some, others):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


def parts(optimizer):
    return [type(part).__name__ for part in optimizer._plan.parts]


@PAIRS
def test_the_same_weights_as_on_the_host(pair, monkeypatch):
    case, valid = pair
    expected = go(*made(case, valid.arguments), missing=(1, 5))
    monkeypatch.setattr(device, "HOSTS", set())
    for capturable in (False, True):
        optimizer, *rest = made(case, valid.arguments, capturable=capturable)
        assert gap(go(optimizer, *rest, missing=(1, 5)), expected) < 1e-12
        assert parts(optimizer) == ["Together"]
        assert [int(s["step"]) for s in optimizer.state.values()] == [12, 10, 12, 12]


@pytest.mark.parametrize("pair", DISTINCT, ids=name_of)
def test_the_same_weights_compiled(pair, monkeypatch, compiled):
    case, valid = pair
    found, graphs = [], []
    for capturable in (False, True):
        optimizer, *rest = made(case, valid.arguments, capturable=capturable)
        for _ in range(7):
            go(optimizer, *rest, steps=1)
            graphs.append(len(compiled))
        assert optimizer._plan.others[0].compiles
        found.append(rest[0])
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}, "only the first step compiles"
    monkeypatch.setattr(device, "HOSTS", {"cpu"})
    expected = go(*made(case, valid.arguments), steps=7)
    assert max(gap(weights, expected) for weights in found) < 1e-12


# torch warns about its own deprecations while it makes code.
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here to make code with")
@pytest.mark.parametrize("name", ["adam", "lars"])
def test_the_same_weights_by_inductor(name, on_device, monkeypatch):
    case = CASES[name]
    expected = go(*made(case, {}, foreach=True) if name == "adam" else made(case, {}), steps=3)
    monkeypatch.setattr(device, "COMPILING", {"cpu"})
    optimizer, *rest = made(case, {})
    assert gap(go(optimizer, *rest, steps=3), expected) < 1e-12
    assert optimizer._plan.others[0].compiles


def test_coefficients_are_data(compiled):
    generator = torch.Generator().manual_seed(0)
    groups = [[torch.randn(s, generator=generator) for s in SHAPES] for _ in range(2)]
    optimizer = optim.Adam([{"params": groups[0]}, {"params": groups[1], "lr": 1e-4}])
    every = [p for parameters in groups for p in parameters]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.01], total_steps=20)
    go(optimizer, every, generator, steps=1)
    first = len(compiled)
    changes = [
        {"betas": (0.8, 0.99)},
        {"weight_decay": 0.1},
        {"eps": 1e-3},
        {"maximize": True},
        {"clip_value": 0.5},
        {"clip_norm": 1.0},
        {"decoupled_weight_decay": True},
        {"lr": torch.tensor(0.1)},
        {"eps_hat": True},
    ]
    for change in changes:
        optimizer.param_groups[0].update(change)
        go(optimizer, every, generator, steps=1)
        schedule.step()
    assert len(compiled) == first > 0


def test_what_does_not_compile_goes_by_multi_tensor_operations(on_device, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(device, "BACKEND", broken)
    monkeypatch.setattr(device, "COMPILING", {"cpu"})
    monkeypatch.setattr(device, "_FAILED", set())
    optimizer, *rest = made(CASES["sgd"], {"lr": 0.1})
    with pytest.warns(UserWarning, match=r"(?s)the step of SGD on cpu does not.*no compiler here"):
        go(optimizer, *rest, steps=1)
    another, *its = made(CASES["sgd"], {"lr": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        go(optimizer, *rest, steps=1)
        go(another, *its, steps=2)
    assert gap(rest[0], its[0]) == 0


@PAIRS
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"capturable": True},
        {"clip_norm": 1.0, "clip_value": 2.0, "ema_decay": 0.9, "lr": torch.empty(0)},
        {"state": "8bit", "stochastic_rounding": True, "capturable": True},
    ],
    ids=lambda m: "-".join(m) or "plain",
)
def test_no_step_looks_at_a_value(pair, more):
    case, valid = pair
    if "lr" in more and (case.name == "rprop" or case.resolved(valid.arguments).scalars):
        pytest.skip("a state on the host follows from the rate")
    on_meta(case, {**valid.arguments, **more})


@pytest.mark.parametrize("name", ["adam", "nadam", "adamw"])
@pytest.mark.parametrize("capturable", [False, True])
def test_rates_and_betas_may_be_tensors(name, capturable, monkeypatch):
    numbers = torch.tensor([0.01, 0.8, 0.99])
    lr, *betas = numbers
    expected = go(*made(CASES[name], {"lr": float(lr), "betas": tuple(map(float, betas))}))
    arguments = {"lr": lr[None], "betas": tuple(betas)}
    assert gap(go(*made(CASES[name], arguments)), expected) < 1e-12
    monkeypatch.setattr(device, "HOSTS", set())
    assert gap(go(*made(CASES[name], arguments, capturable=capturable)), expected) < 1e-12
    if not capturable and name == "nadam":
        return  # a scalar on the host follows from them
    p = torch.empty(3, device="meta")
    optimizer = CASES[name].constructor([p], capturable=capturable)
    optimizer.param_groups[0].update(
        lr=numbers[0].to("meta"), betas=tuple(b.to("meta") for b in betas)
    )
    p.grad = torch.empty_like(p)
    optimizer.step()


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_no_step_of_matrices_looks_at_a_value(name):
    on_meta(CASES[name], {"clip_norm": 1.0}, shapes=[(4, 5), (4, 5), (3, 4)])


def on_meta(case, arguments, shapes=SHAPES):
    dtype = torch.bfloat16 if arguments.get("stochastic_rounding") else torch.float32
    parameters = [torch.empty(s, device="meta", dtype=dtype) for s in shapes]
    optimizer = case.constructor(parameters, **{k: v for k, v in arguments.items() if k != "lr"})
    if isinstance(arguments.get("lr"), torch.Tensor):
        # It cannot be asked whether it is in range.
        optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    for missing in (False, True, False):
        for p in parameters:
            p.grad = torch.empty_like(p)
        if missing:
            parameters[1].grad = None
        optimizer.step(lambda: 0.0)
    return optimizer


class Recorder(TorchDispatchMode):
    """The operations of a step, to be replayed without Python, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        now = {}
        for function, args, kwargs, before in self.calls:
            args, kwargs = tree_map(partial(_current, now), (args, kwargs))
            after = function(*args, **kwargs)
            pairs = zip(*map(_tensors, (before, after)), strict=True)
            now |= {id(a): b for a, b in pairs}


def _current(now, x):
    return now.get(id(x), x)


def _tensors(out):
    return [t for t in (out if isinstance(out, (list, tuple)) else [out]) if t is not None]


@PAIRS
def test_a_captured_step_replayed(pair, monkeypatch):
    """From the third step on: RAdam starts to divide at the sixth, and schedules go on."""
    case, valid = pair
    if case.resolved(valid.arguments).point is not None:
        pytest.skip("a closure decides on the host")
    expected = go(*made(case, valid.arguments))
    monkeypatch.setattr(device, "HOSTS", set())
    optimizer, parameters, generator = made(case, valid.arguments, capturable=True)
    go(optimizer, parameters, generator, steps=2)
    before = copy.deepcopy(
        [parameters, [{k: v.clone() for k, v in optimizer.state[p].items()} for p in parameters]]
    )
    with Recorder() as recorder:
        optimizer.step()
    # To capture is not to run: all that it wrote is put back.
    for p, old, state in zip(parameters, *before, strict=True):
        p.copy_(old)
        for name, value in state.items():
            optimizer.state[p][name].copy_(value)
    for _ in range(10):
        for p in parameters:
            p.grad.copy_(torch.randn(p.shape, generator=generator).to(p.dtype))
        recorder.replay()
    assert gap(parameters, expected) < 1e-12
    assert all(float(optimizer.state[p]["step"]) == 12 for p in parameters)


@pytest.mark.parametrize("count", [1, 4])
def test_operations_do_not_grow_with_the_number_of_tensors(count):
    class Count(TorchDispatchMode):
        launches = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.launches += function.namespace == "aten"
            return function(*args, **(kwargs or {}))

    parameters = [torch.empty(7, device="meta") for _ in range(10 * count)]
    optimizer = optim.AdamW(parameters)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.empty_like(p)
        with Count() as counted:
            optimizer.step()
    # The decay; 3 for m and 4 for s; the rate; 4 for the root; quotient, difference; 3 results.
    assert counted.launches == 18


@pytest.mark.parametrize("name", ["adam", "nadam", "prodigy", "lars", "schedulefreesgd"])
@pytest.mark.parametrize("more", [{}, {"state": "8bit"}], ids=["plain", "8bit"])
def test_a_checkpoint_goes_on_anywhere(name, more, monkeypatch):
    """On the host, on a device and captured, from each to each."""
    case = CASES[name]
    ways = [({"cpu"}, False), (set(), False), (set(), True)]
    ends, saved = [], []
    for hosts, capturable in ways:
        monkeypatch.setattr(device, "HOSTS", hosts)
        optimizer, parameters, generator = made(
            case, {}, torch.float32, capturable=capturable, **more
        )
        go(optimizer, parameters, generator, steps=4)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        saved.append((file, [p.clone() for p in parameters], generator.get_state()))
        ends.append([p.clone() for p in go(optimizer, parameters, generator, steps=4)])
    # Eight bits are rounded at random, otherwise on the host.
    tolerance = 0.05 if more else 1e-5
    for end in ends:
        assert gap(end, ends[0]) < tolerance
    for file, weights, drawn in saved:
        for hosts, capturable in ways:
            monkeypatch.setattr(device, "HOSTS", hosts)
            optimizer, parameters, generator = made(
                case, {}, torch.float32, capturable=capturable, **more
            )
            for p, w in zip(parameters, weights, strict=True):
                p.copy_(w)
            generator.set_state(drawn)
            file.seek(0)
            optimizer.load_state_dict(torch.load(file))
            for group in optimizer.param_groups:
                group["capturable"] = capturable
            go(optimizer, parameters, generator, steps=4)
            assert gap(parameters, ends[0]) < tolerance


@pytest.mark.parametrize("capturable", [False, True])
def test_what_is_rounded_at_random_is_as_on_the_host(capturable, monkeypatch):
    ends = []
    for hosts, options in (({"cpu"}, {}), (set(), {"capturable": capturable})):
        monkeypatch.setattr(device, "HOSTS", hosts)
        arguments = {"state": "8bit", "stochastic_rounding": True, **options}
        optimizer, parameters, generator = made(CASES["adam"], arguments, torch.bfloat16)
        go(optimizer, parameters, generator, steps=3)
        states = [optimizer.state[p] for p in parameters]
        ends.append([*parameters, *(s[name] for s in states for name in CASES["adam"].rule.state)])
    agree = torch.cat([(a == b).flatten() for a, b in zip(*ends, strict=True)])
    # Another order of operations may be another code.
    assert agree.double().mean() > 0.98


@pytest.mark.parametrize("name", ["adam", "prodigy", "lamb"])
def test_parts_of_host_and_device_bound_one_norm_and_share_sums(name, monkeypatch):
    case, arguments = CASES[name], {"clip_norm": 0.5}
    expected = go(*made(case, arguments))
    takes = plan.goes_together
    monkeypatch.setattr(device, "HOSTS", set())
    monkeypatch.setattr(
        plan, "goes_together", lambda rule, p, state: p.ndim == 2 and takes(rule, p, state)
    )
    optimizer, *rest = made(case, arguments)
    assert gap(go(optimizer, *rest), expected) < 1e-12
    assert parts(optimizer) == ["Batch", "Together"]


def test_scalars_of_a_tensors_own(on_device):
    """A rule of one's own whose scalars follow from sums over each tensor."""
    rule = Rule(
        "Normed",
        (Number("lr", 0.5),),
        (),
        lambda hyper, step, size, before: (hyper["lr"],),
        lambda p, g, lr, size: (p - lr * g / size,),
        scalars={"size": lambda hyper: 0.0, "before": lambda hyper: -1.0},
        terms=lambda p, g, lr: (g * g,),
        advance=lambda hyper, step, sums, scalars: ((sums[0] ** 0.5,), (sums[0], scalars[0])),
    )
    parameters = [torch.zeros(2), torch.zeros(3)]
    optimizer = from_rule(rule)(parameters)
    for scale in (1.0, 2.0):
        for i, p in enumerate(parameters):
            p.grad = torch.full_like(p, scale * (i + 1))
        optimizer.step()
    for i, p in enumerate(parameters):
        torch.testing.assert_close(p, torch.full_like(p, -2 * 0.5 / len(p) ** 0.5))
        state = optimizer.state[p]
        squares = [len(p) * (scale * (i + 1)) ** 2 for scale in (2.0, 1.0)]
        assert [float(state["size"]), float(state["before"])] == squares


def test_what_cannot_be_captured_is_named():
    p = torch.ones(2, 2)
    p.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"SGD, parameter group 0, parameter 0: .* is on cpu"):
        optim.SGD([p], capturable=True).step()
    q = torch.empty(2, 2, device="meta")
    q.grad = torch.empty_like(q)
    with pytest.raises(ValueError, match=r"parameter group 0, parameter 0: .*Muon chooses"):
        optim.Muon([q], capturable=True).step()


def test_shared_memory_and_other_kinds_go_one_by_one(on_device):
    whole = torch.zeros(6)
    parameters = [whole[:4], whole[2:], torch.zeros(3)]
    optimizer = optim.SGD(parameters, lr=1.0)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert whole.tolist() == [-1, -1, -2, -2, -1, -1]
    assert sorted(parts(optimizer)) == ["Loose", "Loose", "Together"]
