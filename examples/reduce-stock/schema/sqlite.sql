-- The business tables of the example. Those of Hapax (hapax_*) come from `hapax migrate`.

CREATE TABLE stock (
    goods_id INTEGER PRIMARY KEY,
    quantity INTEGER NOT NULL CHECK (quantity >= 0)
) STRICT;

-- What the compensation writes. Its primary key would refuse a second compensation of the same message.
CREATE TABLE refused_order (
    message_id TEXT PRIMARY KEY,
    goods_id INTEGER NOT NULL,
    quantity INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
