-- The business tables of the example, for MariaDB and MySQL 8. Those of Hapax (hapax_*) come from `hapax migrate`.

CREATE TABLE stock (
    goods_id BIGINT PRIMARY KEY,
    quantity BIGINT NOT NULL CHECK (quantity >= 0)
) ENGINE = InnoDB;

-- What the compensation writes. Its primary key would refuse a second compensation of the same message. Message ids
-- compare as bytes: a text collation would take "a", "A" and "a " for one.
CREATE TABLE refused_order (
    message_id VARBINARY(255) PRIMARY KEY,
    goods_id BIGINT NOT NULL,
    quantity BIGINT NOT NULL,
    reason VARCHAR(255) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4;
