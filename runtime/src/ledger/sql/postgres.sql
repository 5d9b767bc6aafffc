-- The host's SQL for PostgreSQL. Columns of values arrive as arrays, so that one prepared statement serves every batch size.
-- See statements.rs for the notation.

-- name: claim
-- Waits for a transaction that holds one of the ids, then leaves its row alone.
INSERT INTO hapax_inbox (consumer, message_id, status, parked_id, body_digest, module, updated_at)
SELECT :consumer, r.message_id, r.status, r.parked_id, r.body_digest, r.module, @now
FROM unnest(:message_id::bytea[], :status::bigint[], :parked_id::bytea[], :body_digest::bytea[], :module::bytea[])
  AS r (message_id, status, parked_id, body_digest, module)
ON CONFLICT DO NOTHING
RETURNING message_id

-- name: claim_silently
-- For MySQL 8; here so that all dialects are alike.
INSERT INTO hapax_inbox (consumer, message_id, status, parked_id, body_digest, module, updated_at)
SELECT :consumer, r.message_id, r.status, r.parked_id, r.body_digest, r.module, @now
FROM unnest(:message_id::bytea[], :status::bigint[], :parked_id::bytea[], :body_digest::bytea[], :module::bytea[])
  AS r (message_id, status, parked_id, body_digest, module)
ON CONFLICT DO NOTHING

-- name: inbox_existing
-- Key by key (OFFSET 0 keeps the planner from joining): while the table has no statistics, it would rather read all
-- that a consumer has.
SELECT i.message_id, i.status, i.body_digest, i.parked_id
FROM unnest(:message_id::bytea[]) AS r (message_id) CROSS JOIN LATERAL (
  SELECT message_id, status, body_digest, parked_id FROM hapax_inbox
  WHERE consumer = :consumer AND message_id = r.message_id OFFSET 0
) AS i

-- name: unclaim
DELETE FROM hapax_inbox WHERE consumer = :consumer AND message_id = ANY(:message_id::bytea[])

-- name: inbox_move
UPDATE hapax_inbox AS i
SET status = r.status, parked_id = r.parked_id, module = COALESCE(r.module, i.module), updated_at = @now
FROM unnest(:message_id::bytea[], :was::bigint[], :was_parked::bytea[], :status::bigint[], :parked_id::bytea[], :module::bytea[])
  AS r (message_id, was, was_parked, status, parked_id, module)
WHERE i.consumer = :consumer AND i.message_id = r.message_id
  AND i.status = r.was AND i.parked_id IS NOT DISTINCT FROM r.was_parked

-- name: park
-- delay: milliseconds until it is due, NULL for a row that never is.
INSERT INTO hapax_parked (id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, reason, code, error, module, body_digest, exchange, routing_key, properties, body, body_bytes, created_at, updated_at)
SELECT r.id, :consumer, r.message_id, r.state, r.phase, r.generation, @now + r.delay, r.slot, r.attempts, r.handler_attempts, r.crashes, r.compensations, r.reason, r.code, r.error, r.module, r.body_digest, r.exchange, r.routing_key, r.properties, r.body, r.body_bytes, @now, @now
FROM unnest(:id::bytea[], :message_id::bytea[], :state::bigint[], :phase::bigint[], :generation::bigint[], :delay::bigint[], :slot::bigint[], :attempts::bigint[], :handler_attempts::bigint[], :crashes::bigint[], :compensations::bigint[], :reason::text[], :code::text[], :error::text[], :module::bytea[], :body_digest::bytea[], :exchange::text[], :routing_key::text[], :properties::text[], :body::bytea[], :body_bytes::bigint[])
  AS r (id, message_id, state, phase, generation, delay, slot, attempts, handler_attempts, crashes, compensations, reason, code, error, module, body_digest, exchange, routing_key, properties, body, body_bytes)
ON CONFLICT DO NOTHING

-- name: park_chunk
INSERT INTO hapax_parked_chunks (parked_id, ordinal, bytes) VALUES (:parked_id, :ordinal, :bytes) ON CONFLICT DO NOTHING

-- name: chunks
SELECT bytes FROM hapax_parked_chunks WHERE parked_id = :parked_id ORDER BY ordinal

-- name: chunks_delete
DELETE FROM hapax_parked_chunks WHERE parked_id = ANY(:parked_id::bytea[])

-- name: due_slots
-- due_at is NULL while a row runs and once it is dead.
SELECT slot, MIN(due_at) - @now AS wait FROM hapax_parked
WHERE consumer = :consumer AND due_at <= @now + :horizon AND state IN (1, 3)
GROUP BY slot

-- name: due
-- Which, and how large: bodies are read of as many as there is room for.
SELECT id, crashes, body_bytes, 1 AS is_due FROM hapax_parked
WHERE consumer = :consumer AND slot BETWEEN :first_slot AND :last_slot AND due_at <= @now AND state IN (1, 3) AND crashes = 0
ORDER BY due_at, id LIMIT :limit FOR UPDATE SKIP LOCKED

-- name: due_in_order
-- For blocking retry: everything pending, oldest first, due or not; the caller stops at the first that is not due.
-- Locks nothing: a row that another host runs would be waited for.
-- In two steps, so that dead rows are not walked through in the order of their keys.
WITH pending AS MATERIALIZED (
  SELECT id FROM hapax_parked
  WHERE consumer = :consumer AND state BETWEEN 1 AND 3 AND slot BETWEEN :first_slot AND :last_slot
), oldest AS MATERIALIZED (SELECT id FROM pending ORDER BY id LIMIT :limit)
SELECT id, crashes, body_bytes,
  CASE WHEN state <> 2 AND due_at <= @now THEN 1 ELSE 0 END AS is_due
FROM hapax_parked WHERE id = ANY(ARRAY(SELECT id FROM oldest)) AND state BETWEEN 1 AND 3
ORDER BY id

-- name: due_suspect
SELECT id, crashes, body_bytes, 1 AS is_due FROM hapax_parked
WHERE consumer = :consumer AND slot BETWEEN :first_slot AND :last_slot AND due_at <= @now AND state IN (1, 3) AND crashes > 0
ORDER BY due_at, id LIMIT 1 FOR UPDATE SKIP LOCKED

-- name: due_rows
-- As they are now, and to the end of the transaction. Fewer, where others are at them.
SELECT id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, run_token, incarnation, taken_at, reason, code, error, module, body_digest, exchange, routing_key, properties, body, body_bytes, created_at, updated_at FROM hapax_parked
WHERE id = ANY(:row_id::bytea[]) AND due_at <= @now AND state IN (1, 3) FOR UPDATE SKIP LOCKED

-- name: take
UPDATE hapax_parked SET state = 2, due_at = NULL, run_token = :run_token, incarnation = :incarnation, taken_at = @now
WHERE id = ANY(:row_id::bytea[]) AND state IN (1, 3)

-- name: lock_running
SELECT id FROM hapax_parked WHERE id = ANY(:row_id::bytea[]) AND run_token = :run_token AND state = 2
ORDER BY id FOR UPDATE

-- name: parked_move
UPDATE hapax_parked AS p
SET state = r.state, phase = r.phase, generation = r.generation, due_at = @now + r.delay, attempts = r.attempts, handler_attempts = r.handler_attempts, crashes = r.crashes, compensations = r.compensations, reason = r.reason, code = r.code, error = r.error, module = COALESCE(r.module, p.module), run_token = NULL, incarnation = NULL, taken_at = NULL, updated_at = @now
FROM unnest(:row_id::bytea[], :run_token::bytea[], :state::bigint[], :phase::bigint[], :generation::bigint[], :delay::bigint[], :attempts::bigint[], :handler_attempts::bigint[], :crashes::bigint[], :compensations::bigint[], :reason::text[], :code::text[], :error::text[], :module::bytea[])
  AS r (row_id, token, state, phase, generation, delay, attempts, handler_attempts, crashes, compensations, reason, code, error, module)
-- The same keys once more, so that the rows are found by them whatever the planner thinks of the function above.
WHERE p.id = ANY(:row_id::bytea[]) AND p.id = r.row_id AND p.run_token = r.token AND p.state = 2

-- name: parked_delete
DELETE FROM hapax_parked WHERE id = ANY(:row_id::bytea[]) AND run_token = :run_token AND state = 2

-- name: taken
-- Locks nothing: rows that other lanes run are not waited for.
SELECT id FROM hapax_parked
WHERE consumer = :consumer AND state = 2 AND run_token = :run_token AND incarnation = :incarnation

-- name: give_back
-- The host that took them is alive and says so: not a crash.
UPDATE hapax_parked SET state = CASE phase WHEN 3 THEN 3 ELSE 1 END, due_at = @now + :delay, run_token = NULL, incarnation = NULL, taken_at = NULL, updated_at = @now
WHERE id = ANY(:row_id::bytea[]) AND run_token = :run_token AND state = 2

-- name: running
SELECT 1 AS running FROM hapax_parked WHERE consumer = :consumer AND state = 2
ORDER BY consumer, state, slot LIMIT 1

-- name: strays
-- Locks nothing: what is given back is guarded by its token.
SELECT DISTINCT run_token FROM hapax_parked
WHERE consumer = :consumer AND state = 2 AND incarnation = :incarnation AND taken_at < @now - :age

-- name: orphans
-- alive: the hosts that give signs of life, and the one that asks.
-- Rows that a live transaction works on are locked and skipped.
SELECT id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, run_token, incarnation, taken_at, reason, code, error, module, body_digest, exchange, routing_key, properties, body, body_bytes, created_at, updated_at FROM hapax_parked
WHERE consumer = :consumer AND state = 2 AND taken_at < @now - :age AND incarnation <> ALL(:alive::bytea[])
ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED

-- name: parked_counts
SELECT state, COUNT(*) AS n FROM hapax_parked WHERE consumer = :consumer AND state BETWEEN :first AND :last GROUP BY state

-- name: slots_blocked
-- In the order of the index, or the planner would rather read the table until it finds one.
SELECT 1 AS blocked FROM hapax_parked
WHERE consumer = :consumer AND state BETWEEN 1 AND 3 AND slot BETWEEN :first_slot AND :last_slot
ORDER BY consumer, state, slot LIMIT 1

-- name: outbox_add
INSERT INTO hapax_outbox (id, consumer, message_id, parked_id, exchange, routing_key, properties, body, state, attempts, next_at, created_at)
SELECT r.id, :consumer, r.message_id, r.parked_id, r.exchange, r.routing_key, r.properties, r.body, 1, 0, @now + r.grace, @now
FROM unnest(:id::bytea[], :message_id::bytea[], :parked_id::bytea[], :exchange::text[], :routing_key::text[], :properties::text[], :body::bytea[], :grace::bigint[])
  AS r (id, message_id, parked_id, exchange, routing_key, properties, body, grace)
ON CONFLICT DO NOTHING

-- name: outbox_due
-- Sizes first: bodies are read of as many rows as a page has room for.
SELECT id, consumer, message_id, parked_id, exchange, routing_key, properties, NULL AS body, state, attempts, next_at, error, created_at, octet_length(body)::bigint AS bytes FROM hapax_outbox WHERE state = 1 AND next_at <= @now ORDER BY next_at, id LIMIT :limit FOR UPDATE SKIP LOCKED

-- name: outbox_bodies
SELECT id, body FROM hapax_outbox WHERE id = ANY(:row_id::bytea[])

-- name: outbox_copies
SELECT id, body_bytes::bigint FROM hapax_parked WHERE id = ANY(:row_id::bytea[])

-- name: outbox_hold
UPDATE hapax_outbox SET next_at = @now + :grace
WHERE id = ANY(:row_id::bytea[])

-- name: outbox_done
DELETE FROM hapax_outbox WHERE id = ANY(:row_id::bytea[])

-- name: outbox_undeliverable
UPDATE hapax_outbox SET state = 2, attempts = attempts + 1, error = :error WHERE id = :id

-- name: outbox_retry
UPDATE hapax_outbox SET attempts = attempts + 1, next_at = @now + :delay, error = :error WHERE id = :id

-- name: outbox_stats
SELECT COUNT(*) AS n, COALESCE(@now - MIN(created_at), 0) AS oldest FROM hapax_outbox WHERE state = :state AND consumer = :consumer

-- name: outbox_requeue
UPDATE hapax_outbox SET state = 1, next_at = @now, error = NULL WHERE state = 2 AND consumer = :consumer

-- name: dead_list
SELECT id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, run_token, incarnation, taken_at, reason, code, error, module, body_digest, exchange, routing_key, properties, NULL AS body, body_bytes, created_at, updated_at FROM hapax_parked
WHERE state = :state AND id > :after
  AND (:consumer::text IS NULL OR consumer = :consumer) AND (:reason::text IS NULL OR reason = :reason)
  AND (:code::text IS NULL OR code = :code) AND updated_at >= :since AND updated_at < :until
ORDER BY id LIMIT :limit

-- name: parked_get
SELECT id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, run_token, incarnation, taken_at, reason, code, error, module, body_digest, exchange, routing_key, properties, body, body_bytes, created_at, updated_at FROM hapax_parked WHERE id >= :first AND id <= :last ORDER BY id LIMIT 2

-- name: parked_of_message
SELECT id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, run_token, incarnation, taken_at, reason, code, error, module, body_digest, exchange, routing_key, properties, NULL AS body, body_bytes, created_at, updated_at FROM hapax_parked WHERE consumer = :consumer AND message_id = :message_id ORDER BY id LIMIT 100

-- name: outbox_of_message
SELECT id, consumer, message_id, parked_id, exchange, routing_key, properties, NULL AS body, state, attempts, next_at, error, created_at FROM hapax_outbox WHERE consumer = :consumer AND message_id = :message_id ORDER BY created_at, id LIMIT 100

-- name: redrive
UPDATE hapax_parked SET state = 1, phase = 1, generation = generation + 1, attempts = 0, handler_attempts = 0, crashes = 0, due_at = @now + :delay, updated_at = @now
WHERE id = :id AND generation = :generation AND state = 4 AND (compensations = 0 OR :forced = 1)

-- name: redrive_as_delivery
UPDATE hapax_parked SET state = 3, phase = 3, generation = generation + 1, attempts = 0, handler_attempts = 0, crashes = 0, message_id = :message_id, slot = :slot, due_at = @now + :delay, updated_at = @now
WHERE id = :id AND generation = :generation AND state = 4

-- name: discard
UPDATE hapax_parked SET state = 5, updated_at = @now WHERE id = :id AND generation = :generation AND state = 4

-- name: retention_page
-- In key order: needs no index of its own on a table that grows by every message.
SELECT message_id, status, updated_at < @now - :age AS old FROM hapax_inbox
WHERE consumer = :consumer AND message_id > :after ORDER BY message_id LIMIT :limit

-- name: retention_delete
DELETE FROM hapax_inbox WHERE consumer = :consumer AND message_id = ANY(:message_id::bytea[]) AND status = 1 AND updated_at < @now - :age

-- name: retention_discarded
SELECT id, message_id FROM hapax_parked WHERE consumer = :consumer AND state = 5 AND updated_at < @now - :age
ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED

-- name: retention_discarded_delete
DELETE FROM hapax_parked WHERE id = ANY(:row_id::bytea[])

-- name: retention_discarded_inbox
DELETE FROM hapax_inbox WHERE consumer = :consumer AND message_id = ANY(:message_id::bytea[]) AND status = 3 AND parked_id = ANY(:row_id::bytea[])

-- name: lease_seed
INSERT INTO hapax_leases (name, holder, expires_at) VALUES (:name, NULL, 0) ON CONFLICT DO NOTHING

-- name: lease_take
UPDATE hapax_leases SET holder = :holder, expires_at = @now + :lease WHERE name = :name AND (holder = :holder OR expires_at < @now)

-- name: lease_holders
SELECT holder FROM hapax_leases WHERE name >= :first AND name < :past AND expires_at >= @now AND holder IS NOT NULL

-- name: lease_end
DELETE FROM hapax_leases WHERE name = :name AND holder = :holder

-- name: lease_forget
DELETE FROM hapax_leases WHERE name >= :first AND name < :past AND expires_at < @now - :age
