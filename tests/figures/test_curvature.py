"""The figure of a spectral density: what is drawn is what was given."""

import math

import numpy as np
import pandas as pd

from thalweg.figures.curvature import spectral_density


def test_density_with_its_error_and_the_eigenvalues():
    curve = pd.DataFrame(
        {
            "eigenvalue": [-1.0, 0.0, 1.0, 2.0],
            "density": [0.1, 10.0, 0.0, 1e-3],
            "error": [0.05, 1.0, 0.0, 2e-3],
        }
    )
    figure = spectral_density(curve, [-0.5, 1.7])
    band, line, marks = figure.data
    np.testing.assert_allclose(line.x, curve["eigenvalue"])
    assert list(line.y[:2]) == [0.1, 10]
    # A logarithm has no zero: what is none is below all that is shown, seven decades.
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.range[0] == math.log10(10) - 7
    assert 0 < line.y[2] < 1e-6
    np.testing.assert_allclose(band.y[:2], [0.15, 11])
    np.testing.assert_allclose(band.y[-2:], [9, 0.05])
    assert 0 < band.y[4] < 1e-6  # below its estimate by more than it is
    assert list(marks.x) == [-0.5, 1.7]
    assert len(spectral_density(curve).data) == 2
