"""How a number is printed."""

from math import isfinite

__all__ = ["number"]


def number(value: float) -> str:
    """Three significant digits, with an exponent only where zeros would pile up."""
    if not isfinite(value):
        return f"{value}"
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
