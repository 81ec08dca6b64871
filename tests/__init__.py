"""What checks annotations at run time, in the tests alone."""

from beartype import BeartypeConf, beartype

# An int is a float, as mypy has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
