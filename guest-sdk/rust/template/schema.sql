-- The tables of this handler, in SQLite, for `hapax invoke` and for hapax.toml.
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY,
    customer TEXT NOT NULL,
    amount INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS refused_orders (
    id INTEGER NOT NULL,
    reason TEXT NOT NULL
);
