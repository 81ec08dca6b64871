"""Checkpoints: to and from torch.optim in mid-training, copies, replaced tensors."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tests.optim.cases import ALL, ROWS, TORCH_ROWS, name_of
from tests.optim.digits import distance, loss_of, network, train
from thalweg import optim
from thalweg.kernels import addresses

# Sutskever's form and lr_in_momentum take torch's path with another buffer.
WITH_ORACLE = [
    (entry, valid)
    for entry, valid in ALL
    if valid.oracle is not None and not {"form", "lr_in_momentum"} & set(valid.arguments)
]


def ours_for(case, model):
    return case[0].constructor(model.parameters(), **case[1].arguments)


def theirs_for(case, model):
    return case[0].oracle(model.parameters(), **case[1].oracle)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
@pytest.mark.parametrize("case", WITH_ORACLE, ids=name_of)
def test_checkpoints_interchange_in_mid_training(case, direction):
    first, second = (ours_for, theirs_for) if direction == "to torch" else (theirs_for, ours_for)
    whole, model = network(), network()
    train(whole, theirs_for(case, whole), 20)
    before = first(case, model)
    train(model, before, 10)
    after = second(case, model)
    after.load_state_dict(through_a_file(before.state_dict()))
    train(model, after, 10, first=10)
    assert distance(model, whole) < case[0].tolerance[1]


@TORCH_ROWS
def test_state_has_torchs_names_types_and_counts(entry):
    valid = entry.valid[0]
    if valid.oracle is None:
        pytest.skip("no namesake")
    ours, theirs = network(), network()
    a, b = ours_for((entry, valid), ours), theirs_for((entry, valid), theirs)
    train(ours, a, 3)
    train(theirs, b, 3)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        for name, value in b.state[q].items():
            mine = a.state[p][name]
            if name in entry.rule.scalars:  # which torch keeps in float32
                assert float(mine) == pytest.approx(float(value), rel=1e-6)
                continue
            assert (mine.shape, mine.dtype) == (value.shape, value.dtype)
            torch.testing.assert_close(mine, value, rtol=10 * entry.tolerance[1], atol=1e-14)
        assert a.state[p]["step"] == 3
        assert a.state[p]["step"].dtype == torch.float32


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=list(COPIES))
@ROWS
def test_a_copy_goes_on_alone(entry, duplicate):
    model = network()
    optimizer = entry.constructor(model.parameters())
    train(model, optimizer, 3)
    other, its = duplicate((model, optimizer))
    train(model, optimizer, 3, first=3)
    assert distance(other, model) > 1e-9
    train(other, its, 3, first=3)
    assert distance(other, model) == 0.0


def test_adagrad_has_its_state_from_the_start():
    model = network()
    optimizer = optim.Adagrad(model.parameters(), initial_accumulator_value=0.5)
    for p in model.parameters():
        assert torch.equal(optimizer.state[p]["sum"], torch.full_like(p, 0.5))


def test_adagrad_state_of_parameters_without_gradient_changes_nothing():
    p = torch.ones(3, requires_grad=True)
    optimizer = optim.Adagrad([p], lr=0.1)
    optimizer.step()
    assert p.tolist() == [1, 1, 1]
    assert optimizer.state[p]["step"] == 0


def _replace_tensors(state, p):
    for name, value in state.items():
        state[name] = value.clone()


def _replace_storage(state, p):
    for value in state.values():
        value.data = value.data.clone()


def _write_in_place(state, p):
    for value in state.values():
        value.copy_(value.clone())


@pytest.mark.parametrize("change", [_replace_tensors, _replace_storage, _write_in_place])
@ROWS
def test_state_put_elsewhere_is_what_the_next_step_uses(entry, change):
    ours, still = network(), network()
    a = entry.constructor(ours.parameters())
    train(ours, a, 3)
    train(still, entry.constructor(still.parameters()), 6)
    for p, state in a.state.items():
        change(state, p)
    # Numbers, and tensors of rules that need them stacked, are gathered in one tensor again.
    kept = () if entry.rule.whole else entry.resolved({}).state
    held = {(p, name): s[name] for p, s in a.state.items() for name in kept}
    before = {key: value.clone() for key, value in held.items()}
    train(ours, a, 3, first=3)
    assert distance(ours, still) == 0.0
    for (p, name), value in held.items():
        assert a.state[p][name] is value
        # Prodigy's starting point stays.
        assert torch.equal(value, before[p, name]) == (name == "p0")


def test_a_changed_state_changes_the_step():
    p = torch.zeros(4, requires_grad=True)
    optimizer = optim.Adam([p], lr=0.1)
    p.grad = torch.ones(4)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.full((4,), 0.3)
    optimizer.state[p]["step"] = torch.tensor(7.0)
    at, s = p.detach().clone(), optimizer.state[p]["exp_avg_sq"].clone()
    optimizer.step()
    m, s = 0.9 * 0.3 + 0.1, 0.999 * s + 0.001
    wanted = at - 0.1 * m / (1 - 0.9**8) / ((s / (1 - 0.999**8)).sqrt() + 1e-8)
    torch.testing.assert_close(p.detach(), wanted)
    assert optimizer.state[p]["step"] == 8


def test_removed_state_starts_again():
    p = torch.zeros(4, requires_grad=True)
    optimizer = optim.Adam([p], lr=0.1)
    p.grad = torch.ones(4)
    for _ in range(3):
        optimizer.step()
    optimizer.state.clear()
    at = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(p.detach(), at - 0.1, rtol=1e-6, atol=0)
    del optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


def test_two_optimizers_from_one_checkpoint_do_not_share_their_counts():
    model = network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    others = [optim.Adam(network().parameters()) for _ in range(2)]
    for other in others:
        other.load_state_dict(copy.deepcopy(state))
    loss_of(model, 3).backward()
    others[0].param_groups[0]["params"][0].grad = torch.zeros(64, 64, dtype=torch.float64)
    others[0].step()
    counts = [[float(s["step"]) for s in other.state.values()] for other in others]
    assert counts == [[4, 3, 3, 3, 3, 3], [3] * 6]


def test_momentum_turned_on_and_off_as_in_torch():
    models = network(), network()
    pair = [
        c(m.parameters(), lr=0.05, momentum=0.9, dampening=0.5)
        for c, m in zip((optim.SGD, torch.optim.SGD), models, strict=True)
    ]
    for first, momentum in ((0, 0.9), (4, 0.0), (8, 0.5)):
        for model, optimizer in zip(models, pair, strict=True):
            optimizer.param_groups[0]["momentum"] = momentum
            train(model, optimizer, 4, first=first)
    assert distance(*models) < 1e-12


def test_a_checkpoint_of_another_shape_is_refused():
    optimizer = optim.Adam([torch.zeros(3)])
    state = optim.Adam([torch.zeros(3), torch.zeros(2)]).state_dict()
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("saved", "loads", "foreign"),
    [("Adam", "Lion", "amsgrad"), ("RMSprop", "Adam", "alpha"), ("SGD", "Adam", "dampening"),
     ("Lion", "ScheduleFreeSGD", "betas")],
)  # fmt: skip
def test_a_checkpoint_of_another_optimizer_is_refused(saved, loads, foreign):
    model = network()
    optimizer = getattr(optim, saved)(model.parameters())
    train(model, optimizer, 2)
    other = getattr(optim, loads)(network().parameters())
    with pytest.raises(ValueError, match=f"{loads}: the checkpoint has '{foreign}'"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("compiled", [True, False])
def test_a_state_or_gradient_of_another_shape_is_no_step(compiled, monkeypatch):
    monkeypatch.setattr(addresses, "COMPILED", compiled)
    p, q = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (3, 2)))
    for parameter in (p, q):
        parameter.grad = torch.ones_like(parameter)
    first, second = optim.Adam([p]), optim.Adam([q])
    first.step()
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"'exp_avg' has shape \(2, 3\)"):
        second.step()
    p.data = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"gradient has shape \(2, 3\) and the parameter \(3, 2\)"):
        first.step()


def test_options_changed_in_a_group_are_checked():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = optim.Adam([p])
    optimizer.step()
    optimizer.param_groups[0]["state"] = "4bit"
    with pytest.raises(ValueError, match="parameter group 0: state must be None or"):
        optimizer.step()
