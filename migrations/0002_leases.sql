-- Any number of instances work on one database: each topology is kept by whoever holds its lease.

-- The processes that run. One that was not seen before `expires_at` counts as gone.
CREATE TABLE instances (
    id          uuid PRIMARY KEY,
    host        text NOT NULL,
    pid         integer NOT NULL,
    listen      text NOT NULL,
    version     text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL
);

-- `token` only grows: whoever writes for a topology proves that its token is still the one.
CREATE TABLE leases (
    topology_id uuid PRIMARY KEY REFERENCES topologies ON DELETE CASCADE,
    holder      uuid,
    token       bigint NOT NULL DEFAULT 0,
    taken_at    timestamptz,
    expires_at  timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO leases (topology_id) SELECT id FROM topologies;

-- What a plan is to make of its topology: the version is inserted when the plan is queued. A plan
-- that leaves the wanted shape as it is has no row here.
CREATE TABLE plan_shapes (
    plan_id uuid PRIMARY KEY REFERENCES plans ON DELETE CASCADE,
    spec    jsonb NOT NULL,
    layout  jsonb NOT NULL
);

-- Each node's part of the fingerprint.
ALTER TABLE plans ADD COLUMN prints jsonb NOT NULL DEFAULT '{}';

-- A plan that takes the place of the active one: for as long as an emergency lasts (`preempt`), or
-- for good (`supersede`). It starts when the other has made way.
ALTER TABLE plans ADD COLUMN displaces uuid;
ALTER TABLE plans ADD COLUMN displaces_by text CHECK (displaces_by IN ('preempt', 'supersede'));
ALTER TABLE plans ADD CHECK ((displaces IS NULL) = (displaces_by IS NULL));

-- One plan is active per topology, and at most one that displaces it.
DROP INDEX plans_active_key;
CREATE UNIQUE INDEX plans_active_key ON plans (topology_id)
    WHERE state IN ('queued', 'running', 'paused') AND displaces IS NULL;
CREATE UNIQUE INDEX plans_displacing_key ON plans (topology_id)
    WHERE state IN ('queued', 'running', 'paused') AND displaces IS NOT NULL;
