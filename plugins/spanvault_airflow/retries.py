"""What Airflow does about each kind of error, and about being told to stop.

| engine's error | here | Airflow |
|---|---|---|
| Permanent (bad input, refused, damaged, broken chain) | AirflowFailException | fails at once, no retry |
| AlreadyCovered | AirflowSkipException | skips the task and those after it; the run ends as success |
| Retryable | AirflowException | retries with backoff |
| StateUnknown | AirflowException | retries; every step reads the state of storage and source before it writes |
| SIGTERM (cancelled, worker stopped) | AirflowException | retries unless the run was cancelled; continues from receipts |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from spanvault.errors import AlreadyCovered, Permanent, SpanvaultError

# 5, 10, 20 ... seconds: over ten minutes of trying, and nobody waits long after a killed worker.
RETRY_ARGS: dict[str, Any] = {
    "retries": 7,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2,
    "max_retry_delay": timedelta(minutes=5),
}


class Stopped(BaseException):
    """Raised into the running step by SIGTERM, so that everything it opened is closed; not an Exception, so that no
    handler on the way takes it for a failure of its own."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the engine's errors into Airflow's, one sentence each, without the engine's own traceback."""
    try:
        yield
    except AlreadyCovered as error:
        raise AirflowSkipException(str(error)) from None
    except Permanent as error:
        raise AirflowFailException(str(error)) from None
    except SpanvaultError as error:
        raise AirflowException(str(error)) from None
    except Stopped:
        raise AirflowException("The task was told to stop; another try continues from what is on storage.") from None
