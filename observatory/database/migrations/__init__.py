"""Migration files, the ledger of applied migrations, and how a migration is applied."""
