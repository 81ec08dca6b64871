"""Two real processes over gloo, against one that takes the same batches whole.

Sums over halves of a batch round otherwise than over all of it, some 1e-16 a step in float64, which
rules that divide by a small second moment magnify.
"""

import copy
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from tests.optim.digits import data
from tests.optim.ranks import Ranks as Pair
from thalweg import Metric, Task, optim
from thalweg.train.arguments import FitError
from thalweg.train.evaluate import evaluate
from thalweg.train.parallel import ALONE, blocks, joined

SAMPLES, BATCH = 22, 7  # batches of 7, 7, 7 and 1: with two ranks one of them then has no row
NEARLY = 1e-12

OPTIMIZERS = {
    "adam": (optim.Adam, {"lr": 1e-3}),
    "average": (optim.AdamW, {"lr": 1e-3, "ema_decay": 0.9, "weight_decay": 0.1}),
    "lamb": (optim.LAMB, {"lr": 1e-2}),
    "muon": (optim.Muon, {"lr": 1e-2}),
    "shampoo": (optim.Shampoo, {"lr": 1e-2}),
    "lookahead": (lambda p: optim.Lookahead(optim.Adam(p, lr=1e-3), k=3), {}),
}
EACH = pytest.mark.parametrize("name", OPTIMIZERS)
BOTH = pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])


@pytest.fixture(scope="module")
def pair():
    found = Pair()
    yield found
    found.close()


class Network(nn.Module):
    """With a frozen layer, one that is never used, and one used at every other step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 17), nn.Tanh(), nn.Linear(17, 3), nn.PReLU())
        self.head = nn.Linear(3, 10)
        self.frozen, self.unused, self.sometimes = (nn.Linear(3, 3) for _ in range(3))
        self.frozen.requires_grad_(False)
        self.calls = 0

    def forward(self, x):
        x = self.frozen(self.layers(x))
        self.calls += 1
        return self.head(self.sometimes(x) if self.calls % 2 else x)


def network():
    torch.manual_seed(0)
    return Network().double()


def started(ranks, name, shard):
    module = ranks.wrap(network(), shard)
    make, arguments = OPTIMIZERS[name]
    return module, make([p for p in module.parameters() if p.requires_grad], **arguments)


def trained(ranks, module, optimizer, epochs, accumulate=1):
    """The loss of each step, of all rows of its window."""
    x, y = data(torch.float64)
    losses = []
    cuts = [slice(i, min(i + BATCH, SAMPLES)) for i in range(0, SAMPLES, BATCH)]
    for k in range(0, epochs * len(cuts), accumulate):
        window = [cuts[i % len(cuts)] for i in range(k, min(k + accumulate, epochs * len(cuts)))]
        rows = sum(len(y[cut]) for cut in window)
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for i, cut in enumerate(window):
            (inputs, targets), count = ranks.part((x[cut], y[cut]))
            last = i == len(window) - 1
            with nullcontext() if last else ranks.without_sync(module):
                loss = nn.functional.cross_entropy(module(inputs), targets)
                loss = loss * (count * ranks.size / rows)
                loss.backward()
            total += loss.detach()
        optimizer.step()
        losses.append(float(ranks.sum(total)[0]) / ranks.size)
    return losses


def run(rank, name, shard, epochs=2, accumulate=1, first=None):
    """Losses, and what a checkpoint holds then; from another checkpoint on."""
    with joined("cpu") as ranks:
        return _run(ranks, name, shard, epochs, accumulate, first)


def _run(ranks, name, shard, epochs=2, accumulate=1, first=None):
    module, optimizer = started(ranks, name, shard)
    if first is not None:
        ranks.load_model(module, first[0])
        ranks.load_optimizer(optimizer, copy.deepcopy(first[1]))
    losses = trained(ranks, module, optimizer, epochs, accumulate)
    return losses, (ranks.model_state(module), ranks.optimizer_state(optimizer))


def alone(name, **arguments):
    return _run(ALONE, name, False, **arguments)


def same(found, expected, tolerance=NEARLY):
    """Checkpoints of one format, and of numbers that differ by rounding alone."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            same(found[name], expected[name], tolerance)
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, tolerance)
    elif isinstance(found, torch.Tensor):
        assert (found.dtype, found.shape, found.device) == (
            expected.dtype,
            expected.shape,
            expected.device,
        )
        assert float((found - expected).norm()) <= tolerance * max(1.0, float(expected.norm()))
    else:
        assert found == expected


def alike(found, expected):
    """The same of what training goes on from: torch adds to the groups of what it has loaded."""
    same(found[0], expected[0], 1e-9)
    same(found[1]["state"], expected[1]["state"], 1e-9)
    same(found[1].get("wrappers"), expected[1].get("wrappers"), 1e-9)


@BOTH
@EACH
def test_losses_and_checkpoints_are_those_of_one_process(pair, name, shard):
    (losses, state), (others, other) = pair(run, name, shard)
    expected, checkpoint = alone(name)
    assert losses == others
    assert losses == pytest.approx(expected, rel=NEARLY)
    moved = state[0]["head.weight"] - network().head.weight
    assert float(moved.detach().norm()) > 1e-3
    same(state, checkpoint, 1e-10)
    same(other, state, 0.0)


def _float32(rank, shard):
    with joined("cpu") as ranks:
        x, y = data(torch.float32)
        torch.manual_seed(0)
        module = ranks.wrap(nn.Sequential(nn.Linear(64, 33), nn.Tanh(), nn.Linear(33, 10)), shard)
        optimizer = optim.Adam(module.parameters())
        losses = []
        for step in range(20):
            (inputs, targets), _ = ranks.part((x[step * 64 :][:64], y[step * 64 :][:64]))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(float(ranks.sum(loss)[0]) / ranks.size)
        return losses


@BOTH
def test_float32_differs_by_its_rounding(pair, shard):
    found, _ = pair(_float32, shard)
    x, y = data(torch.float32)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 33), nn.Tanh(), nn.Linear(33, 10))
    optimizer = optim.Adam(module.parameters())
    for step, loss in enumerate(found):
        expected = nn.functional.cross_entropy(module(x[step * 64 :][:64]), y[step * 64 :][:64])
        # A unit in the last place is 1.2e-7; Adam's quotients magnify it over 20 steps.
        assert loss == pytest.approx(expected.item(), rel=2e-6)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()


@BOTH
def test_gradients_of_several_batches_are_sent_once(pair, shard):
    (losses, state), _ = pair(run, "adam", shard, 2, 3)
    expected, checkpoint = alone("adam", accumulate=3)
    assert losses == pytest.approx(expected, rel=NEARLY)
    same(state, checkpoint, 1e-10)


@BOTH
@EACH
def test_checkpoints_go_on_with_any_number_of_ranks(pair, name, shard):
    once, end = alone(name, epochs=4)
    _, half = alone(name)
    (losses, state), _ = pair(run, name, shard, 2, 1, half)
    assert losses == pytest.approx(once[-len(losses) :], rel=1e-10)
    alike(state, end)
    (_, half), _ = pair(run, name, shard)
    losses, state = alone(name, first=half)
    assert losses == pytest.approx(once[-len(losses) :], rel=1e-10)
    alike(state, end)


def _eight_bits(rank, shard, first):
    with joined("cpu") as ranks:
        return _in_eight_bits(ranks, shard, first)


def _in_eight_bits(ranks, shard, first, state="8bit"):
    torch.manual_seed(0)
    module = ranks.wrap(nn.Linear(64, 33), shard)
    optimizer = optim.Adam(module.parameters(), lr=1e-3, state=state)
    x, y = data(torch.float32)
    if first is not None:
        ranks.load_model(module, first[0])
        ranks.load_optimizer(optimizer, copy.deepcopy(first[1]))
    for i in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x[i * 64 :][:64]), y[i * 64 :][:64]).backward()
        optimizer.step()
    dtypes = {optimizer.state[p]["exp_avg_sq"].dtype for p in module.parameters()}
    assert dtypes == {torch.uint8 if state else torch.float32}
    return ranks.model_state(module), ranks.optimizer_state(optimizer)


def away(found, expected):
    return float((found[0]["weight"] - expected[0]["weight"]).norm())


@BOTH
def test_eight_bits_go_on_with_any_number_of_ranks(pair, shard):
    """Their scales are of each rank's own elements; what they say is as near to float32."""
    half = _in_eight_bits(ALONE, False, None)
    exact = _in_eight_bits(ALONE, False, _in_eight_bits(ALONE, False, None, None), None)
    rounding = away(_in_eight_bits(ALONE, False, half), exact)
    both, _ = pair(_eight_bits, shard, None)
    kind = torch.float32 if shard else torch.uint8
    assert both[1]["state"][0]["exp_avg_sq"].dtype == kind
    ends = [pair(_eight_bits, shard, checkpoint)[0] for checkpoint in (half, both)]
    for end in (*ends, _in_eight_bits(ALONE, False, both)):
        assert away(end, exact) < 1.2 * rounding


def _opened_and_closed(rank):
    """A step after a checkpoint was loaded again, and one after it was not."""
    with joined("cpu") as ranks:
        found = []
        for reload in (False, True):
            torch.manual_seed(0)
            module = ranks.wrap(nn.Linear(64, 33), True)
            optimizer = optim.Adam(module.parameters(), lr=1e-3, state="8bit")
            x, y = data(torch.float32)
            for i in range(5):
                if reload and i == 4:
                    ranks.load_optimizer(optimizer, ranks.optimizer_state(optimizer))
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x[i * 64 :][:64]), y[i * 64 :][:64]).backward()
                optimizer.step()
            found.append(ranks.model_state(module)["weight"])
        return torch.equal(*found)


def test_eight_bits_resume_bit_for_bit_with_as_many_ranks(pair):
    assert pair(_opened_and_closed) == [True, True]


def _numbers(rank):
    with joined("cpu") as ranks:
        found = {}
        for rows in (1, 2, 3, 8):
            x = {"a": torch.arange(rows), "b": torch.arange(2.0 * rows).view(rows, 2) > 1}
            part, count = ranks.part(({"x": x}, torch.arange(rows)))
            found[rows] = part[1].tolist(), count
            whole = ranks.gather(part[0]["x"], rows)
            assert all(torch.equal(whole[name], x[name]) for name in x)
            assert whole["b"].dtype == torch.bool
        sums = ranks.sum(torch.tensor([1.0, rank]), torch.tensor(0.5))
        return found, [s.tolist() for s in sums], ranks.most(rank - 3), ranks.all_of({"r": rank})


def test_rows_are_shared_out_and_come_back_in_order(pair):
    first, second = pair(_numbers)
    assert first[0] == {1: ([0], 0), 2: ([0], 1), 3: ([0], 1), 8: ([0, 1, 2, 3], 4)}
    assert second[0] == {1: ([0], 1), 2: ([1], 1), 3: ([1, 2], 2), 8: ([4, 5, 6, 7], 4)}
    for found in (first, second):
        assert found[1:] == ([[2.0, 1.0], 1.0], -2.0, [{"r": 0}, {"r": 1}])


def _batch_norm(rank, shard):
    with joined("cpu") as ranks, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = ranks.wrap(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).double(), shard)
        x = torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 4.0], [9.0, 6.0]], dtype=torch.float64)
        (part, _), _ = ranks.part((x, x))
        module(part).sum().backward()
        state = ranks.model_state(module)
        return [str(w.message) for w in said], {n: t.tolist() for n, t in state.items()}


@BOTH
def test_batch_normalisation_is_warned_of_and_its_statistics_are_shared(pair, shard):
    (said, state), (nothing, other) = pair(_batch_norm, shard)
    assert [m.partition(" (")[0] for m in said] == ["the model has batch normalisation"]
    assert "GroupNorm or nn.LayerNorm (nn.SyncBatchNorm works on CUDA only)" in said[0]
    assert nothing == []
    # A tenth of the means of (1, 3), (2, 0) and of (5, 9), (4, 6), and of their variances 2, 2 and
    # 8, 2, beside nine tenths of 0 and 1.
    assert state["0.running_mean"] == pytest.approx([0.1 * (2 + 7) / 2, 0.1 * (1 + 5) / 2])
    assert state["0.running_var"] == pytest.approx([0.9 + 0.1 * (2 + 8) / 2, 0.9 + 0.1 * 2])
    assert state["0.num_batches_tracked"] == 1
    assert other == state


def _largest_error(outputs, y):
    return (outputs - y).abs().max()


def _evaluated(rank, metric, shard):
    with joined("cpu") as ranks:
        return _evaluation(ranks, metric, shard)


def _evaluation(ranks, metric, shard):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(37, 3, generator=generator, dtype=torch.float64)
    task = Task(
        model=lambda: nn.Linear(3, 1).double(),
        train=(x, x[:, :1] - x[:, 1:2]),
        validation=(x, x[:, :1] - x[:, 1:2]),
        test=(x[:1], x[:1, :1]),
        metric=metric,
    )
    torch.manual_seed(0)
    module = ranks.wrap(task.model(), shard)
    train = sys.modules["thalweg.replicas.train"]
    size, train.PIECE = train.PIECE, 15  # five samples at once, and two in the end
    try:
        found = [evaluate(module, task, split, ranks=ranks) for split in (task.train, task.test)]
    finally:
        train.PIECE = size
    return [(e.loss, e.metric) for e in found]


@BOTH
@pytest.mark.parametrize("mean", [True, False], ids=["a mean", "of the whole set"])
def test_evaluation_counts_each_sample_once(pair, mean, shard):
    metric = "mae" if mean else Metric("largest error", _largest_error, higher_is_better=False)
    first, second = pair(_evaluated, metric, shard)
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    x = torch.randn(37, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        errors = [model(x) - (x[:, :1] - x[:, 1:2]), model(x[:1]) - x[:1, :1]]
    expected = [
        (e.square().mean().item(), (e.abs().mean() if mean else e.abs().max()).item())
        for e in errors
    ]
    assert first == second
    for found, wanted in zip(first, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-12)


def _unlike(rank, shard):
    with joined("cpu") as ranks:
        torch.manual_seed(rank)
        module = ranks.wrap(nn.Linear(3, 2), shard)
        return ranks.model_state(module)


@BOTH
def test_all_begin_with_the_weights_of_the_first(pair, shard):
    first, second = pair(_unlike, shard)
    torch.manual_seed(0)
    expected = nn.Linear(3, 2).state_dict()
    assert all(torch.equal(first[n], expected[n]) for n in expected)
    assert all(torch.equal(second[n], expected[n]) for n in expected)


def _kinds(rank):
    with joined("cpu") as ranks:
        whole, shards = (ranks.wrap(network(), shard) for shard in (False, True))
        layers = [isinstance(layer, FSDPModule) for layer in shards.layers]
        lengths = [len(p.to_local()) for p in shards.layers[0].parameters()]
        return type(whole), layers, lengths


def test_each_rank_keeps_its_part(pair):
    """Of 17 rows; layers without parameters need no gathering."""
    first, second = pair(_kinds)
    assert first[0] is DistributedDataParallel
    assert first[1] == [True, False, True, True]
    assert (first[2], second[2]) == ([9, 9], [8, 8])


def test_blocks_are_layers_that_share_nothing():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 8), "encoder": encoder})
    assert blocks(model) == list(encoder.layers)
    tied = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5, bias=False))
    tied[2].weight = tied[0].weight
    assert blocks(tied) == [tied[1]]
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Flatten())
    assert blocks(nested) == [nested[0]]
    assert blocks(nn.Linear(2, 2)) == []


def _loaders(rank):
    with joined("cpu") as ranks:
        torch.manual_seed(rank)
        rows = torch.arange(64)
        generator = torch.Generator().manual_seed(0)
        ours = DataLoader(TensorDataset(rows, rows), 8, shuffle=True, generator=generator)
        theirs = DataLoader(TensorDataset(rows, rows), 8, shuffle=True)
        batches = [y.tolist() for _, y in ranks.alike(iter(ours))]
        with pytest.raises(FitError, match="gives each of the 2 ranks other batches") as refused:
            list(ranks.alike(iter(theirs)))
        return batches, refused.value.argument


def test_loaders_have_to_give_all_ranks_the_same(pair):
    (batches, argument), (others, _) = pair(_loaders)
    assert batches == others
    assert sorted(y for batch in batches for y in batch) == list(range(64))
    assert argument == "loader"


def test_what_is_no_launch_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    said = r"^ranks: RANK=1 .* MASTER_ADDR is not set; .* torchrun"
    with pytest.raises(FitError, match=said), joined("cpu"):
        pass


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    module, batch = nn.Linear(2, 2), (torch.ones(3, 2), torch.ones(3))
    with joined("cpu") as ranks:
        assert ranks == ALONE
        assert ranks.wrap(module, True) is module
        assert ranks.part(batch) == (batch, 3)
