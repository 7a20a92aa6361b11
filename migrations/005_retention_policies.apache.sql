-- How long rows are kept, on TimescaleDB's Apache edition: no compression, and jobs of pg_cron drop old chunks.

INSERT INTO observatory.edition_gaps VALUES
    ('compression', NULL,
     'Chunks of traces, metrics and logs older than 7 days stay as large as they were written'),
    ('retention policies', 'jobs that drop old chunks', 'None: whole chunks are dropped as the policies would');

CREATE PROCEDURE observatory.drop_old_chunks(hypertable regclass, kept interval)
LANGUAGE plpgsql
SET search_path = public
-- Everybody else who wants the chunk queues behind a waiting drop: give up soon, the next run tries again.
SET lock_timeout = '5s'
AS $$
BEGIN
    PERFORM drop_chunks(hypertable, older_than => kept);
END
$$;
COMMENT ON PROCEDURE observatory.drop_old_chunks IS 'Drops the chunks of which even the newest row is older';
REVOKE EXECUTE ON PROCEDURE observatory.drop_old_chunks FROM PUBLIC;

INSERT INTO observatory.jobs (name, schedule, command)
SELECT 'retention of ' || relname, format('%s * * * *', minute),
       format('CALL observatory.drop_old_chunks(%L, INTERVAL %L)', nspname || '.' || relname, kept)
FROM (VALUES
    (16, 'public', 'llm_traces', '90 days'),
    (17, 'public', 'llm_metrics', '37 days'),
    (18, 'public', 'llm_logs', '37 days'),
    (21, 'observatory', 'llm_metrics_1min', '37 days'),
    (22, 'observatory', 'llm_metrics_1hour', '210 days'),
    (23, 'observatory', 'llm_metrics_1day', '1095 days'),
    (24, 'observatory', 'llm_error_summary', '210 days'),
    (26, 'observatory', 'cost_analysis_hourly', '210 days')
) AS retention (minute, nspname, relname, kept);
