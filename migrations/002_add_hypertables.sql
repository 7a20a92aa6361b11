-- Traces, metrics and logs in chunks of one day: small enough to be dropped by age, large enough to plan over a quarter.
-- The indexes are those of 003: TimescaleDB's own default would be a second one on ts.

SELECT create_hypertable('llm_traces', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('llm_metrics', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('llm_logs', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
