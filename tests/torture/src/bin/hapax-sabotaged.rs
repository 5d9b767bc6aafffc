//! The `hapax` binary, able to be sabotaged (see `hapax::sabotage`).

use std::process::ExitCode;

/// As in `hapax`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    hapax::cli::main()
}
