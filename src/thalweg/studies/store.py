"""What happened: an append-only record in SQL, written in one short transaction per chunk.

A run is on record when the transaction of its chunk has committed; nothing is ever changed or
deleted, and every table that a person sees is derived from these (`thalweg.studies.analyse`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import StaticPool

from thalweg.studies.factors import FACTORS, StudyError
from thalweg.studies.spec import StudySpec

__all__ = ["FINISHED", "OUTCOMES", "Store"]

SCHEMA_VERSION = 3
_READ = (1, 2, 3)  # the first had no columns for factors, the second none for schedules
BUSY_SECONDS = 30

OUTCOMES = ("completed", "diverged", "stopped", "timed out")
# A run with one of these is never trained again.
FINISHED = OUTCOMES[:3]

_metadata = MetaData()
_version = Table("thalweg", _metadata, Column("schema_version", Integer, nullable=False))
_studies = Table(
    "studies",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("hash", String(16), nullable=False, index=True),
    Column("spec", String, nullable=False),
    Column("environment", String, nullable=False),
    Column("backend", String, nullable=False),
    Column("started", String, nullable=False),
)
_outcomes = Table(
    "outcomes",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("study", ForeignKey("studies.id"), nullable=False, index=True),
    Column("run", String(12), nullable=False),
    Column("optimizer", String, nullable=False),
    Column("lr", Float, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("batch_size", Integer, nullable=False),
    # The default is for runs from before there was a factor.
    *(
        Column(factor.name, String, nullable=False, server_default="")
        for factor in FACTORS
        if factor.name != "batch_size"
    ),
    Column("outcome", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("train_loss", Float),
    Column("validation_loss", Float),
    Column("validation_metric", Float),
    Column("test_loss", Float),
    Column("test_metric", Float),
    Column("epochs_to_target", Float),
    Column("seconds_to_target", Float),
    Column("seconds", Float, nullable=False),
)
_curves = Table(
    "curves",
    _metadata,
    Column("outcome", ForeignKey("outcomes.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("train_loss", Float),
    Column("validation_loss", Float),
    Column("validation_metric", Float),
    Column("seconds", Float, nullable=False),
)


class Store:
    """The record of studies in one database.

    Args:
        where: path of a SQLite file (made if missing), a database URL, or None for memory.

    Raises:
        StudyError: if it cannot be opened or is not a Thalweg database of this version.
    """

    def __init__(self, where: str | Path | None) -> None:
        self.where = where
        self._engine = _engine(where)
        with self._transaction() as connection:
            tables = set(inspect(connection).get_table_names())
            if _version.name not in tables:
                if tables:
                    raise StudyError("db", f"{where} holds other tables; give a file of its own")
                _metadata.create_all(connection)
                connection.execute(insert(_version).values(schema_version=SCHEMA_VERSION))
            found = connection.execute(select(_version.c.schema_version)).scalar_one()
            if found in _READ:
                _add_factors(connection)
        if found not in _READ:
            raise StudyError(
                "db",
                f"{where} was written by another version of Thalweg (schema {found}, this one "
                f"reads {SCHEMA_VERSION}); give another file",
            )

    def begin(self, spec: StudySpec, environment: Mapping[str, Any], backend: str) -> int:
        """Put a new study on record and return its number."""
        with self._transaction() as connection:
            result = connection.execute(
                insert(_studies).values(
                    name=spec.name,
                    hash=spec.hash,
                    spec=spec.json,
                    environment=json.dumps(dict(environment)),
                    backend=backend,
                    started=datetime.now(UTC).isoformat(timespec="seconds"),
                )
            )
            assert result.inserted_primary_key is not None
            return int(result.inserted_primary_key[0])

    def latest(self, name: str) -> tuple[int, StudySpec, str] | None:
        """Number, specification and backend of the last study of that name, if there is one."""
        query = select(_studies).where(_studies.c.name == name).order_by(_studies.c.id.desc())
        with self._transaction() as connection:
            row = connection.execute(query.limit(1)).first()
        return None if row is None else (row.id, StudySpec.from_json(row.spec), row.backend)

    def names(self) -> list[str]:
        """Names of all studies, the newest first."""
        query = select(_studies.c.name).order_by(_studies.c.id.desc())
        with self._transaction() as connection:
            return list(dict.fromkeys(connection.execute(query).scalars()))

    def finished(self, study: int) -> set[str]:
        """Runs of a study that need not be trained again."""
        query = select(_outcomes.c.run).where(
            _outcomes.c.study == study, _outcomes.c.outcome.in_(FINISHED)
        )
        with self._transaction() as connection:
            return set(connection.execute(query).scalars())

    def record(
        self,
        study: int,
        outcomes: Sequence[Mapping[str, Any]],
        curves: Sequence[Sequence[Mapping[str, Any]]],
    ) -> None:
        """Add what happened to some runs, all of it or nothing.

        Args:
            study: its number.
            outcomes: one row a run, columns of the table ``outcomes`` but its keys.
            curves: for each of them one row an epoch, columns of the table ``curves`` likewise.
        """
        with self._transaction() as connection:
            last = connection.execute(select(func.max(_outcomes.c.id))).scalar() or 0
            ids = range(last + 1, last + 1 + len(outcomes))
            connection.execute(
                insert(_outcomes),
                [{"id": i, "study": study, **row} for i, row in zip(ids, outcomes, strict=True)],
            )
            points = [
                {"outcome": i, **point}
                for i, curve in zip(ids, curves, strict=True)
                for point in curve
            ]
            if points:
                connection.execute(insert(_curves), points)

    def frames(self, study: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What happened, as data frames: one row a run, and one row a run and epoch.

        Where a run was taken up again after a time-out its last outcome counts. Missing numbers
        are NaN.
        """
        newest = (
            select(func.max(_outcomes.c.id))
            .where(_outcomes.c.study == study)
            .group_by(_outcomes.c.run)
        )
        runs = select(*_outcomes.c).where(_outcomes.c.id.in_(newest)).order_by(_outcomes.c.id)
        names = ("run", "optimizer", *(factor.name for factor in FACTORS), "lr", "seed")
        keys = [_outcomes.c[name] for name in names]
        points = [c for c in _curves.c if c.name != "outcome"]
        curves = (
            select(*keys, *points)
            .join(_curves, _curves.c.outcome == _outcomes.c.id)
            .where(_outcomes.c.id.in_(newest))
            .order_by(_outcomes.c.id, _curves.c.epoch)
        )
        with self._transaction() as connection:
            return _frame(connection, runs).drop(columns=["id", "study"]), _frame(
                connection, curves
            )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise StudyError("db", f"{self.where}: {error.orig}") from error


def _add_factors(connection: Connection) -> None:
    """Give a record that was begun before there was a factor its column."""
    there = {column["name"] for column in inspect(connection).get_columns(_outcomes.name)}
    for factor in FACTORS:
        if factor.name not in there:
            connection.exec_driver_sql(
                f"ALTER TABLE {_outcomes.name} ADD COLUMN {factor.name} VARCHAR DEFAULT '' NOT NULL"
            )
    connection.execute(update(_version).values(schema_version=SCHEMA_VERSION))


def _frame(connection: Connection, query: Any) -> pd.DataFrame:
    result = connection.execute(query)
    frame = pd.DataFrame(result.all(), columns=list(result.keys()))
    floats = [
        c.name
        for table in (_outcomes, _curves)
        for c in table.c
        if isinstance(c.type, Float) and c.name in frame
    ]
    return frame.astype(dict.fromkeys(floats, "float64"))


def _engine(where: str | Path | None) -> Engine:
    if where is None:
        # One connection, or each would see a memory of its own.
        return create_engine("sqlite://", poolclass=StaticPool)
    try:
        url = make_url(str(where)) if "://" in str(where) else None
    except ArgumentError:
        raise StudyError("db", f"{where!r} is no database URL") from None
    if url is not None:
        try:
            return create_engine(url)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise StudyError("db", f"{where}: no driver for it is installed ({error})") from None
    path = Path(str(where))
    if path.is_dir():
        raise StudyError("db", f"{path} is a folder; give the path of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError("db", f"{path}: cannot make its folder ({error.strerror})") from None
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _configure(connection: Any, _: Any) -> None:
    # Python's sqlite3 would commit each table as it is made, and a kill leave half of them; as
    # SQLAlchemy's manual has it, transactions are begun by hand instead.
    connection.isolation_level = None
    # Readers never wait for the writer, nor it for them.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
