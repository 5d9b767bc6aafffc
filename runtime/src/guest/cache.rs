//! Compiled modules on disk.
//!
//! Loading machine code means trusting it, so the directory belongs to this user alone, and a file is loaded only if its
//! SHA-256 is the one that was noted when this host's compiler wrote it. Two kinds of files:
//!
//! - `<key>.index` holds the SHA-256 of the code for a module on an engine; the key names both;
//! - `<sha256>.cwasm` is that code.
//!
//! Both appear by renaming, so that any number of hosts may share the directory, and nobody sees half of one.

use std::fs;
use std::hash::{Hash as _, Hasher};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use wasmtime::component::Component;

use super::ModuleDigest;
use super::compile::Compiler;
use super::engine::Engine;
use super::error::LoadError;

/// How long a compilation may take.
const COMPILE_LIMIT: Duration = Duration::from_secs(180);
/// Compiled modules kept; beyond it, the least recently loaded go.
const MAX_ENTRIES: usize = 64;
/// A temporary file older than this was left behind.
const STALE: Duration = Duration::from_secs(60 * 60);
const TEMPORARY: &str = ".tmp-";

/// A directory of compiled modules.
#[derive(Debug)]
pub struct ModuleCache {
    dir: PathBuf,
    compiler: Compiler,
    limit: Duration,
    /// One compilation at a time: each uses all cores and much memory.
    compiling: Mutex<()>,
}

impl ModuleCache {
    /// Opens the directory, and creates it if needed; refuses one that others could write to.
    pub fn open(dir: impl Into<PathBuf>, compiler: Compiler) -> Result<Self, LoadError> {
        let dir = dir.into();
        create_private(&dir).map_err(|reason| LoadError::Cache { dir: dir.clone(), reason })?;
        Ok(Self { dir, compiler, limit: COMPILE_LIMIT, compiling: Mutex::new(()) })
    }

    /// The same with another time limit for each compilation.
    pub fn with_compile_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The compiled form of `bytes`, whose digest is `digest`: from the directory, or compiled now.
    pub(crate) async fn component(
        &self,
        engine: &Engine,
        path: &Path,
        digest: &ModuleDigest,
        bytes: Vec<u8>,
    ) -> Result<Component, LoadError> {
        let key = key(engine, digest);
        if let Some(component) = self.lookup(engine, &key).await {
            return Ok(component);
        }
        let _one_at_a_time = self.compiling.lock().await;
        // Another consumer of this host may have waited for the same module.
        if let Some(component) = self.lookup(engine, &key).await {
            return Ok(component);
        }
        self.compile(path, &key, bytes).await?;
        let loaded = self.lookup(engine, &key).await;
        loaded.ok_or_else(|| self.error("what was just compiled cannot be read back; is the disk full?"))
    }

    async fn lookup(&self, engine: &Engine, key: &str) -> Option<Component> {
        let (dir, engine, key) = (self.dir.clone(), engine.clone(), key.to_owned());
        tokio::task::spawn_blocking(move || load(&dir, &engine, &key)).await.ok().flatten()
    }

    async fn compile(&self, path: &Path, key: &str, bytes: Vec<u8>) -> Result<(), LoadError> {
        tracing::info!(module = %path.display(), "compiling");
        let io = |error: io::Error| self.error(error.to_string());
        // The child gets a copy: the module's own file may change at any time, and the digest is that of these bytes.
        let input = self.temporary().map_err(io)?;
        let output = self.temporary().map_err(io)?;
        input.as_file().write_all(&bytes).map_err(io)?;
        drop(bytes);
        self.compiler.run(path, input.path(), output.path(), self.limit).await?;
        let (dir, key) = (self.dir.clone(), key.to_owned());
        let kept = tokio::task::spawn_blocking(move || keep(&dir, &key, output)).await;
        match kept {
            Ok(result) => result.map_err(io),
            Err(panic) => Err(self.error(panic.to_string())),
        }
    }

    fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)
    }

    fn error(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Cache { dir: self.dir.clone(), reason: reason.into() }
    }
}

/// What a compiled module depends on: its bytes, the compiler's version and settings, and this machine's kind. Another
/// hash of the latter by another build of Hapax costs one compilation, no more.
fn key(engine: &Engine, digest: &ModuleDigest) -> String {
    let mut hasher = Sha256Hasher(Sha256::new());
    engine.wasmtime().precompile_compatibility_hash().hash(&mut hasher);
    format!("{}-{}", hex(digest), &hex(&hasher.0.finalize())[..16])
}

struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.clone().finalize()[..8]);
        u64::from_be_bytes(first)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

fn load(dir: &Path, engine: &Engine, key: &str) -> Option<Component> {
    let index = dir.join(format!("{key}.index"));
    let noted = fs::read_to_string(&index).ok()?;
    let noted = noted.trim();
    if noted.len() != 64 || !noted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        tracing::warn!(file = %index.display(), "the module cache holds a broken entry; compiling again");
        return None;
    }
    let code = dir.join(format!("{noted}.cwasm"));
    if sha256_of(&code).ok()? != noted {
        tracing::warn!(file = %code.display(), "a compiled module was altered; compiling again");
        let _ = fs::remove_file(&code);
        return None;
    }
    // SAFETY: the file is machine code that this program's compiler wrote: its checksum is the one noted then, in a
    // directory that only this user can write (checked when the cache was opened), and nobody changes it in place, only
    // by renaming another file over it or by removing its name, which leaves the mapped one as it is. Whoever can get
    // past this can run code as this user already. Code of another engine is refused by wasmtime itself.
    let component = unsafe { Component::deserialize_file(engine.wasmtime(), &code) };
    match component {
        Ok(component) => {
            // Recently used; if it cannot be noted, it is compiled again one day.
            let _ = fs::File::options().append(true).open(&code).and_then(|file| file.set_modified(SystemTime::now()));
            Some(component)
        }
        Err(error) => {
            tracing::warn!(file = %code.display(), %error, "a compiled module does not load; compiling again");
            let _ = fs::remove_file(&code);
            None
        }
    }
}

/// Gives the compiler's output its names, code first.
fn keep(dir: &Path, key: &str, output: tempfile::NamedTempFile) -> io::Result<()> {
    let sha256 = sha256_of(output.path())?;
    output.persist(dir.join(format!("{sha256}.cwasm")))?;
    let mut index = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir)?;
    writeln!(index, "{sha256}")?;
    index.as_file().sync_all()?;
    index.persist(dir.join(format!("{key}.index")))?;
    if let Err(error) = prune(dir) {
        tracing::warn!(dir = %dir.display(), %error, "old compiled modules cannot be removed");
    }
    Ok(())
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Removes the least recently used code beyond the limit, entries without code, and temporary files left behind.
fn prune(dir: &Path) -> io::Result<()> {
    let mut codes = Vec::new();
    let mut rest = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Ok(modified) = fs::metadata(&path).and_then(|metadata| metadata.modified()) else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("cwasm") => codes.push((modified, path)),
            _ => rest.push((modified, path)),
        }
    }
    codes.sort();
    let excess = codes.len().saturating_sub(MAX_ENTRIES);
    for (_, path) in codes.drain(..excess) {
        fs::remove_file(path)?;
    }
    for (modified, path) in rest {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stale = modified.elapsed().is_ok_and(|age| age > STALE);
        let orphan = name.ends_with(".index")
            && fs::read_to_string(&path).is_ok_and(|code| !dir.join(format!("{}.cwasm", code.trim())).exists());
        if (name.starts_with(TEMPORARY) && stale) || orphan {
            // Another host may have been faster.
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

#[cfg(unix)]
fn create_private(dir: &Path) -> Result<(), String> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};

    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| error.to_string())?;
    // Whose process this is, as the file system sees it; also the proof that we can write here.
    let probe = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(dir).map_err(|error| error.to_string())?;
    let own = probe.as_file().metadata().map_err(|error| error.to_string())?.uid();
    let metadata = fs::metadata(dir).map_err(|error| error.to_string())?;
    if metadata.uid() != own {
        return Err(format!(
            "it belongs to user {}, and this is user {own}; code from there would run here. Name another directory",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(format!(
            "others may write to it (mode {:o}), and code from there would run here; `chmod go-w` it, or name another",
            metadata.mode() & 0o777
        ));
    }
    Ok(())
}

#[cfg(not(unix))]
fn create_private(dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|error| error.to_string())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_directory_is_made_for_this_user_alone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        ModuleCache::open(&dir, Compiler::InProcess).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "the probe is gone");
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let error = ModuleCache::open(dir.path(), Compiler::InProcess).unwrap_err().to_string();
        assert!(error.contains("mode 770") && error.contains("chmod go-w"), "{error}");
    }

    #[test]
    fn old_code_orphans_and_leftovers_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * STALE;
        let touch = |name: &str, text: &str, time: SystemTime| {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name), text).unwrap();
            file.set_modified(time).unwrap();
        };
        for n in 0..MAX_ENTRIES + 1 {
            touch(&format!("{n}.cwasm"), "", old + Duration::from_secs(n as u64));
        }
        touch("first.index", "0\n", old);
        touch("second.index", "1\n", old);
        touch(".tmp-old", "", old);
        touch(".tmp-new", "", SystemTime::now());
        prune(dir.path()).unwrap();
        let there = |name: &str| dir.path().join(name).exists();
        assert!(!there("0.cwasm") && there("1.cwasm"));
        assert!(!there("first.index") && there("second.index"));
        assert!(!there(".tmp-old") && there(".tmp-new"));
    }
}
