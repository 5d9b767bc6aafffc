//! hapax-guest-macros.
