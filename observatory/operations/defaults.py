"""What the operations do unless they are told otherwise; apart, since the command tells it in its help."""

DEFAULT_RETRY = 5  # times that a migration is tried again while other sessions hold its locks
