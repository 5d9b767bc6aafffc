//! hapax-tests.
