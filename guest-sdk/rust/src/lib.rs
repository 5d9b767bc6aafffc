//! hapax-guest.
