//! A disk that can be filled at once: a file system in memory whose size can be changed while it is used.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::home::Home;

/// More than a run writes.
const SIZE_KB: u64 = 6 << 20;

/// What is tried to be written to see whether it is full.
const PROBE: usize = 256 << 10;

/// Fills are tried again while what is on it still grows.
const ATTEMPTS: usize = 20;

/// A small disk. It goes with the directory that it is in: see [`Home`].
pub struct SmallDisk {
    path: PathBuf,
    /// If it is in no server's.
    _home: Option<Home>,
}

impl SmallDisk {
    /// True if this process may mount one.
    pub fn is_possible() -> bool {
        cfg!(target_os = "linux") && rustix::process::geteuid().is_root()
    }

    /// One that belongs to no server.
    ///
    /// # Errors
    /// When the system does not let this process mount it: that takes root.
    pub fn make() -> Result<Self> {
        let home = Home::create("disk", None, "KILL")?;
        let path = home.path().join("disk");
        std::fs::create_dir(&path).context("making a folder for a disk")?;
        Ok(Self { _home: Some(home), ..Self::at(path)? })
    }

    /// Puts one where a folder is.
    pub(super) fn at(path: PathBuf) -> Result<Self> {
        mount(&["-t", "tmpfs", "-o", &format!("size={SIZE_KB}k"), "tmpfs"], &path)?;
        Ok(Self { path, _home: None })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves no room on it.
    ///
    /// # Errors
    /// When the system refuses, or what is on it grows all the time.
    pub fn fill(&self) -> Result<()> {
        let mut result = Ok(());
        for _ in 0..ATTEMPTS {
            let space = rustix::fs::statvfs(&self.path).context("asking how much is on the disk")?;
            let used = (space.f_blocks - space.f_bfree) * space.f_frsize / 1024;
            result = self.resize(used);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Makes room again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn free(&self) -> Result<()> {
        self.resize(SIZE_KB)
    }

    /// True if nothing can be written.
    ///
    /// # Errors
    /// When no file can be made for another reason.
    pub fn is_full(&self) -> Result<bool> {
        let path = self.path.join("probe");
        let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(&[1; PROBE]));
        let _ = std::fs::remove_file(&path);
        match written {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(true),
            Err(error) => Err(error).context("writing to the disk"),
        }
    }

    fn resize(&self, kb: u64) -> Result<()> {
        mount(&["-o", &format!("remount,size={kb}k")], &self.path)
    }
}

fn mount(args: &[&str], path: &Path) -> Result<()> {
    let output = Command::new("mount").args(args).arg(path).output().context("running `mount`")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mount {} {}: {}", args.join(" "), path.display(), errors.trim());
    Ok(())
}
