"""Where states of earlier checkouts find their providers; everything is in `components.certificates`."""

from components.certificates import AuthorityProvider, CertificateProvider

__all__ = ["AuthorityProvider", "CertificateProvider"]
