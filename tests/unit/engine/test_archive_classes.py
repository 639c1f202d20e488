"""Chains whose data could not be read again are refused before anything is done."""

from __future__ import annotations

import pytest

from spanvault.config.clusters import cluster_from_url
from spanvault.engine.context import Context
from spanvault.engine.steps import new_plan
from spanvault.errors import Refused
from spanvault.model.request import BackupOptions, BackupRequest

ARCHIVE = "s3://bucket/a?AUTH=implicit&S3_STORAGE_CLASS=DEEP_ARCHIVE"
PLAIN = "s3://bucket/a?AUTH=implicit"


@pytest.mark.parametrize(("into", "location"), [(ARCHIVE, None), (PLAIN, ARCHIVE)])
def test_an_incremental_is_not_built_upon_an_archive(into: str, location: str | None) -> None:
    request = BackupRequest(into=into, append="LATEST", options=BackupOptions(incremental_location=location))
    with pytest.raises(Refused, match="storage class DEEP_ARCHIVE"):
        new_plan(Context(), cluster_from_url("postgresql://nobody@127.0.0.1:1/postgres"), request, run_key="run")
