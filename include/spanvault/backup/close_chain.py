"""The last layer of a chain, up to the cut of the full backup that follows it: no hole in time between two chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spanvault.backup.context import Run
from spanvault.backup.layer_seal import Ends, make_layers
from spanvault.collection.chain import head
from spanvault.collection.plans import create_plan
from spanvault.database.postgres.snapshot import SealSnapshot
from spanvault.errors import Refused
from spanvault.model.cut import Cut
from spanvault.model.manifest import PlannedDatabase, SealedLayer


def closing_layers(run: Run, snapshots: Sequence[tuple[PlannedDatabase, SealSnapshot]], cut: Cut) -> tuple[SealedLayer, ...]:
    """The layer from the end of the chain that the plan closes to `cut`; none if there is no such chain, or it is there.

    It holds what the log tells. Tables that the log does not tell keep their last rows: the full reads them.
    """
    if run.plan.closes is None:
        return ()
    parent, digest = head(run.storage, run.plan.closes)
    if parent.end.lsn >= cut.lsn:
        return ()
    options = parent.request.options.model_copy(update={"incremental_location": None, "fingerprint": False})
    plan = run.plan.model_copy(
        update={
            "kind": "incremental",
            "subdir": parent.subdir,
            "number": parent.number + 1,
            "parent_sha256": digest,
            "closes": parent.subdir,  # by this the run that wants the full knows that it has more to do
            "batches": (),
            "request": parent.request.model_copy(update={"append": parent.subdir, "options": options}),
        }
    )
    create_plan(run.storage, plan)
    known = {entry.database.name for entry in parent.databases}
    wanted = [(planned, snapshot) for planned, snapshot in snapshots if planned.database.name in known]
    closing = replace(run, plan=plan, data=run.storage)
    try:
        return make_layers(closing, parent, wanted, Ends((cut,), due=False, reads=False))
    except Refused as error:
        # The source's clock was set: no time inside the layer would be right, its end is.
        run.progress.note(f"{error} The chain before is closed without revision history.")
        plain = plan.request.model_copy(update={"options": options.model_copy(update={"revision_history": False})})
        without = replace(closing, plan=plan.model_copy(update={"request": plain}))
        return make_layers(without, parent, wanted, Ends((cut,), due=False, reads=False))
