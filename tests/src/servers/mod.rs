//! Private RabbitMQ, Redis, Postgres and MariaDB servers.
//!
//! Each lives in a temporary directory, listens on free loopback ports, and dies with this process. As root, the
//! databases run as the users that their packages made, since they refuse root; otherwise all run as whoever runs this.
//!
//! Where `HAPAX_TEST_AMQP_URL`, `HAPAX_TEST_REDIS_URL`, `HAPAX_TEST_POSTGRES_URL` or `HAPAX_TEST_MYSQL_URL` is set, that
//! server is used instead. It cannot be killed or stopped from here, and the tests that must do so say so.

mod disk;
mod home;
mod mariadb;
mod postgres;
mod rabbit;
mod redis;
mod server;
mod shared;
mod sql;
mod tls;

pub use disk::SmallDisk;
pub use mariadb::{MariaDb, MariaDbKind};
pub use postgres::{Postgres, PostgresKind};
pub use rabbit::{Rabbit, RabbitKind};
pub use redis::{Redis, RedisDatabase, RedisKind};
pub use server::{Kind, Server};
pub use shared::{Shared, shared};
pub use sql::Database;
pub use tls::TlsAccess;

pub use crate::tree::{alive, descendants};
pub use home::Home;
