-- What each consumer has done with each message id. The primary key is the judge of "once".
-- status: 1 completed, 2 parked, 3 dead. parked_id names the row of hapax_parked that counts for the id.
-- body_digest is NULL for ids imported from elsewhere. updated_at: milliseconds since the Unix epoch.
CREATE TABLE hapax_inbox (
    consumer    TEXT    NOT NULL,
    message_id  BLOB    NOT NULL,
    status      INTEGER NOT NULL,
    parked_id   BLOB,
    body_digest BLOB,
    module      BLOB,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (consumer, message_id)
) WITHOUT ROWID, STRICT;

-- Messages that SQL holds itself.
-- state: 1 retry, 2 running, 3 deferred, 4 dead, 5 discarded. phase: 1 handle, 2 compensate, 3 deliver.
-- attempts: failed ones in this phase; handler_attempts: those of the handler, once its compensation has taken over.
CREATE TABLE hapax_parked (
    id            BLOB    NOT NULL PRIMARY KEY,
    consumer      TEXT    NOT NULL,
    message_id    BLOB,
    state         INTEGER NOT NULL,
    phase         INTEGER NOT NULL,
    generation    INTEGER NOT NULL,
    due_at        INTEGER,
    slot          INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    handler_attempts INTEGER NOT NULL,
    crashes       INTEGER NOT NULL,
    compensations INTEGER NOT NULL,
    run_token     BLOB,
    incarnation   BLOB,
    taken_at      INTEGER,
    reason        TEXT,
    code          TEXT,
    error         TEXT,
    module        BLOB,
    body_digest   BLOB    NOT NULL,
    exchange      TEXT    NOT NULL,
    routing_key   TEXT    NOT NULL,
    properties    TEXT    NOT NULL,
    body          BLOB,
    body_bytes    INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT;
-- Only rows that wait are due at some time: dead ones cost the search for due rows nothing, and it ends at its limit.
CREATE INDEX hapax_parked_due ON hapax_parked (consumer, due_at, slot) WHERE due_at IS NOT NULL;
-- Some statements name this one: it is part of their text.
CREATE INDEX hapax_parked_state ON hapax_parked (consumer, state, slot);
CREATE INDEX hapax_parked_message ON hapax_parked (consumer, message_id);

-- Bodies over 1 MiB, in pieces.
CREATE TABLE hapax_parked_chunks (
    parked_id BLOB    NOT NULL,
    ordinal   INTEGER NOT NULL,
    bytes     BLOB    NOT NULL,
    PRIMARY KEY (parked_id, ordinal)
) STRICT;

-- Messages to publish because a transaction committed. state: 1 pending, 2 undeliverable.
-- parked_id: the body is that row's, for copies of dead letters.
CREATE TABLE hapax_outbox (
    id          BLOB    NOT NULL PRIMARY KEY,
    consumer    TEXT    NOT NULL,
    message_id  BLOB,
    parked_id   BLOB,
    exchange    TEXT    NOT NULL,
    routing_key TEXT    NOT NULL,
    properties  TEXT    NOT NULL,
    body        BLOB    NOT NULL,
    state       INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    next_at     INTEGER NOT NULL,
    error       TEXT,
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX hapax_outbox_due ON hapax_outbox (state, next_at);
CREATE INDEX hapax_outbox_message ON hapax_outbox (consumer, message_id);

-- Which host does a job that one host should do, and until when.
CREATE TABLE hapax_leases (
    name       TEXT    NOT NULL PRIMARY KEY,
    holder     BLOB,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
