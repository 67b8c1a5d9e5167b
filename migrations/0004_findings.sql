-- Faults and risks that were diagnosed, each from a named rule.
--
-- A fault that lasts is one row: it is opened once, kept up to date while it is seen, and closed when
-- it is not seen any more. If it comes back, it is another one.
CREATE TABLE findings (
    id           uuid PRIMARY KEY,
    topology_id  uuid NOT NULL REFERENCES topologies ON DELETE CASCADE,
    rule         text NOT NULL,
    severity     text NOT NULL CHECK (severity IN ('critical', 'warning', 'info')),
    title        text NOT NULL,
    detail       text NOT NULL,
    evidence     jsonb NOT NULL,
    -- What it is about, as domain::diagnosis::Subject; an empty object for the whole topology.
    subject      jsonb NOT NULL,
    remedy       jsonb NOT NULL,
    opened_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at    timestamptz
);
-- The same fault of the same thing is open once.
CREATE UNIQUE INDEX findings_open_key ON findings (topology_id, rule, subject) WHERE closed_at IS NULL;
CREATE INDEX findings_page ON findings (topology_id, (closed_at IS NOT NULL), id DESC);
