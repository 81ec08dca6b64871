"""``python -m thalweg`` is the command ``thalweg``, as torchrun starts it."""

from thalweg.cli import main

if __name__ == "__main__":
    main()
