"""Moments in fewer bits and bfloat16 parameters: training ends where float32 ends."""

import ast
import copy
import gc
import io
import math
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.optim.cases import CASES
from tests.optim.cases import KINDS as ROWS
from tests.optim.digits import data, loss_of, network, train
from thalweg import optim

F32, BF16 = torch.float32, torch.bfloat16
WAYS = (None, "bfloat16", "8bit")
FEWER = pytest.mark.parametrize("state", ["8bit", "bfloat16"])
RATES = {"adamw": 3e-3, "momentum": 0.05, "lion": 3e-4, "muon": 3e-3, "soap": 3e-3}
# Those that need matrices whole, and what of their state is a moment.
WHOLE = {
    "muon": ({}, ("momentum_buffer",)),
    "shampoo": ({"momentum": 0.9}, ("momentum_buffer",)),
    "soap": ({"precondition_frequency": 2}, ("exp_avg", "exp_avg_sq")),
}
EIGHT = 1 + 4 / 256  # bytes, with the scales'

MATRICES = pytest.mark.parametrize("name", WHOLE)


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def size_of_state(optimizer):
    return sum(v.nbytes for s in optimizer.state.values() for v in s.values())


def build(entry, dtype=F32, **options):
    model = network(dtype)
    return model, entry.constructor(model.parameters(), **entry.valid[0].arguments, **options)


@ROWS
def test_a_checkpoint_goes_on_to_the_bit(entry):
    """Rounding at random included; the new optimizer learns from the checkpoint how to store."""
    whole, optimizer = build(entry, state="8bit")
    train(whole, optimizer, 6)
    model, before = build(entry, state="8bit")
    train(model, before, 3)
    model = copy.deepcopy(model)
    after = entry.constructor(model.parameters(), **entry.valid[0].arguments)
    after.load_state_dict(through_a_file(before.state_dict()))
    train(model, after, 3, first=3)
    assert same(model.parameters(), whole.parameters())
    assert all(p.isfinite().all() for p in model.parameters())
    if not any(entry.resolved(entry.valid[0].arguments, s).moments for s in ((64, 64), (64,))):
        # A rule without moments takes no notice.
        plain, its = build(entry)
        train(plain, its, 6)
        assert same(plain.parameters(), whole.parameters())


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "soap"])
def test_a_checkpoint_of_bfloat16_goes_on_to_the_bit(name):
    options = {"state": "8bit", "stochastic_rounding": True}
    whole, optimizer = build(CASES[name], BF16, **options)
    train(whole, optimizer, 6)
    model, before = build(CASES[name], BF16, **options)
    train(model, before, 3)
    model, before = copy.deepcopy((model, before))
    train(model, before, 1, first=3)
    after = CASES[name].constructor(model.parameters())
    after.load_state_dict(through_a_file(before.state_dict()))
    train(model, after, 2, first=4)
    assert same(model.parameters(), whole.parameters())


@FEWER
def test_the_way_of_storing_changes_in_mid_training(state):
    """From float32 to fewer bits and back: the moments are converted, not forgotten."""
    model, optimizer = build(CASES["adam"])
    train(model, optimizer, 5)
    before = {k: v.clone() for k, v in optimizer.state[next(model.parameters())].items()}
    full = size_of_state(optimizer)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    optimizer.param_groups[0]["state"] = state
    for p in model.parameters():
        p.grad = None
    optimizer.step()
    assert size_of_state(optimizer) < (0.3 if state == "8bit" else 0.52) * full
    optimizer.param_groups[0]["state"] = None
    optimizer.step()
    after = optimizer.state[next(model.parameters())]
    assert set(after) == set(before)
    for name in ("exp_avg", "exp_avg_sq"):
        assert after[name].dtype == F32
        assert float((after[name] - before[name]).norm() / before[name].norm()) < 0.07


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@FEWER
def test_torch_operations_take_the_same_step(state, dtype):
    """A transposed parameter goes by torch operations, moments in the order of its elements."""
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(40, 30, generator=generator).to(dtype) for _ in range(2))
    kernel, loose = nn.Parameter(a.clone()), nn.Parameter(a.t().contiguous().t())
    options = {"lr": 1e-2, "state": state, "stochastic_rounding": True}
    pair = [optim.AdamW([p], **options) for p in (kernel, loose)]
    for _ in range(3):
        for p, optimizer in zip((kernel, loose), pair, strict=True):
            p.grad = g.clone() if p is kernel else g.t().contiguous().t()
            optimizer.step()
    unit = 2.0**-7 if dtype == BF16 else 1e-6
    # What rounds to another code, seldom, takes a step that is an eighth longer or shorter.
    gap = (kernel - loose).detach().abs().float()
    assert float((gap > unit * kernel.detach().abs().float()).float().mean()) < 0.01


def test_float64_parameters_keep_their_moments_in_eight_bits():
    """By torch operations; computed in float64 between decoding and encoding."""
    model, optimizer = build(CASES["adam"], torch.float64, state="8bit")
    train(model, optimizer, 3)
    state = optimizer.state[next(model.parameters())]
    assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (torch.int8, torch.uint8)


def test_torchs_checkpoint_is_taken_into_eight_bits():
    model = network(F32)
    theirs = torch.optim.Adam(model.parameters())
    train(model, theirs, 3)
    ours = optim.Adam(model.parameters(), state="8bit")
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    train(model, ours, 1, first=3)
    state = ours.state[next(model.parameters())]
    assert (state["exp_avg"].dtype, int(state["step"])) == (torch.int8, 4)


def random_steps(optimizer, generator, steps):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(steps):
        for k, p in enumerate(parameters):
            g = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = None if (k, step) == (1, 1) else g
        optimizer.step()


@pytest.mark.parametrize("dtype", [F32, torch.float64], ids=str)
@FEWER
@MATRICES
def test_a_step_of_whole_matrices_is_that_of_what_their_codes_stand_for(name, state, dtype):
    """Matrices in stacks, some of them in another group or without a gradient for once."""
    arguments, moments = WHOLE[name]
    generator = torch.Generator().manual_seed(0)
    shapes = [(33, 17)] * 3 + [(20, 30)] + [(7, 3, 2)] * 2  # none is a number of chunks
    some = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

    def made(parameters):
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 1e-2}]
        return CASES[name].constructor(groups, state=state, **arguments)

    few = made([nn.Parameter(p) for p in some])
    random_steps(few, generator, 4)
    full = made([nn.Parameter(p.clone()) for p in some])
    full.load_state_dict(through_a_file(few.state_dict()))
    for group in full.param_groups:
        group["state"] = None
    for optimizer in (few, full):
        random_steps(optimizer, torch.Generator().manual_seed(1), 1)
    again = made([nn.Parameter(p.clone()) for p in some])
    again.load_state_dict(through_a_file(few.state_dict()))
    for group in again.param_groups:
        group["state"] = None
        for p in group["params"]:
            p.grad = None
    again.step()  # converts the moments and no more
    for p, q, kept in zip(few.state, full.state, again.state, strict=True):
        assert torch.equal(p, q)
        for key, value in full.state[q].items():
            found = again.state[kept][key]
            if key not in moments:
                assert torch.equal(found, value)
                continue
            assert few.state[p][key].dtype in (torch.int8, torch.uint8, BF16)
            # Up or down to the next of eight codes an octave, or of bfloat16's 128.
            unit = 2.0**-3 if state == "8bit" else 2.0**-7
            least = 2.0**-15 * float(value.abs().max())
            assert ((found - value).abs() <= 1.01 * unit * (value.abs() + least)).all()


def alive():
    """Bytes of all plain tensors that there are."""
    plain = [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]
    kept = [t.untyped_storage() for t in plain if t.layout == torch.strided]
    return sum({s.data_ptr(): s.nbytes() for s in kept}.values())


@FEWER
@MATRICES
def test_nothing_of_whole_matrices_is_kept_besides(name, state):
    """Between steps there is no tensor but the parameters, gradients and the state."""
    arguments, _ = WHOLE[name]
    parameters = [nn.Parameter(torch.randn(64, 48)) for _ in range(3)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    gc.collect()
    before = alive()
    optimizer = CASES[name].constructor(parameters, state=state, **arguments)
    for _ in range(3):
        optimizer.step()
    gc.collect()
    entry = CASES[name].entry
    rule, wanted = entry.resolved(arguments, (64, 48)), 0.0
    for key in rule.state:
        elements = math.prod(rule.shapes[key]((64, 48)) if key in rule.shapes else (64, 48))
        in_bfloat16 = state == "bfloat16" or (name, key) == ("soap", "exp_avg")
        wanted += 3 * elements * ((2 if in_bfloat16 else EIGHT) if key in rule.moments else 4)
    assert alive() - before == pytest.approx(wanted, abs=64)  # and step counts
    assert size_of_state(optimizer) == pytest.approx(wanted, abs=64)


def test_the_table_of_bytes_knows_the_rules_of_whole_matrices():
    sizes = {
        name: [CASES[name].entry.bytes_a_parameter({"state": s}) for s in WAYS]
        for name in (*WHOLE, "adafactor")
    }
    assert sizes["muon"] == [4, 2, EIGHT]
    assert sizes["shampoo"] == [20, 18, 16 + EIGHT]
    assert sizes["soap"] == [24, 20, 16 + 2 + EIGHT]
    assert len(set(sizes["adafactor"])) == 1  # rows and columns are little already


@FEWER
def test_torchs_checkpoint_of_muon_is_taken_into_fewer_bits(state):
    torch.manual_seed(0)
    weights = [torch.randn(24, 20), torch.randn(24, 20), torch.randn(20, 24)]
    theirs = torch.optim.Muon([nn.Parameter(w.clone()) for w in weights])
    random_steps(theirs, torch.Generator().manual_seed(0), 3)
    parameters = [nn.Parameter(p.detach().clone()) for p in theirs.param_groups[0]["params"]]
    ours = optim.Muon(parameters, state=state)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    before = copy.deepcopy(parameters)
    for optimizer in (theirs, ours):
        random_steps(optimizer, torch.Generator().manual_seed(1), 1)
    kept = ours.state[parameters[0]]["momentum_buffer"]
    assert kept.dtype == (torch.int8 if state == "8bit" else BF16)
    for p, q, was in zip(parameters, theirs.param_groups[0]["params"], before, strict=True):
        # The buffer went through its codes once, half a code of an eighth on average.
        gap = ((p - q).detach().norm() / (q - was).detach().norm()).item()
        assert gap < (0.1 if state == "8bit" else 0.02)


@cache
def digits_loss(name, state, seed):
    model = network(F32, seed)
    optimizer = CASES[name].constructor(model.parameters(), lr=RATES[name], state=state)
    train(model, optimizer, 300)
    x, y = data(F32)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


SEEDS = range(6)


@FEWER
@pytest.mark.parametrize("name", RATES)
def test_digits_end_within_the_noise_of_seeds(name, state):
    """Mean over 6 seeds, against its float32 twin's, in units of the spread between seeds."""
    few, full = (np.array([digits_loss(name, s, i) for i in SEEDS]) for s in (state, None))
    # Two standard errors of a difference of two means of six.
    assert few.mean() - full.mean() < 2 * full.std(ddof=1) * (2 / len(SEEDS)) ** 0.5


@cache
def text():
    """Docstrings of modules of Python's library, as bytes: 300,000 of them."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return torch.tensor(list("\n\n".join(filter(None, found)).encode()[:300_000]))


class Transformer(nn.Module):
    def __init__(self, width=64, layers=2, length=32):
        super().__init__()
        self.words, self.places = nn.Embedding(256, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, 0.0, batch_first=True, norm_first=True, bias=True
            )
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        self.mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.length = length

    def forward(self, x):
        h = self.words(x) + self.places.weight
        for layer in self.layers:
            h = layer(h, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(h))

    def loss(self, starts):
        x = text()[starts[:, None] + torch.arange(self.length + 1)]
        return nn.functional.cross_entropy(self(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


@cache
def language_loss(state, seed, name="adamw", steps=150):
    torch.manual_seed(seed)
    model = Transformer()
    optimizer = CASES[name].constructor(model.parameters(), lr=3e-3, state=state)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(torch.randint(270_000, (12,), generator=generator)).backward()
        optimizer.step()
    held_out = torch.arange(270_000, 299_000, 200)
    with torch.no_grad():
        return float(model.loss(held_out))


@FEWER
def test_a_transformer_on_real_text_ends_within_the_noise_of_seeds(state):
    """A byte-level language model on docstrings: mean of 3 seeds, against their spread."""
    few, full = (np.array([language_loss(s, i) for i in range(3)]) for s in (state, None))
    assert full.mean() < 3.0  # of log 256 = 5.5: it has learned
    assert few.mean() - full.mean() < 2 * full.std(ddof=1) * (2 / 3) ** 0.5


def test_fewer_bits_cost_soap_nothing_on_text():
    """Seed by seed: with its first moment in eight bits it ended 0.01 to 0.04 higher."""
    few, full = (np.array([language_loss(s, i, "soap") for i in range(2)]) for s in ("8bit", None))
    assert (few - full).max() < 0.005


def test_rounding_at_random_keeps_small_steps():
    """Steps below half a unit of bfloat16: to the nearest they are lost, at random they count."""
    gains = {}
    for at_random in (False, True):
        model = network(BF16)
        optimizer = optim.AdamW(model.parameters(), lr=1e-5, stochastic_rounding=at_random)
        before = mean_loss(model)
        train(model, optimizer, 300)
        gains[at_random] = before - mean_loss(model)
    assert gains[True] > 2 * gains[False] > 0


def mean_loss(model):
    with torch.no_grad():
        model = copy.deepcopy(model).float()
        return float(torch.stack([loss_of(model, i) for i in range(10)]).mean())
