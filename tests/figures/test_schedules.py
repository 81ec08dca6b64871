import numpy as np

from thalweg import schedules as s
from thalweg.figures import schedule_lines, schedules

CHOSEN = {"a": s.cosine(10), "b": s.exp(0.5), "c": s.step(3), "d": s.fixed(), "e": s.sgdr(4)}


def test_a_panel_each():
    figure = schedules(s.frame(CHOSEN, 10), lr=0.1)
    assert [t.text for t in figure.layout.annotations] == list(CHOSEN)
    assert len({t.yaxis for t in figure.data}) == 5
    for trace, schedule in zip(figure.data, CHOSEN.values(), strict=True):
        np.testing.assert_array_equal(trace.y, 0.1 * schedule(range(10)))
    # the last of each column has its numbers, though the second row has one panel alone
    shown = [axis.title.text for axis in figure.select_xaxes()]
    assert shown == [None, "step", "step", "step", "step", None, None, None]


def test_lines_of_one_panel_differ():
    figure = schedule_lines(s.frame(CHOSEN, 10))
    assert [t.name for t in figure.data] == list(CHOSEN)
    assert len({(t.line.color, t.line.dash) for t in figure.data}) == 5
    assert figure.layout.showlegend
    for trace, schedule in zip(figure.data, CHOSEN.values(), strict=True):
        np.testing.assert_array_equal(trace.x, range(10))
        np.testing.assert_array_equal(trace.y, schedule(range(10)))
