"""Two processes that talk over gloo, kept for as many tests as there are."""

import multiprocessing
import os
import socket
import tempfile
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

WORLD = 2


class Failed(AssertionError):
    """What went wrong in one of the processes."""


def _serve(rank, meeting, pipe):
    """Answer calls until the pipe is closed."""
    # Without this gloo looks the host's name up, which in a container may lead nowhere.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    warnings.simplefilter("error")  # pytest's own filter is in the parent
    # Either waits that long for the other: for it to appear, and to compile its kernels.
    distributed.init_process_group(
        "gloo",
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(minutes=5),
    )
    try:
        while True:
            function, arguments = pipe.recv()
            try:
                pipe.send((True, function(rank, *arguments)))
            except BaseException:  # such is what pytest.raises raises
                pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))
    except EOFError:
        distributed.destroy_process_group()


class Ranks:
    """Runs a function in both processes; they are started when first needed."""

    def __init__(self):
        self._processes, self._pipes, self._folder = [], [], None

    def __call__(self, function, *arguments):
        """``[function(0, *arguments), function(1, *arguments)]``, each in its own process.

        Raises:
            Failed: with the traceback, should one of them raise or die.
        """
        if not self._processes:
            self._start()
        try:
            for pipe in self._pipes:
                pipe.send((function, arguments))
            results = {}
            while len(results) < WORLD:
                # Whoever answers first: after an error the other waits for it in vain.
                for pipe in wait([p for p in self._pipes if p not in results]):
                    succeeded, results[pipe] = pipe.recv()
                    if not succeeded:
                        raise Failed(results[pipe])
            return [results[pipe] for pipe in self._pipes]
        except (EOFError, OSError) as error:
            codes = self._end(kill=True)
            raise Failed(f"a process ended in the midst of it; exit codes {codes}") from error
        except BaseException:
            self._end(kill=True)
            raise

    def close(self):
        """Let the processes end."""
        self._end(kill=False)

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = Path(self._folder.name, "meeting")
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, meeting, theirs), daemon=True)
            process.start()
            theirs.close()  # the child has its own, whose end we shall see
            self._processes.append(process)
            self._pipes.append(ours)

    def _end(self, kill):
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            if kill:
                process.kill()
            process.join()
        codes = [process.exitcode for process in self._processes]
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None
        return codes
