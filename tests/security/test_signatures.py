"""Signatures identify the trusted key that signed exactly these bytes; OpenSSL accepts them and their keys."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from observatory.security.signatures import (
    RELEASE,
    Signature,
    SignatureError,
    key_id,
    make_private_key,
    public_key,
    sign,
    signer,
)


def test_the_name_of_the_trusted_key_is_returned() -> None:
    keys = {name: make_private_key() for name in ("ci", "release-team")}
    trusted = {name: public_key(key) for name, key in keys.items()}
    for name, key in keys.items():
        assert signer(b"payload", sign(b"payload", key), trusted) == name


def test_the_error_of_an_untrusted_key_names_the_trusted_ones() -> None:
    stranger, trusted = make_private_key(), {"ci": public_key(make_private_key())}
    with pytest.raises(SignatureError, match=rf"key {key_id(public_key(stranger))}, .*\(trusted: ci [0-9a-f]{{16}}\)"):
        signer(b"payload", sign(b"payload", stranger), trusted)
    with pytest.raises(SignatureError, match=r"\(trusted: none\)"):
        signer(b"payload", sign(b"payload", stranger), {})


def test_a_signature_of_other_bytes_or_with_another_keys_id_is_refused() -> None:
    key = make_private_key()
    trusted = {"ci": public_key(key)}
    with pytest.raises(SignatureError, match="was changed"):
        signer(b"other", sign(b"payload", key), trusted)
    forged = sign(b"payload", make_private_key()).model_copy(update={"key_id": key_id(trusted["ci"])})
    with pytest.raises(SignatureError, match="was changed"):
        signer(b"payload", forged, trusted)


@pytest.mark.parametrize("key", ["", "no key", "MCowBQYDK2VwAyEAr0qd+7UlHa/561ukxZaqMjudirV9TIicNEPDHKV0ShM="])
def test_text_that_is_not_a_private_key_is_refused(key: str) -> None:
    with pytest.raises(SignatureError, match="not a private key in PEM"):
        sign(b"payload", key)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_keys_of_openssl_sign_and_openssl_verifies_the_signature(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"

    def openssl(*arguments: str) -> str:
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", str(key))
    public = openssl("pkey", "-in", str(key), "-pubout")
    assert public_key(key.read_text()) == public.splitlines()[1]

    signature = sign(b"payload", key.read_text())
    assert signer(b"payload", signature, {"ci": public.splitlines()[1]}) == "ci"
    (tmp_path / "public.pem").write_text(public)
    (tmp_path / "signature").write_bytes(base64.b64decode(signature.value))
    (tmp_path / "signed").write_text(f"DSSEv1 {len(RELEASE)} {RELEASE} 7 payload")
    inputs = ("-sigfile", str(tmp_path / "signature"), "-in", str(tmp_path / "signed"))
    openssl("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(tmp_path / "public.pem"), *inputs)


def test_the_error_of_another_kind_of_key_has_the_command_for_a_right_one() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - this test alone
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat  # noqa: PLC0415

    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with pytest.raises(SignatureError, match="openssl genpkey -algorithm ed25519"):
        sign(b"payload", pem)


def test_a_signature_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="String should match pattern"):
        Signature(key_id="0" * 16, value="c2hvcnQ=")
