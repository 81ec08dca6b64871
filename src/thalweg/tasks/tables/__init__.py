"""Tasks from tables: CSV, TSV, Parquet, data frames."""

from thalweg.tasks.tables.columns import Column
from thalweg.tasks.tables.predictor import Predictor
from thalweg.tasks.tables.read import is_table
from thalweg.tasks.tables.task import TableTask, table

__all__ = ["Column", "Predictor", "TableTask", "is_table", "table"]
