//! Process trees: who descends from whom, and signals to them.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Sends `signal` to the process `pid`; that it is gone already is no error.
pub(crate) fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no process id")));
    };
    match rustix::process::kill_process(target, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The children of `pid`, their children and so on, as of now.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (process, parent) in parents() {
        children.entry(parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            found.push(child);
            next.push(child);
        }
    }
    found
}

/// Does `pid` exist and run? A zombie does not.
pub fn alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !matches!(state(&stat), Some("Z" | "X") | None),
        Err(_) if has_proc() => false,
        Err(_) => i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()),
    }
}

/// True for a process that a signal has stopped. Where there is no /proc nobody knows.
pub fn is_stopped(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| state(&stat) == Some("T"))
}

/// Waits until none of `pids` runs; false when some still do after `limit`.
pub(crate) async fn gone(pids: &[u32], limit: Duration) -> bool {
    let start = Instant::now();
    while pids.iter().any(|&pid| alive(pid)) {
        if start.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

fn has_proc() -> bool {
    std::path::Path::new("/proc/self/stat").exists()
}

/// Every process with its parent: from /proc, or from `ps` where there is none.
fn parents() -> Vec<(u32, u32)> {
    if has_proc() {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        return entries
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
                let parent = after_name(&stat)?.split_whitespace().nth(1)?.parse().ok()?;
                Some((pid, parent))
            })
            .collect();
    }
    let Ok(output) = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output() else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect()
}

/// One letter for what a process is at: "R", "S", "T", "Z", ….
fn state(stat: &str) -> Option<&str> {
    after_name(stat)?.split_whitespace().next()
}

/// The fields of /proc/PID/stat after the name, which may hold spaces and parentheses: state, parent, …
pub(crate) fn after_name(stat: &str) -> Option<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<_> = after_name("12 (a) S (b) S 7 1").into_iter().flat_map(str::split_whitespace).collect();
        assert_eq!(fields, ["S", "7", "1"]);
    }

    #[test]
    fn a_child_is_found_until_it_is_reaped() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        assert!(descendants(std::process::id()).contains(&child.id()));
        assert!(alive(child.id()));
        send(child.id(), Signal::KILL).expect("it can be killed");
        child.wait().expect("it can be reaped");
        assert!(!alive(child.id()));
        assert!(!descendants(std::process::id()).contains(&child.id()));
    }
}
