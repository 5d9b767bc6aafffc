//! The `hapax` binary.

use std::process::ExitCode;

/// glibc keeps what the peaks of its many arenas have taken: see "Decisions" in `ARCHITECTURE.md`.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    hapax::cli::main()
}
