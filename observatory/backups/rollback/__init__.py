"""A rollback of the database: what it would lose, and the exchange of the data directory, which a kill cannot harm."""
