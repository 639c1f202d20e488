"""The demo's script: servers, shop, load, backup in Airflow, restore by the command line, proof."""

from __future__ import annotations

import shlex
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from rich.filesize import decimal

from spanvault.collection.chain import resolve
from spanvault.config.connections import EnvironmentConnections
from spanvault.config.settings import Settings
from spanvault.demo.airflow import DemoAirflow, TaskState
from spanvault.demo.cluster import CLUSTER, COLLECTION_BASE, SHOP, DemoCluster
from spanvault.demo.load import WriteLoad
from spanvault.demo.narrator import Narrator
from spanvault.demo.place import Knobs
from spanvault.demo.prove import Proof, prove
from spanvault.demo.shell import CommandLine, shown_command
from spanvault.demo.shop import fill
from spanvault.engine.context import Context
from spanvault.errors import Damaged, Permanent
from spanvault.model.cut import format_time
from spanvault.model.manifest import Manifest
from spanvault.model.uri import StorageUri

RESTORED = "shop_restored"
BACKUP_DAG, RESTORE_DAG = "full_backup", "restore"

_CAPTIONS = {
    (BACKUP_DAG, "plan"): "plan: the change log is protected, the work is split",
    (BACKUP_DAG, "export"): "export",
    (BACKUP_DAG, "seal"): "seal: the cut is fixed, what changed during the export is healed",
    (BACKUP_DAG, "write_manifest"): "write_manifest: committed by one conditional PUT",
    (BACKUP_DAG, "validate"): "validate: every file is there",
    (BACKUP_DAG, "advance_protection"): "advance_protection: the source may forget its log up to the cut",
}


class Story:
    """One telling: `tell` from beginning to summary, then `stay`; `stop` ends all servers, at any point."""

    def __init__(self, folder: Path, knobs: Knobs, narrator: Narrator) -> None:
        self._folder = folder
        self._knobs = knobs
        self._narrator = narrator
        self._cluster = DemoCluster(folder)
        self._airflow = DemoAirflow(folder, port=knobs.port)
        self._load: WriteLoad | None = None
        self._shell = CommandLine()
        self._pool = ThreadPoolExecutor(2)
        self._variables: dict[str, str] = {}
        self.told = False

    @property
    def collection(self) -> str:
        """The URI of the collection that `full_backup` fills, without secrets."""
        return StorageUri.parse(COLLECTION_BASE).join("full").redacted()

    @property
    def env_file(self) -> Path:
        """A shell file that sets what the command line needs to reach the demo's servers."""
        return self._folder / "env"

    def tell(self) -> None:
        """The story. Raises what fails in it; Damaged if the restored shop is not the one at the cut."""
        self._narrator.title(
            "Spanvault demo: a shop is backed up while it sells, restored beside itself, and both are compared",
            f"Everything runs on this machine, on 127.0.0.1, below {self._folder}",
        )
        self._start_servers()
        self._load = WriteLoad(self._cluster.url())
        self._load.start()
        self._narrator.say("The shop sells: 3 writers place and cancel orders, receive goods, move customers", style="cyan")
        began = datetime.now(UTC)
        backup_run = self._run(
            BACKUP_DAG,
            {"cluster": CLUSTER, "into": self.collection, "scope": "database", "names": [SHOP], "fingerprint": True},
            f"back up {SHOP} into S3",
        )
        manifest = self._manifest()
        self._restore(manifest)
        proof = self._prove(manifest)
        self._summary(began, backup_run, manifest, proof)
        self._load.calm_down()
        self.told = True

    def facts(self) -> dict[str, str]:
        """Addresses, for `spanvault demo status`."""
        return {"airflow": self._airflow.address, "postgres": self._cluster.url()}

    def stay(self) -> None:
        """Wait until interrupted. Raises Permanent if a part ends by itself."""
        while True:
            time.sleep(1)
            ended = self._cluster.stopped_parts() + self._airflow.stopped_parts()
            if ended:
                raise Permanent(f"{ended[0]} ended by itself; its log is below {self._folder}.")

    def stop(self) -> None:
        """End writers and servers; their data and logs stay until the next demo or `spanvault demo stop`."""
        self._narrator.close()
        if self._load is not None:
            self._load.stop()
        self._shell.stop()
        self._airflow.abandon()
        self._pool.shutdown()
        self._airflow.stop()
        self._cluster.stop()

    def _start_servers(self) -> None:
        started = self._pool.submit(self._start_cluster)
        airflow = self._pool.submit(self._start_airflow, started)
        started.result()
        with self._narrator.step(f"filling the shop with {self._knobs.megabytes} MB") as step:
            size = fill(self._cluster.url(), self._knobs.megabytes)
            step.text = f"The shop is filled: {size.tables} tables, {size.rows:,} rows, {decimal(size.bytes)}"
        with self._narrator.step("copying the primary to two standbys") as step:
            self._cluster.add_standbys()
            places = ", ".join(f"{node.name} ({node.locality})" for node in self._cluster.nodes[1:])
            step.text = f"Two standbys stream from the primary: {places}"
        airflow.result()

    def _start_cluster(self) -> None:
        with self._narrator.step("starting PostgreSQL and S3", "PostgreSQL 18 and an S3 server (SeaweedFS) run"):
            self._cluster.start()
        self._cluster.write_clusters_file()
        self._variables = {"SPANVAULT_CLUSTERS_FILE": str(self._cluster.clusters_file), **self._cluster.connections()}
        self._write_env_file()

    def _start_airflow(self, cluster_started: Future[None]) -> None:
        with self._narrator.step("preparing Airflow's database", "Airflow's own database is prepared"):
            self._airflow.prepare()
        cluster_started.result()
        with self._narrator.step("waiting for Airflow") as step:
            self._airflow.start({"SPANVAULT_COLLECTION_BASE": COLLECTION_BASE, **self._variables})
            self._airflow.wait_until_ready(BACKUP_DAG, RESTORE_DAG, "validate_backup")
            step.text = f"Airflow runs: {self._airflow.address}"

    def _write_env_file(self) -> None:
        self.env_file.touch(mode=0o600)
        self.env_file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in self._variables.items()))

    def _run(self, dag_id: str, conf: dict[str, object], what: str) -> str:
        run_id = self._airflow.trigger(dag_id, conf)
        self._narrator.say(f"Airflow runs the DAG {dag_id}: {what}", style="cyan")
        told: set[tuple[str, str]] = set()

        def show(tasks: list[TaskState]) -> None:
            for task in tasks:
                if task.state == "success" and (task.name, task.label) not in told:
                    told.add((task.name, task.label))
                    caption = _CAPTIONS.get((dag_id, task.name), task.name)
                    self._narrator.finished(f"{caption} {task.label}".rstrip(), task.seconds)

        with self._narrator.awaiting(f"{dag_id} runs"):
            state = self._airflow.follow(dag_id, run_id, show)
        if state != "success":
            raise Permanent(f"The DAG {dag_id} failed; the logs of its tasks are in {self._airflow.log_folder(dag_id, run_id)}.")
        return run_id

    def _restore(self, manifest: Manifest) -> None:
        statement = self._restore_statement(manifest, RESTORED)
        self._narrator.say(f"The command line, which needs no Airflow, runs: {statement}", style="cyan")

        def show(line: str) -> None:
            name, done, rest = line.partition(": done in ")
            if done:
                seconds, _, counts = rest.partition(" s")
                self._narrator.finished(f"{name}{counts.replace(', ', ': ', 1)}", float(seconds))

        with self._narrator.awaiting(f"restoring {RESTORED}"):
            self._shell.run(statement, self._variables, show)

    def _restore_statement(self, manifest: Manifest, name: str) -> str:
        return f"RESTORE DATABASE {SHOP} FROM '{manifest.subdir}' IN '{self.collection}' WITH new_db_name = '{name}'"

    def _manifest(self) -> Manifest:
        context = Context(settings=Settings(), connections=EnvironmentConnections(self._cluster.connections()))
        return resolve(context.storage(self.collection), "LATEST", open_location=context.locations(self.collection)).manifest

    def _prove(self, manifest: Manifest) -> Proof:
        with self._narrator.step("comparing fingerprints") as step:
            proof = prove(manifest, SHOP, restored_url=self._cluster.url(RESTORED), source_url=self._cluster.url(SHOP))
            if not proof.equal:
                wrong = ", ".join(proof.different) or "the shop's books"
                raise Damaged(
                    f"The restored shop is not the one at the cut: {wrong} differ; the servers' logs are in {self._folder}."
                )
            step.text = f"Equal: all {proof.tables} restored tables have the fingerprint that PostgreSQL computed at the cut"
        if self._load is not None and self._load.failure:
            raise Permanent(f"A writer of the shop failed while it was backed up: {self._load.failure}.")
        return proof

    def _summary(self, began: datetime, backup_run: str, manifest: Manifest, proof: Proof) -> None:
        if self._load is None:
            raise RuntimeError("a summary without a load")
        cut, books = manifest.end.time, proof.books
        totals = manifest.totals
        during, after = self._load.commits_between(began, cut), self._load.commits_between(cut, datetime.now(UTC))
        restore = shown_command(self.env_file, self._restore_statement(manifest, "shop_again"))
        self._narrator.summary([
            ("Backed up", f"{totals.tables} tables, {totals.rows:,} rows: {decimal(totals.source_bytes)} on the source are "
             f"{decimal(totals.file_bytes)} of Parquet in S3 ({manifest.subdir})"),
            ("As of", f"{format_time(cut)}, log position {manifest.end.lsn}"),
            ("Written meanwhile", f"{during:,} transactions from the start of the backup to that moment, {after:,} since"),
            ("Equal", f"yes: {proof.tables} of {proof.tables} tables, {proof.rows:,} rows as they were at that moment; "
             f"{len(proof.moved_on)} tables of the source have changed since"),
            ("The restored books", f"{books.delivered:,} delivered = {books.in_stock:,} in stock + {books.sold:,} sold"),
            ("Time", f"{self._narrator.elapsed:.0f} s"),
            ("", ""),
            ("Airflow", f"{self._airflow.address} (no login; reachable from this machine only)"),
            ("This backup's run", self._airflow.run_address(BACKUP_DAG, backup_run)),
            ("PostgreSQL", f"{self._cluster.url()} (and {RESTORED} beside it)"),
            ("Restore it again", restore[0]),
            ("", restore[1]),
        ])  # fmt: skip
        if not self._knobs.exits:
            self._narrator.say("All of it stays up, the shop goes on at a calmer pace. Ctrl-C stops everything.", style="bold")
