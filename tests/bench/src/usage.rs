//! What processes use, as the system counts it.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// CPU time of a process and its descendants, in microseconds.
pub(crate) fn cpu_micros(pid: u32) -> Result<u64> {
    let ticks = rustix::param::clock_ticks_per_second();
    let processes = processes()?;
    let mut sum = 0;
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        let Some(process) = processes.get(&pid) else { continue };
        // Of children that have ended, only those who waited for them know.
        sum += process.ticks;
        next.extend(processes.iter().filter(|(_, child)| child.parent == pid).map(|(&child, _)| child));
    }
    Ok(sum * 1_000_000 / ticks)
}

/// Peak resident memory of a process and its living descendants, added up, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Result<u64> {
    let processes = processes()?;
    let mut sum = 0;
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        // One that has ended in the meantime has none.
        sum += status_bytes(pid, "VmHWM:").unwrap_or(0);
        next.extend(processes.iter().filter(|(_, child)| child.parent == pid).map(|(&child, _)| child));
    }
    Ok(sum)
}

/// Resident memory of a process alone, in bytes.
pub(crate) fn resident_memory(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:").with_context(|| format!("process {pid} has no memory"))
}

/// A size in /proc/PID/status.
fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let size = status.lines().find_map(|line| line.strip_prefix(field))?;
    size.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Refuses a folder in memory: what is written there is never synced to anything.
pub(crate) fn on_disk(folder: &Path) -> Result<()> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(folder).with_context(|| format!("asking about {}", folder.display()))?.f_type;
    if [TMPFS, RAMFS].contains(&(kind as i64)) {
        bail!("{} is in memory: set TMPDIR to a folder on a disk, or fsync costs nothing here", folder.display());
    }
    Ok(())
}

struct ProcessUse {
    parent: u32,
    ticks: u64,
}

/// Every process that runs now.
fn processes() -> Result<HashMap<u32, ProcessUse>> {
    let mut processes = HashMap::new();
    for entry in std::fs::read_dir("/proc").context("the bench reads CPU times from /proc, so it runs on Linux")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(process) = parse_stat(&stat) {
            processes.insert(pid, process);
        }
    }
    Ok(processes)
}

/// See proc_pid_stat(5): the name in parentheses may hold anything; 4 is the parent, 14 to 17 are times in ticks, own
/// and of children waited for.
fn parse_stat(stat: &str) -> Option<ProcessUse> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)? + number(16)? + number(17)?;
    Some(ProcessUse { parent: u32::try_from(number(4)?).ok()?, ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_spaces_and_parentheses() {
        let stat = "42 (a (b) c) S 7 42 42 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5";
        let process = parse_stat(stat).unwrap();
        assert_eq!((process.parent, process.ticks), (7, 100));
    }

    #[test]
    fn this_process_has_used_something() {
        let before = cpu_micros(std::process::id()).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < std::time::Duration::from_millis(60) {}
        assert!(cpu_micros(std::process::id()).unwrap() > before);
        assert!(peak_memory(std::process::id()).unwrap() >= resident_memory(std::process::id()).unwrap() / 2);
    }
}
