//! End to end: the real binary, real servers (or files), messages in, effects out.

mod dead;
mod holes;
mod hosts;
mod input;
mod path;
mod world;
