//! hapax-demo.
