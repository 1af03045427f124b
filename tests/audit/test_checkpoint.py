"""Records and checkpoints: one spelling, and no other that is taken for it."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nexus_ray.audit.checkpoint import BadCheckpoint, Checkpoint, open_checkpoint, sign_checkpoint, verifier_key
from nexus_ray.audit.record import GENESIS, Entry, Kind, check_entry, seal
from nexus_ray.audit.tree import leaf_hash
from nexus_ray.core.errors import InvalidArgumentError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHECKPOINT = Checkpoint("nexus/audit/0011", 7, bytes(32))


def test_a_signed_checkpoint_says_what_was_signed_and_the_text_is_that_of_the_specification() -> None:
    text = sign_checkpoint(CHECKPOINT, KEY)

    assert open_checkpoint(text, "nexus/audit/0011", KEY.public_key()) == CHECKPOINT
    lines = text.split("\n")
    assert lines[:4] == ["nexus/audit/0011", "7", base64.b64encode(bytes(32)).decode(), ""]
    assert lines[4].startswith("\u2014 nexus/audit/0011 ") and lines[5:] == [""]
    assert len(base64.b64decode(lines[4].split(" ")[2])) == 4 + 64


def test_the_example_of_the_specification_of_signed_notes_is_read() -> None:
    """C2SP signed-note: the verifier key and the note of its Go implementation's documentation."""
    name, identity, encoded = "PeterNeumann", "c74f20a3", "ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(encoded)[1:])

    assert verifier_key(name, key) == f"{name}+{identity}+{encoded}"


@pytest.mark.parametrize("change", [
    lambda text: text.replace("\n7\n", "\n8\n"),
    lambda text: text.replace("\n7\n", "\n07\n"),
    lambda text: text.replace("\n7\n", "\n7 \n"),
    lambda text: text.replace("nexus/audit/0011", "nexus/audit/0012"),
    lambda text: text.replace("AAAA", "AAAB", 1),
    lambda text: text[:-1],
    lambda text: text + text,
    lambda text: text.replace("\n\n", "\n"),
    lambda text: text.replace("\n\n", "\nextension\n\n"),
    lambda text: text.partition("\u2014")[0],
    lambda text: "",
    lambda text: text * 100,
])  # fmt: skip
def test_a_checkpoint_that_was_changed_is_none(change) -> None:  # type: ignore[no-untyped-def]
    text = change(sign_checkpoint(CHECKPOINT, KEY))

    with pytest.raises(BadCheckpoint):
        open_checkpoint(text, "nexus/audit/0011", KEY.public_key())


def test_any_other_character_anywhere_is_refused() -> None:
    text = sign_checkpoint(CHECKPOINT, KEY)
    for at, old in enumerate(text):
        new = "B" if old != "B" else "C"
        with pytest.raises(BadCheckpoint):
            open_checkpoint(text[:at] + new + text[at + 1 :], "nexus/audit/0011", KEY.public_key())


def test_a_checkpoint_of_another_key_or_another_log_is_refused_and_further_signatures_are_not() -> None:
    text = sign_checkpoint(CHECKPOINT, KEY)
    with pytest.raises(BadCheckpoint):
        open_checkpoint(text, "nexus/audit/0011", Ed25519PrivateKey.generate().public_key())
    with pytest.raises(BadCheckpoint):
        open_checkpoint(text, "another", KEY.public_key())

    witness = "\u2014 witness " + base64.b64encode(bytes(68)).decode() + "\n"

    assert open_checkpoint(text + witness, "nexus/audit/0011", KEY.public_key()) == CHECKPOINT


def entry(**changes: object) -> Entry:
    given = {"operation": "op-1", "kind": Kind.EVENT, "at": 1.5, "action": "goal:read", **changes}
    return Entry(**given)  # type: ignore[arg-type]


def test_a_record_has_one_spelling_and_names_the_one_before() -> None:
    first = seal(entry(principal="ada", facts={"b": 1, "a": "é"}), 0, GENESIS)
    second = seal(entry(), 1, first.hash)

    assert first.body == (
        '{"action":"goal:read","at":1.5,"facts":{"a":"é","b":1},"kind":"event","operation":"op-1",'
        f'"previous":"{"0" * 64}","principal":"ada","retention":"change","seq":0,"v":1}}'
    ).encode()
    assert first.hash == leaf_hash(first.body)
    assert second.fields["previous"] == first.hash.hex()


@pytest.mark.parametrize("changes", [
    {"operation": ""}, {"principal": "a" * 401}, {"facts": {"a": "b" * 16_384}}, {"facts": {"a": object()}},
    {"resource": "\ud800"},
])  # fmt: skip
def test_an_entry_that_cannot_be_kept_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        check_entry(entry(**changes))
    check_entry(entry(principal="a" * 400))
