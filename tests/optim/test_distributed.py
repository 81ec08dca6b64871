"""Two real processes over gloo: DistributedDataParallel, FSDP2, ZeRO, distributed checkpoints.

Each of the two sees its half of every batch. Gradients are averaged over them, so that they have to
end where one process that sees whole batches ends: the oracle is an ordinary training.
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
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.optim.digits import CASES, data, name_of
from tests.optim.ranks import WORLD, Failed, Ranks
from thalweg import optim
from thalweg.optim.registry import OPTIMIZERS

BATCH = 64  # of both together


def firsts(key):
    """Indices of the first case of each kind; what is sent to the processes is a number."""
    kinds = {}
    for i, (entry, valid) in enumerate(CASES):
        kinds.setdefault(key(entry, valid), i)
    return list(kinds.values())


def each(key):
    which = firsts(key)
    return pytest.mark.parametrize("which", which, ids=[name_of(CASES[i]) for i in which])


ROWS = each(lambda entry, valid: entry.name)
RULES = each(lambda entry, valid: entry.resolved(valid.arguments))
NAMED = dict(zip(OPTIMIZERS, firsts(lambda entry, valid: entry.name), strict=True))

# Halves of a batch are summed in another order than the whole: some 1e-16 a step, which rules that
# divide by a small second moment magnify.
NEARLY = 1e-9


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


def weights(model):
    """On every rank all of them, as plain tensors."""
    return [
        (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for p in model.parameters()
    ]


def far(some, others):
    """Largest ‖a - b‖ / ‖b‖ over weight tensors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


def ours(which, model):
    entry, valid = CASES[which]
    return entry.constructor(model.parameters(), **valid.arguments)


def theirs(which, model):
    entry, valid = CASES[which]
    return entry.oracle(model.parameters(), **valid.oracle)


def alone(which, steps):
    """One process and whole batches, by torch.optim where that has the optimizer."""
    model = network()
    make = ours if CASES[which][1].oracle is None else theirs
    return weights(train(model, make(which, model), steps))


def trained(rank, wrap, make, which, steps):
    model = wrap(network())
    return weights(train(model, make(which, model), steps, rank=rank))


def check(ranks, wrap, which, steps=20):
    """Both ranks have the same weights, those of one process, and torch.optim's if wrapped too."""
    first, second = ranks(trained, wrap, ours, which, steps)
    assert far(first, second) == 0.0
    assert far(first, weights(network())) > 1e-4
    assert far(first, alone(which, steps)) < NEARLY
    if CASES[which][1].oracle is not None:
        assert far(first, ranks(trained, wrap, theirs, which, steps)[0]) < 1e-12


@ROWS
def test_ddp(ranks, which):
    check(ranks, DistributedDataParallel, which)


def in_buckets(model):
    """Gradients are views of what is sent, which DDP puts elsewhere after the first step."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def in_small_buckets(model):
    return DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=0.005)


def static(model):
    return DistributedDataParallel(model, static_graph=True)


@pytest.mark.parametrize("wrap", [in_buckets, in_small_buckets, static])
def test_ddp_with_options(ranks, wrap):
    check(ranks, wrap, NAMED["adam"])


@RULES
def test_fsdp2(ranks, which):
    check(ranks, sharded, which)


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
    assert len(optimizer._plan.loose) == 0  # the kernel takes them all
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
    assert len(optimizer._plan.loose) == 0  # the kernel takes them all
    step()
    for q in laid_out:  # as when FSDP2 pads a part anew
        q._local_tensor = q._local_tensor.clone()
    step()
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].clone()
        state["exp_avg_sq"]._local_tensor = state["exp_avg_sq"]._local_tensor.clone()
    step()
    step(lambda layout: [Replicate()])  # gradients laid out unlike their parameters
    assert len(optimizer._plan.loose) == 2
    step()
    optimizer.zero_grad()
    before = [q.full_tensor() for q in laid_out]
    optimizer.step()
    for q, value in zip(laid_out, before, strict=True):
        assert torch.equal(q.full_tensor(), value)


def test_parts_put_elsewhere_and_gradients_laid_out_otherwise(ranks):
    ranks(_one_by_one)


def _through_a_distributed_checkpoint(rank, which, folder):
    """Five steps, and five more by other objects that read what the first ones wrote."""
    model = sharded(network())
    optimizer = ours(which, model)
    train(model, optimizer, 5, rank=rank)
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.save(parts, checkpoint_id=folder)
    model = sharded(network())
    optimizer = ours(which, model)
    # Read into what these have; the counts of their own are those of no step.
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.load(parts, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"]
    )
    return weights(train(model, optimizer, 5, first=5, rank=rank))


@ROWS
def test_distributed_checkpoints(ranks, which, tmp_path):
    resumed, _ = ranks(_through_a_distributed_checkpoint, which, tmp_path)
    assert far(resumed, ranks(trained, sharded, ours, which, 10)[0]) == 0.0


def _whole_state_of_shards(rank, make):
    model = sharded(network())
    optimizer = make(NAMED["adam"], model)
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
    optimizer = after(NAMED["adam"], model)
    # This function of torch's, unlike load_state_dict, takes no hyperparameter that is not there.
    known = {"params", *optimizer.defaults}
    state["param_groups"] = [
        {name: value for name, value in group.items() if name in known}
        for group in state["param_groups"]
    ]
    whole = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state, options=whole)
    train(model, optimizer, 5, first=5)
    assert far(weights(model), alone(NAMED["adam"], 10)) < NEARLY


def _zero(rank, which, in_buckets):
    """Each rank keeps the state of some parameters, takes their steps and tells the other."""
    with warnings.catch_warnings():
        # What torch.distributed.optim imports compiles itself with torch.jit.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer
    entry, valid = CASES[which]
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(),
        optimizer_class=entry.constructor,
        parameters_as_bucket_view=in_buckets,
        **valid.arguments,
    )
    train(model, optimizer, 20, rank=rank)
    optimizer.consolidate_state_dict(to=0)
    return (
        weights(model),
        len(optimizer.optim.state),
        optimizer.state_dict()["state"] if rank == 0 else None,
    )


@pytest.mark.parametrize("in_buckets", [False, True])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_zero_redundancy_optimizer(ranks, name, in_buckets):
    which = NAMED[name]
    (first, kept, state), (second, others, _) = ranks(_zero, which, in_buckets)
    assert far(first, second) == 0.0
    assert far(first, alone(which, 20)) < NEARLY
    assert kept > 0
    assert others > 0
    assert kept + others == len(first)
    model = network()
    optimizer = ours(which, model)
    train(model, optimizer, 20)
    torch.testing.assert_close(state, optimizer.state_dict()["state"], rtol=1e-7, atol=1e-12)


def _fails(rank):
    if rank == 1:
        raise ValueError("on purpose")
    distributed.barrier()


def test_a_failure_in_one_process_is_one_here(ranks):
    with pytest.raises(Failed, match=r"rank 1: (.|\n)*on purpose"):
        ranks(_fails)
