"""Surfaces, trajectories, critical points, Hessian operators and spectra, gradient flow."""
