-- On TimescaleDB's community edition its own policies refresh the aggregates. They record each run, in its catalogue.

COMMENT ON TABLE observatory.jobs IS
    'What pg_cron has to run in this database, on which of its schedules (UTC); TimescaleDB runs its policies itself';
