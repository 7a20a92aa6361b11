"""Migration files: reading, applying, their ledger and their history."""
