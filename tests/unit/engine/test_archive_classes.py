"""Chains whose data could not be read again are refused before anything is done."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from spanvault.config.clusters import cluster_from_url
from spanvault.engine.context import Context
from spanvault.engine.schedule import plan_scheduled
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


@pytest.mark.parametrize("class_name", ["GLACIER", "DEEP_ARCHIVE"])
@pytest.mark.parametrize("place", ["into", "incremental_location"])
def test_a_schedule_begins_no_chain_in_an_archive(monkeypatch: pytest.MonkeyPatch, class_name: str, place: str) -> None:
    """Its first run takes a full, which alone would be allowed there; every later run would fail."""
    archive = f"{PLAIN}&S3_STORAGE_CLASS={class_name}"
    into, location = (archive, None) if place == "into" else (PLAIN, archive)
    request = BackupRequest(into=into, append="LATEST", options=BackupOptions(incremental_location=location))

    def nothing_is_opened(*_: Any) -> Any:
        raise AssertionError("a storage was opened")

    monkeypatch.setattr(Context, "storage", nothing_is_opened)
    now = datetime(2026, 11, 22, tzinfo=UTC)
    with pytest.raises(Refused, match=f"storage class {class_name}"):
        plan_scheduled(
            Context(),
            cluster_from_url("postgresql://nobody@127.0.0.1:1/postgres"),
            request,
            run_key="run",
            due=now,
            interval_end=None,
            missed=lambda *_: [],
            full_every=None,
        )
