"""Where a training step's time and memory go, and what would make it faster."""

from thalweg.train.profile.result import Profile
from thalweg.train.profile.run import profile

__all__ = ["Profile", "profile"]
