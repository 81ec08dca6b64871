from pathlib import Path

from thalweg import optim
from thalweg.optim.reference import AROUND, page
from thalweg.optim.registry import BUILT_IN, OPTIMIZERS

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"


def test_the_reference_page_is_current():
    made = "python -m thalweg.optim.reference > docs/optimizers.md"
    assert PAGE.read_text() == page(), f"make it again: {made}"


def test_every_optimizer_and_convention_is_on_it():
    text = page()
    for row in map(OPTIMIZERS.__getitem__, BUILT_IN):
        start = text.index(f"## {row.constructor.__name__}\n")
        page_of_it = text[start : text.find("\n## ", start + 3)]
        for said in (row.rule.formula, row.rule.paper, row.rule.helps, row.rule.fails):
            assert said
            assert said in page_of_it
        for hyper in row.rule.hyper:
            assert hyper.meaning, (row.name, hyper.name)
            if hyper.name != "weight_decay":
                assert f"| `{hyper.name}`" in page_of_it


def test_those_around_another_are_on_it():
    for cls in AROUND.values():
        assert f"\n## {cls.__name__}\n" in page()
        assert getattr(optim, cls.__name__) is cls
