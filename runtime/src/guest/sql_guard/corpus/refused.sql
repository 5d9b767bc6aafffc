## Statements that must never reach a database: one a line, under the database that they are for.

[all]
## Transactions
COMMIT
BEGIN
ROLLBACK
START TRANSACTION
SAVEPOINT a
RELEASE SAVEPOINT a
END
ABORT
ROLLBACK TO SAVEPOINT a
PREPARE TRANSACTION 'a'
COMMIT PREPARED 'a'
XA START 'a'
## Sessions
SET a = 1
SET SESSION search_path = x
SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
RESET ALL
DISCARD ALL
SHOW TABLES
USE shop
PRAGMA user_version
ATTACH 'a' AS b
DETACH b
LISTEN a
NOTIFY a
UNLISTEN *
## DDL
CREATE TABLE a (b int)
CREATE TEMP TABLE a (b int)
CREATE TABLE a AS SELECT 1
DROP TABLE stock
ALTER TABLE stock ADD COLUMN a int
TRUNCATE stock
CREATE INDEX a ON stock (id)
CREATE VIEW v AS SELECT 1
CREATE FUNCTION f() RETURNS int
GRANT ALL ON stock TO PUBLIC
REVOKE ALL ON stock FROM PUBLIC
COMMENT ON TABLE stock IS 'a'
RENAME TABLE stock TO a
ANALYZE
VACUUM
REINDEX
OPTIMIZE TABLE stock
## Commands
CALL f()
DO $$ BEGIN END $$
DO sleep(1)
EXECUTE a
PREPARE a AS SELECT 1
DEALLOCATE a
EXPLAIN SELECT 1
EXPLAIN ANALYZE DELETE FROM stock
DESCRIBE stock
COPY stock TO '/tmp/a'
COPY stock FROM PROGRAM 'a'
LOAD DATA INFILE 'a' INTO TABLE stock
LOAD 'a'
LOCK TABLE stock
LOCK TABLES stock WRITE
UNLOCK TABLES
HANDLER stock OPEN
KILL 1
FLUSH TABLES
SHUTDOWN
INSTALL PLUGIN a SONAME 'b'
DECLARE a CURSOR FOR SELECT 1
FETCH a
CLOSE a
CHECKPOINT
TABLE stock
TABLE hapax_inbox
HELP 'a'
BINLOG 'a'
CACHE INDEX a IN b
## Several
SELECT 1; SELECT 2
SELECT 1;; SELECT 2
SELECT 1; COMMIT
SELECT 1 SELECT 2
;SELECT 1
;
-- only
/* only */
## The host's tables, everywhere a name can stand
SELECT * FROM hapax_inbox
SELECT * FROM HAPAX_INBOX
SELECT * FROM Hapax_Inbox
SELECT * FROM "hapax_inbox"
SELECT * FROM shop.hapax_inbox
SELECT * FROM public.hapax_inbox
SELECT * FROM main.hapax_inbox
SELECT * FROM stock, hapax_parked
SELECT * FROM stock JOIN hapax_outbox ON 1 = 1
SELECT hapax_inbox.* FROM stock
SELECT hapax_inbox.id FROM stock
SELECT (SELECT 1 FROM hapax_inbox) FROM stock
SELECT 1 WHERE EXISTS (SELECT 1 FROM hapax_inbox)
SELECT 1 UNION SELECT id FROM hapax_inbox
WITH a AS (SELECT * FROM hapax_inbox) SELECT * FROM a
WITH hapax_inbox AS (SELECT 1) SELECT * FROM hapax_inbox
WITH RECURSIVE a AS (SELECT * FROM hapax_inbox), hapax_inbox AS (SELECT 1) SELECT * FROM a
WITH "cte:hapax_inbox" AS (SELECT 1) SELECT 1
SELECT * FROM (SELECT * FROM hapax_inbox) AS a
SELECT * FROM (stock JOIN hapax_inbox ON 1 = 1)
INSERT INTO hapax_inbox (a) VALUES (1)
INSERT INTO stock SELECT * FROM hapax_inbox
UPDATE hapax_inbox SET status = 1
DELETE FROM hapax_inbox
UPDATE stock SET qty = (SELECT count(*) FROM hapax_inbox)
DELETE FROM stock WHERE id IN (SELECT id FROM hapax_inbox)
SELECT 1 AS hapax_x
SELECT * FROM stock AS hapax_inbox
SELECT hapax_status FROM stock
SELECT id FROM stock ORDER BY (SELECT 1 FROM hapax_inbox)
SELECT id FROM stock LIMIT (SELECT 1 FROM hapax_inbox)
SELECT CASE WHEN EXISTS (SELECT 1 FROM hapax_inbox) THEN 1 END
SELECT coalesce((SELECT 1 FROM hapax_inbox), 2)
SELECT row_number() OVER (ORDER BY (SELECT 1 FROM hapax_inbox))
SELECT hapax_reset()
SELECT 1 FROM stock GROUP BY (SELECT 1 FROM hapax_inbox)
SELECT 1 FROM stock HAVING (SELECT 1 FROM hapax_inbox) = 1
INSERT INTO stock (id) VALUES ((SELECT 1 FROM hapax_inbox))
## System catalogs, although the test's operator granted them
SELECT * FROM pg_class
SELECT * FROM pg_catalog.pg_class
SELECT * FROM information_schema.tables
SELECT * FROM INFORMATION_SCHEMA.TABLES
SELECT * FROM mysql.user
SELECT * FROM sys.processlist
SELECT * FROM performance_schema.threads
SELECT * FROM sqlite_master
SELECT * FROM sqlite_schema
SELECT * FROM pragma_table_info
SELECT * FROM pragma_table_info('stock')
SELECT * FROM main.sqlite_master
SELECT pg_catalog.pg_class.oid FROM stock
UPDATE sqlite_master SET sql = 'a'
## Grants
SELECT * FROM secrets
SELECT * FROM audit
INSERT INTO orders (id) VALUES (1)
UPDATE orders SET id = 1
DELETE FROM orders
SELECT * FROM other.stock
SELECT * FROM shop.orders
SELECT * FROM a.shop.stock
SELECT * FROM "shop.stock"
INSERT INTO audit (what) SELECT what FROM audit
UPDATE counters SET n = (SELECT n FROM counters)
WITH stock AS (SELECT * FROM secrets) SELECT * FROM stock
WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a
WITH a AS (SELECT * FROM a) SELECT * FROM a
SELECT * FROM (WITH secrets AS (SELECT 1) SELECT 1) AS x, secrets
WITH orders AS (SELECT 1 AS id) UPDATE orders SET id = 1
WITH orders AS (SELECT 1 AS id) DELETE FROM orders
WITH orders AS (SELECT 1 AS id) INSERT INTO orders (id) SELECT 2
WITH x AS (SELECT 1) SELECT * FROM x, y
INSERT INTO audit (what) VALUES (1) RETURNING what
UPDATE counters SET n = 1 RETURNING n
## INTO, TABLE
SELECT * INTO other FROM stock
SELECT * INTO TEMP other FROM stock
SELECT 1 UNION TABLE hapax_inbox
SELECT 1 UNION TABLE stock
INSERT INTO stock TABLE orders
SELECT * FROM stock INTO OUTFILE '/tmp/a'
SELECT 1 INTO @a
SELECT * INTO DUMPFILE '/tmp/a' FROM stock
## Functions
SELECT set_config('a', 'b', false)
SELECT pg_sleep(1)
SELECT sleep(1)
SELECT get_lock('a', 1)
SELECT load_file('a')
SELECT load_extension('a')
SELECT no_such_function(1)
SELECT public.abs(1)
SELECT pg_catalog.abs(1)
SELECT user()
SELECT nextval('a')
SELECT other.next_price(1)
SELECT next_price(1)
SELECT sqlite_version()
SELECT version()
SELECT * FROM no_such_function(1)
SELECT * FROM abs(1)
SELECT dblink('a', 'b')
SELECT database()
SELECT benchmark(1, 1)
SELECT abs(1) FROM stock WHERE pg_sleep(1) IS NULL
UPDATE stock SET qty = set_config('a', 'b', true)
INSERT INTO stock (id) VALUES (get_lock('a', 1))
DELETE FROM stock WHERE pg_sleep(1) = 1
SELECT zeroblob(1000000000)
## Variables and placeholders that are none
SELECT @a
SELECT @@version
SELECT @@global.sql_mode
SELECT @a := 1
SELECT :name
SELECT $name
UPDATE stock SET qty = @a
## Comments that are none
SELECT /*! 1 */ 1
SELECT 1 /*!50000 , sleep(1) */
SELECT 1 /*M! , sleep(1) */
SELECT 1 /*M!100100 UNION SELECT 1 */
SELECT /*+ NO_INDEX */ 1
SELECT 1 /* never closed
/*!SELECT 1*/
SELECT 1 /*!
## Things that do not parse
SELECT
SELECT FROM WHERE
SELECT 'never closed
SELECT "never closed
SELECT (1
SELECT 1)
SELECT 1a
SELECT 1 2
SELECT \
SELECT {fn now()}
SELECT {d '2024-01-01'}
SELECT N'a'
SELECT x'f
SELECT x'zz'
SELECT ""
SELECT _utf8'a'
SELECT * FROM stock TABLESAMPLE SYSTEM (1)
SELECT * FROM stock FOR SYSTEM_TIME AS OF now()
SELECT TOP 1 * FROM stock
SELECT * FROM stock FOR XML AUTO
SELECT * EXCLUDE id FROM stock
SELECT * FROM stock USE INDEX (a)
SELECT * FROM stock PARTITION (p0)
SELECT * FROM stock WITH (NOLOCK)
FROM stock SELECT *
SELECT CAST(1 AS regclass)
SELECT CAST('hapax_inbox' AS regclass)
SELECT CAST(1 AS no_such_type)
SELECT TRY_CAST(1 AS INT)
INSERT OVERWRITE stock SELECT 1
INSERT INTO FUNCTION f() VALUES (1)
INSERT INTO (SELECT 1) VALUES (1)
SELECT struct(1)
SELECT id FROM stock CONNECT BY PRIOR id = id
SELECT * FROM stock PIVOT (sum(qty) FOR id IN (1))
SELECT * FROM xmltable('a' PASSING 'b' COLUMNS c int)
SELECT IF 1
SELECT BINARY name = 'a' FROM stock

[postgres]
## A momentary lock must not become a failure
SELECT * FROM stock FOR UPDATE NOWAIT
SELECT * FROM stock FOR SHARE NOWAIT
SELECT query_to_xml('SELECT * FROM hapax_inbox', true, true, '')
SELECT pg_advisory_lock(1)
SELECT pg_try_advisory_xact_lock(1)
SELECT pg_terminate_backend(1)
SELECT pg_read_file('a')
SELECT lo_import('a')
SELECT lo_unlink(1)
SELECT current_setting('a')
SELECT table_to_xml('hapax_inbox', true, true, '')
SELECT database_to_xml(true, true, '')
SELECT ts_stat('SELECT 1')
SELECT dblink_exec('a', 'b')
SELECT setval('a', 1)
SELECT currval('a')
SELECT crosstab('SELECT 1')
SELECT setseed(0.5)
SELECT 'hapax_inbox'::regclass
SELECT 'a'::regproc
SELECT regclass 'hapax_inbox'
SELECT 'a'::pg_catalog.regclass
SELECT 'a'::"regclass"
SELECT 'a'::other
SELECT 'a'::public.mood
SELECT 'hapax_inbox'::regclass[]
SELECT CAST('1' AS regclass[])
SELECT 1 OPERATOR(pg_catalog.+) 2
SELECT 1 OPERATOR(public.@@@) 2
SELECT 1 @@@ 2
SELECT 1 +- 2 !@# 3
SELECT current_user
SELECT session_user
SELECT user
SELECT current_catalog
SELECT stock.pg_relation_size FROM stock
SELECT (stock).pg_sleep FROM stock
SELECT (s).qty FROM stock s
SELECT (stock).* FROM stock
SELECT * FROM stock FOR UPDATE OF orders
SELECT * FROM orders FOR UPDATE
SELECT * FROM orders FOR SHARE
SELECT * FROM stock JOIN orders ON 1 = 1 FOR UPDATE
SELECT * FROM (SELECT * FROM orders) AS o FOR UPDATE
SELECT * FROM stock WHERE id = 1 FOR UPDATE OF public.stock
SELECT * FROM ONLY hapax_inbox
SELECT * FROM ROWS FROM (pg_ls_dir('a'))
INSERT INTO counters (n) VALUES (1) ON CONFLICT (n) DO UPDATE SET n = 2
INSERT INTO audit (what) VALUES (1) ON CONFLICT (what) DO UPDATE SET what = 2
MERGE INTO orders USING stock ON true WHEN MATCHED THEN DELETE
MERGE INTO hapax_inbox USING stock ON true WHEN MATCHED THEN DELETE
MERGE INTO stock USING hapax_inbox ON true WHEN MATCHED THEN DELETE
MERGE INTO counters USING stock ON true WHEN MATCHED THEN DELETE
MERGE INTO counters USING stock ON true WHEN NOT MATCHED THEN INSERT (n) VALUES (1)
MERGE INTO stock USING (SELECT * FROM hapax_inbox) h ON true WHEN MATCHED THEN DO NOTHING
DELETE FROM stock USING hapax_inbox
DELETE FROM stock USING secrets
UPDATE stock SET qty = 1 FROM hapax_inbox
UPDATE stock SET qty = 1 FROM secrets
WITH x AS (DELETE FROM orders RETURNING id) SELECT id FROM x
WITH x AS (UPDATE counters SET n = 1 RETURNING n) SELECT n FROM x
WITH x AS (INSERT INTO hapax_inbox VALUES (1)) SELECT 1
SELECT U&'a'
SELECT U&"hap\0061x_inbox"
SELECT E'\xff'
SELECT E'\u0000'
SELECT E'\0'
SELECT $$never closed
SELECT $a$never closed$b$
SELECT 0x1F
SELECT 1_000
SELECT `id` FROM stock
SELECT json '{}'
SELECT point '(1,2)'
REPLACE INTO stock (id) VALUES (1)
SELECT * FROM stock LIMIT 1, 2
UPDATE stock s JOIN orders o ON true SET qty = 1
SELECT xml '<a/>'
SELECT xmlparse(document '<a/>')
SELECT a.b.c.d FROM stock
SELECT ARRAY(SELECT id FROM hapax_inbox)
SELECT id = ANY(SELECT id FROM hapax_inbox) FROM stock
SELECT * FROM stock, LATERAL (SELECT * FROM hapax_inbox) h
SELECT * FROM LATERAL pg_ls_dir('a') x
SELECT count(*) FILTER (WHERE EXISTS (SELECT 1 FROM hapax_inbox)) FROM stock
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY (SELECT 1 FROM hapax_inbox)) FROM stock
SELECT * FROM generate_series(1, (SELECT 1 FROM hapax_inbox))
INSERT INTO stock (id) VALUES (1) RETURNING (SELECT 1 FROM hapax_inbox)
SELECT "SET_CONFIG"('a', 'b', false)
SELECT "ABS"(1)
SELECT ? ? 'a' FROM stock
SELECT * FROM stock ORDER BY id USING <
SELECT make_interval(pg_sleep => 1, days => pg_sleep(1))
SELECT DISTINCT ON ((SELECT 1 FROM hapax_inbox)) 1

[mysql]
## A momentary lock must not become a failure
SELECT * FROM stock FOR UPDATE NOWAIT
SELECT 1--1
SELECT 1 --x
SELECT last_insert_id(5)
SELECT release_lock('a')
SELECT is_used_lock('a')
SELECT master_pos_wait('a', 1)
SELECT found_rows()
SELECT row_count()
SELECT connection_id()
SELECT sys_exec('a')
SELECT "a"."b" FROM stock WHERE @x
SELECT `hapax_inbox`.`a` FROM stock
SELECT * FROM `hapax_inbox`
SELECT * FROM `shop`.`hapax_inbox`
SELECT * FROM 'hapax_inbox'
SELECT * FROM stock LOCK IN SHARE MODE
SELECT * FROM stock PROCEDURE ANALYSE()
SELECT SQL_CALC_FOUND_ROWS * FROM stock LIMIT 1 INTO OUTFILE 'a'
INSERT DELAYED INTO stock (id) VALUES (1)
INSERT LOW_PRIORITY INTO stock (id) VALUES (1)
INSERT INTO stock PARTITION (p0) (id) VALUES (1)
INSERT INTO audit (what) VALUES (1) ON DUPLICATE KEY UPDATE what = 2
REPLACE INTO audit (what) VALUES (1)
REPLACE INTO hapax_inbox VALUES (1)
UPDATE stock s JOIN orders o ON 1 = 1 SET o.id = 1
UPDATE stock s JOIN orders o ON 1 = 1 SET id = 1
UPDATE stock s JOIN hapax_inbox h ON 1 = 1 SET s.qty = 1
UPDATE stock s JOIN secrets x ON 1 = 1 SET s.qty = 1
UPDATE stock s JOIN counters c ON 1 = 1 SET s.qty = c.n
UPDATE orders o JOIN stock s ON 1 = 1 SET O.id = 1
UPDATE shop.stock JOIN stock ON 1 = 1 SET stock.qty = 1
UPDATE stock JOIN (orders JOIN stock x ON 1 = 1) ON 1 = 1 SET stock.qty = 1
WITH s AS (SELECT 1 AS qty) UPDATE stock JOIN s ON 1 = 1 SET s.qty = 1
DELETE o FROM stock s JOIN orders o ON 1 = 1
DELETE s, o FROM stock s JOIN orders o ON 1 = 1
DELETE s FROM stock s JOIN secrets x ON 1 = 1
DELETE FROM s USING stock s JOIN orders o ON 1 = 1
DELETE x FROM stock s
DELETE shop.stock FROM shop.stock JOIN orders ON 1 = 1
SELECT * FROM orders FOR UPDATE
SELECT 'a' RLIKE sleep(1)
SELECT name COLLATE mysql.x FROM stock
SELECT * FROM json_table('[]', '$' COLUMNS (hapax_a INT PATH '$')) AS j
SELECT JSON_VALUE(load_file('a'), '$')
SELECT (SELECT 1 FROM DUAL WHERE sleep(1))
SELECT * FROM DUAL AS hapax_inbox
SELECT 'a\
SELECT x'abc'
SELECT b'2'
SELECT 0xg
SELECT 0x1F
SELECT CONVERT('a', regclass)
SELECT CONVERT('a' USING x.y)
MERGE INTO stock USING orders ON 1 = 1 WHEN MATCHED THEN DELETE
SELECT MATCH (hapax_a) AGAINST ('x') FROM stock
SELECT 1 MEMBER OF('[1]')
SELECT id FROM stock GROUP BY id WITH CUBE
SELECT * FROM shop . hapax_inbox
SELECT ROW_COUNT()
SELECT a.b := 1
SELECT timestampdiff(sleep(1), 1, 2)
SELECT timestampdiff(hapax_x, 1, 2)
SELECT 1 INTO @a, @b
SELECT * FROM stock FORCE INDEX (a)
SELECT SLEEP (1)
SELECT `sleep`(1)
SELECT `get_lock`('a', 1)
SELECT shop.next_price (1), sleep(1)

[sqlite]
INSERT OR ROLLBACK INTO stock (id) VALUES (1)
UPDATE OR ROLLBACK stock SET id = 1
INSERT OR REPLACE INTO audit (what) VALUES (1)
REPLACE INTO audit (what) VALUES (1)
UPDATE OR REPLACE counters SET n = 1
SELECT * FROM [hapax_inbox]
SELECT * FROM `hapax_inbox`
SELECT * FROM 'hapax_inbox'
SELECT * FROM temp.hapax_inbox
SELECT * FROM SQLITE_MASTER
SELECT * FROM sqlite_temp_schema
SELECT * FROM dbstat
SELECT * FROM generate_series(1, 2)
SELECT writefile('a', 'b')
SELECT readfile('a')
SELECT fts3_tokenizer('a')
SELECT sqlite_compileoption_used('a')
SELECT randomblob(1000000000)
SELECT 0x10
SELECT * FROM stock FOR UPDATE
SELECT id FROM stock WHERE id IN hapax_inbox
SELECT id FROM stock WHERE id IN secrets
SELECT id FROM stock WHERE id IN pragma_table_info('a')
SELECT * FROM stock INDEXED BY a
SELECT * FROM stock NOT INDEXED
INSERT INTO audit (what) VALUES (1) ON CONFLICT (what) DO UPDATE SET what = 2
SELECT RAISE(ROLLBACK, 'a')
SELECT ?1, ?
SELECT $a
SELECT @a
SELECT #1
SELECT ?0
SELECT ?2
SELECT x'a'
SELECT * FROM main.sqlite_sequence
WITH x AS (SELECT 1) INSERT INTO audit (what) VALUES (1) RETURNING (SELECT * FROM hapax_inbox)
SELECT * FROM json_each((SELECT body FROM hapax_parked))
SELECT [hapax_inbox].a FROM stock
INSERT INTO stock DEFAULT VALUES RETURNING hapax_x
SELECT 'a' MATCH (SELECT 1 FROM hapax_inbox)
SELECT interval '1 day'
