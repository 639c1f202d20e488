"""The process that worker processes are forked from. Imports little, so that it can be begun before anything else."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver


def begin_template() -> None:
    """Let the workers' template import the engine while this process does so itself, or plans: it takes a second or more."""
    template_context()
    with _interrupts_ignored(), _own_modules_only():
        forkserver.ensure_running()


@contextmanager
def _own_modules_only() -> Iterator[None]:
    """A Python that is begun here does not look for modules in the current folder, which may hold anybody's: multiprocessing
    begins the template with `-c`, which puts that folder first (PYTHONSAFEPATH, Python 3.11)."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


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


def template_context() -> multiprocessing.context.ForkServerContext:
    """Workers are forked from a template that has imported the engine and done nothing else: a fork of this process
    would not survive the threads of Arrow and asyncio, and a spawned process imports everything anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["spanvault.engine.steps", "spanvault.engine.restore_steps"])
    return context
