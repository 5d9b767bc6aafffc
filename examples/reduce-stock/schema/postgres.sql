-- The business tables of the example. Those of Hapax (hapax_*) come from `hapax migrate`.

CREATE TABLE stock (
    goods_id BIGINT PRIMARY KEY,
    quantity BIGINT NOT NULL CHECK (quantity >= 0)
);

-- What the compensation writes. Its primary key would refuse a second compensation of the same message.
CREATE TABLE refused_order (
    message_id TEXT COLLATE "C" PRIMARY KEY,
    goods_id BIGINT NOT NULL,
    quantity BIGINT NOT NULL,
    reason TEXT NOT NULL
);
