-- transaction: false
-- lint-ignore ban-drop-constraint: earlier releases write shorter texts, and no query depends on the limit
--
-- Texts and JSON up to the limit that the service enforces. Reads of one model, or of one provider, newest first.
--
-- Each statement holds its lock for an instant, except the builds of the indexes: those take one chunk after the other,
-- so a write waits for the build of one chunk at most.

-- The service enforces its own setting. Names keep their limit: an index row has at most 2704 bytes.
ALTER TABLE llm_traces DROP CONSTRAINT IF EXISTS llm_traces_text_bytes, DROP CONSTRAINT IF EXISTS llm_traces_json_bytes;
ALTER TABLE llm_metrics DROP CONSTRAINT IF EXISTS llm_metrics_json_bytes;
ALTER TABLE llm_logs DROP CONSTRAINT IF EXISTS llm_logs_text_bytes, DROP CONSTRAINT IF EXISTS llm_logs_json_bytes;
COMMENT ON TABLE llm_traces IS 'One row for each span of a call to a language model; trace_id, span_id and ts identify it';

-- llm_traces_provider_model_ts returns rows in the order of time only where both columns have one value.
CREATE INDEX IF NOT EXISTS llm_traces_model_ts ON llm_traces (model, ts DESC) WITH (timescaledb.transaction_per_chunk);
CREATE INDEX IF NOT EXISTS llm_traces_provider_ts
    ON llm_traces (provider, ts DESC) WITH (timescaledb.transaction_per_chunk);
