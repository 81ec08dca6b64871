"""From columns as they stand in a table to numbers, days and labels."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from thalweg.tasks.split import TaskError
from thalweg.tasks.tables.read import Table, quoted

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Reading", "Values", "labelled", "number_label", "values"]

Reading: TypeAlias = Literal["numeric", "date", "nominal"]

# What pandas takes for a missing value in a text file.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
_ISO_DATE = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?"
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Values:
    """What a column says.

    Attributes:
        kind: as what it is read.
        numbers: of a numeric column, or days since 1970 of one of dates, NaN where missing;
            ``(rows,)``.
        labels: of a nominal one, ``(rows,)``.
        dtype: of the column where it was found, as NumPy has it; None for text.
        order: of labels that came with one.
    """

    kind: Reading
    numbers: NDArray[np.float64] | None = None
    labels: "pd.Categorical | None" = None
    dtype: Any = None
    order: tuple[str, ...] = ()

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Where there is nothing, ``(rows,)``."""
        if self.numbers is not None:
            return np.isnan(self.numbers)
        assert self.labels is not None
        found: NDArray[np.bool_] = self.labels.codes == -1
        return found


def number_label(number: float) -> str:
    """A number as a name of a class: whole ones without a point."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def values(
    table: Table, name: str, wanted: Reading | None = None, argument: str | None = None
) -> Values:
    """What a column of a table says.

    Args:
        table: with a column of that name.
        name: the column.
        wanted: as what to read it; by default as numbers or dates if all of it is, else labels.
        argument: what asked for that, for messages.

    Raises:
        TaskError: for infinite numbers, and for what is not as wanted or mostly but not all
            numbers, with the first place.
    """
    import pandas as pd

    series = table.columns[name]
    kind = series.dtype
    argument = argument or table.argument
    if isinstance(kind, pd.CategoricalDtype):
        return _of_categories(table, name, series, wanted, argument)
    if pd.api.types.is_object_dtype(kind):
        series = _scalars(table, name, series)
        kind = series.dtype
    if pd.api.types.is_bool_dtype(kind):
        labels = pd.Categorical(series.astype(object).map({True: "True", False: "False"}))
        if wanted == "numeric":
            codes = series.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
            return Values("numeric", codes, dtype=np.dtype(bool))
        return Values("nominal", labels=labels, dtype=np.dtype(bool))
    if pd.api.types.is_string_dtype(kind):
        return _of_text(table, name, series, wanted, argument)
    if pd.api.types.is_datetime64_any_dtype(kind):
        return _of_times(table, name, series, wanted, argument)
    if pd.api.types.is_timedelta64_dtype(kind):
        series = series / pd.Timedelta(1, "D")
    elif not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
        raise _unusable(table, name, str(kind))
    numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
    _finite(table, name, numbers, argument)
    dtype = numbers.dtype if pd.api.types.is_extension_array_dtype(kind) else kind
    if wanted == "date":
        raise _not(table, name, "a date", int(np.argmax(~np.isnan(numbers))), numbers, argument)
    found = Values("numeric", numbers, dtype=dtype)
    return labelled(found) if wanted == "nominal" else found


def labelled(found: Values) -> Values:
    """The same as labels: numbers become names."""
    import pandas as pd

    if found.numbers is None:
        return found
    codes, numbers = pd.factorize(found.numbers, sort=True)
    labels = pd.Categorical.from_codes(codes, [number_label(n) for n in numbers])
    return Values("nominal", labels=labels, dtype=found.dtype)


def _scalars(table: Table, name: str, series: "pd.Series") -> "pd.Series":
    """Objects as what they all are, or else as text."""
    import pandas as pd

    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
        return pd.to_numeric(series).astype(np.float64)
    if kind in ("datetime", "datetime64", "date"):
        return pd.to_datetime(series, utc=True)
    if kind == "boolean":
        return series.astype("boolean")
    known = series.notna()
    plain = series[known].map(lambda v: isinstance(v, str | bool | int | float | np.generic))
    if not plain.all():
        held = series[known][~plain].iloc[0]
        raise _unusable(table, name, f"values like {held!r:.40}")
    text = series.where(known, "").map(lambda v: v if isinstance(v, str) else _label(v))
    return text.astype(pd.StringDtype("pyarrow"))


def _label(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    return number_label(float(value)) if isinstance(value, int | float | np.number) else str(value)


def _of_categories(
    table: Table, name: str, series: "pd.Series", wanted: Reading | None, argument: str
) -> Values:
    import pandas as pd

    if wanted in ("numeric", "date"):
        plain = series.astype(series.cat.categories.dtype)
        columns = {**table.columns, name: plain}
        return values(replace(table, columns=columns), name, wanted, argument)
    names = [_label(c).strip() for c in series.cat.categories]
    kept = list(dict.fromkeys(n for n in names if n not in MISSING))
    places = np.array([kept.index(n) if n in kept else -1 for n in names] + [-1], dtype=np.int64)
    mapped = places[series.cat.codes.to_numpy()]
    labels = pd.Categorical.from_codes(mapped, kept)
    order = tuple(kept) if series.cat.ordered else ()
    return Values("nominal", labels=labels, order=order)


def _of_times(
    table: Table, name: str, series: "pd.Series", wanted: Reading | None, argument: str
) -> Values:
    import pandas as pd

    if wanted == "nominal":
        text = series.astype(str).where(series.notna(), "").astype(pd.StringDtype("pyarrow"))
        return Values("nominal", labels=_coded(text))
    if wanted == "numeric":
        first = int(np.argmax(series.notna()))
        raise _not(table, name, "a number", first, series, argument)
    return Values("date", _days(series), dtype=series.dtype)


def _days(series: "pd.Series | pd.DatetimeIndex | Any") -> NDArray[np.float64]:
    import pandas as pd

    times = pd.DatetimeIndex(series)
    if times.tz is not None:
        times = times.tz_convert("UTC").tz_localize(None)
    days: NDArray[np.float64] = (times.to_numpy() - np.datetime64(0, "D")) / _DAY
    return days


def _of_text(
    table: Table, name: str, series: "pd.Series", wanted: Reading | None, argument: str
) -> Values:
    if wanted in (None, "numeric"):
        numbers = _all_numbers(series)
        if numbers is not None:
            _finite(table, name, numbers, argument)
            return Values("numeric", numbers)
    labels = _coded(series)
    if wanted == "nominal":
        return Values("nominal", labels=_without_points(labels))
    return _of_labels(table, name, labels, wanted, argument)


def _all_numbers(series: "pd.Series") -> NDArray[np.float64] | None:
    """Numbers, NaN where missing, or None if something is not a number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(_arrow(series))
    text = pc.if_else(
        pc.is_in(text, pa.array(MISSING, text.type)), pa.scalar(None, text.type), text
    )
    try:
        numbers = text.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    # A copy, because Arrow's own memory cannot be written to.
    return np.array(numbers, dtype=np.float64)


def _arrow(series: "pd.Series") -> Any:
    import pyarrow as pa

    found = pa.array(series.array, type=pa.large_string())
    return found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])


def _coded(series: "pd.Series") -> "pd.Categorical":
    """Text as labels without space around them, in alphabetical order."""
    import pandas as pd

    found = _arrow(series).dictionary_encode().unify_dictionaries().combine_chunks()
    if not len(found.dictionary):
        return pd.Categorical.from_codes(np.full(len(series), -1), [])
    texts = np.array([t.strip() for t in found.dictionary.to_pylist()], dtype=object)
    texts[np.isin(texts, MISSING)] = ""
    kept, places = np.unique(texts, return_inverse=True)
    if kept[0] == "":
        kept, places = kept[1:], places - 1
    codes = found.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
    return pd.Categorical.from_codes(np.append(places, -1)[codes], pd.Index(kept, dtype=object))


def _without_points(labels: "pd.Categorical") -> "pd.Categorical":
    """Whole numbers as names alike, whether they were written ``3`` or ``3.0``."""
    import pandas as pd

    names = labels.categories.to_series(index=range(len(labels.categories))).astype(object)
    if not len(names) or pd.to_numeric(names, errors="coerce").isna().any():
        return labels
    plain = names.str.replace(r"(?<=\d)\.0+$", "", regex=True).to_numpy(dtype=object)
    kept, places = np.unique(plain, return_inverse=True)
    return pd.Categorical.from_codes(np.append(places, -1)[labels.codes], pd.Index(kept))


def _of_labels(
    table: Table, name: str, labels: "pd.Categorical", wanted: Reading | None, argument: str
) -> Values:
    """Numbers or dates if all labels are, else the labels themselves."""
    import pandas as pd

    texts = labels.categories.to_series(index=range(len(labels.categories))).astype(object)
    if wanted != "numeric" and len(texts) and texts.str.fullmatch(_ISO_DATE).all():
        times = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce")
        if times.notna().all():
            return Values("date", np.append(_days(times), np.nan)[labels.codes])
    if wanted == "date":
        if not len(texts):
            return Values("date", np.full(len(labels), np.nan))
        right = pd.to_datetime(texts, format="ISO8601", utc=True, errors="coerce").notna()
        first = int(np.argmax(np.append(~right, False)[labels.codes]))
        raise _not(table, name, "a date", first, labels, argument)
    right = pd.to_numeric(texts, errors="coerce").notna().to_numpy()
    if len(texts) and texts.str.fullmatch(r"[+-]?\d+(,\d+)?").all():
        wanted = "numeric"  # with a decimal comma, which names would hide
    numeric = np.append(right, False)[labels.codes]
    known = labels.codes != -1
    share = numeric.sum() / max(1, known.sum())
    if wanted == "numeric" or share > 0.5:
        first = int(np.argmax(known & ~numeric))
        said = "" if wanted else f" has numbers in {numeric.sum():,} of {known.sum():,} rows"
        raise _not(table, name, "a number", first, labels, argument, said)
    return Values("nominal", labels=labels)


def _finite(table: Table, name: str, numbers: NDArray[np.float64], argument: str) -> None:
    infinite = np.isinf(numbers)
    if infinite.any():
        place = table.place(int(np.argmax(infinite)))
        drop = "" if argument == "data" else f", or leave it out with --drop {quoted(name)}"
        raise TaskError(
            argument,
            f"column {name!r} of {table.name} has an infinite number in {place}; correct it or "
            f"leave it empty{drop}",
        )


def _not(
    table: Table, name: str, what: str, row: int, column: Any, argument: str, said: str = ""
) -> TaskError:
    value = column.iloc[row] if hasattr(column, "iloc") else column[row]
    text, place = str(value), table.place(row)
    if what == "a number" and text.replace(",", "", 1).lstrip("+-").isdigit():
        what += " (its decimal point must be a point)"
    where = f"{said}, and {place} has" if said else f" has in {place}"
    remedy = "correct it or leave it empty"
    if argument != "data":  # of training, where it can still be said what a column is
        option = quoted(name)
        remedy += f", take all of the column as names with --nominal {option}, or leave it out with"
        remedy += f" --drop {option}"
    return TaskError(
        argument,
        f"column {name!r} of {table.name}{where} {text!r:.60}, which is not {what}; {remedy}",
    )


def _unusable(table: Table, name: str, what: str) -> TaskError:
    mend = "give numbers or text" + (
        "" if table.argument == "data" else f", or leave it out with --drop {quoted(name)}"
    )
    return TaskError(
        table.argument,
        f"column {name!r} of {table.name} has {what}, of which no numbers can be made; {mend}",
    )
