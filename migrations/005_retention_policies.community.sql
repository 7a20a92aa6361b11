-- How long rows are kept, and when they are compressed, on TimescaleDB's community edition.
--
-- The columns that traces are segmented and ordered by include those of their key, which an insert has to look up also
-- in compressed chunks.

ALTER TABLE llm_traces SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'provider, model',
    timescaledb.compress_orderby = 'ts DESC, trace_id, span_id'
);
ALTER TABLE llm_metrics SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'metric_name, provider, model',
    timescaledb.compress_orderby = 'ts DESC'
);
ALTER TABLE llm_logs SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'provider, log_level',
    timescaledb.compress_orderby = 'ts DESC'
);
SELECT add_compression_policy('llm_traces', compress_after => INTERVAL '7 days', if_not_exists => true);
SELECT add_compression_policy('llm_metrics', compress_after => INTERVAL '7 days', if_not_exists => true);
SELECT add_compression_policy('llm_logs', compress_after => INTERVAL '7 days', if_not_exists => true);

SELECT add_retention_policy('llm_traces', drop_after => INTERVAL '90 days', if_not_exists => true);
SELECT add_retention_policy('llm_metrics', drop_after => INTERVAL '37 days', if_not_exists => true);
SELECT add_retention_policy('llm_logs', drop_after => INTERVAL '37 days', if_not_exists => true);
SELECT add_retention_policy('llm_metrics_1min', drop_after => INTERVAL '37 days', if_not_exists => true);
SELECT add_retention_policy('llm_metrics_1hour', drop_after => INTERVAL '210 days', if_not_exists => true);
SELECT add_retention_policy('llm_metrics_1day', drop_after => INTERVAL '1095 days', if_not_exists => true);
SELECT add_retention_policy('llm_error_summary', drop_after => INTERVAL '210 days', if_not_exists => true);
SELECT add_retention_policy('cost_analysis_hourly', drop_after => INTERVAL '210 days', if_not_exists => true);
