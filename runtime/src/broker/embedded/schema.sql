-- The file of the embedded broker. It is apart from the ledger: a broker hands messages over, it does not remember them.

CREATE TABLE exchanges (
    name TEXT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('direct', 'fanout', 'topic'))
) STRICT, WITHOUT ROWID;

CREATE TABLE queues (
    id        INTEGER PRIMARY KEY,
    name      TEXT    NOT NULL UNIQUE,
    arguments TEXT    NOT NULL,
    -- Messages up to this id may have been delivered before: they come again flagged as redelivered. It is written ahead
    -- of the deliveries, so that a process that dies leaves no delivered message unflagged.
    delivered INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE bindings (
    exchange    TEXT    NOT NULL REFERENCES exchanges (name) ON DELETE CASCADE,
    routing_key TEXT    NOT NULL,
    queue       INTEGER NOT NULL REFERENCES queues (id) ON DELETE CASCADE,
    PRIMARY KEY (exchange, routing_key, queue)
) STRICT, WITHOUT ROWID;

-- Ids are never used twice (AUTOINCREMENT): `queues.delivered` speaks of them, and they are the order of a queue.
CREATE TABLE messages (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    queue       INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    exchange    TEXT    NOT NULL,
    routing_key TEXT    NOT NULL,
    properties  TEXT    NOT NULL,
    body        BLOB    NOT NULL
) STRICT;

CREATE INDEX messages_of_queue ON messages (queue, id, size);
