"""`make soak`: many random histories against PostgreSQL's own recovery. SOAK_ROUNDS and SOAK_SEED choose which."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.kit.histories import History
from tests.kit.pitr import archiving_server
from tests.kit.servers import fresh_database, server_folder

_ROUNDS_PER_SERVER = 10  # the log of a server that is archived for long fills the disk


def main() -> int:
    """Run the rounds; 1 at the end if one failed. Each round names its seed, so that it can be run again alone."""
    rounds, first = int(os.environ.get("SOAK_ROUNDS", "100")), int(os.environ.get("SOAK_SEED", "1"))
    seeds = range(first, first + rounds)
    failed = [
        seed for start in range(0, rounds, _ROUNDS_PER_SERVER) for seed in _round(seeds[start : start + _ROUNDS_PER_SERVER])
    ]
    print(f"{rounds - len(failed)} of {rounds} histories were right" + (f"; wrong: {failed}" if failed else ""))
    return 1 if failed else 0


def _round(seeds: range) -> list[int]:
    failed = []
    with server_folder() as folder, archiving_server(folder) as (server, recovery):

        def crash() -> None:
            server.kill()
            server.start()

        for seed in seeds:
            began = time.monotonic()
            with fresh_database(server) as database, tempfile.TemporaryDirectory() as collection:
                history = History(database, recovery, Path(collection), seed, crash)
                try:
                    history.run(steps=8)
                    history.compare(20)
                    facts = f"right: {history.compared} tables compared, {history.left_out} left out"
                except Exception as error:
                    failed.append(seed)
                    facts = f"WRONG: {type(error).__name__}: {error}\n" + "\n".join(history.log)
                print(f"seed {seed}, {time.monotonic() - began:.0f} s, {facts}", flush=True)
            recovery.close()
    return failed


if __name__ == "__main__":
    sys.exit(main())
