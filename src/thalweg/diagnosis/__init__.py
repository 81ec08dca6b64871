"""Why a training does not do what it should: seen, tried, and said with how sure that is."""

from thalweg.diagnosis.arguments import DiagnosisError
from thalweg.diagnosis.result import Diagnosis, Finding
from thalweg.diagnosis.run import diagnose

__all__ = ["Diagnosis", "DiagnosisError", "Finding", "diagnose"]
