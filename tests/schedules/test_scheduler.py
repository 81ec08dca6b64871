import copy
import gc
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, StepLR

from thalweg import optim
from thalweg import schedules as s
from thalweg.kernels import disk
from thalweg.schedules import ScheduleError, Scheduler

MAKERS = {
    "torch SGD": lambda p: torch.optim.SGD(p, lr=0.5),
    "torch Adam, tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.5)),
    "SGD": lambda p: optim.SGD(p, lr=0.5),
    "Adam, tensor": lambda p: optim.Adam(p, lr=torch.tensor(0.5)),
    "Muon": lambda p: optim.Muon(p, lr=0.5),
    "Lookahead": lambda p: optim.Lookahead(optim.AdamW(p, lr=0.5)),
}


@pytest.fixture(params=MAKERS)
def optimizer(request):
    return made(MAKERS[request.param])


def made(maker=MAKERS["SGD"], groups=1):
    parameters = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(groups)]
    for p in parameters:
        p.grad = torch.ones(2, 3)
    if groups == 1:
        return maker(parameters)
    return maker([{"params": [p], "lr": 0.5 / 2**i} for i, p in enumerate(parameters)])


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def advance(optimizer, scheduler, steps):
    found = []
    for _ in range(steps):
        found.append(rates(optimizer))
        optimizer.step()
        scheduler.step()
    return found


def test_rates_are_base_times_schedule(optimizer):
    schedule = s.warmup(5) + s.cosine(20)
    scheduler = Scheduler(optimizer, schedule)
    assert isinstance(scheduler, LRScheduler)
    found = advance(optimizer, scheduler, 25)
    np.testing.assert_allclose(np.ravel(found), 0.5 * schedule(range(25)), rtol=1e-7)
    assert [float(lr) for lr in scheduler.get_last_lr()] == rates(optimizer)
    assert scheduler.last_epoch == 25


def test_a_tensor_stays_the_same_tensor():
    lr = torch.tensor(0.5)
    optimizer = made(lambda p: torch.optim.SGD(p, lr=lr))
    scheduler = Scheduler(optimizer, s.exp(0.5))
    first = scheduler.get_last_lr()[0]
    advance(optimizer, scheduler, 2)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == 0.125
    assert first == 0.5
    assert scheduler.base_lrs == [0.5]


def test_the_weights_are_those_of_torch():
    """Both sides in full: optimizer steps at the rates that torch's scheduler sets."""
    weights = []
    for scheduled in (
        lambda o: Scheduler(o, s.step(3, 0.5)),
        lambda o: StepLR(o, 3, 0.5),
    ):
        optimizer = made(lambda p: torch.optim.Adam(p, lr=0.5))
        advance(optimizer, scheduled(optimizer), 10)
        weights.append(optimizer.param_groups[0]["params"][0].detach())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_schedule_for_each_group():
    optimizer = made(groups=2)
    scheduler = Scheduler(optimizer, [s.exp(0.5), s.fixed()])
    assert advance(optimizer, scheduler, 3) == [[0.5, 0.25], [0.25, 0.25], [0.125, 0.25]]
    with pytest.raises(ScheduleError, match="there are 1 schedules for 2 parameter groups"):
        Scheduler(optimizer, [s.fixed()])


def test_a_group_added_later_is_scheduled_from_then_on():
    optimizer = made()
    scheduler = Scheduler(optimizer, s.exp(0.5))
    advance(optimizer, scheduler, 2)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 8.0})
    advance(optimizer, scheduler, 1)
    assert rates(optimizer) == [0.5 / 8, 1.0]
    assert scheduler.base_lrs == [0.5, 8.0]
    several = Scheduler(optimizer, [s.exp(0.5)] * 2)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    optimizer.step()
    with pytest.raises(ScheduleError, match="2 schedules for 3 parameter groups"):
        several.step()


def test_many_steps_a_step():
    optimizer = made()
    scheduler = Scheduler(optimizer, s.exp(0.5))
    for _ in range(3):
        for _ in range(4):
            optimizer.step()
        scheduler.step()
    assert rates(optimizer) == [0.5 / 8]


def test_order_is_no_trap(optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = Scheduler(optimizer, s.exp(0.5))
        with pytest.raises(ScheduleError, match="has taken no step since the scheduler was at st"):
            scheduler.step()
        assert (rates(optimizer), scheduler.last_epoch) == ([0.5], 0)
        optimizer.step()
        scheduler.step()
        with pytest.raises(ScheduleError, match=r"at step 1; call optimizer.step\(\) first"):
            scheduler.step()
        assert rates(optimizer) == [0.25]
        with pytest.raises(ScheduleError, match=r"step\(\) takes no argument, got 7"):
            scheduler.step(7)


def test_a_scaler_that_skips():
    optimizer = made(lambda p: torch.optim.SGD(p, lr=0.5))
    p = optimizer.param_groups[0]["params"][0]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scheduler = Scheduler(optimizer, s.exp(0.5))
    found = []
    for loss in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((p * loss).sum()).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            scheduler.step()
        else:
            with pytest.raises(ScheduleError, match="GradScaler"):
                scheduler.step()
        found.append(rates(optimizer)[0])
    assert found == [0.25, 0.25, 0.125]


def test_long_trainings_and_what_fails_later():
    """Factors are computed ahead; what is wrong with one yet to come is none of this step's."""
    optimizer = made()
    grows = s.Schedule("grows", None, lambda t: np.where(t < 700, 1 + t, np.inf))
    scheduler = Scheduler(optimizer, grows)
    assert np.ravel(advance(optimizer, scheduler, 699)).tolist() == [0.5 * t for t in range(1, 700)]
    optimizer.step()
    with pytest.raises(ScheduleError, match="grows is no finite number at step 700"):
        scheduler.step()
    scheduler.schedule = s.exp(1.0)
    scheduler.step()
    assert rates(optimizer) == [0.5]


def test_past_the_end_nothing_changes():
    optimizer = made()
    scheduler = Scheduler(optimizer, s.cosine(3, end=0.5))
    advance(optimizer, scheduler, 3)
    optimizer.step()
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(ScheduleError, match=r"cosine\(3, end=0.5\) lasts 3 steps"):
        scheduler.step()
    assert scheduler.state_dict() == before
    assert rates(optimizer) == [0.25]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first", "made afterwards"])
def test_resume_in_the_middle(optimizer, order):
    schedule = s.warmup(4) + s.sgdr(5, multiplier=2)
    whole = Scheduler(optimizer, schedule)
    advance(optimizer, whole, 9)
    saved = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": whole.state_dict()})
    expected = advance(optimizer, whole, 20)

    other = copy.deepcopy(optimizer)
    for group in other.param_groups:
        group["lr"] = torch.tensor(0.5) if isinstance(group["lr"], torch.Tensor) else 0.5
        del group["initial_lr"]
    if order == "made afterwards":
        other.load_state_dict(saved["optimizer"])
        scheduler = Scheduler(other, schedule, step=9)
        assert scheduler.base_lrs == [0.5]
    else:
        scheduler = Scheduler(other, schedule)
        for what in ("optimizer", "scheduler")[:: 1 if order == "optimizer first" else -1]:
            {"optimizer": other, "scheduler": scheduler}[what].load_state_dict(saved[what])
    assert advance(other, scheduler, 20) == expected


def test_saved_between_the_two_steps():
    optimizer = made()
    scheduler = Scheduler(optimizer, s.exp(0.5))
    optimizer.step()
    other = Scheduler(made(), s.exp(0.5))
    other.load_state_dict(through_a_file(scheduler.state_dict()))
    other.step()
    assert other.get_last_lr() == [0.25]


def test_the_state_of_another():
    optimizer = made()
    scheduler = Scheduler(optimizer, s.exp(0.5))
    advance(optimizer, scheduler, 3)
    new = Scheduler(made(), s.exp(0.25))
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ScheduleError) as found:
        new.load_state_dict(scheduler.state_dict())
    assert "schedule exp(0.5), and this is exp(0.25)" in str(found.value)
    assert "make Scheduler(optimizer, schedule, step=3)" in str(found.value)
    foreign = StepLR(optimizer, 3).state_dict()
    with pytest.raises(ScheduleError, match="has no 'schedule': it is another scheduler's"):
        new.load_state_dict(foreign)
    with pytest.raises(ScheduleError, match="of 1 parameter groups and the optimizer has 2"):
        Scheduler(made(groups=2), s.exp(0.5)).load_state_dict(scheduler.state_dict())
    assert new.state_dict() == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_their_own_way(optimizer, copied):
    scheduler = Scheduler(optimizer, s.exp(0.5) * s.step(2))
    advance(optimizer, scheduler, 3)
    other = copied(scheduler)
    with pytest.raises(ScheduleError, match="taken no step"):
        other.step()
    there = advance(other.optimizer, other, 5)
    assert scheduler.last_epoch == 3
    assert there == advance(optimizer, scheduler, 5)


def test_the_optimizer_keeps_no_scheduler_alive():
    optimizer = made()
    scheduler = Scheduler(optimizer, s.exp(0.5))
    known = weakref.ref(scheduler)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    del scheduler
    gc.collect()
    assert known() is None
    assert not optimizer._optimizer_step_post_hooks
    optimizer.step()


def test_the_optimizers_step_is_its_own():
    """Torch puts a function of its own in its place."""
    optimizer = made()
    Scheduler(optimizer, s.exp(0.5))
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scheduler([1], s.exp(0.5)), "optimizer: must be a torch.optim.Optimizer, got li"),
        (lambda: Scheduler(made(), "cosine"), "got 'cosine'; schedules.parse"),
        (lambda: Scheduler(made(), [s.exp(0.5), 3]), "got 3;"),
        (lambda: Scheduler(made(), s.exp(0.5), step=1.5), "step: must be a whole number of st"),
        (lambda: Scheduler(made(), s.exp(0.5), step=-1), "asked for step -1"),
        (lambda: Scheduler(made(), s.cosine(5), step=6), "lasts 5 steps and is asked for step 6"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ScheduleError, match=message):
        make()


def test_no_schedule_recompiles_the_kernel():
    """Coefficients are data."""
    optimizer = made(lambda p: optim.Adam(p, lr=0.5))
    optimizer.step()
    compiled, plan = len(disk._GIVEN), optimizer._plan
    for name in s.SCHEDULES:
        scheduler = Scheduler(optimizer, s.parse(name, 30, 10))
        assert len({tuple(r) for r in advance(optimizer, scheduler, 30)}) > (name != "fixed")
    assert len(disk._GIVEN) == compiled
    assert optimizer._plan is plan


# Torch's compiler imports what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_no_schedule_recompiles_a_compiled_step():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    optimizer = made(lambda p: torch.optim.Adam(p, lr=torch.tensor(0.5)))
    scheduler = Scheduler(optimizer, s.cosine(20))
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    counts = []
    for _ in range(20):
        step()
        scheduler.step()
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts[-1] == counts[2], counts  # the state is made in the first step
    assert scheduler.last_epoch == 20
