//! End to end: the real binary, real servers (or files), messages in, effects out.

mod classic;
mod commit;
mod dead;
mod holes;
mod hosts;
mod input;
mod languages;
mod lost;
mod outbox;
mod path;
mod pressure;
mod redrive;
mod suspects;
mod world;
