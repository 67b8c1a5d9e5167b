-- What was answered to requests that carry an Idempotency-Key, for a day.
--
-- A row without an answer is a request in flight: whoever carries it out holds the row until
-- `held_until`, by this database's clock, and puts that off for as long as it works. A holder that
-- died lets it pass, and then a repeat runs again.
CREATE TABLE idempotency_keys (
    token_id   uuid NOT NULL REFERENCES tokens ON DELETE CASCADE,
    key        text NOT NULL,
    -- SHA-256 over method, path, body and the caller's own secret: a body may hold a password,
    -- which must not be guessable from here.
    request    bytea NOT NULL,
    holder     uuid NOT NULL,
    held_until timestamptz NOT NULL,
    -- ChaCha20-Poly1305 under a key made from the caller's secret, which is not stored: an answer
    -- may hold what is shown only once.
    nonce      bytea,
    answer     bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (token_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
