-- The tables that everything stands on: what is wanted (topologies and their versions), what is
-- done about it (plans, steps, marks), what happened (events), and who may ask (tokens).
--
-- What is seen of nodes is kept only so that a restart and the past can be shown; it is looked at
-- again before anything is decided.

CREATE TABLE nodes (
    id            uuid PRIMARY KEY,
    address       text NOT NULL CONSTRAINT nodes_address_key UNIQUE,
    zone          text NOT NULL,
    host          text,
    labels        jsonb NOT NULL DEFAULT '{}',
    credential    text,
    kind          text NOT NULL DEFAULT 'data' CHECK (kind IN ('data', 'sentinel')),
    maintenance   boolean NOT NULL DEFAULT false,
    health        text NOT NULL DEFAULT 'unknown' CHECK (health IN ('up', 'suspect', 'down', 'unknown')),
    -- The last sighting, as domain::observation::Sighting.
    sighting      jsonb,
    observed_at   timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE credentials (
    name        text PRIMARY KEY,
    username    text,
    -- ChaCha20-Poly1305 under REEVE_SECRET_KEY; the name is the associated data.
    nonce       bytea NOT NULL,
    ciphertext  bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE topologies (
    id          uuid PRIMARY KEY,
    name        text NOT NULL CONSTRAINT topologies_name_key UNIQUE,
    labels      jsonb NOT NULL DEFAULT '{}',
    version     integer NOT NULL,
    -- Counts changes that make no version, such as labels.
    revision    integer NOT NULL DEFAULT 1,
    -- Whether the plan that creates it has succeeded.
    created     boolean NOT NULL DEFAULT false,
    -- The seq of its last event.
    last_seq    bigint NOT NULL DEFAULT 0,
    observation jsonb,
    observed_at timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

-- A version never changes, and names its parent.
CREATE TABLE topology_versions (
    topology_id uuid NOT NULL REFERENCES topologies ON DELETE CASCADE,
    version     integer NOT NULL,
    parent      integer,
    spec        jsonb NOT NULL,
    layout      jsonb NOT NULL,
    plan_id     uuid,
    author      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topology_id, version)
);

-- Which nodes a topology names, members and spares. A data node belongs to one topology at most; a
-- Sentinel may watch several.
CREATE TABLE topology_nodes (
    topology_id uuid NOT NULL REFERENCES topologies ON DELETE CASCADE,
    node_id     uuid NOT NULL REFERENCES nodes,
    kind        text NOT NULL,
    PRIMARY KEY (topology_id, node_id)
);
CREATE UNIQUE INDEX topology_nodes_data_key ON topology_nodes (node_id) WHERE kind = 'data';

-- What was seen, whenever it changed in more than offsets and times.
CREATE TABLE observations (
    topology_id uuid NOT NULL REFERENCES topologies ON DELETE CASCADE,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    observation jsonb NOT NULL,
    PRIMARY KEY (topology_id, at)
);

CREATE TABLE plans (
    id           uuid PRIMARY KEY,
    topology_id  uuid NOT NULL,
    topology     text NOT NULL,
    intent       jsonb NOT NULL,
    terms        jsonb NOT NULL,
    state        text NOT NULL CHECK (state IN ('proposed', 'queued', 'running', 'paused',
                                                'succeeded', 'failed', 'cancelled', 'superseded')),
    requested    text CHECK (requested IN ('pause', 'cancel', 'supersede')),
    waiting_for  text,
    from_version integer NOT NULL,
    to_version   integer NOT NULL,
    fingerprint  text NOT NULL,
    accepted     jsonb NOT NULL,
    hazards      jsonb NOT NULL,
    warnings     jsonb NOT NULL,
    retry_of     uuid,
    requested_by text NOT NULL,
    reason       text,
    -- Set when the plan is to fail; it becomes `failed` once nothing of it is left on nodes.
    error        jsonb,
    created_at   timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz
);
-- One plan is active per topology.
CREATE UNIQUE INDEX plans_active_key ON plans (topology_id) WHERE state IN ('queued', 'running', 'paused');
CREATE INDEX plans_page ON plans (id DESC);

CREATE TABLE steps (
    plan_id     uuid NOT NULL REFERENCES plans ON DELETE CASCADE,
    key         text NOT NULL,
    position    integer NOT NULL,
    kind        text NOT NULL,
    title       text NOT NULL,
    step        jsonb NOT NULL,
    nodes       jsonb NOT NULL,
    hazards     jsonb NOT NULL,
    state       text NOT NULL DEFAULT 'pending'
                CHECK (state IN ('pending', 'running', 'done', 'skipped', 'failed')),
    attempts    integer NOT NULL DEFAULT 0,
    progress    jsonb,
    error       jsonb,
    started_at  timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (plan_id, key)
);
CREATE INDEX steps_page ON steps (plan_id, position);

-- What Reeve left on a node and must take away again; committed before the command that leaves it.
-- Not tied to its plan's or topology's life: a mark goes only when its trace is gone.
CREATE TABLE marks (
    topology_id uuid NOT NULL,
    node        text NOT NULL,
    -- Tells marks of one node apart, for example `setting:cluster-node-timeout`.
    key         text NOT NULL,
    mark        jsonb NOT NULL,
    plan_id     uuid,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topology_id, node, key)
);

-- The journal. `id` ascends in commit order, since it is taken under an advisory lock as the last
-- act of a transaction; `seq` is gapless within a topology.
CREATE TABLE events (
    id          bigint PRIMARY KEY,
    seq         bigint,
    topology_id uuid,
    topology    text,
    type        text NOT NULL,
    at          timestamptz NOT NULL,
    data        jsonb NOT NULL,
    plan_id     uuid,
    actor       text
);
CREATE SEQUENCE event_ids OWNED BY events.id;
CREATE INDEX events_by_topology ON events (topology, id);
CREATE INDEX events_by_plan ON events (plan_id, id);

CREATE TABLE tokens (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    role       text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    -- Which topologies it may see and steer: null for all, else {"names": […], "labels": {…}}.
    topologies jsonb,
    -- SHA-256 of the secret; the secret itself is never stored.
    digest     bytea NOT NULL CONSTRAINT tokens_digest_key UNIQUE,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);

-- Short-lived stand-ins for a token where a browser can send no header.
CREATE TABLE stream_tickets (
    digest     bytea PRIMARY KEY,
    token_id   uuid NOT NULL REFERENCES tokens ON DELETE CASCADE,
    expires_at timestamptz NOT NULL
);
