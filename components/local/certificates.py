"""The provider classes under the module name of earlier states; `components.certificates` defines them."""

from components.certificates import AuthorityProvider, CertificateProvider

__all__ = ["AuthorityProvider", "CertificateProvider"]
