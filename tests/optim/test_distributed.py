"""Two real processes over gloo: DistributedDataParallel, FSDP2, ZeRO, distributed checkpoints.

Each of the two sees its half of every batch. Gradients are averaged over them, so that they have to
end where one process that sees whole batches ends: the oracle is an ordinary training. Where both
are given the same gradients, cut up or not, the ends differ by the order of sums alone.
"""

import copy
import warnings

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.optim.cases import CASES
from tests.optim.digits import data
from tests.optim.ranks import WORLD, Failed, Ranks
from thalweg import optim

BATCH = 64  # of both together
STEPS = 12

# Halves of a batch are summed in another order than the whole: some 1e-16 a step, which rules that
# divide by a small second moment magnify.
NEARLY = 1e-9
# The bases of a matrix that is longer than wide are anybody's choice after one gradient (its outer
# product has eigenvalues of zero), so that only short sides are compared.
ARGUMENTS = {name: case.valid[0].arguments for name, case in CASES.items()} | {
    "soap": {"lr": 3e-3, "max_precond_dim": 20, "precondition_frequency": 3},
}
EACH = pytest.mark.parametrize("name", CASES)
# Elementwise, sums over each tensor, sums over all, whole matrices and the rest.
KINDS = pytest.mark.parametrize("name", ["adam", "lamb", "prodigy", "muon"])


@pytest.fixture(scope="module")
def ranks():
    pair = Ranks()
    yield pair
    pair.close()


def network():
    """Shards of unlike lengths: 33 rows are 17 and 16; one slope is one and none at all."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 33), nn.PReLU(), nn.Linear(33, 33), nn.Tanh(), nn.Linear(33, 10)
    ).to(torch.float64)


def train(model, optimizer, steps, first=0, rank=None):
    """With half of each batch on either rank, or with all of it where there is no rank."""
    x, y = data(torch.float64)
    share = slice(None) if rank is None else slice(rank, None, WORLD)
    for step in range(first, first + steps):
        rows = (torch.arange(step * BATCH, (step + 1) * BATCH) % len(x))[share]

        def closure(rows=rows):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # by the norm of all shards
            return loss

        optimizer.step(closure)
    return model


def sharded(model):
    """Layer by layer, as is usual: what comes next is gathered while this one computes."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(t):
    """On every rank all of it, as a plain tensor."""
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()


def weights(model):
    return [whole(p) for p in model.parameters()]


def far(some, others):
    """Largest ‖a - b‖ / ‖b‖ over weight tensors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


def ours(name, model, **more):
    return CASES[name].constructor(model.parameters(), **{**ARGUMENTS[name], **more})


def theirs(name, model):
    return CASES[name].oracle(model.parameters(), **CASES[name].valid[0].oracle)


def alone(name, steps=STEPS, **more):
    """One process and whole batches."""
    model = network()
    return weights(train(model, ours(name, model, **more), steps))


def trained(rank, wrap, make, name, steps=STEPS, more=()):
    model = wrap(network())
    return weights(train(model, make(name, model, **dict(more)), steps, rank=rank))


def check(ranks, wrap, name, **more):
    """Both ranks have the same weights, and those of one process."""
    first, second = ranks(trained, wrap, ours, name, STEPS, tuple(more.items()))
    assert far(first, second) == 0.0
    assert far(first, weights(network())) > 1e-6, "it should have moved"
    assert far(first, alone(name, **more)) < NEARLY
    return first


@EACH
def test_ddp(ranks, name):
    case = CASES[name]
    found = check(ranks, DistributedDataParallel, name)
    if case.oracle is not None and case.valid[0].oracle is not None:
        oracle, _ = ranks(trained, DistributedDataParallel, theirs, name)
        assert far(found, oracle) < case.tolerance[1]


def in_buckets(model):
    """Gradients are views of what is sent, which DDP puts elsewhere after the first step."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def in_small_buckets(model):
    return DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=0.005)


def static(model):
    return DistributedDataParallel(model, static_graph=True)


@pytest.mark.parametrize("wrap", [in_buckets, in_small_buckets, static])
def test_ddp_with_options(ranks, wrap):
    check(ranks, wrap, "adam")


@EACH
def test_fsdp2(ranks, name):
    check(ranks, sharded, name)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_fsdp2_as_torchs(ranks, name):
    a, b = (ranks(trained, sharded, make, name)[0] for make in (ours, theirs))
    assert far(a, b) < CASES[name].tolerance[1]


@KINDS
def test_fsdp2_with_what_every_rule_has(ranks, name):
    check(ranks, sharded, name, clip_norm=0.1, clip_value=0.01, ema_decay=0.9, clear_grad=True)


def _states_on(rank):
    model = sharded(network())
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 2, rank=rank)
    found = []
    for p in model.parameters():
        state = optimizer.state[p]
        assert isinstance(p, DTensor)
        assert state["step"] == 2
        for name in ("exp_avg", "exp_avg_sq"):
            assert (state[name].placements, state[name].device_mesh) == (
                p.placements,
                p.device_mesh,
            )
            assert state[name].to_local().shape == p.to_local().shape
        found.append(state["exp_avg"].to_local().numel())
    assert len(optimizer._plan.others) == 0  # the kernel takes them all
    return found


def test_fsdp2_keeps_state_as_it_keeps_parameters(ranks):
    numbers = ranks(_states_on)
    assert numbers[0][2] == 1  # the one slope
    assert numbers[1][2] == 0
    assert [a + b for a, b in zip(*numbers, strict=True)] == [p.numel() for p in weights(network())]


def _one_by_one(rank):
    """DTensors whose parts change hands between steps, against the same as plain tensors."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(0)
    values, gradients = torch.randn(2, 5, 6, dtype=torch.float64)
    layouts = [[Shard(0)], [Shard(1)], [Replicate()]]
    plain = [values.clone().requires_grad_() for _ in layouts]
    laid_out = [nn.Parameter(distribute_tensor(values.clone(), mesh, layout)) for layout in layouts]
    oracle, optimizer = torch.optim.Adam(plain, lr=0.1), optim.Adam(laid_out, lr=0.1)

    def step(layout_of=lambda layout: layout):
        for p, q, layout in zip(plain, laid_out, layouts, strict=True):
            p.grad = gradients.clone()
            q.grad = distribute_tensor(gradients.clone(), mesh, layout_of(layout))
        saved = (laid_out[0] ** 2).sum()
        optimizer.step()
        oracle.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saved.backward()
        for p, q in zip(plain, laid_out, strict=True):
            torch.testing.assert_close(q.full_tensor(), p.detach(), rtol=1e-12, atol=1e-14)
            assert q._local_tensor.grad is None  # zero_grad is to free it

    step()
    assert len(optimizer._plan.others) == 0  # the kernel takes them all
    step()
    for q in laid_out:  # as when FSDP2 pads a part anew
        q._local_tensor = q._local_tensor.clone()
    step()
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].clone()
        state["exp_avg_sq"]._local_tensor = state["exp_avg_sq"]._local_tensor.clone()
    step()
    step(lambda layout: [Replicate()])  # gradients laid out unlike their parameters
    assert len(optimizer._plan.others) == 2
    step()
    optimizer.zero_grad()
    before = [q.full_tensor() for q in laid_out]
    optimizer.step()
    for q, value in zip(laid_out, before, strict=True):
        assert torch.equal(q.full_tensor(), value)


def test_parts_put_elsewhere_and_gradients_laid_out_otherwise(ranks):
    ranks(_one_by_one)


def _layouts():
    """Of a 6 x 5 matrix: rows, columns, copies; and over a mesh of two dimensions."""
    line, square = init_device_mesh("cpu", (WORLD,)), init_device_mesh("cpu", (1, WORLD))
    return [
        (line, [Shard(0)]),
        (line, [Shard(1)]),
        (line, [Replicate()]),
        (square, [Replicate(), Shard(0)]),
        (square, [Shard(0), Shard(1)]),
    ]


def _laid_out_in_every_way(rank, name, more):
    """Largest distance after some steps from the same parameters as plain tensors.

    Equal gradients are laid out as their parameters, or as sums that have still to be taken.
    """
    layouts = _layouts()
    torch.manual_seed(0)
    # The last is a single row, of which one process has nothing.
    values = [torch.randn(6, 5, dtype=torch.float64) for _ in layouts]
    values, layouts = [*values, values[0][:1].clone()], [*layouts, layouts[0]]
    plain = [nn.Parameter(v.clone()) for v in values]
    laid_out = [
        nn.Parameter(distribute_tensor(v.clone(), mesh, placements))
        for v, (mesh, placements) in zip(values, layouts, strict=True)
    ]
    make = CASES[name].constructor
    arguments = CASES[name].valid[0].arguments | more
    optimizers = make(plain, **arguments), make(laid_out, **arguments)
    for step in range(5):
        for k, (p, q, (mesh, placements)) in enumerate(zip(plain, laid_out, layouts, strict=True)):
            p.grad = torch.randn_like(p)
            q.grad = distribute_tensor(p.grad.clone(), mesh, placements)
            if k == step:
                q.grad = DTensor.from_local(
                    p.grad * (rank + 1) / 3, mesh, [Replicate()] * (mesh.ndim - 1) + [Partial()]
                )
            if k < 2 and step == 3:  # what is left of its mesh is the single row
                p.grad = q.grad = None
        for optimizer in optimizers:
            optimizer.step(lambda: None)
        if more.get("clear_grad"):
            assert all(p.grad is None or not whole(p.grad).any() for p in (*plain, *laid_out))
    modes = []
    for mode in ("train", "eval", "train"):
        for optimizer in optimizers:
            getattr(optimizer, mode)()
        modes.append(([whole(q) for q in laid_out], [p.detach().clone() for p in plain]))
    assert all(map(torch.equal, modes[0][0], modes[2][0]))
    return max(far(some, others) for some, others in modes)


# Sums over parts are taken in another order.
@EACH
def test_dtensors_in_every_layout(ranks, name):
    assert max(ranks(_laid_out_in_every_way, name, {})) < 1e-12


@KINDS
def test_dtensors_in_every_layout_with_what_every_rule_has(ranks, name):
    more = {"clip_norm": 0.5, "clip_value": 0.3, "ema_decay": 0.9, "clear_grad": True}
    assert max(ranks(_laid_out_in_every_way, name, more)) < 1e-12


def _in_fewer_bits(rank, arguments):
    """Bias and spread of many steps in fewer bits, and how the state of them is laid out."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(0)
    p = torch.randn(130, 17).to(torch.bfloat16 if "stochastic_rounding" in arguments else None)
    exact = nn.Parameter(p.double())
    q = nn.Parameter(distribute_tensor(p.clone(), mesh, [Shard(0)]))
    optimizers = optim.Adam([exact], lr=1e-3), optim.Adam([q], lr=1e-3, **arguments)
    for _ in range(50):
        g = torch.randn_like(p)
        exact.grad, q.grad = g.double(), distribute_tensor(g, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    layouts = {
        name: (tuple(t.shape), t.to_local().shape[0], t.dtype)
        for name, t in optimizers[1].state[q].items()
        if name != "step"
    }
    error = whole(q).double() - exact.detach()
    return float(error.mean()), float(error.std()), layouts


def test_eight_bits_have_scales_for_each_part(ranks):
    (bias, spread, first), (_, _, second) = ranks(_in_fewer_bits, {"state": "8bit"})
    # The steps add up to some 7e-3 each; a code is off by half a percent of the largest moment.
    assert abs(bias) < 1e-4
    assert spread < 1e-3
    for found in (first, second):
        assert found["exp_avg"] == ((130, 17), 65, torch.int8)
        assert found["exp_avg_sq"] == ((130, 17), 65, torch.uint8)
        # 65 * 17 elements a part, 256 to a scale.
        assert found["exp_avg_scale"] == found["exp_avg_sq_scale"] == ((2, 5), 1, torch.float32)


def _whole_matrices_in_fewer_bits(rank, name, state):
    """Parts after a step from moments in fewer bits, and from those opened beforehand."""
    layouts = _layouts()
    torch.manual_seed(0)
    values = [torch.randn(40, 30, dtype=torch.float64) for _ in layouts]
    make, found = CASES[name].constructor, []
    few = make(_laid_out(values, layouts), state=state)
    for _ in range(3):
        _same_gradients(few, layouts)
        few.step()
    full = make(_laid_out([whole(p) for p in few.param_groups[0]["params"]], layouts))
    full.load_state_dict(copy.deepcopy(few.state_dict()))
    full.param_groups[0]["state"] = None
    for optimizer in (few, full):
        torch.manual_seed(1)
        _same_gradients(optimizer, layouts)
        optimizer.step()
        parameters = optimizer.param_groups[0]["params"]
        found.append([p.to_local().detach() for p in parameters])
        kinds = {optimizer.state[p][key].dtype for p in parameters for key in [_MOMENTS[name]]}
        assert kinds == ({torch.float64} if optimizer is full else {_REDUCED[name, state]})
    codes = [few.state[p][_MOMENTS[name]].full_tensor() for p in few.param_groups[0]["params"]]
    return *found, codes


_MOMENTS = {"muon": "momentum_buffer", "soap": "exp_avg_sq"}
_REDUCED = {
    ("muon", "8bit"): torch.int8,
    ("soap", "8bit"): torch.uint8,
    ("muon", "bfloat16"): torch.bfloat16,
    ("soap", "bfloat16"): torch.bfloat16,
}


def _laid_out(values, layouts):
    return [
        nn.Parameter(distribute_tensor(v.clone(), mesh, placements))
        for v, (mesh, placements) in zip(values, layouts, strict=True)
    ]


def _same_gradients(optimizer, layouts):
    for p, (mesh, placements) in zip(optimizer.param_groups[0]["params"], layouts, strict=True):
        p.grad = distribute_tensor(torch.randn(p.shape, dtype=p.dtype), mesh, placements)


@pytest.mark.parametrize("state", ["8bit", "bfloat16"])
@pytest.mark.parametrize("name", ["muon", "soap"])
def test_whole_matrices_in_fewer_bits_whoever_has_which_part(ranks, name, state):
    """Opened where they lie and then gathered; copies of a part are rounded alike."""
    (few, full, codes), (_, _, others) = ranks(_whole_matrices_in_fewer_bits, name, state)
    assert all(map(torch.equal, few, full))
    assert all(map(torch.equal, codes, others))


def test_bfloat16_rounded_at_random(ranks):
    (bias, spread, _), _ = ranks(_in_fewer_bits, {"stochastic_rounding": True, "state": "bfloat16"})
    # A unit in the last place is 2^-8 of numbers of size 1: rounding to nearest loses every step.
    assert abs(bias) < 1e-3
    assert 1e-3 < spread < 4e-2


def _missing_on_one_rank(rank, name):
    """Parameters of which one process has no gradient or no element, and sums that both need."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(0)
    values = [torch.randn(4, 3), torch.randn(1, 3), torch.randn(2, 2)]
    parameters = [nn.Parameter(distribute_tensor(v, mesh, [Shard(0)])) for v in values]
    optimizer = CASES[name].constructor(parameters, **CASES[name].valid[0].arguments, clip_norm=1.0)
    for step in range(3):
        for k, p in enumerate(parameters):
            p.grad = None
            if (k, step, rank) not in ((0, 0, 1), (2, 1, 0), (2, 2, 0), (2, 2, 1)):
                p.grad = torch.ones_like(p)
        optimizer.step(lambda: None)
    return len(optimizer.state)


@pytest.mark.parametrize("name", ["adam", "lamb", "prodigy"])
def test_all_take_part_in_sums_whatever_they_have(ranks, name):
    assert ranks(_missing_on_one_rank, name) == [3, 3]


def _refused(rank):
    mesh = init_device_mesh("cpu", (WORLD,))
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    optimizer = optim.Adam([p])
    p.grad = torch.ones(4)
    with pytest.raises(
        TypeError, match=r"group 0, parameter 0: .* its gradient a plain tensor; make"
    ):
        optimizer.step()
    p.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.zeros(4)
    with pytest.raises(TypeError, match=r"its state 'exp_avg' is a plain tensor where .* \(Shard"):
        optimizer.step()
    p = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()]))
    p.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    with pytest.raises(TypeError, match=r"group 0, parameter 0: .* still to be added up"):
        optim.SGD([p]).step()


def test_what_cannot_be_taken_is_named(ranks):
    ranks(_refused)


def _through_a_distributed_checkpoint(rank, name, more, folder):
    """Five steps, and five more by other objects that read what the first ones wrote."""
    model = sharded(network())
    optimizer = ours(name, model, **more)
    train(model, optimizer, 5, rank=rank)
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.save(parts, checkpoint_id=folder)
    model = sharded(network())
    optimizer = ours(name, model, **more)
    # Read into what these have; the counts of their own are those of no step.
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.load(parts, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"]
    )
    return weights(train(model, optimizer, 5, first=5, rank=rank))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sgd", {}),
        ("adam", {}),
        ("adam", {"ema_decay": 0.9}),
        ("adam", {"state": "8bit"}),
        ("adam", {"state": "bfloat16"}),
        ("schedulefreeadamw", {}),
        ("lamb", {}),
        ("prodigy", {}),
        ("muon", {}),
        ("muon", {"state": "8bit"}),
        ("shampoo", {}),
        ("soap", {}),
        ("soap", {"state": "bfloat16"}),
        ("adafactor", {}),
    ],
    ids=str,
)
def test_distributed_checkpoints(ranks, name, more, tmp_path):
    resumed, _ = ranks(_through_a_distributed_checkpoint, name, more, tmp_path)
    once, _ = ranks(trained, sharded, ours, name, 10, tuple(more.items()))
    assert far(resumed, once) == 0.0


def _whole_state_of_shards(rank, make):
    model = sharded(network())
    optimizer = make("adam", model)
    train(model, optimizer, 5, rank=rank)
    whole = StateDictOptions(full_state_dict=True)
    return weights(model), copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=whole))


@pytest.mark.parametrize(("before", "after"), [(ours, theirs), (theirs, ours), (ours, ours)])
def test_the_whole_state_goes_on_in_one_process(ranks, before, after):
    (values, state), _ = ranks(_whole_state_of_shards, before)
    model = network()
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(value)
    optimizer = after("adam", model)
    # This function of torch's, unlike load_state_dict, takes no hyperparameter that is not there.
    known = {"params", *optimizer.defaults}
    state["param_groups"] = [
        {name: value for name, value in group.items() if name in known}
        for group in state["param_groups"]
    ]
    whole = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state, options=whole)
    train(model, optimizer, 5, first=5)
    assert far(weights(model), alone("adam", 10)) < NEARLY


def _eight_bits_of_shards(rank):
    model = sharded(network())
    optimizer = ours("adam", model, state="8bit")
    train(model, optimizer, 2, rank=rank)
    options = StateDictOptions(full_state_dict=True)
    return copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))


def test_eight_bits_go_on_in_as_many_processes_only(ranks):
    state, _ = ranks(_eight_bits_of_shards)
    model = network()
    optimizer = ours("adam", model, state="8bit")
    options = StateDictOptions(full_state_dict=True)
    with pytest.raises(ValueError, match=r"'exp_avg' in eight bits .* as where it was saved, or"):
        set_optimizer_state_dict(model, optimizer, state, options=options)


def _zero(rank, name, in_buckets):
    """Each rank keeps the state of some parameters, takes their steps and tells the other."""
    with warnings.catch_warnings():
        # What torch.distributed.optim imports compiles itself with torch.jit.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(),
        optimizer_class=CASES[name].constructor,
        parameters_as_bucket_view=in_buckets,
        **ARGUMENTS[name],
    )
    train(model, optimizer, STEPS, rank=rank)
    optimizer.consolidate_state_dict(to=0)
    return (
        weights(model),
        len(optimizer.optim.state),
        optimizer.state_dict()["state"] if rank == 0 else None,
    )


@pytest.mark.parametrize("in_buckets", [False, True])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_zero_redundancy_optimizer(ranks, name, in_buckets):
    (first, kept, state), (second, others, _) = ranks(_zero, name, in_buckets)
    assert far(first, second) == 0.0
    assert far(first, alone(name)) < NEARLY
    assert kept > 0
    assert others > 0
    assert kept + others == len(first)
    model = network()
    optimizer = ours(name, model)
    train(model, optimizer, STEPS)
    torch.testing.assert_close(state, optimizer.state_dict()["state"], rtol=1e-7, atol=1e-12)


def _fails(rank):
    if rank == 1:
        raise ValueError("on purpose")
    distributed.barrier()


def test_a_failure_in_one_process_is_one_here(ranks):
    with pytest.raises(Failed, match=r"rank 1: (.|\n)*on purpose"):
        ranks(_fails)
