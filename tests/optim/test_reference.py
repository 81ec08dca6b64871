from pathlib import Path

from thalweg.optim.reference import page
from thalweg.optim.registry import OPTIMIZERS

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"


def test_the_reference_page_is_current():
    made = "python -m thalweg.optim.reference > docs/optimizers.md"
    assert PAGE.read_text() == page(), f"make it again: {made}"


def test_every_optimizer_and_convention_is_on_it():
    text = page()
    for row in OPTIMIZERS.values():
        assert f"## {row.label}\n" in text
        for option in row.conventions:
            assert f"- `{option}`: " in text
