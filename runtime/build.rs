//! Says what the binary is built from: the commit, where there is one, and the compiler.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The migrations are compiled in by a macro that does not notice new files.
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rustc-env=HAPAX_COMMIT={}", commit().as_deref().unwrap_or("unknown"));
    let rustc = says(&std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()), &["--version"]);
    println!("cargo::rustc-env=HAPAX_RUSTC={}", rustc.as_deref().unwrap_or("unknown"));
}

/// The commit of a release build. A development build would be compiled anew after every commit for nothing.
fn commit() -> Option<String> {
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return Some("development".to_owned());
    }
    // HEAD changes with a checkout, its log with a commit. A file that is missing would mean "always run again".
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = says("git", &["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    says("git", &["rev-parse", "--short=12", "HEAD"])
}

/// The first line that a program prints; none if it fails or is not there.
fn says(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    let line = String::from_utf8(output.stdout).ok()?.lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
