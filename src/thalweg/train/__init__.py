"""Training one model to the end: the loop, and what it needs to run at the speed of the machine."""
