//! The `hapax` binary, able to be sabotaged (see `hapax::sabotage`).

use std::process::ExitCode;

fn main() -> ExitCode {
    hapax::cli::main()
}
