//! broker/embedded.
