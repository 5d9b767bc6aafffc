-- What each consumer has done with each message id. The primary key is the judge of "once".
-- status: 1 completed, 2 parked, 3 dead. parked_id names the row of hapax_parked that counts for the id.
-- body_digest is NULL for ids imported from elsewhere. updated_at: milliseconds since the Unix epoch.
CREATE TABLE hapax_inbox (
    consumer    VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    message_id  VARBINARY(255) NOT NULL,
    status      TINYINT        NOT NULL,
    parked_id   BINARY(16),
    body_digest BINARY(16),
    module      BINARY(8),
    updated_at  BIGINT         NOT NULL,
    PRIMARY KEY (consumer, message_id)
) ENGINE = InnoDB;

-- Messages that SQL holds itself.
-- state: 1 retry, 2 running, 3 deferred, 4 dead, 5 discarded. phase: 1 handle, 2 compensate, 3 deliver.
-- attempts: failed ones in this phase; handler_attempts: those of the handler, once its compensation has taken over.
CREATE TABLE hapax_parked (
    id            BINARY(16)   NOT NULL PRIMARY KEY,
    consumer      VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    message_id    VARBINARY(255),
    state         TINYINT      NOT NULL,
    phase         TINYINT      NOT NULL,
    generation    INT          NOT NULL,
    due_at        BIGINT,
    slot          SMALLINT     NOT NULL,
    attempts      INT          NOT NULL,
    handler_attempts INT NOT NULL,
    crashes       INT          NOT NULL,
    compensations INT          NOT NULL,
    run_token     BINARY(16),
    incarnation   BINARY(16),
    taken_at      BIGINT,
    reason        VARCHAR(64)  CHARACTER SET ascii COLLATE ascii_bin,
    code          VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    error         MEDIUMTEXT   CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    module        BINARY(8),
    body_digest   BINARY(16)   NOT NULL,
    exchange      VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    routing_key   VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    properties    MEDIUMTEXT   CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    body          MEDIUMBLOB,
    body_bytes    BIGINT       NOT NULL,
    created_at    BIGINT       NOT NULL,
    updated_at    BIGINT       NOT NULL,
    -- In this order dead rows, which are never due, cost the search for due rows nothing, and it ends at its limit.
    KEY hapax_parked_due (consumer, due_at, slot),
    -- Some statements name this one: it is part of their text.
    KEY hapax_parked_state (consumer, state, slot),
    KEY hapax_parked_message (consumer, message_id)
) ENGINE = InnoDB;

-- Bodies over 1 MiB, in pieces that any server accepts in one statement.
CREATE TABLE hapax_parked_chunks (
    parked_id BINARY(16) NOT NULL,
    ordinal   INT        NOT NULL,
    bytes     MEDIUMBLOB NOT NULL,
    PRIMARY KEY (parked_id, ordinal)
) ENGINE = InnoDB;

-- Messages to publish because a transaction committed. state: 1 pending, 2 undeliverable.
-- parked_id: the body is that row's, for copies of dead letters.
CREATE TABLE hapax_outbox (
    id          BINARY(16)   NOT NULL PRIMARY KEY,
    consumer    VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    message_id  VARBINARY(255),
    parked_id   BINARY(16),
    exchange    VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    routing_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    properties  MEDIUMTEXT   CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    body        LONGBLOB     NOT NULL,
    state       TINYINT      NOT NULL,
    attempts    INT          NOT NULL,
    next_at     BIGINT       NOT NULL,
    error       TEXT         CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    created_at  BIGINT       NOT NULL,
    KEY hapax_outbox_due (state, next_at),
    KEY hapax_outbox_message (consumer, message_id)
) ENGINE = InnoDB;

-- Which host does a job that one host should do, and until when.
CREATE TABLE hapax_leases (
    name       VARCHAR(100) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    holder     BINARY(16),
    expires_at BIGINT       NOT NULL
) ENGINE = InnoDB;
