-- What each consumer has done with each message id. The primary key is the judge of "once".
-- status: 1 completed, 2 parked, 3 dead. parked_id names the row of hapax_parked that counts for the id.
-- body_digest is NULL for ids imported from elsewhere. updated_at: milliseconds since the Unix epoch.
CREATE TABLE hapax_inbox (
    consumer    text COLLATE "C" NOT NULL,
    message_id  bytea            NOT NULL,
    status      smallint         NOT NULL,
    parked_id   bytea,
    body_digest bytea,
    module      bytea,
    updated_at  bigint           NOT NULL,
    PRIMARY KEY (consumer, message_id)
);

-- Messages that SQL holds itself.
-- state: 1 retry, 2 running, 3 deferred, 4 dead, 5 discarded. phase: 1 handle, 2 compensate, 3 deliver.
-- attempts: failed ones in this phase; handler_attempts: those of the handler, once its compensation has taken over.
CREATE TABLE hapax_parked (
    id            bytea            NOT NULL PRIMARY KEY,
    consumer      text COLLATE "C" NOT NULL,
    message_id    bytea,
    state         smallint         NOT NULL,
    phase         smallint         NOT NULL,
    generation    integer          NOT NULL,
    due_at        bigint,
    slot          smallint         NOT NULL,
    attempts      integer          NOT NULL,
    handler_attempts integer NOT NULL,
    crashes       integer          NOT NULL,
    compensations integer          NOT NULL,
    run_token     bytea,
    incarnation   bytea,
    taken_at      bigint,
    reason        text,
    code          text,
    error         text,
    module        bytea,
    body_digest   bytea            NOT NULL,
    exchange      text             NOT NULL,
    routing_key   text             NOT NULL,
    properties    text             NOT NULL,
    body          bytea,
    body_bytes    bigint           NOT NULL,
    created_at    bigint           NOT NULL,
    updated_at    bigint           NOT NULL
);
-- Bodies are mostly compressed already or small: do not spend CPU on them.
ALTER TABLE hapax_parked ALTER COLUMN body SET STORAGE EXTERNAL;
-- Only rows that wait are due at some time: dead ones cost the search for due rows nothing, and it ends at its limit.
CREATE INDEX hapax_parked_due ON hapax_parked (consumer, due_at, slot) WHERE due_at IS NOT NULL;
CREATE INDEX hapax_parked_state ON hapax_parked (consumer, state, slot);
CREATE INDEX hapax_parked_message ON hapax_parked (consumer, message_id);

-- Bodies over 1 MiB, in pieces that any server accepts in one statement.
CREATE TABLE hapax_parked_chunks (
    parked_id bytea   NOT NULL,
    ordinal   integer NOT NULL,
    bytes     bytea   NOT NULL,
    PRIMARY KEY (parked_id, ordinal)
);
ALTER TABLE hapax_parked_chunks ALTER COLUMN bytes SET STORAGE EXTERNAL;

-- Messages to publish because a transaction committed. state: 1 pending, 2 undeliverable.
-- parked_id: the body is that row's, for copies of dead letters.
CREATE TABLE hapax_outbox (
    id          bytea            NOT NULL PRIMARY KEY,
    consumer    text COLLATE "C" NOT NULL,
    message_id  bytea,
    parked_id   bytea,
    exchange    text             NOT NULL,
    routing_key text             NOT NULL,
    properties  text             NOT NULL,
    body        bytea            NOT NULL,
    state       smallint         NOT NULL,
    attempts    integer          NOT NULL,
    next_at     bigint           NOT NULL,
    error       text,
    created_at  bigint           NOT NULL
);
CREATE INDEX hapax_outbox_due ON hapax_outbox (state, next_at);
CREATE INDEX hapax_outbox_message ON hapax_outbox (consumer, message_id);

-- Which host does a job that one host should do, and until when.
CREATE TABLE hapax_leases (
    name       text COLLATE "C" NOT NULL PRIMARY KEY,
    holder     bytea,
    expires_at bigint           NOT NULL
);
