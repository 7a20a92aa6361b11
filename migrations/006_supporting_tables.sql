-- Prices of models, and projects.

CREATE TABLE model_pricing (
    id                     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    effective_date         timestamptz NOT NULL,
    provider               text NOT NULL,
    model                  text NOT NULL,
    prompt_cost_per_1k     numeric(12, 8) NOT NULL,
    completion_cost_per_1k numeric(12, 8) NOT NULL,
    created_at             timestamptz NOT NULL DEFAULT now(),
    UNIQUE (provider, model, effective_date),
    CONSTRAINT model_pricing_costs CHECK (least(prompt_cost_per_1k, completion_cost_per_1k) >= 0),
    CONSTRAINT model_pricing_name_bytes CHECK (greatest(octet_length(provider), octet_length(model)) <= 512)
);
COMMENT ON TABLE model_pricing IS 'USD for 1000 tokens, from effective_date until the next one of the same model';

CREATE TABLE projects (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name       text NOT NULL,
    slug       text NOT NULL UNIQUE,
    owner_id   text NOT NULL REFERENCES users ON DELETE RESTRICT,
    created_at timestamptz NOT NULL DEFAULT now(),
    settings   jsonb,
    CONSTRAINT projects_slug CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
    CONSTRAINT projects_name_bytes CHECK (greatest(octet_length(name), octet_length(slug)) <= 512),
    CONSTRAINT projects_json_bytes CHECK (pg_column_size(settings) <= 2097152)
);
CREATE INDEX projects_owner ON projects (owner_id);
