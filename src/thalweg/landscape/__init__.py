"""Surfaces, trajectories, critical points, Hessian operators and spectra, gradient flow."""

from thalweg.landscape.arguments import LandscapeError
from thalweg.landscape.critical import CriticalPoint, classify, classify_network
from thalweg.landscape.escape import Escape, escape
from thalweg.landscape.flow import Flow, NonFinite, WatchedTraining, trained_under_watch, watch
from thalweg.landscape.functions import FUNCTIONS, Function, function
from thalweg.landscape.generalisation import Generalisation, generalisation
from thalweg.landscape.operators import NetworkOperator, empirical_fisher, gauss_newton, hessian
from thalweg.landscape.paths import Descent, descend, diverging
from thalweg.landscape.points import Point, Points, critical_points
from thalweg.landscape.random_matrices import (
    NegativeShare,
    PositiveShare,
    negative_share,
    random_symmetric,
)
from thalweg.landscape.spectrum import (
    Density,
    Eigenvalues,
    Trace,
    eigenvalues,
    spectral_density,
    trace,
)
from thalweg.landscape.surface import (
    Plane,
    Surface,
    barrier,
    between,
    curvature_plane,
    path_plane,
    random_plane,
    surface,
    task_of_module,
)
from thalweg.landscape.symptoms import Symptom, symptoms
from thalweg.landscape.training_path import TrainingPath, training_paths

__all__ = [
    "FUNCTIONS",
    "CriticalPoint",
    "Density",
    "Descent",
    "Eigenvalues",
    "Escape",
    "Flow",
    "Function",
    "Generalisation",
    "LandscapeError",
    "NegativeShare",
    "NetworkOperator",
    "NonFinite",
    "Plane",
    "Point",
    "Points",
    "PositiveShare",
    "Surface",
    "Symptom",
    "Trace",
    "TrainingPath",
    "WatchedTraining",
    "barrier",
    "between",
    "classify",
    "classify_network",
    "critical_points",
    "curvature_plane",
    "descend",
    "diverging",
    "eigenvalues",
    "empirical_fisher",
    "escape",
    "function",
    "gauss_newton",
    "generalisation",
    "hessian",
    "negative_share",
    "path_plane",
    "random_plane",
    "random_symmetric",
    "spectral_density",
    "surface",
    "symptoms",
    "task_of_module",
    "trace",
    "trained_under_watch",
    "training_paths",
    "watch",
]
