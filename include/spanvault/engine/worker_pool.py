"""The processes in which batches are worked on here and now."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from spanvault.errors import Retryable

Summary = TypeVar("Summary")


def in_processes(
    workers: int, work: Callable[..., Summary], arguments: Sequence[tuple[Any, ...]], done: Callable[[int, Summary], None]
) -> None:
    """Call `work` once with each of `arguments`, in up to `workers` processes; `done` hears each result with its index.

    The first failure stops what has not begun and is raised; Retryable when a process was killed. Processes end silently
    at Ctrl-C, whatever they do: every batch may be interrupted anywhere. They are spawned, not forked: threads of Arrow
    and asyncio do not survive a fork.
    """
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(arguments)), mp_context=spawning, initializer=_end_at_interrupt) as pool:
        futures = {pool.submit(work, *each): index for index, each in enumerate(arguments)}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BrokenProcessPool:
            raise Retryable("A worker process was killed; the same statement continues from what it finished.") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_at_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
