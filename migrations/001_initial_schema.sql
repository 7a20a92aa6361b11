-- Tables of traces, metrics and logs, and of those who may write them.
--
-- Limits, so that no client can fill the disk with one row; the service refuses as much, naming item and field:
--   free text                  262144 bytes (256 KiB) each
--   jsonb                     2097152 bytes (2 MiB) each in PostgreSQL's binary form, where 256 KiB of text take 1.5 MiB at most
--   names and identifiers         512 bytes each: 128 characters, and three of them fit an index row of 2704 bytes

CREATE TABLE llm_traces (
    ts                  timestamptz NOT NULL,
    trace_id            text NOT NULL,
    span_id             text NOT NULL,
    parent_span_id      text,
    span_name           text NOT NULL,
    span_kind           text NOT NULL DEFAULT 'internal',
    provider            text NOT NULL,
    model               text NOT NULL,
    input_type          text NOT NULL,
    input_text          text,
    input_messages      jsonb,
    output_text         text,
    finish_reason       text,
    prompt_tokens       integer,
    completion_tokens   integer,
    total_tokens        integer,
    prompt_cost_usd     numeric(12, 8),
    completion_cost_usd numeric(12, 8),
    total_cost_usd      numeric(12, 8),
    duration_ms         integer NOT NULL,
    ttft_ms             integer,
    status_code         text NOT NULL,
    error_message       text,
    user_id             text,
    session_id          text,
    environment         text,
    tags                text[],
    attributes          jsonb,
    sampled             boolean NOT NULL DEFAULT true,
    sample_rate         real,
    resource_attributes jsonb,
    events              jsonb,
    links               jsonb,
    PRIMARY KEY (trace_id, span_id, ts),
    CONSTRAINT llm_traces_status_code CHECK (status_code IN ('OK', 'ERROR', 'UNSET')),
    CONSTRAINT llm_traces_name_bytes CHECK (
        greatest(octet_length(trace_id), octet_length(span_id), octet_length(parent_span_id), octet_length(span_name),
                 octet_length(span_kind), octet_length(provider), octet_length(model), octet_length(input_type),
                 octet_length(finish_reason), octet_length(user_id), octet_length(session_id),
                 octet_length(environment)) <= 512),
    CONSTRAINT llm_traces_text_bytes CHECK (
        greatest(octet_length(input_text), octet_length(output_text), octet_length(error_message),
                 octet_length(array_to_string(tags, ''))) <= 262144),
    CONSTRAINT llm_traces_json_bytes CHECK (
        greatest(pg_column_size(input_messages), pg_column_size(attributes), pg_column_size(resource_attributes),
                 pg_column_size(events), pg_column_size(links)) <= 2097152)
);
COMMENT ON TABLE llm_traces IS 'One row for each span of a call to a language model; a repeated span is ignored';
COMMENT ON COLUMN llm_traces.ttft_ms IS 'Time to first token in milliseconds';
COMMENT ON COLUMN llm_traces.status_code IS 'Only ERROR counts as an error; UNSET does not';

CREATE TABLE llm_metrics (
    ts          timestamptz NOT NULL,
    metric_name text NOT NULL,
    metric_type text NOT NULL,
    provider    text NOT NULL,
    model       text NOT NULL,
    environment text,
    user_id     text,
    value       double precision NOT NULL,
    count       bigint,
    sum         double precision,
    min         double precision,
    max         double precision,
    tags        jsonb,
    CONSTRAINT llm_metrics_metric_type CHECK (metric_type IN ('counter', 'gauge', 'histogram')),
    CONSTRAINT llm_metrics_name_bytes CHECK (
        greatest(octet_length(metric_name), octet_length(provider), octet_length(model), octet_length(environment),
                 octet_length(user_id)) <= 512),
    CONSTRAINT llm_metrics_json_bytes CHECK (pg_column_size(tags) <= 2097152)
);
COMMENT ON TABLE llm_metrics IS 'Measurements as clients sent them; no key, so the same instant may come twice';

CREATE TABLE llm_logs (
    ts          timestamptz NOT NULL,
    trace_id    text,
    span_id     text,
    log_level   text NOT NULL,
    message     text NOT NULL,
    provider    text,
    model       text,
    environment text,
    attributes  jsonb,
    CONSTRAINT llm_logs_name_bytes CHECK (
        greatest(octet_length(trace_id), octet_length(span_id), octet_length(log_level), octet_length(provider),
                 octet_length(model), octet_length(environment)) <= 512),
    CONSTRAINT llm_logs_text_bytes CHECK (octet_length(message) <= 262144),
    CONSTRAINT llm_logs_json_bytes CHECK (pg_column_size(attributes) <= 2097152)
);
COMMENT ON TABLE llm_logs IS 'Log lines with or without a trace; no key, so one span may log twice in one instant';

CREATE TABLE users (
    id         text PRIMARY KEY,
    email      text UNIQUE,
    name       text,
    created_at timestamptz NOT NULL DEFAULT now(),
    metadata   jsonb,
    CONSTRAINT users_name_bytes CHECK (greatest(octet_length(id), octet_length(email), octet_length(name)) <= 512)
);

CREATE TABLE api_keys (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    key_hash       text NOT NULL UNIQUE,
    key_prefix     text NOT NULL,
    name           text NOT NULL,
    user_id        text REFERENCES users ON DELETE CASCADE,
    scopes         text[],
    rate_limit_rpm integer NOT NULL DEFAULT 60,
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz,
    last_used_at   timestamptz,
    is_active      boolean NOT NULL DEFAULT true,
    CONSTRAINT api_keys_key_hash CHECK (key_hash ~ '^[0-9a-f]{64}$'),
    CONSTRAINT api_keys_rate_limit_rpm CHECK (rate_limit_rpm > 0),
    CONSTRAINT api_keys_name_bytes CHECK (greatest(octet_length(key_prefix), octet_length(name)) <= 512)
);
COMMENT ON COLUMN api_keys.key_hash IS 'SHA-256 of the key in hexadecimal; the key itself is stored nowhere';
