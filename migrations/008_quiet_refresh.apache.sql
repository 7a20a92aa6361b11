-- A refresh without anything new writes nothing, so that a stack without traffic archives no WAL each minute.

CREATE OR REPLACE PROCEDURE observatory.refresh_aggregate(
    aggregate    text,
    window_start timestamptz DEFAULT NULL,
    window_end   timestamptz DEFAULT NULL
)
LANGUAGE plpgsql
SET search_path = public
AS $$
DECLARE
    policy  observatory.aggregates;
    oldest  timestamptz;
    changed bigint := 0;
BEGIN
    -- One refresh of an aggregate at a time: the next one waits here, and then sees what this one wrote. Not a lock of
    -- the row, which is written to the WAL.
    PERFORM pg_advisory_xact_lock(hashtext('observatory.refresh_aggregate'), hashtext(aggregate));
    SELECT * INTO policy FROM observatory.aggregates WHERE name = aggregate;
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
                RETURNING 1
            ), added AS (
                INSERT INTO observatory.%2$I
                SELECT (fresh.line).* FROM fresh
                WHERE NOT EXISTS (
                    SELECT FROM observatory.%2$I AS stored
                    WHERE stored.bucket >= $1 AND stored.bucket < $2 AND stored = fresh.line
                )
                RETURNING 1
            )
            SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM added)
        $statement$, aggregate || '_live', aggregate) INTO changed USING window_start, window_end;
    END IF;

    -- Without new rows the times may stand still for a day; the next window then begins earlier, in the same rows.
    UPDATE observatory.aggregates
    SET refreshed_until = greatest(refreshed_until, window_end), refreshed_at = clock_timestamp()
    WHERE name = aggregate
      AND (changed > 0 OR refreshed_at IS NULL OR refreshed_at < clock_timestamp() - INTERVAL '1 day');
END
$$;
COMMENT ON COLUMN observatory.aggregates.refreshed_until IS
    'End of the newest bucket that was computed; without new rows it is written once a day only';
