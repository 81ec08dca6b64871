import numpy as np
import pytest

from thalweg import schedules as s
from thalweg.schedules import SCHEDULES, ScheduleError, parse
from thalweg.schedules.presets import PARAMETERS


@pytest.mark.parametrize("steps", [1, 2, 7, 300])
@pytest.mark.parametrize("by", ["", ":by=epoch"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_name_works_for_every_training(name, by, steps):
    factors = parse(name + by, steps, 30)(range(steps))
    assert factors.shape == (steps,)
    assert (factors >= 0).all()
    assert (factors <= 1).all()
    assert factors.max() > 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [2, 7, 300])
def test_warmup_goes_before_every_name(name, steps):
    factors = parse(f"warmup+{name}", steps, 30)(range(steps))
    first = max(1, round(steps / 20))
    np.testing.assert_array_equal(factors[:first], s.warmup(first)(range(first)))
    alone = parse(name, steps if name == "warmup" else steps - first, 30)
    np.testing.assert_array_equal(factors[first:], alone(range(steps - first)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_entries_are_whole(name):
    entry = SCHEDULES[name]
    assert entry.name == name
    assert entry.meaning
    assert set(entry.parameters) <= set(PARAMETERS)
    assert set(entry.defaults(10)) <= set(entry.parameters)
    assert entry.factory.__doc__


@pytest.mark.parametrize("name", ["exp", "inv", "sigmoid"])
@pytest.mark.parametrize("steps", [10, 300, 10**6])
def test_what_has_no_end_comes_to_a_hundredth(name, steps):
    assert parse(name, steps, 30)(steps) == pytest.approx(0.01, rel=0.03)


def test_three_cycles_and_three_restarts():
    np.testing.assert_allclose(parse("triangular", 300, 30)([50, 150, 250]), 1)
    np.testing.assert_allclose(parse("triangular", 300, 30)([0, 100, 200, 300]), 0.1)
    np.testing.assert_array_equal(parse("sgdr", 700, 30)([0, 100, 300]), 1)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("cosine", s.cosine(300)),
        (" Cosine ", s.cosine(300)),
        ("cosine:end=0.1", s.cosine(300, end=0.1)),
        ("cosine:steps=400", s.cosine(400)),
        ("step:size=100:gamma=0.5", s.step(100, 0.5)),
        ("step:size=2e", s.step(60)),
        ("step:size=0.5e", s.step(15)),
        ("step:size=10%", s.step(30)),
        ("step:size=2:by=epoch", s.step(2).by_epoch(30)),
        ("step:size=20%:by=epoch", s.step(2).by_epoch(30)),
        ("step:size=2e:by=epoch", s.step(2).by_epoch(30)),
        ("exp:gamma=0.95:by=epoch", s.exp(0.95).by_epoch(30)),
        ("exp:gamma=0.95:by=step", s.exp(0.95)),
        ("cosine:by=epoch", s.cosine(10).by_epoch(30)),
        ("multistep:milestones=100/200", s.multistep([100, 200])),
        ("multistep:milestones=1e/50%", s.multistep([30, 150])),
        ("warmup", s.warmup(15).hold()),
        ("warmup:steps=1e:start=0.1", s.warmup(30, 0.1).hold()),
        ("warmup+cosine", s.warmup(15) + s.cosine(285)),
        ("warmup:steps=50 + cosine", s.warmup(50) + s.cosine(250)),
        ("warmup:steps=1:by=epoch+step", s.warmup(1).by_epoch(30) + s.step(90)),
        ("warmup+fixed:steps=50%+linear", s.warmup(15) + s.fixed(150) + s.linear(135)),
        ("wsd:decay=50%", s.wsd(300, 15, 150)),
        ("one-cycle:anneal=linear:three_phase=true",
         s.one_cycle(300, anneal="linear", three_phase=True)),
        ("noam:warmup=10:d_model=64", s.noam(10, 64)),
    ],
)  # fmt: skip
def test_parse(text, meant):
    found = parse(text, 300, 30)
    assert found == meant
    np.testing.assert_array_equal(found(range(300)), meant(range(300)))


def test_epochs_that_do_not_divide_the_training_last_to_its_end():
    assert parse("cosine:by=epoch", 100, 30) == s.cosine(4).by_epoch(30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "there is no schedule 'cosin'; did you mean cosine? The schedules are fixed, st"),
        ("zzz", "there is no schedule 'zzz'; choose from fixed,"),
        ("", "there is no schedule ''"),
        ("warmup+", "there is no schedule ''"),
        ("step,cosine", "there is no schedule 'step,cosine'"),
        ("step:siz=3", "'step:siz=3': step has no parameter 'siz'; it has size, gamma, by"),
        ("step:size", "size has no value; write size=value once"),
        ("step:size=3:size=4", "size is given twice"),
        ("step:size=1e3", "size must be a whole number of steps, epochs as in 10e, or a share of"),
        ("step:size=-3", "got '-3'"),
        ("step:size=0", "step takes as size a whole number in [1, inf), got 0"),
        ("step:size=0%", "got 0"),
        ("step:gamma=-1", "'step:gamma=-1': step takes as gamma a number in (0, inf), got -1.0"),
        ("step:gamma=x", "gamma must be a number, got 'x'"),
        ("step:gamma=nan", "got nan"),
        ("step:by=year", "by must be step or epoch, got 'year'"),
        ("sgdr:multiplier=1.5", "multiplier a whole number"),
        ("multistep:milestones=200/100", "that increase, got [200, 100]"),
        ("one_cycle:three_phase=1", "three_phase must be true or false, got '1'"),
        ("one_cycle:anneal=sin", "anneal 'cos' or 'linear', got 'sin'"),
        ("cosine:steps=100", "'cosine:steps=100': ends after 100 steps and the training after 300"),
        ("cosine:steps=1:by=epoch", "ends after 30 steps"),
        ("step+cosine", "'step': step never ends, so that nothing can follow; put it last"),
        ("cosine+linear", "'cosine': say how long it lasts before linear begins: cosine:steps=10%"),
        ("fixed+linear", "say how long it lasts"),
        ("warmup:steps=300+cosine", "nothing of the training's 300 steps is left for cosine"),
    ],
)
def test_mistakes_are_one_sentence(text, message):
    with pytest.raises(ScheduleError) as found:
        parse(text, 300, 30)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert found.value.argument == "schedule"


@pytest.mark.parametrize(("steps", "epoch"), [(0, 30), (300, 0), (1.5, 30), (True, 30)])
def test_a_training_has_steps(steps, epoch):
    with pytest.raises(ScheduleError, match="must be a whole number of at least 1"):
        parse("cosine", steps, epoch)
