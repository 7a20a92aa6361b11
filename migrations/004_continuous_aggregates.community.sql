-- Aggregates of traces as continuous aggregates of TimescaleDB's community edition; clients see the same columns in the
-- Apache edition's file. Each starts empty and is filled by its policy: filling it here would need a session outside
-- any transaction, and would hold this one for as long as it takes.

CREATE TABLE observatory.edition_gaps (
    feature     text PRIMARY KEY,
    replaced_by text,
    consequence text NOT NULL
);
COMMENT ON TABLE observatory.edition_gaps IS 'What this edition of TimescaleDB lacks, for reports; empty: nothing';
COMMENT ON COLUMN observatory.edition_gaps.replaced_by IS 'What does the work instead; null: nothing does';

CREATE TABLE observatory.jobs (
    name     text PRIMARY KEY,
    schedule text NOT NULL,
    command  text NOT NULL
);
COMMENT ON TABLE observatory.jobs IS 'What pg_cron has to run in this database, on which of its schedules (UTC)';

CREATE MATERIALIZED VIEW llm_metrics_1min
    WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
    SELECT time_bucket(INTERVAL '1 minute', ts) AS bucket,
           provider,
           model,
           status_code,
           count(*) AS request_count,
           sum(total_tokens) AS total_tokens,
           sum(total_cost_usd) AS total_cost_usd,
           avg(duration_ms) AS avg_duration_ms,
           min(duration_ms) AS min_duration_ms,
           max(duration_ms) AS max_duration_ms,
           sum(duration_ms::numeric * duration_ms) AS sum_duration_ms_squared,
           avg(prompt_tokens) AS avg_prompt_tokens,
           avg(completion_tokens) AS avg_completion_tokens
    FROM llm_traces
    GROUP BY 1, 2, 3, 4
    WITH NO DATA;
COMMENT ON VIEW llm_metrics_1min IS
    'Requests per minute, provider, model and status';
SELECT add_continuous_aggregate_policy(
    'llm_metrics_1min', start_offset => INTERVAL '1 hour', end_offset => INTERVAL '1 minute',
    schedule_interval => INTERVAL '30 seconds', if_not_exists => true);

CREATE MATERIALIZED VIEW llm_metrics_1hour
    WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
    SELECT time_bucket(INTERVAL '1 hour', ts) AS bucket,
           provider,
           model,
           environment,
           count(*) AS request_count,
           count(*) FILTER (WHERE status_code = 'ERROR') AS error_count,
           count(*) FILTER (WHERE status_code = 'OK') AS success_count,
           sum(total_tokens) AS total_tokens,
           sum(prompt_tokens) AS total_prompt_tokens,
           sum(completion_tokens) AS total_completion_tokens,
           sum(total_cost_usd) AS total_cost_usd,
           sum(prompt_cost_usd) AS prompt_cost_usd,
           sum(completion_cost_usd) AS completion_cost_usd,
           avg(duration_ms) AS avg_duration_ms,
           min(duration_ms) AS min_duration_ms,
           max(duration_ms) AS max_duration_ms,
           sum(duration_ms::numeric * duration_ms) AS sum_duration_ms_squared,
           avg(prompt_tokens) AS avg_prompt_tokens,
           avg(completion_tokens) AS avg_completion_tokens
    FROM llm_traces
    GROUP BY 1, 2, 3, 4
    WITH NO DATA;
COMMENT ON VIEW llm_metrics_1hour IS
    'Requests per hour, provider, model and environment; of the status codes only ERROR counts as an error';
SELECT add_continuous_aggregate_policy(
    'llm_metrics_1hour', start_offset => INTERVAL '1 day', end_offset => INTERVAL '1 hour',
    schedule_interval => INTERVAL '5 minutes', if_not_exists => true);

CREATE MATERIALIZED VIEW llm_metrics_1day
    WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
    SELECT time_bucket(INTERVAL '1 day', ts) AS bucket,
           provider,
           model,
           count(*) AS request_count,
           count(DISTINCT user_id) AS unique_users,
           count(DISTINCT session_id) AS unique_sessions,
           sum(total_tokens) AS total_tokens,
           sum(prompt_tokens) AS total_prompt_tokens,
           sum(completion_tokens) AS total_completion_tokens,
           sum(total_cost_usd) AS total_cost_usd,
           sum(prompt_cost_usd) AS prompt_cost_usd,
           sum(completion_cost_usd) AS completion_cost_usd,
           avg(total_cost_usd) AS avg_cost_per_request,
           avg(duration_ms) AS avg_duration_ms,
           min(duration_ms) AS min_duration_ms,
           max(duration_ms) AS max_duration_ms,
           sum(duration_ms::numeric * duration_ms) AS sum_duration_ms_squared,
           avg(prompt_tokens) AS avg_prompt_tokens,
           avg(completion_tokens) AS avg_completion_tokens
    FROM llm_traces
    GROUP BY 1, 2, 3
    WITH NO DATA;
COMMENT ON VIEW llm_metrics_1day IS
    'Requests per day (UTC), provider and model; avg_cost_per_request is of those whose cost is known';
SELECT add_continuous_aggregate_policy(
    'llm_metrics_1day', start_offset => INTERVAL '7 days', end_offset => INTERVAL '1 day',
    schedule_interval => INTERVAL '1 hour', if_not_exists => true);

CREATE MATERIALIZED VIEW llm_error_summary
    WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
    SELECT time_bucket(INTERVAL '1 hour', ts) AS bucket,
           provider,
           model,
           status_code,
           environment,
           count(*) AS error_count,
           min(left(error_message, 1000)) AS sample_error_message,
           avg(duration_ms) AS avg_duration_ms,
           sum(total_cost_usd) AS total_cost_usd,
           count(DISTINCT user_id) AS affected_users,
           count(DISTINCT session_id) AS affected_sessions
    FROM llm_traces
    WHERE status_code <> 'OK'
    GROUP BY 1, 2, 3, 4, 5
    WITH NO DATA;
COMMENT ON VIEW llm_error_summary IS
    'Requests not OK per hour, provider, model, status, environment; the sample is of up to 1000 characters';
SELECT add_continuous_aggregate_policy(
    'llm_error_summary', start_offset => INTERVAL '1 day', end_offset => INTERVAL '1 hour',
    schedule_interval => INTERVAL '5 minutes', if_not_exists => true);

CREATE MATERIALIZED VIEW cost_analysis_hourly
    WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
    SELECT time_bucket(INTERVAL '1 hour', ts) AS bucket,
           provider,
           model,
           environment,
           user_id,
           count(*) AS request_count,
           sum(total_cost_usd) AS total_cost_usd,
           sum(prompt_cost_usd) AS prompt_cost_usd,
           sum(completion_cost_usd) AS completion_cost_usd,
           sum(total_tokens) AS total_tokens
    FROM llm_traces
    GROUP BY 1, 2, 3, 4, 5
    WITH NO DATA;
COMMENT ON VIEW cost_analysis_hourly IS
    'Costs per hour, provider, model, environment and user';
SELECT add_continuous_aggregate_policy(
    'cost_analysis_hourly', start_offset => INTERVAL '1 day', end_offset => INTERVAL '1 hour',
    schedule_interval => INTERVAL '5 minutes', if_not_exists => true);
