"""Migration files, the ledger of applied migrations, and how a migration is applied.

`files` reads and checks the files, `statements` parses their SQL, `applying` runs them, `ledger` records them.
"""
