"""A chain's data key comes back from what wraps it, and from nothing else; an info that was edited gives nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from spanvault.crypto import passphrase as passphrases
from spanvault.crypto.info import (
    kms_entry,
    new_data_key,
    passphrase_entry,
    sealed,
    unlock_kms,
    unlock_passphrase,
)
from spanvault.crypto.key_service import KeyService
from spanvault.errors import BadInput, Damaged, Refused, Retryable, SpanvaultError
from spanvault.model.encryption import (
    Argon2Parameters,
    EncryptionDraft,
    EncryptionInfo,
    from_base64,
    to_base64,
)
from tests.kit import encryption_reference as reference
from tests.kit.encryption_infos import (
    CHAIN,
    CHECK,
    CREATED,
    FOR_PASSPHRASE,
    FOR_SERVICE,
    KEY,
    WHERE,
    WORDS,
    document,
    one_sentence,
)
from tests.kit.fake_key_service import FakeKeyService

OTHER_CHAIN = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases at the smallest cost; which cost they have is tested by itself."""
    monkeypatch.setattr("spanvault.crypto.info.PARAMETERS", Argon2Parameters(memory_kib=8192, iterations=1, lanes=1))


def info_for(*services: KeyService, chain: str = CHAIN, number: int = 0, data_key: bytes = KEY) -> EncryptionInfo:
    entries = tuple(kms_entry(service, data_key, chain) for service in services)
    return sealed(EncryptionDraft(chain=chain, number=number, created_at=CREATED, keys=entries), data_key)


def edited(info: EncryptionInfo, edit: Callable[[dict[str, Any]], object]) -> EncryptionInfo:
    fields = json.loads(info.to_json())
    edit(fields)
    return document(fields)


class TestVectors:
    @pytest.mark.parametrize(
        ("key", "data", "code"),
        [
            (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
        ],
        ids=["case 1", "case 2"],
    )
    def test_hmac_is_that_of_rfc_4231(self, key: bytes, data: bytes, code: str) -> None:
        assert hmac.new(key, data, hashlib.sha256).hexdigest() == code

    @pytest.mark.parametrize("made", [FOR_PASSPHRASE, FOR_SERVICE], ids=["passphrase", "service"])
    def test_the_second_implementation_agrees_with_the_other_program(self, made: dict[str, Any]) -> None:
        bare = {name: value for name, value in made.items() if name not in {"check", "mac"}}
        assert reference.seal_info(bare, KEY) == made

    @pytest.mark.parametrize("made", [FOR_PASSPHRASE, FOR_SERVICE], ids=["passphrase", "service"])
    def test_an_info_is_sealed_as_another_program_seals_it(self, made: dict[str, Any]) -> None:
        known = document(made)
        draft = EncryptionDraft(chain=known.chain, number=known.number, created_at=CREATED, keys=known.keys)
        info = sealed(draft, KEY)
        assert info == known
        assert json.loads(info.to_json()) == made

    def test_the_other_programs_passphrase_opens_it(self) -> None:
        assert reference.unwrap(FOR_PASSPHRASE, WORDS.get_secret_value()) == KEY
        assert unlock_passphrase(document(FOR_PASSPHRASE), WORDS) == KEY

    @pytest.mark.parametrize("blanks", [None, 3], ids=["one line", "indented"])
    def test_blanks_and_order_are_no_change(self, blanks: int | None) -> None:
        text = json.dumps(dict(reversed(FOR_PASSPHRASE.items())), indent=blanks)
        assert unlock_passphrase(EncryptionInfo.parse(text.encode(), WHERE), WORDS) == KEY


class TestPassphrase:
    def test_what_is_sealed_opens_here_and_elsewhere(self) -> None:
        data_key = new_data_key()
        entry = passphrase_entry(WORDS, data_key, CHAIN)
        assert entry.parameters == passphrases.PARAMETERS
        info = sealed(EncryptionDraft(chain=CHAIN, number=0, created_at=CREATED, keys=(entry,)), data_key)
        assert unlock_passphrase(EncryptionInfo.parse(info.to_json(), WHERE), WORDS) == data_key
        assert reference.unwrap(json.loads(info.to_json()), WORDS.get_secret_value()) == data_key

    def test_nothing_repeats(self, cheap: None) -> None:
        assert len(new_data_key()) == 32
        assert new_data_key() != new_data_key()
        first, second = (passphrase_entry(WORDS, KEY, CHAIN) for _ in range(2))
        assert first.salt != second.salt
        assert first.wrapped[:16] != second.wrapped[:16]  # the nonce

    @pytest.mark.parametrize("wrong", ["", "passwörd", "Pässwörd", "pässwörd ", "x" * 5000])
    def test_a_wrong_passphrase_is_refused(self, wrong: str) -> None:
        with pytest.raises(Refused) as caught:
            unlock_passphrase(document(FOR_PASSPHRASE), SecretStr(wrong))
        one_sentence(caught.value, "ENCRYPTION-INFO-000000.json", CHAIN, "cannot be decrypted with this passphrase")
        assert not wrong.strip() or wrong not in str(caught.value)

    def test_an_info_for_services_wants_no_passphrase(self) -> None:
        with pytest.raises(Refused) as caught:
            unlock_passphrase(document(FOR_SERVICE), WORDS)
        one_sentence(caught.value, "ENCRYPTION-INFO-000003.json", "aws:///alias/bücher?REGION=eu-west-1")

    def test_an_info_for_a_passphrase_wants_no_services(self) -> None:
        service = FakeKeyService("a")
        with pytest.raises(Refused) as caught:
            unlock_kms(document(FOR_PASSPHRASE), [service])
        one_sentence(caught.value, "ENCRYPTION-INFO-000000.json", "encryption_passphrase")
        assert service.unwrapped == 0


class TestServices:
    def test_as_many_keys_as_one_likes(self) -> None:
        services = [FakeKeyService(str(number)) for number in range(100)]
        assert unlock_kms(info_for(*services), services[99:]) == KEY

    @pytest.mark.parametrize("name", ["a", "b", "c"])
    def test_any_one_suffices(self, name: str) -> None:
        services = {known: FakeKeyService(known) for known in ("a", "b", "c")}
        info = info_for(*services.values())
        assert unlock_kms(EncryptionInfo.parse(info.to_json(), WHERE), [services[name]]) == KEY

    def test_the_first_that_answers_is_enough(self) -> None:
        first, second = FakeKeyService("a"), FakeKeyService("b")
        assert unlock_kms(info_for(first, second), [first, second]) == KEY
        assert (first.unwrapped, second.unwrapped) == (1, 0)

    @pytest.mark.parametrize("failure", [Retryable("It is down."), BadInput("No permission."), Refused("Forbidden.")])
    def test_one_that_fails_is_passed_over(self, failure: SpanvaultError) -> None:
        first, second = FakeKeyService("a"), FakeKeyService("b")
        info = info_for(first, second)
        first.fails = failure
        assert unlock_kms(info, [first, second]) == KEY
        assert unlock_kms(info, [FakeKeyService("unknown"), second]) == KEY

    @pytest.mark.parametrize(
        ("failures", "kind"),
        [
            ((BadInput("No permission for a."), BadInput("No permission for b.")), Refused),
            ((BadInput("No permission for a."), Retryable("b is down.")), Retryable),
            ((Damaged("a cannot unwrap it."), Damaged("b cannot unwrap it.")), Damaged),
            ((Damaged("a cannot unwrap it."), BadInput("No permission for b.")), Refused),
        ],
        ids=["none may", "one is down", "all changed", "one changed"],
    )
    def test_all_reasons_are_named(self, failures: tuple[SpanvaultError, ...], kind: type[SpanvaultError]) -> None:
        services = [FakeKeyService(name) for name in ("a", "b")]
        info = info_for(*services)
        for service, failure in zip(services, failures, strict=True):
            service.fails = failure
        with pytest.raises(kind) as caught:
            unlock_kms(info, services)
        assert type(caught.value) is kind
        one_sentence(caught.value, "ENCRYPTION-INFO-000000.json", *(service.key for service in services), *map(str, failures))

    def test_none_of_its_keys(self) -> None:
        known, unknown = FakeKeyService("known"), FakeKeyService("unknown")
        with pytest.raises(Refused) as caught:
            unlock_kms(info_for(known), [unknown])
        one_sentence(caught.value, f"one of {known.key}", f"{unknown.key} is none of its keys")
        assert unknown.unwrapped == 0

    def test_no_key_at_all(self) -> None:
        with pytest.raises(Refused, match="No key was given"):
            unlock_kms(info_for(FakeKeyService("a")), [])

    @pytest.mark.parametrize("answer", [bytes(32), KEY[:16], b"", KEY + b"\x00"], ids=["other", "half", "nothing", "longer"])
    def test_a_service_that_gives_something_else_is_not_believed(self, answer: bytes) -> None:
        service = FakeKeyService("a")
        info = info_for(service)
        service.unwrap = lambda wrapped, chain: answer  # type: ignore[method-assign]
        with pytest.raises(Damaged) as caught:
            unlock_kms(info, [service])
        one_sentence(caught.value, f"{service.key} unwrapped another key")

    @pytest.mark.parametrize("count", [0, 31, 8193])
    def test_an_answer_that_is_no_wrapped_key_is_not_stored(self, count: int) -> None:
        service = FakeKeyService("a")
        service.wrap = lambda data_key, chain: bytes(count)  # type: ignore[method-assign]
        with pytest.raises(Damaged) as caught:
            kms_entry(service, KEY, CHAIN)
        one_sentence(caught.value, service.key, f"gave {count} bytes")


PLAIN_EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "number": lambda fields: fields.update(number=4),
    "created_at": lambda fields: fields.update(created_at="2026-11-22T23:59:18.780759Z"),
    "mac": lambda fields: fields.update(mac=to_base64(bytes(32))),
    "mac's last bit": lambda fields: fields.update(mac=to_base64(flip(from_base64(fields["mac"]), 31))),
}


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


class TestEdits:
    """Every field of an info, edited by somebody without the data key."""

    @pytest.mark.parametrize("name", sorted(PLAIN_EDITS))
    def test_of_an_info_for_a_passphrase(self, name: str) -> None:
        info = edited(document(FOR_PASSPHRASE), PLAIN_EDITS[name])
        with pytest.raises(Damaged) as caught:
            unlock_passphrase(info, WORDS)
        one_sentence(caught.value, f"ENCRYPTION-INFO-{info.number:06d}.json", "was changed by somebody")

    @pytest.mark.parametrize("name", sorted(PLAIN_EDITS))
    @pytest.mark.parametrize("binds", [True, False], ids=["binding", "not binding"])
    def test_of_an_info_for_services(self, name: str, binds: bool) -> None:
        service = FakeKeyService("a", binds=binds)
        with pytest.raises(Damaged, match="was changed by somebody"):
            unlock_kms(edited(info_for(service), PLAIN_EDITS[name]), [service])

    @pytest.mark.parametrize("binds", [True, False], ids=["binding", "not binding"])
    def test_another_chains_id(self, binds: bool) -> None:
        service = FakeKeyService("a", binds=binds)
        info = edited(info_for(service), lambda fields: fields.update(chain=OTHER_CHAIN))
        with pytest.raises(Damaged, match=OTHER_CHAIN):
            unlock_kms(info, [service])

    def test_the_check(self) -> None:
        service = FakeKeyService("a")
        change = {"check": to_base64(flip(from_base64(CHECK), 0))}
        with pytest.raises(Damaged, match="unwrapped another key"):
            unlock_kms(edited(info_for(service), lambda fields: fields.update(change)), [service])
        with pytest.raises(Damaged, match="was changed"):
            unlock_passphrase(edited(document(FOR_PASSPHRASE), lambda fields: fields.update(change)), WORDS)

    @pytest.mark.parametrize(
        "edit",
        [
            pytest.param(lambda fields: fields.update(chain=OTHER_CHAIN), id="chain"),
            pytest.param(lambda fields: fields["keys"][0].update(salt=to_base64(bytes(16))), id="salt"),
            pytest.param(lambda fields: fields["keys"][0]["parameters"].update(memory_kib=8193), id="memory"),
            pytest.param(lambda fields: fields["keys"][0]["parameters"].update(iterations=1), id="iterations"),
            pytest.param(lambda fields: fields["keys"][0]["parameters"].update(lanes=1), id="lanes"),
            *(
                pytest.param(
                    lambda fields, place=place: fields["keys"][0].update(
                        wrapped=to_base64(flip(from_base64(fields["keys"][0]["wrapped"]), place))
                    ),
                    id=f"wrapped {place}",
                )
                for place in (0, 11, 12, 43, 44, 59)  # ends of nonce, ciphertext and tag
            ),
        ],
    )
    def test_what_the_passphrases_key_hangs_on_looks_like_a_wrong_passphrase(
        self, edit: Callable[[dict[str, Any]], object]
    ) -> None:
        """It cannot be told from one: both give another key."""
        with pytest.raises(Refused) as caught:
            unlock_passphrase(edited(document(FOR_PASSPHRASE), edit), WORDS)
        one_sentence(caught.value, "ENCRYPTION-INFO-000000.json", "if it is right, the wrapped key was changed")

    @pytest.mark.parametrize(
        "edit",
        [
            pytest.param(lambda fields: fields["keys"][1].update(key="aws:///evil?REGION=eu-west-1"), id="another's name"),
            pytest.param(lambda fields: fields["keys"][1].update(key_id="aws:eu-west-1/evil"), id="another's id"),
            pytest.param(lambda fields: fields["keys"][1].update(wrapped=to_base64(bytes(60))), id="another's wrapped key"),
            pytest.param(lambda fields: fields["keys"][0].update(key="aws:///evil?REGION=eu-west-1"), id="its name"),
            pytest.param(lambda fields: fields["keys"].pop(1), id="an entry gone"),
            pytest.param(lambda fields: fields["keys"].reverse(), id="another order"),
            pytest.param(
                lambda fields: fields["keys"].append({**fields["keys"][1], "key_id": "aws:eu-west-1/evil"}), id="a foreign entry"
            ),
        ],
    )
    def test_of_the_entries_of_services(self, edit: Callable[[dict[str, Any]], object]) -> None:
        first, second = FakeKeyService("a"), FakeKeyService("b")
        info = edited(info_for(first, second), edit)
        with pytest.raises(Damaged, match="was changed by somebody"):
            unlock_kms(info, [first])

    def test_of_the_entry_that_is_used(self) -> None:
        service = FakeKeyService("a")
        info = edited(info_for(service), lambda fields: fields["keys"][0].update(wrapped=to_base64(bytes(60))))
        with pytest.raises(Damaged) as caught:
            unlock_kms(info, [service])
        one_sentence(caught.value, "ENCRYPTION-INFO-000000.json", "it is damaged or of another chain")

    def test_a_foreign_entry_opens_nothing_for_its_owner(self) -> None:
        """Somebody wraps a data key of his own with his own key: what he reads is not the chain's data key."""
        known, foreign = FakeKeyService("a"), FakeKeyService("evil")
        entry = json.loads(kms_entry(foreign, bytes(32), CHAIN).to_json())
        info = edited(info_for(known), lambda fields: fields["keys"].append(entry))
        with pytest.raises(Damaged, match="unwrapped another key"):
            unlock_kms(info, [foreign])

    def test_an_older_info_under_the_newer_ones_number(self) -> None:
        """A key that was taken away must not come back by renaming the info that had it."""
        first, second = FakeKeyService("a"), FakeKeyService("b")
        older = info_for(first, second)
        with pytest.raises(Damaged, match="ENCRYPTION-INFO-000001"):
            unlock_kms(edited(older, lambda fields: fields.update(number=1)), [first])

    def test_another_chains_whole_info_gives_another_data_key(self) -> None:
        service, other = FakeKeyService("a"), new_data_key()
        info = info_for(service, chain=OTHER_CHAIN, data_key=other)
        assert unlock_kms(info, [service]) == other != KEY

    @pytest.mark.parametrize("binds", [True, False], ids=["binding", "not binding"])
    def test_another_chains_entry_in_this_chains_info(self, binds: bool) -> None:
        service = FakeKeyService("a", binds=binds)
        foreign = json.loads(info_for(service, chain=OTHER_CHAIN, data_key=new_data_key()).to_json())
        with pytest.raises(Damaged):
            unlock_kms(edited(info_for(service), lambda fields: fields.update(keys=foreign["keys"])), [service])
