import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.functions import FUNCTIONS, function
from thalweg.landscape.paths import descend, diverging, limit
from thalweg.optim.registry import BUILT_IN, OPTIMIZERS

CANYON = FUNCTIONS["canyon"]


def track(descent, label):
    mine = descent.paths[descent.paths["optimizer"] == label]
    return mine[["x", "y"]].to_numpy()


def test_gradient_descent_on_the_canyon_by_hand():
    # Each coordinate is multiplied by 1 - lr L: 1 - 0.3 * 0.2 along, 1 - 0.3 * 4 across.
    descent = descend("canyon", ["sgd"], lr=0.3, starts=[(-5, -2)], steps=30)
    t = np.arange(31)
    np.testing.assert_allclose(
        track(descent, "SGD"), np.stack([-5 * 0.94**t, -2 * (-0.2) ** t], 1), rtol=1e-12
    )
    row = descent.table.iloc[0]
    assert (row["outcome"], row["steps"], row["kind"]) == ("steps", 30, "not critical")
    assert row["gradient_start"] == pytest.approx(math.hypot(1, 8))
    assert row["value"] == pytest.approx(0.1 * (5 * 0.94**30) ** 2 + 8 * 0.2**60)


def test_a_path_ends_at_the_first_gradient_within_the_tolerance():
    # From (1, 0) the gradient is 0.2 * 0.9^t with lr 0.5; squared it is 1e-6 from t = 51 on.
    assert 0.2 * 0.9**50 > 1e-3 > 0.2 * 0.9**51
    descent = descend("canyon", ["sgd"], lr=0.5, starts=[(1, 0)], tolerance=1e-6)
    row = descent.table.iloc[0]
    assert (row["outcome"], row["steps"], row["kind"]) == ("tolerance", 51, "minimum")
    assert len(descent.paths) == 52


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_optimizer_moves_as_its_class_does(name):
    entry = OPTIMIZERS[name]
    x = torch.nn.Parameter(torch.tensor([-5.0, -2.0], dtype=torch.float64))
    optimizer = entry.constructor([x], lr=0.01, weight_decay=0.0)
    places = [x.detach().clone()]
    for _ in range(12):
        optimizer.zero_grad()
        CANYON(x).backward()
        optimizer.step()
        if hasattr(optimizer, "eval") and entry.rule.answer:
            optimizer.eval()
        places.append(x.detach().clone())
        if hasattr(optimizer, "train") and entry.rule.answer:
            optimizer.train()
    descent = descend("canyon", [name], lr=0.01, starts=[(-5, -2)], steps=12)
    # The same float64 maths in another order.
    np.testing.assert_allclose(
        track(descent, entry.label), torch.stack(places), rtol=1e-9, atol=1e-12
    )


def test_replicas_do_not_know_of_each_other():
    typed = ["sgd", "adam", "muon", "nag:form=lookahead"]
    together = descend("himmelblau", typed, lr=0.01, steps=60)
    for name in typed:
        alone = descend("himmelblau", [name], lr=0.01, steps=60)
        label = alone.movers[0].label
        np.testing.assert_array_equal(track(together, label), track(alone, label))


def test_starts_are_paths_of_their_own():
    descent = descend("himmelblau", ["sgd"], lr=0.01, starts=[(3, 3), (-3, 3), (-3, -3), (3, -3)])
    assert descent.table["start"].tolist() == [0, 1, 2, 3]
    ends = descent.table[["x", "y"]].to_numpy()
    known = [(3.0, 2.0), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)]
    # squared gradient 1e-10, curvature above 20
    np.testing.assert_allclose(ends, known, atol=2e-6)
    assert (descent.table["kind"] == "minimum").all()


def test_a_schedule_scales_the_rate():
    descent = descend("canyon", ["sgd"], lr=0.4, starts=[(1, 0)], steps=10, schedule="linear")
    from thalweg.schedules import parse

    factors = parse("linear", 10, 1)(range(10))
    expected = np.cumprod([1.0, *(1 - 0.4 * 0.2 * factors)])
    np.testing.assert_allclose(track(descent, "SGD")[:, 0], expected, rtol=1e-12)


def test_noise_is_of_its_seed_and_the_same_for_all():
    one = descend("canyon", ["sgd", "momentum:momentum=0"], lr=0.1, noise=0.5, steps=200)
    np.testing.assert_array_equal(track(one, "SGD"), track(one, "Momentum (momentum=0)"))
    again = descend("canyon", ["sgd"], lr=0.1, noise=0.5, steps=200)
    other = descend("canyon", ["sgd"], lr=0.1, noise=0.5, steps=200, seed=1)
    np.testing.assert_array_equal(track(one, "SGD"), track(again, "SGD"))
    assert not np.array_equal(track(one, "SGD"), track(other, "SGD"))
    # Along y each step is x <- 0.6 x + 0.1 * 0.5 n: a stationary deviation of 0.05 / 0.8.
    across = track(descend("canyon", ["sgd"], lr=0.1, noise=0.5, steps=3000), "SGD")[100:, 1]
    # Of 2900 draws with correlation 0.6 a deviation is known to 1.9 %: within three of these.
    assert across.std() == pytest.approx(0.05 / 0.8, rel=0.057)


@pytest.mark.parametrize(
    ("name", "lr", "start", "outcome", "kind"),
    [
        ("canyon", 0.6, (-5, -2), "diverged", "not critical"),
        ("saddle", 0.1, (1, 0), "tolerance", "saddle"),  # along the ridge
        ("saddle", 0.1, (1, 1e-6), "unbounded", "not critical"),
        ("cubic", 0.1, (1.0,), "tolerance", "saddle"),
        ("cubic", 0.1, (-0.1,), "unbounded", "not critical"),
        ("tanh", 0.1, (4.0,), "steps", "not critical"),
        ("x**4", 0.2, (1.0,), "tolerance", "minimum"),
        ("x*log(x)", 2.0, (2.0,), "undefined", "not critical"),
    ],
)
def test_how_paths_end(name, lr, start, outcome, kind):
    # Where the Hessian vanishes too, the gradient does slowly.
    tolerance = 1e-8 if name in ("x**4", "cubic") else 1e-10
    row = descend(name, ["sgd"], lr=lr, starts=[start], tolerance=tolerance).table.iloc[0]
    assert (row["outcome"], row["kind"]) == (outcome, kind)


def test_rates_are_tuned_alike_and_the_best_is_taken():
    descent = descend("canyon", ["sgd"])
    assert descent.tuned == ("SGD",)
    rates = np.logspace(-4, 2, 25)
    # The canyon's steps are set by the larger of |1 - 0.2 lr| and |1 - 4 lr|: below 2 / 4.2 the
    # largest rate is the best, and the next of the grid is above 2 / 4 and diverges.
    assert descent.table["lr"][0] == pytest.approx(rates[rates < 2 / 4.2].max())
    every = descend("canyon", [f"sgd:lr={lr}" for lr in rates[10:18]]).table
    assert descent.table["steps"][0] == every[every["outcome"] == "tolerance"]["steps"].min()


def test_a_rate_that_is_given_is_kept():
    descent = descend("canyon", ["sgd:lr=0.1", "adam", "momentum"], lr={"adam": 0.2}, steps=50)
    assert descent.table["lr"].tolist()[:2] == [0.1, 0.2]
    assert descent.tuned == ("Momentum",)
    assert descent.table["optimizer"].tolist()[0] == "SGD (lr=0.1)"


# What a person finds in textbooks: 2 / L; Polyak's 2 (1 + mu) / L.
FACTORS = {
    "sgd": 2.0,
    "momentum": 3.8,
    "momentum:momentum=0.5": 3.0,
    "momentum:form=sutskever": 3.8,
    "momentum:form=ewma": 38.0,
    "momentum:dampening=0.5": 7.6,
    "sgd:momentum=0.9": 3.8,
    "nag": 3.8 / 2.8,
    "nag:form=lookahead": 3.8 / 2.8,
    "nag:dampening=0.5": 3.8 / 2.35,
    "sgd:momentum=0.5:nesterov=true": 1.5,
}


def test_rate_of_divergence_on_a_quadratic_is_that_of_theory():
    found = diverging(descend("canyon", FACTORS, lr=0.01, steps=20))
    expected = np.array(list(FACTORS.values())) / 4
    np.testing.assert_allclose(found["sharpness"], 4.0, rtol=1e-12)
    np.testing.assert_allclose(found["theory"], expected, rtol=1e-12)
    # 61 rates a factor of 1.47 apart, narrowed three times by 33.
    np.testing.assert_allclose(found["diverges_at"], expected, rtol=2e-5)


@pytest.mark.parametrize("typed", ["sgd", "momentum:dampening=0.3", "nag:dampening=0.3"])
def test_theory_is_where_an_eigenvalue_leaves_the_unit_circle(typed):
    (mover,) = descend("canyon", [typed], lr=0.01, steps=1).movers
    hyper, sharpness = mover.complete(), 3.0
    rule = mover.rule.resolve(hyper)

    def radius(lr):
        row = mover.rule.row({**hyper, "lr": lr}, 2)[4:]
        columns = []
        for state in np.eye(1 + len(rule.state)):
            columns.append(rule.update(state[0], sharpness * state[0], *state[1:], *row))
        return np.abs(np.linalg.eigvals(np.array(columns).T)).max()

    edge, _ = limit(mover, sharpness)
    assert radius(edge * (1 - 1e-6)) < 1 < radius(edge * (1 + 1e-6))


def test_beyond_quadratics_what_is_tried_and_theory_differ():
    # x**4 from 2: |1 - 4 lr x²| = 1 where it starts, at lr = 2 / 16.
    found = diverging(descend("x**4", ["sgd"], lr=0.01, starts=[(2.0,)])).iloc[0]
    assert found["diverges_at"] == pytest.approx(0.125, rel=2e-5)
    assert math.isnan(found["theory"])
    # x³ - 3x from 2.2 is thrown over the maximum at -1: 2.2 - lr (3 * 2.2² - 3) < -1.
    found = diverging(descend("x**3 - 3*x", ["sgd"], lr=0.01, starts=[(2.2,)])).iloc[0]
    assert found["theory"] == pytest.approx(2 / 6)
    assert found["diverges_at"] == pytest.approx(3.2 / 11.52, rel=2e-5)


def test_no_rate_where_nothing_diverges_or_nothing_holds():
    assert diverging(descend("canyon", ["adam"])).iloc[0][["diverges_at", "theory"]].isna().all()
    assert diverging(descend("saddle", ["sgd"])).iloc[0][["diverges_at", "theory"]].isna().all()


def test_no_theory_with_decay_or_bounds():
    for typed in ("sgd:weight_decay=0.1", "sgd:clip_norm=1", "sgd:clip_value=1", "adam"):
        (mover,) = descend("canyon", [typed], lr=0.01, steps=1).movers
        assert limit(mover, 4.0)[1] == ""


def test_no_theory_where_the_velocity_takes_nothing_of_the_gradient():
    (row,) = diverging(descend("canyon", ["sgd:momentum=0.5:dampening=1"], steps=20)).itertuples()
    assert math.isnan(row.theory)


def test_what_a_small_gradient_far_from_the_minimum_is():
    # gradient 2e-8 * 2: a path ends where it starts, and the minimum is 2 away
    row = descend("1e-8*x**2", ["sgd"], starts=[(2.0,)], steps=5).table.iloc[0]
    assert (row["outcome"], row["steps"], row["kind"]) == ("tolerance", 0, "flat")


def test_a_start_where_the_function_is():
    f = function("log(x - 1)")
    descent = descend(f, ["sgd"], steps=5)
    assert descent.starts[0][0] == pytest.approx(-3 + 6 * 52 / 60)  # nearest to 0.87 of the range
    near = descend(replace(f, range=((-3.0, 1.1),)), ["sgd"], steps=5)
    assert near.starts[0][0] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizers": ["sdg"]}, "optimizers: there is no 'sdg'; did you mean sgd?"),
        ({"optimizers": []}, "optimizers: none given; choose from sgd"),
        ({"optimizers": ["sgd:momentum"]}, "write each hyperparameter once, sgd:lr=0.1 say"),
        ({"optimizers": ["sgd:momentum=2"]}, r"momentum must be in \[0, 1\), got 2.0"),
        ({"optimizers": ["sgd:mu=0.9"]}, "there is no hyperparameter 'mu'"),
        ({"optimizers": ["adam:betas=0.9"]}, r"betas must be 2 numbers in \[0, 1\)"),
        ({"optimizers": ["sgd:nesterov=yes"]}, "nesterov must be True or False, got 'yes'"),
        ({"lr": -1.0}, "lr: must be positive and finite, got -1"),
        ({"lr": {"adagrad": 0.1}}, "lr: 'adagrad' is none of the optimizers: sgd"),
        ({"starts": [(1.0,)]}, "start: must be a finite number for each of x and y, got 1"),
        ({"starts": [(math.nan, 1.0)]}, "start: must be a finite number"),
        ({"starts": []}, "start: none given"),
        ({"starts": [0.5]}, r"start: each must be .* in parentheses, \(1, 2\) say, got \[0.5\]"),
        ({"box": ((1, 0), (0, 1))}, "range: must be a lowest and a higher value of each of x and"),
        ({"box": ((0, 1),)}, "range: must be .* got 0:1"),
        ({"box": (0, 1)}, r"range: must be .* got \(0, 1\)"),
        ({"steps": 0}, "steps: must be a whole number of at least 1"),
        ({"tolerance": 0.0}, "tolerance: must be positive"),
        ({"noise": math.nan}, "noise: must be at least 0"),
        ({"noise": None}, "noise: must be at least 0 and finite, got None"),
        ({"seed": -1}, "seed: must be a whole number from 0, got -1"),
        ({"schedule": "cosin"}, "schedule: there is no schedule 'cosin'"),
    ],
)
def test_mistakes_get_one_sentence(arguments, message):
    with pytest.raises(LandscapeError, match=message):
        descend("canyon", **{"optimizers": ["sgd"], "lr": 0.1, **arguments})


def test_a_start_without_a_value():
    with pytest.raises(LandscapeError, match="or its gradient is not finite at -1"):
        descend("log(x)", ["sgd"], starts=[(-1.0,)])
