//! lock/redis.
