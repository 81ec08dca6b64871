"""When a kernel is compiled, and when it is taken from the disk."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.kernels.executors import by_kernel, start
from thalweg import rules
from thalweg.kernels import cpu, disk
from thalweg.rules.rule import averaged

PROGRAM = """
import importlib.util, sys
import numpy as np
from thalweg.kernels import cpu, disk

spec = importlib.util.spec_from_file_location("own", sys.argv[1])
own = importlib.util.module_from_spec(spec)
if sys.argv[2] == "known":
    sys.modules["own"] = own
spec.loader.exec_module(own)
p, g = np.ones(4), np.ones(4)
segments = cpu.Segments.of([4], [0], 0)
segments.table[0, 1:] = p.ctypes.data, g.ctypes.data
cpu.run(own.RULE, segments, np.array([own.RULE.row(own.RULE.complete({}), 1)]))
hits = disk._GIVEN[-1].cache_hits
print(p[0], hits, 1 - hits)
"""
OWN = """
from thalweg.rules import Number, Rule

def update(p, g, lr):
    return (p {sign} lr * g,)

RULE = Rule("own", (Number("lr", 0.25),), (), lambda h, t: (h["lr"],), update)
"""


def test_no_hyperparameter_recompiles():
    rule = rules.ADAM
    p, g, state = start(rule, 10)
    by_kernel(rule, p, g, state, rule.complete({}), 1)
    compiled = len(disk._GIVEN)
    for lr, betas, decay in ((0.1, (0.9, 0.99), 0.0), (0.2, (0.5, 0.9), 0.1), (0, (0, 0), 1)):
        hyper = rule.complete({"lr": lr, "betas": betas, "weight_decay": decay})
        by_kernel(rule, p, g, state, hyper, 3)
        by_kernel(rule, *(a.reshape(2, 5) for a in (p, g)), state, hyper, 4)
    assert len(disk._GIVEN) == compiled
    by_kernel(rule, *(a.astype(np.float32) for a in (p, g)), [s.astype(np.float32) for s in state],
              rule.complete({}), 1)  # fmt: skip
    assert len(disk._GIVEN) <= compiled + 1


def run(path: Path, cache: Path, module: str = "known") -> tuple[float, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), module],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = done.stdout.split()
    return float(answer[0]), int(answer[1]), int(answer[2])


def test_a_second_process_takes_the_kernel_from_disk_and_an_edited_rule_is_compiled(tmp_path):
    path, cache = tmp_path / "own.py", tmp_path / "cache"
    path.write_text(OWN.format(sign="-"))
    assert run(path, cache) == (0.75, 0, 1)
    assert run(path, cache) == (0.75, 1, 0)
    path.write_text(OWN.format(sign="+"))
    assert run(path, cache) == (1.25, 0, 1)


def test_a_rule_from_a_module_that_cannot_be_imported_again_is_compiled_each_time(tmp_path):
    path, cache = tmp_path / "own.py", tmp_path / "cache"
    path.write_text(OWN.format(sign="-"))
    assert run(path, cache, "unknown") == (0.75, 0, 1)
    assert run(path, cache, "unknown") == (0.75, 0, 1)


HELPED = """
from thalweg.rules import Number, Rule

def inner(g):
    return {factor} * g

def helper(g, lr):
    return lr * inner(g)

def update(p, g, lr):
    return (p - helper(g, lr),)

RULE = Rule("own", (Number("lr", 0.25),), (), lambda h, t: (h["lr"],), update)
"""


def test_an_edited_function_that_a_rule_calls_is_compiled_anew(tmp_path):
    path, cache = tmp_path / "own.py", tmp_path / "cache"
    path.write_text(HELPED.format(factor=1.0))
    assert run(path, cache) == (0.75, 0, 1)
    assert run(path, cache) == (0.75, 1, 0)
    path.write_text(HELPED.format(factor=2.0))
    assert run(path, cache) == (0.5, 0, 1)


def scaled(scale):
    return lambda p, g, lr: (p - scale * lr * g,)


def by_a_list(scales):
    return lambda p, g, lr: (p - scales[0] * lr * g,)


def test_what_leans_on_unseen_values_is_not_cached():
    assert cpu._fingerprint(rules.ADAM.update) is not None
    assert cpu._fingerprint(by_a_list([2.0])) is None
    assert cpu._fingerprint(lambda p, g, lr: (p - start(p) * g,)) is None
    assert cpu._fingerprint(lambda p, g, lr=2.0: (p - lr * g,)) is None
    assert cpu._fingerprint(max) is None


def test_numbers_and_functions_that_are_closed_over_are_part_of_the_fingerprint():
    prints = [cpu._fingerprint(scaled(s)) for s in (2.0, 3.0, 2.0)]
    assert prints[0] == prints[2] != prints[1]
    adam, lion = (cpu._fingerprint(averaged(r).update) for r in (rules.ADAM, rules.LION))
    assert adam is not None
    assert lion not in (None, adam)


def innermost(x):
    return 2.0 * x


def between(x):
    return innermost(x)


def outermost(p, g, lr):
    return (p - lr * between(g),)


def other_innermost(x):
    return 3.0 * x


def test_functions_that_are_called_are_part_of_the_fingerprint(monkeypatch):
    before = cpu._fingerprint(outermost)
    assert before is not None
    monkeypatch.setitem(globals(), "innermost", other_innermost)
    assert cpu._fingerprint(outermost) not in (None, before)
    # One whose own changes we could not see.
    monkeypatch.setitem(globals(), "innermost", by_a_list([2.0]))
    assert cpu._fingerprint(outermost) is None


LOADS_BOTH = """
import sys
import numpy as np
from tests.kernels.executors import by_kernel, by_reference, gap, start
from thalweg import rules

for name in sys.argv[1:]:
    rule = getattr(rules, name)
    p, g, state = start(rule, 100)
    hyper = rule.complete({"lr": 0.1})
    found, _ = by_kernel(rule, p, g, state, hyper, 2)
    expected, _ = by_reference(rule, p, g, state, hyper, 2)
    assert gap(found, expected) < 1e-14, name
"""


def test_kernels_of_two_processes_are_not_taken_for_each_other(tmp_path):
    # Numba names what it compiles by a count that begins anew in each process.
    for names in (["MOMENTUM"], ["SIGNUM"], ["MOMENTUM", "SIGNUM"]):
        subprocess.run(
            [sys.executable, "-c", LOADS_BOTH, *names],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
            cwd=Path(__file__).parents[2],
            check=True,
        )


def test_a_fingerprint_is_the_maths_and_not_where_it_stands():
    def one(p, g, lr):
        return (p - lr * g,)

    first = one

    def one(p, g, lr):
        return (p - lr * g,)

    def other(p, g, lr):
        return (p - lr * g * g,)

    assert cpu._fingerprint(first) == cpu._fingerprint(one) != cpu._fingerprint(other)


BITS = """
import hashlib, sys, torch
from thalweg import optim
for name in sys.argv[1:]:
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(1003, generator=generator))
    optimizer = getattr(optim, name)([p], lr=1e-2)
    for _ in range(30):
        p.grad = torch.randn(1003, generator=generator)
        optimizer.step()
    print(name, hashlib.sha256(p.detach().numpy().tobytes()).hexdigest())
"""


def test_fresh_or_from_disk_first_or_last_a_kernel_rounds_the_same(tmp_path):
    names = ["NAG", "Adan", "ScheduleFreeSGD"]

    def bits(cache, order):
        done = subprocess.run(
            [sys.executable, "-c", BITS, *order],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / cache)},
            capture_output=True,
            text=True,
            check=True,
        )
        return sorted(done.stdout.splitlines())

    fresh = bits("one", names)
    assert bits("one", names) == fresh
    assert bits("another", names[::-1]) == fresh
