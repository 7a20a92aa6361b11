-- One index per question that the service asks, and no more: each costs every insert.
-- A trace by its id is answered by the primary key (trace_id, span_id, ts).

-- newest first, also with filters that no other index serves
CREATE INDEX llm_traces_ts ON llm_traces (ts DESC);
-- newest first of a provider, or of one of its models
CREATE INDEX llm_traces_provider_model_ts ON llm_traces (provider, model, ts DESC);
CREATE INDEX llm_traces_user_ts ON llm_traces (user_id, ts DESC) WHERE user_id IS NOT NULL;
CREATE INDEX llm_traces_session_ts ON llm_traces (session_id, ts DESC) WHERE session_id IS NOT NULL;
-- errors are few and looked for often
CREATE INDEX llm_traces_errors_ts ON llm_traces (ts DESC) WHERE status_code = 'ERROR';

CREATE INDEX llm_metrics_ts ON llm_metrics (ts DESC);
CREATE INDEX llm_metrics_name_provider_model_ts ON llm_metrics (metric_name, provider, model, ts DESC);

CREATE INDEX llm_logs_level_ts ON llm_logs (log_level, ts DESC);
CREATE INDEX llm_logs_trace_ts ON llm_logs (trace_id, ts) WHERE trace_id IS NOT NULL;
CREATE INDEX llm_logs_ts ON llm_logs (ts DESC);

CREATE INDEX api_keys_user ON api_keys (user_id);
