//! End to end: the real binary, real servers (or files), messages in, effects out.

mod dead;
mod path;
mod redrive;
mod world;
