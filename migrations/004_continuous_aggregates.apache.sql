-- Aggregates of traces on TimescaleDB's Apache edition, which has no continuous aggregates:
--
--   observatory.<name>_live   the definition: a query over the raw rows
--   observatory.<name>        a hypertable with what was computed; it outlives the raw rows
--   <name>                    the view for clients, with the columns that the community edition's has
--
-- observatory.refresh_aggregate() brings the hypertable in line with the definition, inside the refresh window only.
-- When it runs is said in observatory.jobs, which `schedule_jobs` hands to pg_cron.

CREATE TABLE observatory.edition_gaps (
    feature     text PRIMARY KEY,
    replaced_by text,
    consequence text NOT NULL
);
COMMENT ON TABLE observatory.edition_gaps IS 'What this edition of TimescaleDB lacks, for reports; empty: nothing';
COMMENT ON COLUMN observatory.edition_gaps.replaced_by IS 'What does the work instead; null: nothing does';
INSERT INTO observatory.edition_gaps VALUES
    ('continuous aggregates', 'jobs that recompute the refresh window',
     'A refresh reads all traces of its window, not only those that are new');

CREATE TABLE observatory.jobs (
    name     text PRIMARY KEY,
    schedule text NOT NULL,
    command  text NOT NULL
);
COMMENT ON TABLE observatory.jobs IS 'What pg_cron has to run in this database, on which of its schedules (UTC)';

CREATE TABLE observatory.aggregates (
    name            text PRIMARY KEY,
    bucket          interval NOT NULL,
    refresh_from    interval NOT NULL,
    refresh_to      interval NOT NULL,
    refreshed_until timestamptz,
    refreshed_at    timestamptz,
    CHECK (refresh_from >= refresh_to + bucket)
);
COMMENT ON TABLE observatory.aggregates IS 'How each aggregate is refreshed: from this long ago to that long ago';
COMMENT ON COLUMN observatory.aggregates.refreshed_until IS 'End of the newest bucket that was computed';

CREATE VIEW observatory.llm_metrics_1min_live AS
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
    GROUP BY 1, 2, 3, 4;
CREATE TABLE observatory.llm_metrics_1min AS TABLE observatory.llm_metrics_1min_live WITH NO DATA;
SELECT create_hypertable('observatory.llm_metrics_1min', by_range('bucket', INTERVAL '1 day'));
CREATE INDEX llm_metrics_1min_model_bucket ON observatory.llm_metrics_1min (provider, model, bucket DESC);
CREATE VIEW llm_metrics_1min AS TABLE observatory.llm_metrics_1min;
COMMENT ON VIEW llm_metrics_1min IS
    'Requests per minute, provider, model and status';

CREATE VIEW observatory.llm_metrics_1hour_live AS
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
    GROUP BY 1, 2, 3, 4;
CREATE TABLE observatory.llm_metrics_1hour AS TABLE observatory.llm_metrics_1hour_live WITH NO DATA;
SELECT create_hypertable('observatory.llm_metrics_1hour', by_range('bucket', INTERVAL '10 days'));
CREATE INDEX llm_metrics_1hour_model_bucket ON observatory.llm_metrics_1hour (provider, model, bucket DESC);
CREATE VIEW llm_metrics_1hour AS TABLE observatory.llm_metrics_1hour;
COMMENT ON VIEW llm_metrics_1hour IS
    'Requests per hour, provider, model and environment; of the status codes only ERROR counts as an error';

CREATE VIEW observatory.llm_metrics_1day_live AS
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
    GROUP BY 1, 2, 3;
CREATE TABLE observatory.llm_metrics_1day AS TABLE observatory.llm_metrics_1day_live WITH NO DATA;
SELECT create_hypertable('observatory.llm_metrics_1day', by_range('bucket', INTERVAL '30 days'));
CREATE INDEX llm_metrics_1day_model_bucket ON observatory.llm_metrics_1day (provider, model, bucket DESC);
CREATE VIEW llm_metrics_1day AS TABLE observatory.llm_metrics_1day;
COMMENT ON VIEW llm_metrics_1day IS
    'Requests per day (UTC), provider and model; avg_cost_per_request is of those whose cost is known';

CREATE VIEW observatory.llm_error_summary_live AS
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
    GROUP BY 1, 2, 3, 4, 5;
CREATE TABLE observatory.llm_error_summary AS TABLE observatory.llm_error_summary_live WITH NO DATA;
SELECT create_hypertable('observatory.llm_error_summary', by_range('bucket', INTERVAL '10 days'));
CREATE INDEX llm_error_summary_model_bucket ON observatory.llm_error_summary (provider, model, bucket DESC);
CREATE VIEW llm_error_summary AS TABLE observatory.llm_error_summary;
COMMENT ON VIEW llm_error_summary IS
    'Requests not OK per hour, provider, model, status, environment; the sample is of up to 1000 characters';

CREATE VIEW observatory.cost_analysis_hourly_live AS
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
    GROUP BY 1, 2, 3, 4, 5;
CREATE TABLE observatory.cost_analysis_hourly AS TABLE observatory.cost_analysis_hourly_live WITH NO DATA;
SELECT create_hypertable('observatory.cost_analysis_hourly', by_range('bucket', INTERVAL '10 days'));
CREATE INDEX cost_analysis_hourly_model_bucket ON observatory.cost_analysis_hourly (provider, model, bucket DESC);
CREATE VIEW cost_analysis_hourly AS TABLE observatory.cost_analysis_hourly;
COMMENT ON VIEW cost_analysis_hourly IS
    'Costs per hour, provider, model, environment and user';

INSERT INTO observatory.aggregates (name, bucket, refresh_from, refresh_to) VALUES
    ('llm_metrics_1min', '1 minute', '1 hour', '1 minute'),
    ('llm_metrics_1hour', '1 hour', '1 day', '1 hour'),
    ('llm_metrics_1day', '1 day', '7 days', '1 day'),
    ('llm_error_summary', '1 hour', '1 day', '1 hour'),
    ('cost_analysis_hourly', '1 hour', '1 day', '1 hour');

CREATE PROCEDURE observatory.refresh_aggregate(
    aggregate    text,
    window_start timestamptz DEFAULT NULL,
    window_end   timestamptz DEFAULT NULL
)
LANGUAGE plpgsql
SET search_path = public
AS $$
DECLARE
    policy observatory.aggregates;
    oldest timestamptz;
BEGIN
    -- One refresh of an aggregate at a time: the next one waits here, and then sees what this one wrote.
    SELECT * INTO policy FROM observatory.aggregates WHERE name = aggregate FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no aggregate %', quote_literal(aggregate)
            USING ERRCODE = 'undefined_object', HINT = 'The aggregates are listed in observatory.aggregates.';
    END IF;

    -- When refreshes stood still for longer than the window is, begin where the last one ended.
    window_start := coalesce(window_start, least(now() - policy.refresh_from, policy.refreshed_until));
    window_end := coalesce(window_end, now() - policy.refresh_to);
    -- What is computed already stays when its raw rows have been dropped.
    SELECT min(range_start) INTO oldest FROM timescaledb_information.chunks
        WHERE hypertable_schema = 'public' AND hypertable_name = 'llm_traces';
    window_start := greatest(window_start, oldest);
    -- Only buckets that lie wholly inside: of the others the window has a part of the rows.
    window_start := time_bucket(policy.bucket, window_start + policy.bucket - INTERVAL '1 microsecond');
    window_end := time_bucket(policy.bucket, window_end);
    IF oldest IS NOT NULL AND window_start < window_end THEN
        -- One statement sees one snapshot, and writes only what differs. Rows are compared whole: null equals null.
        EXECUTE format($statement$
            WITH fresh AS MATERIALIZED (
                SELECT live AS line FROM observatory.%1$I AS live WHERE live.bucket >= $1 AND live.bucket < $2
            ), gone AS (
                DELETE FROM observatory.%2$I AS stored
                WHERE stored.bucket >= $1 AND stored.bucket < $2
                  AND NOT EXISTS (SELECT FROM fresh WHERE fresh.line = stored)
            )
            INSERT INTO observatory.%2$I
            SELECT (fresh.line).* FROM fresh
            WHERE NOT EXISTS (
                SELECT FROM observatory.%2$I AS stored
                WHERE stored.bucket >= $1 AND stored.bucket < $2 AND stored = fresh.line
            )
        $statement$, aggregate || '_live', aggregate) USING window_start, window_end;
    END IF;

    UPDATE observatory.aggregates
    SET refreshed_until = greatest(refreshed_until, window_end), refreshed_at = clock_timestamp()
    WHERE name = aggregate;
END
$$;
COMMENT ON PROCEDURE observatory.refresh_aggregate IS
    'Recomputes an aggregate inside its refresh window, or inside the one given to fill in older buckets';

INSERT INTO observatory.jobs (name, schedule, command)
SELECT 'refresh ' || name, schedule, format('CALL observatory.refresh_aggregate(%L)', name)
FROM (VALUES
    ('llm_metrics_1min', '30 seconds'),
    ('llm_metrics_1hour', '*/5 * * * *'),
    ('llm_metrics_1day', '3 * * * *'),
    ('llm_error_summary', '1-59/5 * * * *'),
    ('cost_analysis_hourly', '2-59/5 * * * *')
) AS refreshes (name, schedule);
-- pg_cron keeps a row for each run: 2880 a day of the refresh of every half minute alone.
INSERT INTO observatory.jobs VALUES
    ('purge job runs', '40 2 * * *', 'DELETE FROM cron.job_run_details WHERE end_time < now() - INTERVAL $$7 days$$');

REVOKE EXECUTE ON PROCEDURE observatory.refresh_aggregate FROM PUBLIC;
