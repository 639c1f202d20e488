"""Whether a statement may be worked on here."""

from __future__ import annotations

from spanvault.engine.context import Context
from spanvault.errors import Refused
from spanvault.model.locality import Locality


def require_here(context: Context, execution_locality: str) -> None:
    """Raise Refused when SPANVAULT_LOCALITY says that this machine is elsewhere. A person's machine need not say where it is;
    Airflow's workers must."""
    here = context.settings.locality
    if here and not Locality.parse(execution_locality).matches(Locality.parse(here)):
        raise Refused(
            f"EXECUTION LOCALITY = '{execution_locality}' does not match this machine, whose SPANVAULT_LOCALITY is {here}; run"
            f" the statement on one in {execution_locality}."
        )
