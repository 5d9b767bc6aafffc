//! What became of a message, and what to do because of it. `decide` is pure, and the only place that decides.
