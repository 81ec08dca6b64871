"""How a number is printed."""

from math import floor, isfinite, log10

__all__ = ["duration", "number", "scaled"]

PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}


def number(value: float) -> str:
    """Three significant digits, with an exponent only where zeros would pile up."""
    if not isfinite(value):
        return f"{value}"
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Seconds in the unit a person would choose: ``3.2 ms``."""
    return scaled(seconds, "s")


def scaled(value: float, unit: str) -> str:
    """Three significant digits with the prefix a person would choose: ``3.2 GFLOP/s``."""
    if value == 0 or not isfinite(value):
        return f"{value:g} {unit}"
    power = min(4, max(-3, floor(log10(abs(value) * (1 + 5e-4)) / 3)))
    return f"{value / 1000.0**power:.3g} {PREFIXES[power]}{unit}"
