"""The numbers of CONVENTIONS.md, by hand, in float64 to 1e-12; and identities between forms."""

from math import cos, sqrt

import numpy as np
import pytest

from thalweg import rules
from thalweg.kernels.reference import descend
from thalweg.rules.rule import HEAD

START = np.array([0.3, -1.7, 4.0])
GRADIENTS = [1e-3, 0.7, -25.0]


def constant(g):
    return lambda x: np.full_like(x, g)


def exactly(expected):
    return pytest.approx(expected, rel=1e-12, abs=0.0)


def moved(rule, g, steps=1, **hyper):
    """How far the rule goes down from 0 under a constant gradient, per step."""
    path = descend(rule, np.zeros(1), constant(g), steps, **hyper)
    return -path[:, 0]


@pytest.mark.parametrize("g", GRADIENTS)
def test_1_adams_first_step(g):
    lr, eps, beta2 = 0.01, 1e-3, 0.99
    hyper = {"lr": lr, "eps": eps, "betas": (0.7, beta2)}
    assert moved(rules.ADAM, g, **hyper)[1] == exactly(lr * g / (abs(g) + eps))
    expected = lr * g / (abs(g) + eps / sqrt(1 - beta2))
    assert moved(rules.ADAM, g, eps_hat=True, **hyper)[1] == exactly(expected)


@pytest.mark.parametrize("g", GRADIENTS)
def test_2_adagrad_under_a_constant_gradient(g):
    steps = np.diff(moved(rules.ADAGRAD, g, 20, lr=0.1, eps=0.0))
    expected = np.sign(g) * 0.1 / np.sqrt(np.arange(1, 21))
    # Differences of positions, so relative to the position.
    assert np.cumsum(steps) == exactly(np.cumsum(expected))


def test_3_ewma_momentum_under_a_constant_gradient():
    lr, beta, g = 0.1, 0.8, 0.7
    path = moved(rules.MOMENTUM, g, 30, lr=lr, momentum=beta, form="ewma")
    t = np.arange(1, 31)
    assert path[1:] == exactly(lr * (t - beta * (1 - beta**t) / (1 - beta)) * g)
    corrected = moved(
        rules.MOMENTUM, g, 30, lr=lr, momentum=beta, form="ewma", bias_correction=True
    )
    assert corrected[1:] == exactly(lr * t * g)


@pytest.mark.parametrize("curvature", [0.5, 40.0])
def test_4_gradient_descent_on_a_parabola(curvature):
    def gradient(x):
        return curvature * x

    def after(rule, lr, steps, **hyper):
        return abs(descend(rule, np.ones(1), gradient, steps, lr=lr, **hyper)[-1, 0])

    path = descend(rules.SGD, np.ones(1), gradient, 10, lr=0.3 / curvature)[:, 0]
    assert path == exactly(0.7 ** np.arange(11))
    assert after(rules.SGD, 1.995 / curvature, 10_000) < 1e-8
    assert after(rules.SGD, 2.005 / curvature, 10_000) > 1e8
    for mu in (0.5, 0.9):
        edge = 2 * (1 + mu) / curvature
        assert after(rules.MOMENTUM, 0.99 * edge, 600, momentum=mu) < 1e-4
        assert after(rules.MOMENTUM, 1.01 * edge, 600, momentum=mu) > 1e4


def test_5_sutskevers_momentum_parts_from_torchs_when_the_rate_changes():
    mu, g, lr, other = 0.9, 0.7, 0.1, 0.02
    count = 5  # steps at the first rate

    def take(form):
        x, v = np.zeros(()), np.zeros(())
        rule = rules.MOMENTUM
        path = []
        for t in range(1, count + 2):
            hyper = rule.complete({"lr": lr if t <= count else other, "momentum": mu, "form": form})
            row = rule.row(hyper, t)
            x, v = rule.update(x, g, v, *row[HEAD:])
            path.append(float(x))
        return path

    torchs, sutskevers = take("torch"), take("sutskever")
    assert torchs[:count] == exactly(sutskevers[:count])
    velocity = g * (1 - mu**count) / (1 - mu)
    # Sutskever's velocity still holds the first rate: mu v (lr - other) farther down.
    assert torchs[count] - sutskevers[count] == exactly(mu * velocity * (lr - other))


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprops_rate_inside_its_momentum(centered):
    # As test 5: the velocity that the second step takes on holds the rate of the first, or not.
    mu, g, lr, other, alpha = 0.9, 0.7, 0.1, 0.02, 0.75

    def take(inside):
        x, state = np.zeros(()), (np.zeros(()),) * (3 if centered else 2)
        for t, rate in ((1, lr), (2, other)):
            hyper = {"lr": rate, "momentum": mu, "alpha": alpha, "eps": 0.0, "centered": centered}
            hyper = rules.RMSPROP.complete(hyper | {"lr_in_momentum": inside})
            rule = rules.RMSPROP.resolve(hyper)
            x, *state = rule.update(x, g, *state, *rule.row(hyper, t)[HEAD:])
        return float(x)

    # r is g² (1 - alpha^t), less the square of m = g (1 - alpha^t) where centered.
    kept = [alpha, alpha**2] if centered else [1, 1]
    first, second = (1 / sqrt(k * (1 - alpha**t)) for t, k in zip((1, 2), kept, strict=True))
    assert take(True) == exactly(-(lr * first + mu * lr * first + other * second))
    assert take(False) == exactly(-(lr * first + other * (mu * first + second)))


@pytest.mark.parametrize("g", GRADIENTS)
def test_6_rmsprops_first_step(g):
    lr, alpha, eps = 0.01, 0.9, 1e-3
    hyper = {"lr": lr, "alpha": alpha, "eps": eps}
    first = moved(rules.RMSPROP, g, **hyper)[1]
    assert first == exactly(lr * g / (sqrt(1 - alpha) * abs(g) + eps))
    inside = moved(rules.RMSPROP, g, eps_in_sqrt=True, **hyper)[1]
    assert inside == exactly(lr * g / sqrt((1 - alpha) * g**2 + eps))
    ones = moved(rules.RMSPROP, g, initial_accumulator_value=1.0, **hyper)[1]
    assert ones == exactly(lr * g / (sqrt(alpha + (1 - alpha) * g**2) + eps))


@pytest.mark.parametrize("g", GRADIENTS)
def test_7_adadeltas_first_step(g):
    rho, eps = 0.95, 1e-5
    expected = sqrt(eps) / sqrt((1 - rho) * g**2 + eps) * g
    assert moved(rules.ADADELTA, g, rho=rho, eps=eps)[1] == exactly(expected)
    assert moved(rules.ADADELTA, g, rho=rho, eps=eps, lr=0.1)[1] == exactly(0.1 * expected)


@pytest.mark.parametrize(
    ("rule", "hyper"),
    [
        (rules.ADAGRAD, {"eps_in_sqrt": True}),
        (rules.RMSPROP, {"eps_in_sqrt": True}),
        (rules.ADAM, {"eps_hat": True}),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_where_eps_sits_shows(rule, hyper):
    inside = moved(rule, 0.01, lr=0.1, eps=1e-4, **hyper)[1]
    outside = moved(rule, 0.01, lr=0.1, eps=1e-4)[1]
    assert abs(inside / outside - 1) > 0.1


def test_eps_root_sits_under_adams_root():
    lr, g, eps, root = 0.1, 0.01, 1e-3, 1e-4
    assert moved(rules.ADAM, g, lr=lr, eps=eps, eps_root=root)[1] == exactly(
        lr * g / (sqrt(g**2 + root) + eps)
    )


def _bumpy(x):
    """Gradient of a smooth, not quadratic function."""
    return 0.4 * x + np.sin(x)


def test_both_forms_of_nag_are_one_path_in_two_variables():
    # torch's x is the look-ahead point of the other form.
    lr, mu = 0.05, 0.9
    seen = []

    def gradient(x):
        seen.append(x)
        return _bumpy(x)

    textbook = descend(rules.NAG, START, gradient, 50, lr=lr, momentum=mu, form="lookahead")
    points = np.stack(seen)
    torchs = descend(rules.NAG, START, _bumpy, 50, lr=lr, momentum=mu)
    assert np.abs(torchs[:50] - points).max() < 1e-12
    velocity = np.diff(textbook, axis=0)
    assert np.abs(torchs[1:] - (textbook[1:] + mu * velocity)).max() < 1e-12
    assert np.abs(torchs - textbook).max() > 0.1


def test_momentums_forms_agree_where_they_should():
    lr, mu = 0.05, 0.9
    torchs = descend(rules.MOMENTUM, START, _bumpy, 50, lr=lr, momentum=mu)
    sutskevers = descend(rules.MOMENTUM, START, _bumpy, 50, lr=lr, momentum=mu, form="sutskever")
    ewma = descend(rules.MOMENTUM, START, _bumpy, 50, lr=lr / (1 - mu), momentum=mu, form="ewma")
    assert np.abs(torchs - sutskevers).max() < 1e-12
    assert np.abs(torchs - ewma).max() < 1e-12
    plain = descend(rules.SGD, START, _bumpy, 50, lr=lr)
    none = descend(rules.MOMENTUM, START, _bumpy, 50, lr=lr, momentum=0.0)
    assert np.abs(plain - none).max() == 0.0


def test_dampening_spares_the_first_step():
    mu, tau, g, lr = 0.5, 0.4, 2.0, 0.1
    path = moved(rules.MOMENTUM, g, 2, lr=lr, momentum=mu, dampening=tau)
    assert path[1] == exactly(lr * g)
    assert path[2] - path[1] == exactly(lr * (mu * g + (1 - tau) * g))


def test_maximize_climbs():
    up = descend(rules.ADAM, START, lambda x: -_bumpy(x), 10, lr=0.1)
    same = descend(rules.ADAM, START, _bumpy, 10, lr=0.1, maximize=True)
    assert np.abs(up - same).max() == 0.0


def test_coupled_and_decoupled_decay():
    lr, decay, x, g = 0.1, 0.3, 2.0, 0.5
    start = np.array([x])
    coupled = descend(rules.ADAM, start, constant(g), 1, lr=lr, eps=0.0, weight_decay=decay)
    assert coupled[1, 0] == exactly(x - lr)  # Adam's first step has the size of the rate
    apart = descend(
        rules.ADAM,
        start,
        constant(g),
        1,
        lr=lr,
        eps=0.0,
        weight_decay=decay,
        decoupled_weight_decay=True,
    )
    assert apart[1, 0] == exactly(x * (1 - lr * decay) - lr)


def test_the_local_minimum_and_the_global_one():
    # x cos(pi x) on [-1, 2], SPEC.md section 5: its minima are near -0.27 and 1.09.
    def gradient(x):
        return np.cos(np.pi * x) - np.pi * x * np.sin(np.pi * x)

    for start, low in ((-0.5, -0.2738), (1.5, 1.0904)):
        end = descend(rules.SGD, np.array([start]), gradient, 500, lr=0.01)[-1, 0]
        assert end == pytest.approx(low, abs=1e-3)
    assert 1.0904 * cos(np.pi * 1.0904) < -0.2738 * cos(np.pi * 0.2738)
