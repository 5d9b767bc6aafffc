//! End to end: the real binary, real servers (or files), messages in, effects out.

mod ahead;
mod batch;
mod classic;
mod commit;
mod contention;
mod dead;
mod faults;
mod headers;
mod hold;
mod holes;
mod hosts;
mod input;
mod languages;
mod lost;
mod mass;
mod order;
mod outbox;
mod own_database;
mod path;
mod pressure;
mod redrive;
mod settings;
mod starts;
mod suspects;
mod world;
