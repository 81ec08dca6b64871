"""How a rule runs: reference (float64), CPU (Numba), any tensor (torch). How replicas run: tape."""
