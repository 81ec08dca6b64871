"""Numbers of a training for TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path

from thalweg.train.arguments import FitError
from thalweg.train.background import Background

__all__ = ["Log"]

PENDING = 64  # rows of numbers that may wait for the disk


class Log:
    """A TensorBoard log, written in the background.

    Args:
        folder: of the log; made if missing.
        step: from which a training goes on: what the folder has of later ones is not shown. 0 for
            one that begins.

    Raises:
        FitError: if TensorBoard is not installed, or the folder cannot be made.
    """

    def __init__(self, folder: str | Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise FitError(
                "tensorboard",
                "the package tensorboard is not installed; pip install 'thalweg[tensorboard]'",
            ) from None
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _come_after(folder)
            self._writer = SummaryWriter(folder, purge_step=step + 1)
        except OSError as error:
            raise FitError(
                "tensorboard", f"cannot write to the folder {folder} ({error.strerror})"
            ) from None
        self._background = Background(PENDING)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers by name, ``train/loss`` say, after so many steps.

        Raises:
            OSError: if earlier ones could not be written.
        """
        self._background.submit(self._write, step, dict(numbers))

    def close(self) -> None:
        """Write what is left and close the log.

        Raises:
            OSError: if something could not be written.
        """
        self._background.submit(self._writer.close)
        self._background.wait()

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()


def _come_after(folder: Path) -> None:
    """Wait until a new file comes after those there.

    TensorBoard reads files in the order of their names, which begin with the second they were made
    in: made in the same one, that of a training that goes on might come first.
    """
    while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)
