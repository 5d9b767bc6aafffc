//! What figures depend on besides the code.

use std::process::Command;

use anyhow::Result;

use crate::stage::Stage;

/// A line each: the command, the commit, the machine, the servers and how durable they are.
///
/// # Errors
/// When a server does not answer, or would lose what it has committed.
pub(crate) async fn about(stage: &Stage) -> Result<Vec<String>> {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let changed = said("git", &["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    let commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(unknown);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|name| name.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut about = vec![
        command(std::env::args().skip(1)),
        format!("commit {commit}{}", if changed { ", with changes" } else { "" }),
        format!("{cores} cores ({}), shared by everything", cpu.unwrap_or("unknown")),
        said("uname", &["-sr"]).unwrap_or_else(unknown),
        said("rustc", &["--version"]).unwrap_or_else(unknown),
        stage.versions().join(", "),
    ];
    about.extend(stage.durability().await?);
    Ok(about)
}

/// How to do it again: without the files that the results went to.
fn command(mut args: impl Iterator<Item = String>) -> String {
    let mut words = vec!["hapax-bench".to_owned()];
    while let Some(arg) = args.next() {
        if ["--json", "--page"].contains(&arg.as_str()) {
            args.next();
        } else {
            words.push(arg);
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_does_not_say_where_the_results_went() {
        let args = ["--quick", "--json", "/home/me/results.json", "--only", "latency", "--page", "page.md"];
        let command = super::command(args.map(str::to_owned).into_iter());
        assert_eq!(command, "hapax-bench --quick --only latency");
    }
}
