"""The engine's surroundings: settings, connections, progress, clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spanvault.backup.context import Run
from spanvault.config.clusters import Cluster, cluster_from_url, load_cluster
from spanvault.config.connections import ConnectionResolver, EnvironmentConnections
from spanvault.config.passphrases import Ask, Use, find_passphrase, refuse_to_ask
from spanvault.config.settings import Settings
from spanvault.crypto.keyring import Credentials, Keyring
from spanvault.crypto.kms import open_key
from spanvault.crypto.storage import decrypted
from spanvault.database.postgres.nodes import discover, with_primary
from spanvault.errors import BadInput
from spanvault.model.checkpoints import Reached, pass_by
from spanvault.model.clock import Clock, now
from spanvault.model.manifest import Plan
from spanvault.model.places import Places
from spanvault.model.progress import Progress, Silent
from spanvault.model.request import EncryptionOptions
from spanvault.model.uri import StorageUri
from spanvault.storage.base import Storage
from spanvault.storage.limit import limited
from spanvault.storage.registry import open_storage
from spanvault.storage.spread import spread

if TYPE_CHECKING:
    from spanvault.collection.chain import OpenLocation


def unchanged(storage: Storage) -> Storage:
    """The storage as it is."""
    return storage


@dataclass(frozen=True)
class Context:
    """What every step is given. `encryption` opens encrypted chains, and encrypts new ones; `ask` asks a person for a
    passphrase. `wrap` may put something around each storage; `reached` hears the name of every point at which a crash must
    do no harm. Both are for tests."""

    settings: Settings = field(default_factory=Settings.load)
    connections: ConnectionResolver = field(default_factory=EnvironmentConnections)
    progress: Progress = field(default_factory=Silent)
    clock: Clock = now
    encryption: EncryptionOptions = field(default_factory=EncryptionOptions)
    ask: Ask = refuse_to_ask
    wrap: Callable[[Storage], Storage] = unchanged
    reached: Reached = pass_by
    keyrings: dict[str, Keyring] = field(default_factory=dict, compare=False, repr=False)

    def unlocking(self, encryption: EncryptionOptions, use: Use = "open") -> Context:
        """This context with other keys, for this `use`. Where a passphrase is kept is followed here, once: worker processes
        get what was found. Raises NotFound or BadInput when it is not there."""
        if encryption.passphrase_from is not None:
            found = find_passphrase(encryption.passphrase_from, self.connections, self.ask, use)
            encryption = EncryptionOptions(passphrase=found)
        return replace(self, encryption=encryption, keyrings={})

    def storage(self, uri: str) -> Storage:
        """The storage that a collection's URI names, with its encrypted chains decrypted."""
        return decrypted(self.stored(uri), self.keyring(uri))

    def locations(self, collection: str) -> OpenLocation:
        """Opens the incremental locations of a collection; its keys are those of the collection."""
        return lambda uri: decrypted(self.stored(uri), self.keyring(collection))

    def keyring(self, uri: str) -> Keyring:
        """The keys of a collection's chains."""
        if uri not in self.keyrings:
            self.keyrings[uri] = Keyring(self.stored(uri), self.credentials, self.clock)
        return self.keyrings[uri]

    def stored(self, uri: str) -> Storage:
        """The storage that a place names, as it is: encrypted chains stay so. Of several URIs each object is at its own."""
        places = Places.parse(uri)
        default = self._opened(places.default)
        return spread(default, self.places(uri)) if places.others else default

    def places(self, uri: str) -> dict[str, Storage]:
        """The storages of the localities that a place names, each by itself, as it is."""
        return {tier: self._opened(other) for tier, other in Places.parse(uri).others}

    def _opened(self, uri: StorageUri) -> Storage:
        return self.wrap(open_storage(uri.revealed(), settings=self.settings, connections=self.connections))

    def credentials(self) -> Credentials:
        """What opens chains. Opening a key service contacts nothing yet."""
        services = (
            open_key(uri.get_secret_value(), settings=self.settings, connections=self.connections) for uri in self.encryption.kms
        )
        return Credentials(passphrase=self.encryption.passphrase, services=tuple(services))

    def cluster(self, name: str) -> Cluster:
        """The cluster that a URL describes or that clusters.yaml names; of several nodes the one that is the primary now comes
        first, whatever the file's order. Raises what `with_primary` raises."""
        cluster = self.named_cluster(name)
        return with_primary(cluster, discover(cluster))

    def named_cluster(self, name: str) -> Cluster:
        """The cluster as it is described, no node asked."""
        if "://" in name:
            return cluster_from_url(name)
        if self.settings.clusters_file is None:
            raise BadInput(f"Cluster {name!r} needs a clusters.yaml: set SPANVAULT_CLUSTERS_FILE to its path, or give a URL.")
        return load_cluster(self.settings.clusters_file, name, self.connections)

    def run(self, cluster: Cluster, into: str, plan: Plan, location: str | None = None) -> Run:
        """The surroundings of one run of a backup. `location` is the incremental location with its secrets, if the plan
        shows it without."""
        options = plan.request.options
        storage = limited(self.storage(into), options.rate_limit // options.workers)
        where = location or options.incremental_location if plan.kind == "incremental" else None
        data = limited(self.locations(into)(where), options.rate_limit // options.workers) if where else storage
        return Run(
            cluster=cluster,
            storage=storage,
            data=data,
            plan=plan,
            progress=self.progress,
            clock=self.clock,
            reached=self.reached,
            wait_seconds=self.settings.wait_for_writers,
        )


def make_context(
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    ask: Ask = refuse_to_ask,
    encryption: EncryptionOptions | None = None,
) -> Context:
    """The context of the environment, with these keys."""
    context = Context(settings=settings or Settings.load(), progress=progress or Silent(), ask=ask)
    return context.unlocking(encryption) if encryption is not None and encryption.given else context
