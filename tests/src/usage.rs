//! What processes use, as the system counts it.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::tree::{after_name, descendants};

/// CPU time of a process and its descendants, in microseconds.
///
/// # Errors
/// Where there is no /proc.
pub fn cpu_micros(pid: u32) -> Result<u64> {
    // Of children that have ended, only those who waited for them know.
    let ticks: u64 = family(pid)?.filter_map(ticks).sum();
    Ok(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

/// Peak resident memory of a process and its living descendants, added up, in bytes.
///
/// # Errors
/// Where there is no /proc.
pub fn peak_memory(pid: u32) -> Result<u64> {
    // One that has ended in the meantime has none.
    Ok(family(pid)?.filter_map(|pid| status_bytes(pid, "VmHWM:")).sum())
}

/// A process and its descendants.
fn family(pid: u32) -> Result<impl Iterator<Item = u32>> {
    std::fs::metadata("/proc/self/stat").context("CPU time and memory are read from /proc, on Linux")?;
    Ok(std::iter::once(pid).chain(descendants(pid)))
}

/// Resident memory of a process alone, in bytes.
///
/// # Errors
/// When there is no such process, or no /proc.
pub fn resident_memory(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:").with_context(|| format!("process {pid} has no memory"))
}

/// How many files, sockets and pipes a process has open.
///
/// # Errors
/// When there is no such process, or no /proc.
pub fn descriptors(pid: u32) -> Result<usize> {
    let folder = format!("/proc/{pid}/fd");
    Ok(std::fs::read_dir(&folder).with_context(|| format!("looking into {folder}"))?.count())
}

/// A size in /proc/PID/status.
fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let size = status.lines().find_map(|line| line.strip_prefix(field))?;
    size.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Refuses a folder in memory: what is written there is never synced to anything.
///
/// # Errors
/// When it is in memory, or nobody knows.
pub fn on_disk(folder: &Path) -> Result<()> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(folder).with_context(|| format!("asking about {}", folder.display()))?.f_type;
    if [TMPFS, RAMFS].contains(&(kind as i64)) {
        bail!("{} is in memory: set TMPDIR to a folder on a disk, or fsync costs nothing here", folder.display());
    }
    Ok(())
}

/// CPU time of a process and of the children that it has waited for, in clock ticks.
fn ticks(pid: u32) -> Option<u64> {
    parse_ticks(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// See proc_pid_stat(5): the name in parentheses may hold anything; 14 to 17 are times in ticks, own and of children
/// waited for.
fn parse_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = after_name(stat)?.split_whitespace().collect();
    (14..=17).map(|field| fields.get(field - 3)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_spaces_and_parentheses() {
        let stat = "42 (a (b) c) S 7 42 42 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 5";
        assert_eq!(parse_ticks(stat), Some(100));
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
