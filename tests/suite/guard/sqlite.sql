ATTACH ':memory:' AS shop;
CREATE TABLE stock (id INTEGER PRIMARY KEY, qty INTEGER NOT NULL DEFAULT 0, name TEXT, doc TEXT, a INTEGER, b INTEGER, date TEXT,
  status TEXT, type TEXT, value TEXT, key TEXT, größe TEXT, [a`b] TEXT, [?] TEXT, at TEXT);
CREATE TABLE shop.stock (id INTEGER PRIMARY KEY, qty INTEGER NOT NULL DEFAULT 0, name TEXT);
CREATE TABLE orders (id INTEGER, goods_id INTEGER, qty INTEGER, at TEXT);
CREATE TABLE audit (what TEXT);
CREATE TABLE counters (id INTEGER, n INTEGER);
CREATE TABLE secrets (id INTEGER);
CREATE TABLE hapax_inbox (consumer TEXT, message_id TEXT, status TEXT, id INTEGER);
CREATE TABLE hapax_parked (consumer TEXT, state TEXT);
INSERT INTO stock (id, qty, name) VALUES (1, 5, 'a'), (2, 0, 'b'), (3, 9, NULL);
INSERT INTO orders VALUES (1, 1, 2, datetime()), (2, 3, 1, datetime());
INSERT INTO secrets VALUES (42);
INSERT INTO hapax_inbox VALUES ('c', 'm1', 'completed', 1), ('c', 'm2', 'dead', 2);
INSERT INTO hapax_parked VALUES ('c', 'dead');
BEGIN IMMEDIATE;
SAVEPOINT start;
