"""What is signed counts under its kind and name for those who trust the key, and nothing else does."""

from __future__ import annotations

import pytest

from deploy_runner.errors import UsageError
from deploy_runner.store.signatures import SHORTEST_SECRET, Signatures

SECRET = "s" * SHORTEST_SECRET


def keys(secret: str = SECRET, *trusted: str) -> Signatures:
    return Signatures(trusted, {"DEPLOY_RUNNER_CACHE_KEY": secret} if secret else {})


def test_what_is_signed_is_opened_by_the_secret_and_by_its_public_key() -> None:
    signed = keys().signed(b"body\nof lines", "action", "name")
    for reader in (keys(), keys("", keys().public_key), keys("t" * 40, keys().public_key)):
        assert reader.opened(signed, "action", "name") == b"body\nof lines"
    assert keys().signed(b"", "action", "n") != keys().signed(b"", "action", "m")
    assert keys().opened(keys().signed(b"", "action", "n"), "action", "n") == b""


def test_another_key_kind_or_name_is_refused() -> None:
    signed = keys().signed(b"body", "action", "name")
    assert keys("t" * 40).opened(signed, "action", "name") is None
    assert keys("").opened(signed, "action", "name") is None
    assert keys().opened(signed, "run", "name") is None
    assert keys().opened(signed, "action", "other") is None


def test_a_name_can_not_take_over_a_part_of_the_kind() -> None:
    signed = keys().signed(b"body", "a", "b")
    assert keys().opened(signed, "", "a\0b") is None
    assert keys().opened(signed, "a\0b", "") is None


def test_no_bit_can_be_changed_and_no_byte_added_or_left_out() -> None:
    signed = keys().signed(b"body", "action", "name")
    for index in range(len(signed)):
        for bit in range(8):
            changed = bytearray(signed)
            changed[index] ^= 1 << bit
            same = bytes(changed).lower() == signed.lower() and index < 128
            assert (keys().opened(bytes(changed), "action", "name") is None) or same
        assert keys().opened(signed[:index], "action", "name") is None
        assert keys().opened(signed[:index] + b" " + signed[index:], "action", "name") is None


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"0" * 128, b"0" * 128 + b"\n", b"\xff" * 200, b" " * 128 + b"\nx"]
)
def test_nonsense_is_refused(data: bytes) -> None:
    assert keys().opened(data, "action", "name") is None


def test_the_public_key_is_the_secrets_on_every_machine() -> None:
    assert keys().public_key == keys().public_key != keys("t" * 40).public_key
    assert keys("a key with umlauts: äöü, and 32 characters").public_key.startswith("ed25519:")
    assert keys("").public_key == ""


def test_too_short_a_secret_is_none() -> None:
    short = keys("s" * (SHORTEST_SECRET - 1))
    assert not short.can_sign
    assert not short.can_check
    assert short.public_key == ""
    assert keys().can_sign
    assert keys("", keys().public_key).can_check
    assert not keys("", keys().public_key).can_sign


@pytest.mark.parametrize(
    "text",
    ["", "ed25519:", "ed25519:abc", "rsa:" + "A" * 43 + "=", "ed25519:" + "A" * 42 + "==", "ed25519:" + "!" * 43 + "=",
     "ed25519:" + "A" * 86 + "=="],
)  # fmt: skip
def test_what_is_no_public_key_is_said(text: str) -> None:
    with pytest.raises(UsageError, match=r"\Acache\.public_keys: '.*' is not a public key such as ed25519:"):
        keys("", text)


def test_the_example_of_the_message_is_of_the_right_length() -> None:
    with pytest.raises(UsageError, match="is not a public key") as caught:
        keys("", "x")
    example = caught.value.message.rpartition("ed25519:")[2]
    assert example.endswith("=")
