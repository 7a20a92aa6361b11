"""The provider classes under the module name of earlier states; `components.secrets` defines them."""

from components.secrets import ApiKeyProvider, PasswordProvider

__all__ = ["ApiKeyProvider", "PasswordProvider"]
