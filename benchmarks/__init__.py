"""Ratios of two things measured in one process run, alternating, medians."""
