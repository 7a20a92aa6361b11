"""The stack's own certificate authority and its certificates. Keys are secret outputs in the state.

The types have the module `local`, where they were first: it is part of every state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

from components.dynamic import without_provider
from observatory.nodes import Paths
from observatory.nodes.tls import MONITORING, authority_file, combined_file

HOSTS = ("127.0.0.1", "localhost")


class AuthorityProvider(ResourceProvider):
    """Creates an authority once."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Create the authority."""
        from observatory.security.certificates import make_authority  # noqa: PLC0415 - only where it is used

        made = make_authority(props["common_name"])
        outs = {**without_provider(props), "certificate": made.certificate, "key": made.key}
        return CreateResult(id_=props["common_name"], outs=outs)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Never replace the authority: clients that trust it would refuse the certificates of a new one."""
        return DiffResult(changes=False)


class Authority(Resource, module="local", name="CertificateAuthority"):
    """A certificate authority: `certificate` is public, `key` secret; both PEM."""

    certificate: pulumi.Output[str]
    key: pulumi.Output[str]

    def __init__(self, name: str, *, common_name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        props = {"common_name": common_name, "certificate": None, "key": None}
        secret = pulumi.ResourceOptions(additional_secret_outputs=["key"])
        super().__init__(AuthorityProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


class CertificateProvider(ResourceProvider):
    """Issues a certificate, and renews it before it expires."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Issue the certificate."""
        return CreateResult(id_=props["common_name"], outs=_issued(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Renew within 30 days of the expiry, or when hosts, purpose or authority change."""
        from observatory.security.certificates import renewal_is_due  # noqa: PLC0415 - only where it is used

        decisive = ("common_name", "hosts", "client", "authority_certificate")
        same = all(_olds.get(key) == _news.get(key) for key in decisive)
        return DiffResult(changes=not same or renewal_is_due(_olds["certificate"]))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Issue a new certificate."""
        return UpdateResult(outs=_issued(_news))


class Certificate(Resource, module="local", name="Certificate"):
    """A certificate of a server, and with `client` of a client; `certificate` is public, `key` secret; both PEM."""

    certificate: pulumi.Output[str]
    key: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        *,
        authority: Authority,
        hosts: Sequence[str] = HOSTS,
        client: bool = False,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "common_name": name,
            "hosts": list(hosts),
            "client": client,
            "authority_certificate": authority.certificate,
            "authority_key": authority.key,
            "certificate": None,
            "key": None,
        }
        secret = pulumi.ResourceOptions(additional_secret_outputs=["key"])
        super().__init__(CertificateProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


@dataclass(frozen=True, kw_only=True)
class MonitoringCertificate:
    """The certificate that servers and clients of monitoring show to each other, and its authority."""

    authority: Authority
    certificate: Certificate

    @classmethod
    def declare(cls, authority: Authority) -> MonitoringCertificate:
        """Declare the certificate."""
        return cls(authority=authority, certificate=Certificate(MONITORING, authority=authority, client=True))

    @property
    def files(self) -> dict[str, pulumi.Output[str]]:
        """The secret files of a daemon that uses it."""
        combined = pulumi.Output.concat(self.certificate.certificate, self.certificate.key)
        return {authority_file(Paths()): self.authority.certificate, combined_file(Paths(), MONITORING): combined}


def _issued(props: dict[str, Any]) -> dict[str, Any]:
    from observatory.security.certificates import KeyPair, issue  # noqa: PLC0415 - only where it is used

    authority = KeyPair(certificate=props["authority_certificate"], key=props["authority_key"])
    made = issue(authority, name=props["common_name"], hosts=props["hosts"], client=props["client"])
    return {**without_provider(props), "certificate": made.certificate, "key": made.key}
