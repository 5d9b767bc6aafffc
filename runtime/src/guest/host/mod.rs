//! What the host gives to guests: one capability, one file, in the same order: what it is, the host's side of it, how it
//! is linked, and tests that call it without wasm.

pub(crate) mod context;
pub(crate) mod denied;
pub(crate) mod outbox;
pub(crate) mod sql;
