"""``python -m thalweg`` is the command ``thalweg``, as torchrun starts it."""

import os
import sys
import warnings

from thalweg.alive import is_first, is_several
from thalweg.cli import main

if __name__ == "__main__":
    if is_several():
        # torch's advice that DistributedDataParallel would be faster if it knew that a model never
        # leaves parameters out; read when torch is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        warnings.simplefilter("ignore")
    main()
