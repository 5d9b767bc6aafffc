-- The host's SQL for MariaDB and MySQL 8. There are no arrays: groups in braces are repeated for each row. Sets of keys are
-- derived tables that come first in a join and find each row by its primary key, both by command: left to itself, MariaDB
-- reads a small table whole, for IN (...) and for a join, and then waits for the rows of other lanes.
-- See statements.rs for the notation.

-- name: claim
-- IGNORE hides nothing but the duplicate: lengths and types were checked before.
INSERT IGNORE INTO hapax_inbox (consumer, message_id, status, parked_id, body_digest, module, updated_at)
VALUES {(:consumer, :message_id, :status, :parked_id, :body_digest, :module, @now)}
RETURNING message_id

-- name: claim_silently
-- MySQL 8 has no RETURNING.
INSERT IGNORE INTO hapax_inbox (consumer, message_id, status, parked_id, body_digest, module, updated_at)
VALUES {(:consumer, :message_id, :status, :parked_id, :body_digest, :module, @now)}

-- name: inbox_existing
SELECT i.message_id, i.status, i.body_digest, i.parked_id
FROM ({SELECT :message_id AS message_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_inbox AS i FORCE INDEX (PRIMARY) ON i.consumer = :consumer AND i.message_id = r.message_id

-- name: unclaim
DELETE i FROM ({SELECT :message_id AS message_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_inbox AS i FORCE INDEX (PRIMARY) ON i.consumer = :consumer AND i.message_id = r.message_id

-- name: inbox_move
UPDATE ({SELECT :message_id AS message_id, :was AS was, :was_parked AS was_parked, :status AS status, :parked_id AS parked_id, :module AS module| UNION ALL }) AS r
STRAIGHT_JOIN hapax_inbox AS i FORCE INDEX (PRIMARY) ON i.consumer = :consumer AND i.message_id = r.message_id
SET i.status = r.status, i.parked_id = r.parked_id, i.module = COALESCE(r.module, i.module), i.updated_at = @now
WHERE i.status = r.was AND i.parked_id <=> r.was_parked

-- name: park
-- delay: milliseconds until it is due, NULL for a row that never is.
INSERT INTO hapax_parked (id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, reason, code, error, module, body_digest, exchange, routing_key, properties, body, body_bytes, created_at, updated_at)
VALUES {(:id, :consumer, :message_id, :state, :phase, :generation, @now + :delay, :slot, :attempts, :handler_attempts, :crashes, :compensations, :reason, :code, :error, :module, :body_digest, :exchange, :routing_key, :properties, :body, :body_bytes, @now, @now)}
ON DUPLICATE KEY UPDATE id = hapax_parked.id

-- name: park_chunk
INSERT INTO hapax_parked_chunks (parked_id, ordinal, bytes) VALUES (:parked_id, :ordinal, :bytes)
ON DUPLICATE KEY UPDATE ordinal = hapax_parked_chunks.ordinal

-- name: chunks
SELECT bytes FROM hapax_parked_chunks WHERE parked_id = :parked_id ORDER BY ordinal

-- name: chunks_delete
DELETE c FROM ({SELECT :parked_id AS parked_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_parked_chunks AS c FORCE INDEX (PRIMARY) ON c.parked_id = r.parked_id

-- name: due_slots
-- due_at is NULL while a row runs and once it is dead.
SELECT slot, MIN(due_at) - @now AS wait FROM hapax_parked
WHERE consumer = :consumer AND due_at <= @now + :horizon AND state IN (1, 3)
GROUP BY slot

-- name: due
-- Which, and how large: bodies are read of as many as there is room for.
-- The inner query reads without locking, in any order it needs; only the rows it chose are then locked, by key.
SELECT p.id, p.crashes, p.body_bytes, 1 AS is_due
FROM (SELECT id FROM hapax_parked
      WHERE consumer = :consumer AND slot BETWEEN :first_slot AND :last_slot AND due_at <= @now AND state IN (1, 3) AND crashes = 0
      ORDER BY due_at, id LIMIT :limit) AS r
STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.id
WHERE p.due_at <= @now AND p.state IN (1, 3)
ORDER BY p.due_at, p.id FOR UPDATE SKIP LOCKED

-- name: due_in_order
-- For blocking retry: everything pending, oldest first, due or not; the caller stops at the first that is not due.
-- Locks nothing: a row that another host runs would be waited for.
SELECT id, crashes, body_bytes,
  CASE WHEN state <> 2 AND due_at <= @now THEN 1 ELSE 0 END AS is_due
FROM hapax_parked FORCE INDEX (hapax_parked_state)
WHERE consumer = :consumer AND slot BETWEEN :first_slot AND :last_slot AND state BETWEEN 1 AND 3
ORDER BY id LIMIT :limit

-- name: due_suspect
-- The inner query reads without locking, in any order it needs; only the rows it chose are then locked, by key.
SELECT p.id, p.crashes, p.body_bytes, 1 AS is_due
FROM (SELECT id FROM hapax_parked
      WHERE consumer = :consumer AND slot BETWEEN :first_slot AND :last_slot AND due_at <= @now AND state IN (1, 3) AND crashes > 0
      ORDER BY due_at, id LIMIT 1) AS r
STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.id
WHERE p.due_at <= @now AND p.state IN (1, 3)
ORDER BY p.due_at, p.id FOR UPDATE SKIP LOCKED

-- name: due_rows
-- As they are now, and to the end of the transaction. Fewer, where others are at them.
SELECT p.id, p.consumer, p.message_id, p.state, p.phase, p.generation, p.due_at, p.slot, p.attempts, p.handler_attempts, p.crashes, p.compensations, p.run_token, p.incarnation, p.taken_at, p.reason, p.code, p.error, p.module, p.body_digest, p.exchange, p.routing_key, p.properties, p.body, p.body_bytes, p.created_at, p.updated_at
FROM ({SELECT :row_id AS row_id| UNION ALL }) AS r STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id
WHERE p.due_at <= @now AND p.state IN (1, 3) FOR UPDATE SKIP LOCKED

-- name: take
UPDATE ({SELECT :row_id AS row_id| UNION ALL }) AS r STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id
SET p.state = 2, p.due_at = NULL, p.run_token = :run_token, p.incarnation = :incarnation, p.taken_at = @now
WHERE p.state IN (1, 3)

-- name: lock_running
SELECT p.id FROM ({SELECT :row_id AS row_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id
WHERE p.run_token = :run_token AND p.state = 2 ORDER BY p.id FOR UPDATE

-- name: parked_move
UPDATE ({SELECT :row_id AS row_id, :run_token AS token, :state AS state, :phase AS phase, :generation AS generation, :delay AS delay, :attempts AS attempts, :handler_attempts AS handler_attempts, :crashes AS crashes, :compensations AS compensations, :reason AS reason, :code AS code, :error AS error, :module AS module| UNION ALL }) AS r
STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id
SET p.state = r.state, p.phase = r.phase, p.generation = r.generation, p.due_at = @now + r.delay, p.attempts = r.attempts, p.handler_attempts = r.handler_attempts, p.crashes = r.crashes, p.compensations = r.compensations, p.reason = r.reason, p.code = r.code, p.error = r.error, p.module = COALESCE(r.module, p.module), p.run_token = NULL, p.incarnation = NULL, p.taken_at = NULL, p.updated_at = @now
WHERE p.run_token = r.token AND p.state = 2

-- name: parked_delete
DELETE p FROM ({SELECT :row_id AS row_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id
WHERE p.run_token = :run_token AND p.state = 2

-- name: taken
-- Locks nothing: rows that other lanes run are not waited for.
SELECT id FROM hapax_parked
WHERE consumer = :consumer AND state = 2 AND run_token = :run_token AND incarnation = :incarnation

-- name: give_back
-- The host that took them is alive and says so: not a crash.
UPDATE ({SELECT :row_id AS row_id| UNION ALL }) AS r STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id
SET p.state = CASE p.phase WHEN 3 THEN 3 ELSE 1 END, p.due_at = @now + :delay, p.run_token = NULL, p.incarnation = NULL, p.taken_at = NULL, p.updated_at = @now
WHERE p.run_token = :run_token AND p.state = 2

-- name: running
SELECT 1 AS running FROM hapax_parked FORCE INDEX (hapax_parked_state) WHERE consumer = :consumer AND state = 2 LIMIT 1

-- name: strays
-- Locks nothing: what is given back is guarded by its token.
SELECT DISTINCT run_token FROM hapax_parked
WHERE consumer = :consumer AND state = 2 AND incarnation = :incarnation AND taken_at < @now - :age

-- name: orphans
-- alive: the hosts that give signs of life, and the one that asks.
-- Rows that a live transaction works on are locked and skipped.
SELECT id, consumer, message_id, state, phase, generation, due_at, slot, attempts, handler_attempts, crashes, compensations, run_token, incarnation, taken_at, reason, code, error, module, body_digest, exchange, routing_key, properties, body, body_bytes, created_at, updated_at FROM hapax_parked
WHERE consumer = :consumer AND state = 2 AND taken_at < @now - :age AND incarnation NOT IN ({:alive})
ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED

-- name: parked_counts
SELECT state, COUNT(*) AS n FROM hapax_parked WHERE consumer = :consumer AND state BETWEEN :first AND :last GROUP BY state

-- name: slots_blocked
SELECT 1 AS blocked FROM hapax_parked FORCE INDEX (hapax_parked_state)
WHERE consumer = :consumer AND state BETWEEN 1 AND 3 AND slot BETWEEN :first_slot AND :last_slot LIMIT 1

-- name: outbox_add
INSERT INTO hapax_outbox (id, consumer, message_id, parked_id, exchange, routing_key, properties, body, state, attempts, next_at, created_at)
VALUES {(:id, :consumer, :message_id, :parked_id, :exchange, :routing_key, :properties, :body, 1, 0, @now + :grace, @now)}
ON DUPLICATE KEY UPDATE id = hapax_outbox.id

-- name: outbox_due
-- Sizes first: bodies are read of as many rows as a page has room for.
SELECT id, consumer, message_id, parked_id, exchange, routing_key, properties, NULL AS body, state, attempts, next_at, error, created_at, CAST(LENGTH(body) AS SIGNED) AS bytes FROM hapax_outbox WHERE state = 1 AND next_at <= @now ORDER BY next_at, id LIMIT :limit FOR UPDATE SKIP LOCKED

-- name: outbox_bodies
SELECT o.id, o.body FROM ({SELECT :row_id AS row_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_outbox AS o FORCE INDEX (PRIMARY) ON o.id = r.row_id

-- name: outbox_copies
SELECT p.id, p.body_bytes FROM ({SELECT :row_id AS row_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id

-- name: outbox_hold
UPDATE ({SELECT :row_id AS row_id| UNION ALL }) AS r STRAIGHT_JOIN hapax_outbox AS o FORCE INDEX (PRIMARY) ON o.id = r.row_id
SET o.next_at = @now + :grace

-- name: outbox_done
DELETE o FROM ({SELECT :row_id AS row_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_outbox AS o FORCE INDEX (PRIMARY) ON o.id = r.row_id

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
  AND (:consumer IS NULL OR consumer = :consumer) AND (:reason IS NULL OR reason = :reason)
  AND (:code IS NULL OR code = :code) AND updated_at >= :since AND updated_at < :until
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
DELETE i FROM ({SELECT :message_id AS message_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_inbox AS i FORCE INDEX (PRIMARY) ON i.consumer = :consumer AND i.message_id = r.message_id
WHERE i.status = 1 AND i.updated_at < @now - :age

-- name: retention_discarded
SELECT id, message_id FROM hapax_parked WHERE consumer = :consumer AND state = 5 AND updated_at < @now - :age
ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED

-- name: retention_discarded_delete
DELETE p FROM ({SELECT :row_id AS row_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_parked AS p FORCE INDEX (PRIMARY) ON p.id = r.row_id

-- name: retention_discarded_inbox
DELETE i FROM ({SELECT :message_id AS message_id, :row_id AS row_id| UNION ALL }) AS r
STRAIGHT_JOIN hapax_inbox AS i FORCE INDEX (PRIMARY) ON i.consumer = :consumer AND i.message_id = r.message_id
WHERE i.parked_id = r.row_id AND i.status = 3

-- name: lease_seed
INSERT IGNORE INTO hapax_leases (name, holder, expires_at) VALUES (:name, NULL, 0)

-- name: lease_take
UPDATE hapax_leases SET holder = :holder, expires_at = @now + :lease WHERE name = :name AND (holder = :holder OR expires_at < @now)

-- name: lease_holders
SELECT holder FROM hapax_leases WHERE name >= :first AND name < :past AND expires_at >= @now AND holder IS NOT NULL

-- name: lease_end
DELETE FROM hapax_leases WHERE name = :name AND holder = :holder

-- name: lease_forget
DELETE FROM hapax_leases WHERE name >= :first AND name < :past AND expires_at < @now - :age
