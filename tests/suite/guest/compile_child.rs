//! The child that compiles modules, as a program of its own, for the tests of it.

use std::process::ExitCode;

use hapax::guest::compile::{CHILD_COMMAND, child_main};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    assert!(args.next().is_some_and(|command| command == CHILD_COMMAND), "it is called with {CHILD_COMMAND} first");
    // Passwords of the host stay with the host.
    assert_eq!(std::env::var_os("HOME"), None, "the child has no environment");
    child_main(args)
}
