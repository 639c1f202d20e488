"""The processes in which batches are worked on here and now."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import util
from typing import Any, TypeVar

from spanvault.columnar.start import leave_pandas_out
from spanvault.config.connections import ConnectionResolver
from spanvault.config.settings import Settings
from spanvault.crypto.keyring import Unlocked
from spanvault.engine.context import Context
from spanvault.engine.worker_template import begin_template, template_context
from spanvault.errors import Retryable
from spanvault.model.request import EncryptionOptions

Summary = TypeVar("Summary")
# Of a worker process: how its work begins, and from its first batch on what it does with each.
_begins: list[Callable[[], Callable[[int], Any]]] = []
_works: list[Callable[[int], Any]] = []


def in_processes(
    context: Context,
    workers: int,
    begin: Callable[..., Callable[[int], Summary]],
    common: Sequence[Any],
    batches: int,
    done: Callable[[int, Summary], None],
) -> None:
    """Work on the batches numbered from 0, each once, in up to `workers` processes; `done` hears each result with its number.

    A process calls `begin` with a context and `common` when it has its first batch, and what that returned with the number
    of each. Its context has the settings, connections and keys of this one, and the chains open that are open here.

    The first failure stops what has not begun and is raised; Retryable when a process was killed. Processes end silently
    at Ctrl-C and when this one is killed, whatever they do: every batch may be interrupted anywhere.
    """
    begin_template()
    template, others = template_context(), set(multiprocessing.active_children())
    opened = {uri: keyring.opened() for uri, keyring in context.keyrings.items()}
    parts = (context.settings, context.connections, context.encryption, opened)
    given = (util.get_temp_dir(), dict(os.environ), *parts, begin, common)
    with ProcessPoolExecutor(min(workers, batches), mp_context=template, initializer=_begin, initargs=given) as pool:
        try:
            with _interrupts_later():
                futures = {pool.submit(_work_on, index): index for index in range(batches)}
            for future in as_completed(futures):
                done(futures[future], future.result())
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # a terminal interrupts them too; `kill -INT` does not
            raise
        except BrokenProcessPool:
            raise Retryable("A worker process was killed; the same statement continues from what it finished.") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C is heeded at the end: a process that is only half started when this one goes would print a traceback, as what
    it is to read from this one is gone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _begin(
    folder: str,
    environment: dict[str, str],
    settings: Settings,
    connections: ConnectionResolver,
    encryption: EncryptionOptions,
    opened: Mapping[str, Mapping[str, Unlocked]],
    begin: Callable[..., Callable[[int], Any]],
    common: Sequence[Any],
) -> None:
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    leave_pandas_out()
    # The template was made with the environment of its time.
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    context = Context(settings=settings, connections=connections, encryption=encryption)
    for uri, chains in opened.items():
        context.keyring(uri).take(chains)
    # Not called here: what it raises would be lost.
    _begins[:] = [partial(begin, context, *common)]


def _end_with_parent(folder: str) -> None:
    """End this process when the one that gives it work is gone: killed, it could not say so, and whatever is still worked on
    would hold connections for nobody. The template and its tracker end with the last worker; `folder` has their socket."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _work_on(index: int) -> Any:
    if not _works:
        _works.append(_begins[0]())
    return _works[0](index)
