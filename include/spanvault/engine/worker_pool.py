"""The processes in which batches are worked on here and now."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any, TypeVar

from spanvault.errors import Retryable

Summary = TypeVar("Summary")


def in_processes(
    workers: int, work: Callable[..., Summary], arguments: Sequence[tuple[Any, ...]], done: Callable[[int, Summary], None]
) -> None:
    """Call `work` once with each of `arguments`, in up to `workers` processes; `done` hears each result with its index.

    The first failure stops what has not begun and is raised; Retryable when a process was killed. Processes end silently
    at Ctrl-C, whatever they do: every batch may be interrupted anywhere.
    """
    warm_up()
    context = _prepared()
    with ProcessPoolExecutor(
        min(workers, len(arguments)), mp_context=context, initializer=_begin, initargs=(dict(os.environ),)
    ) as pool:
        futures = {pool.submit(work, *each): index for index, each in enumerate(arguments)}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BrokenProcessPool:
            raise Retryable("A worker process was killed; the same statement continues from what it finished.") from None
        finally:
            pool.shutdown(cancel_futures=True)


def warm_up() -> None:
    """Let the workers' template import the engine while this process still plans: it takes a second or more."""
    _prepared()
    with _interrupts_ignored():
        forkserver.ensure_running()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that is started here ignores Ctrl-C from its first instruction on. (Only a program's main thread can
    say so, and only there do interrupts arrive.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepared() -> multiprocessing.context.ForkServerContext:
    """Workers are forked from a template that has imported the engine and done nothing else: a fork of this process
    would not survive the threads of Arrow and asyncio, and a spawned process imports everything anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spanvault.engine.steps", "spanvault.engine.restore_steps"])
    return context


def _begin(environment: dict[str, str]) -> None:
    # The template was made with the environment of its time.
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
