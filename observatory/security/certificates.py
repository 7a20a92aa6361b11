"""A stack's own certificate authority: creates it, and issues certificates to servers and clients.

Keys are ECDSA on P-256, which the CA/Browser Forum's baseline requirements allow. A certificate is valid for 90 days
and is renewed in its last 30; the authority is valid for ten years, and no certificate outlives it. Does not store the
keys: the caller does.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS, CERTIFICATE_DAYS, RENEW_DAYS = 3650, 90, 30
WARNING_DAYS, AUTHORITY_WARNING_DAYS = 21, 180  # before the expiry: when `status` and `verify` report it
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, both PEM; the key is secret."""

    certificate: str
    key: str

    @property
    def combined(self) -> str:
        """The certificate and its key in one text."""
        return self.certificate + self.key


def make_authority(name: str) -> KeyPair:
    """Return a new self-signed authority that may sign certificates, but no other authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key.public_key(), ends=_in_days(AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(
    authority: KeyPair, *, name: str, hosts: Sequence[str], client: bool = False, days: int = CERTIFICATE_DAYS
) -> KeyPair:
    """Return a server certificate for `hosts` (names or addresses), signed by `authority`.

    With `client` the certificate also identifies a client to a server that requires one.
    """
    signer = x509.load_pem_x509_certificate(authority.certificate.encode())
    signing_key = cast(
        "ec.EllipticCurvePrivateKey", serialization.load_pem_private_key(authority.key.encode(), password=None)
    )
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])]
    builder = (
        _builder(_subject(name), signer.subject, key.public_key(), ends=min(_in_days(days), signer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )
    return _pair(builder.sign(signing_key, hashes.SHA256()), key)


def renewal_is_due(certificate: str, *, now: datetime | None = None) -> bool:
    """Return whether a certificate (PEM) expires within 30 days or has expired."""
    return (now or datetime.now(UTC)) > _ends(certificate) - timedelta(days=RENEW_DAYS)


@dataclass(frozen=True, kw_only=True)
class Validity:
    """How long a certificate in a file is valid.

    Attributes:
        name: of its file, without the suffix.
        authority: whether it is an authority's.
        ends: when it expires, in UTC.
    """

    name: str
    authority: bool
    ends: datetime

    @property
    def days(self) -> int:
        """The whole days until it expires; negative after that."""
        return (self.ends - datetime.now(UTC)).days

    @property
    def left(self) -> str:
        """The time until it expires, as text."""
        return f"expires in {self.days} days" if self.days >= 0 else f"expired at {self.ends:%Y-%m-%d %H:%M} UTC"

    @property
    def expiring(self) -> bool:
        """Whether its renewal is overdue, or an authority needs a successor."""
        return self.days < (AUTHORITY_WARNING_DAYS if self.authority else WARNING_DAYS)

    @property
    def due(self) -> bool:
        """Whether it must be renewed now; an authority is not renewed."""
        return not self.authority and datetime.now(UTC) > self.ends - timedelta(days=RENEW_DAYS)


def validities(directory: Path) -> list[Validity]:
    """Return the validity of every certificate (`*.crt`, `*.pem`) in a directory, the next to expire first.

    Raises:
        ValueError: a file has no certificate.
    """
    files = sorted(file for file in directory.glob("*.*") if file.suffix in (".crt", ".pem"))
    return sorted(map(_validity, files), key=lambda found: (found.authority, found.ends, found.name))


def _validity(file: Path) -> Validity:
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    return Validity(name=file.stem, authority=authority, ends=certificate.not_valid_after_utc)


def _ends(certificate: str) -> datetime:
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCK_SKEW)
        .not_valid_after(ends)
    )


def _in_days(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate=certificate.public_bytes(encoding).decode(), key=private.decode())
