"""Application delivery: what is live, and how it changes. Knows no database, no engine and no Pulumi."""
