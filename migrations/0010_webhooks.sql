-- Endpoints that subscribed to events, and what is still to be handed to them.
--
-- A delivery is written in the transaction of its event, so there is none without the other. It is
-- claimed by putting `next_attempt_at` off for longer than an attempt may take: whoever claimed it and
-- died leaves it due again, and no two instances have it at once.
CREATE TABLE webhooks (
    id               uuid PRIMARY KEY,
    url              text NOT NULL,
    -- Types, each whole or as a prefix that ends with `*`.
    events           text[] NOT NULL,
    -- Names; null for all topologies and for events of none.
    topologies       text[],
    description      text,
    -- ChaCha20-Poly1305 under REEVE_SECRET_KEY; the id is the associated data.
    nonce            bytea NOT NULL,
    secret           bytea NOT NULL,
    -- The secret before the last rotation, which signs as well until then.
    previous_nonce   bytea,
    previous_secret  bytea,
    previous_until   timestamptz,
    enabled          boolean NOT NULL DEFAULT true,
    disabled_at      timestamptz,
    disabled_because text CHECK (disabled_because IN ('asked', 'gone', 'failing')),
    -- When the first of the attempts failed that have failed without a success since.
    failing_since    timestamptz,
    created_by       text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- No foreign keys: the journal must never wait for the row of a webhook that somebody deletes.
CREATE TABLE deliveries (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    position        bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    webhook_id      uuid NOT NULL,
    -- Null for a test.
    event_id        bigint,
    type            text NOT NULL,
    state           text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
    -- All attempts, as domain::webhook::Attempt.
    attempts        jsonb NOT NULL DEFAULT '[]',
    -- How many of them failed since it was queued, or queued again.
    failures        integer NOT NULL DEFAULT 0,
    -- Only grows: whoever writes what came of an attempt proves that nobody claimed it since.
    claims          integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz DEFAULT clock_timestamp(),
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at     timestamptz
);
CREATE INDEX deliveries_due ON deliveries (webhook_id, next_attempt_at, position) WHERE state = 'pending';
CREATE INDEX deliveries_page ON deliveries (webhook_id, position DESC);
CREATE INDEX deliveries_by_age ON deliveries (created_at);
-- The failovers of a topology, to take up those that were under way.
CREATE INDEX events_of_failovers ON events (topology_id, id DESC) WHERE type LIKE 'failover.%';
