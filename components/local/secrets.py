"""Where states of earlier checkouts find their providers; everything is in `components.secrets`."""

from components.secrets import ApiKeyProvider, PasswordProvider

__all__ = ["ApiKeyProvider", "PasswordProvider"]
