## Statements that handlers write: one a line, under the database that they are for.

[all]
SELECT 1
select * from stock
SELECT s.* FROM stock AS s
SELECT s.qty FROM stock s WHERE s.id = ?
SELECT id, qty - 1 AS rest FROM stock WHERE id = ? AND qty>=? ORDER BY id DESC LIMIT 10 OFFSET 5
SELECT DISTINCT id FROM stock;
SELECT count(*), sum(qty), max(qty), avg(qty) FROM stock GROUP BY id HAVING count(*) > 1
SELECT count(DISTINCT id) FROM stock
SELECT o.id FROM orders o JOIN stock s ON s.id = o.goods_id LEFT JOIN stock t ON t.id = s.id
SELECT o.id FROM orders o INNER JOIN stock s USING (id)
SELECT * FROM orders CROSS JOIN stock
SELECT * FROM orders NATURAL JOIN stock
SELECT * FROM orders, stock WHERE orders.id = stock.id
SELECT * FROM (SELECT id FROM stock) AS x
SELECT * FROM (orders o JOIN stock s ON o.id = s.id) JOIN stock t ON t.id = s.id
SELECT id FROM stock WHERE id IN (SELECT goods_id FROM orders)
SELECT id FROM stock WHERE id NOT IN (1, 2, 3) OR id IN (?, ?)
SELECT id FROM stock s WHERE EXISTS (SELECT 1 FROM orders o WHERE o.id = s.id)
SELECT id FROM stock s WHERE NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = s.id)
SELECT (SELECT max(id) FROM orders) AS newest
SELECT id FROM stock UNION SELECT id FROM orders
SELECT id FROM stock UNION ALL SELECT id FROM orders ORDER BY 1 LIMIT 3
SELECT id FROM stock INTERSECT SELECT id FROM orders EXCEPT SELECT 1
SELECT CASE WHEN qty > 0 THEN 'some' ELSE 'none' END FROM stock
SELECT CASE qty WHEN 0 THEN 'none' END FROM stock
SELECT coalesce(qty, 0), nullif(qty, 0), abs(-1), round(1.5), upper(name), length(name) FROM stock
SELECT substr(name, 1, 3), substring(name, 2), trim(name), replace(name, 'a', 'b') FROM stock
SELECT CAST(qty AS DECIMAL) FROM stock
SELECT current_timestamp, current_date
SELECT -1, - -1, +1, 1 - -1, 1.5e3, .5, 1., 007 FROM stock
SELECT NULL, TRUE, FALSE, ''
SELECT id FROM stock WHERE name LIKE 'a%' ESCAPE '!' AND name NOT LIKE ?
SELECT id FROM stock WHERE qty BETWEEN 1 AND 2 AND NOT qty = 3 AND qty IS NOT NULL AND name IS NULL
SELECT id FROM stock WHERE (id, qty) IN ((1, 2), (3, 4))
SELECT id FROM stock WHERE qty % 2 = 1 AND qty <> 3 AND qty != 4 AND (qty & 1) = 1 AND (qty | 1) = 1
SELECT row_number() OVER (PARTITION BY id ORDER BY qty DESC) AS n FROM stock
SELECT sum(qty) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM stock
SELECT lag(qty, 1) OVER w FROM stock WINDOW w AS (ORDER BY id)
WITH few AS (SELECT id FROM stock WHERE qty < 5) SELECT * FROM few JOIN orders ON few.id = orders.id
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT i FROM n
WITH a AS (SELECT 1 AS x), b AS (SELECT x FROM a) SELECT x FROM b
WITH unknown AS (SELECT 1 AS x) SELECT unknown.x FROM unknown
INSERT INTO stock (id, qty) VALUES (?, ?), (3, 4)
INSERT INTO audit VALUES ('x'), (NULL)
INSERT INTO stock (id, qty) SELECT id, 0 FROM orders WHERE id = ?
INSERT INTO audit (what) VALUES (?)
UPDATE stock SET qty = qty - 1 WHERE id = ? AND qty > 0
UPDATE stock SET qty=qty-?, name=? WHERE id=?
UPDATE stock SET qty = (SELECT count(*) FROM orders WHERE orders.goods_id = stock.id)
UPDATE counters SET n = n + 1 WHERE n < 10
DELETE FROM stock WHERE id = ?
DELETE FROM stock WHERE id IN (SELECT id FROM orders)
UPDATE shop.stock SET qty = 0
SELECT shop.stock.qty FROM shop.stock
VALUES (1, 2)
SELECT date, name, status, type, value, key FROM stock
SELECT qty AS "Left over" FROM stock
SELECT größe FROM stock

[postgres]
SELECT qty::text, name::uuid, '{}'::jsonb, '{1}'::int[], CAST(? AS timestamp with time zone), ?::numeric(10,2) FROM stock
SELECT doc->'a'->>'b', doc#>'{a,b}', doc @> '{"a":1}', tags && ARRAY['x'] FROM stock
SELECT doc ? 'a', doc ?| ARRAY['a'], doc ?& ARRAY['b'], doc @? '$.a' FROM stock WHERE id = $1
INSERT INTO stock (id) VALUES (?) ON CONFLICT DO NOTHING
INSERT INTO stock AS s (id, qty) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET qty = s.qty + excluded.qty WHERE s.qty > 0 RETURNING id, qty
INSERT INTO stock (id) VALUES (DEFAULT) ON CONFLICT ON CONSTRAINT stock_pkey DO NOTHING
INSERT INTO stock DEFAULT VALUES RETURNING *
UPDATE stock AS s SET qty = s.qty - o.qty, name = DEFAULT FROM orders o WHERE o.goods_id = s.id RETURNING s.id
UPDATE stock SET (qty, name) = (1, 'x')
DELETE FROM stock USING orders WHERE orders.goods_id = stock.id RETURNING *
WITH gone AS (DELETE FROM stock WHERE qty = 0 RETURNING id) SELECT count(*) FROM gone
WITH few AS (SELECT id FROM orders) UPDATE stock SET qty = 0 FROM few WHERE few.id = stock.id
WITH few AS MATERIALIZED (SELECT id FROM orders) INSERT INTO stock (id) SELECT id FROM few
MERGE INTO stock s USING orders o ON s.id = o.goods_id WHEN MATCHED AND s.qty > 1 THEN UPDATE SET qty = s.qty - 1 WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (id, qty) VALUES (o.goods_id, 0)
MERGE INTO counters USING orders ON counters.id = orders.id WHEN MATCHED THEN UPDATE SET n = 1 WHEN NOT MATCHED THEN DO NOTHING
SELECT DISTINCT ON (id) id, qty FROM stock ORDER BY id, qty DESC NULLS LAST
SELECT * FROM stock FOR UPDATE
SELECT * FROM stock s JOIN orders o ON o.id = s.id WHERE s.id = ? FOR UPDATE OF s SKIP LOCKED
SELECT * FROM stock FOR SHARE
SELECT * FROM generate_series(1, 3) AS g(i)
SELECT * FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS u(a, b, n)
SELECT e.key FROM stock s, LATERAL jsonb_each(s.doc) AS e
SELECT e.key FROM stock s CROSS JOIN LATERAL (SELECT key FROM jsonb_each(s.doc)) AS e
SELECT string_agg(name, ',' ORDER BY id), array_agg(DISTINCT id) FILTER (WHERE qty > 0) FROM stock
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY qty) FROM stock
SELECT id = ANY($1), id <> ALL(ARRAY[1,2]), id = ANY(SELECT id FROM orders) FROM stock
SELECT extract(epoch FROM at), date_trunc('day', at), at AT TIME ZONE 'UTC', now() - interval '1 day' FROM orders
SELECT interval '1' day, DATE '2024-01-01', TIMESTAMP '2024-01-01 00:00:00', make_interval(days => 1)
SELECT name ILIKE 'a%', name SIMILAR TO 'b', name ~* 'c', name !~ 'd', name ~~ 'e', name ^@ 'f' FROM stock
SELECT position('a' IN name), substring(name FROM 1 FOR 2), overlay(name PLACING 'x' FROM 1), trim(BOTH ' ' FROM name) FROM stock
SELECT (ARRAY[1,2])[1], (ARRAY[1,2,3])[1:2], ARRAY(SELECT id FROM stock), tags[1] FROM stock
SELECT id, sum(qty) FROM stock GROUP BY ROLLUP (id)
SELECT id, name, sum(qty) FROM stock GROUP BY GROUPING SETS ((id, name), (id), ())
SELECT id IS DISTINCT FROM 1, id IS NOT DISTINCT FROM NULL, a IS TRUE, b IS NOT UNKNOWN FROM stock
SELECT name COLLATE "C" FROM stock ORDER BY name COLLATE "C"
SELECT gen_random_uuid(), md5('x'), json_build_object('a', 1), jsonb_set(doc, '{a}', '1'), row_to_json(s) FROM stock s
SELECT * FROM stock ORDER BY id FETCH FIRST 3 ROWS ONLY
SELECT E'a\nb', $$it's$$, $x$a$$b$x$, X'ff', B'01'
SELECT shop.next_price(1), next_no()
SELECT 'sad'::mood
SELECT 2 ^ 3, 5 # 1, @ -1
SELECT 1 /* a /* nested */ comment */
SELECT qty>-1, qty<-1, qty=-1, qty>=-1, qty*-1 FROM stock

[mysql]
SELECT `qty`, `s`.`name` FROM `stock` `s`
SELECT "text", 'it''s', 'a\'b', "a\"b", X'ff', b'01'
INSERT IGNORE INTO stock (id) VALUES (?)
INSERT INTO stock SET id = ?, qty = DEFAULT
INSERT INTO stock (id, qty) VALUES (?, ?) ON DUPLICATE KEY UPDATE qty = qty + VALUES(qty)
INSERT INTO stock () VALUES ()
INSERT INTO stock (id, qty) SELECT ?, ? FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM stock WHERE id = ?)
REPLACE INTO stock (id, qty) VALUES (1, 2)
INSERT INTO stock (id) VALUES (1) RETURNING id
DELETE FROM stock WHERE qty = 0 ORDER BY id LIMIT 10
UPDATE stock SET qty = 0 WHERE qty < 0 ORDER BY id LIMIT 1
UPDATE stock s JOIN orders o ON o.goods_id = s.id SET s.qty = s.qty - o.qty WHERE o.id = ?
DELETE s FROM stock s JOIN orders o ON o.goods_id = s.id
SELECT * FROM stock LIMIT 5, 10
SELECT * FROM stock WHERE id = ? FOR UPDATE
SELECT * FROM stock WHERE id = ? FOR UPDATE SKIP LOCKED
SELECT 7 DIV 2, 7 % 2, 1 XOR 0, NULL <=> NULL, 1 && 1, 2 ^ 3, 1 << 2
SELECT name REGEXP 'a', name NOT RLIKE 'b' FROM stock
SELECT now() + INTERVAL 1 DAY, date_add(now(), INTERVAL ? HOUR), date_sub(at, INTERVAL 5 MINUTE) FROM orders
SELECT group_concat(DISTINCT name ORDER BY id SEPARATOR ', ') FROM stock
SELECT if(qty > 0, 'a', 'b'), ifnull(qty, 0), concat(name, 'x'), concat_ws(',', 1, 2), left(name, 2), uuid() FROM stock
SELECT CAST(qty AS SIGNED), CAST(qty AS UNSIGNED), CAST(name AS CHAR(10)), CONVERT(name, CHAR), CONVERT(name USING utf8mb4) FROM stock
SELECT doc->'$.a', doc->>'$.b', json_extract(doc, '$.c'), json_object('a', 1) FROM stock
SELECT * FROM json_table('[1,2]', '$[*]' COLUMNS (n INT PATH '$', i FOR ORDINALITY)) AS j
SELECT id, sum(qty) FROM stock GROUP BY id WITH ROLLUP
SELECT name COLLATE utf8mb4_bin FROM stock
SELECT last_insert_id()
SELECT 1 # comment
SELECT MATCH (name) AGAINST ('x' IN BOOLEAN MODE) FROM stock
SELECT STR_TO_DATE('1,1,2024', '%d,%m,%Y'), UTC_TIMESTAMP(6), timestampdiff(HOUR, at, now()) FROM orders
SELECT * FROM stock STRAIGHT_JOIN orders
SELECT 'a' 'b'

[sqlite]
SELECT [qty], `qty`, "qty", s."qty" FROM [stock] s
INSERT OR IGNORE INTO stock (id) VALUES (?)
INSERT OR REPLACE INTO stock (id) VALUES (?1)
INSERT OR ABORT INTO stock (id) VALUES (1)
INSERT OR FAIL INTO stock (id) VALUES (1)
REPLACE INTO stock (id) VALUES (1)
INSERT INTO stock (id, qty) VALUES (?2, ?1) ON CONFLICT (id) DO UPDATE SET qty = excluded.qty RETURNING *
UPDATE OR IGNORE stock SET qty = 1
UPDATE stock SET qty = o.qty FROM orders o WHERE o.id = stock.id RETURNING qty
DELETE FROM stock WHERE id = 1 RETURNING id
WITH few AS (SELECT id FROM orders) DELETE FROM stock WHERE id IN (SELECT id FROM few)
WITH few AS (SELECT id FROM orders) INSERT INTO stock (id) SELECT id FROM few
SELECT * FROM json_each('[1,2]')
SELECT e.value FROM stock, json_each(stock.doc) AS e
SELECT doc->'$.a', doc->>'$.b', json_extract(doc, '$.c') FROM stock
SELECT name GLOB 'a*', name REGEXP 'b', qty == 1, name || 'x', qty << 1, ~qty FROM stock
SELECT name COLLATE NOCASE FROM stock ORDER BY name COLLATE NOCASE NULLS FIRST
SELECT datetime('now'), strftime('%s', 'now'), julianday('now'), unixepoch(), changes(), last_insert_rowid()
SELECT ifnull(qty, 0), iif(qty > 0, 1, 2), printf('%d', qty), typeof(qty), group_concat(name, ',') FROM stock
SELECT rowid FROM stock
SELECT id FROM STOCK
SELECT sum(qty) FILTER (WHERE qty > 0) FROM stock
SELECT * FROM stock LIMIT 5, 10
SELECT X'ff00'
SELECT 'C:\temp', 'it''s'
