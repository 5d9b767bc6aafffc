//! The command line: the real binary on files and private servers, what it prints as snapshots.

mod check;
mod dead;
mod help;
mod invoke;
mod ledger;
mod mask;
mod new;
mod publish;
mod shipped;
mod signals;
mod topology;
mod workspace;
