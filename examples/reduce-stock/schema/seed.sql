-- Some goods to sell, on any of the three databases. The long ids are of the classic kind: past 2^53, so that a program
-- which reads them as floating point numbers confuses the last two.
INSERT INTO stock (goods_id, quantity) VALUES
    (1, 1000),
    (2, 1000),
    (3, 10),
    (1234567890123456788, 1000),
    (1234567890123456789, 1000);
