//! Exchanging a module while messages flow: a file that changes is compiled, linked and started, and only then one
//! pointer is exchanged. A module that fails any of that changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::cache::ModuleCache;
use super::engine::Engine;
use super::error::LoadError;
use super::module::{Module, digest, read};
use crate::sabotage::{self, Step};

/// Quiet time after the last change before the file is read: copying and renaming come as several events.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the file is looked at without an event: network file systems and some containers send none.
const POLL: Duration = Duration::from_secs(5);
/// A file that fails is read again after this long; if it changed meanwhile, it was being written.
const RETRY: Duration = Duration::from_millis(300);
/// How often in a row a changing file is read again before its error counts.
const MAX_RETRIES: u32 = 100;
/// The longest pause before a file is tried again that failed for a passing reason: no memory for the compiler, no place
/// in the pool. It stays the file that the operator wants, and nobody puts it there a second time.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A consumer's current module.
pub struct ModuleSlot {
    current: ArcSwap<Module>,
    engine: Engine,
    cache: Arc<ModuleCache>,
    path: PathBuf,
    /// What the consumer's instances may have, in bytes.
    memory: u64,
}

/// Watches a module's file until it is dropped.
#[must_use = "dropping it ends the watch"]
pub struct ModuleWatch {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ModuleWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ModuleSlot {
    /// Loads a consumer's first module, whose instances will have so many bytes of memory.
    pub async fn load(
        engine: &Engine,
        cache: &Arc<ModuleCache>,
        path: &Path,
        memory: u64,
    ) -> Result<Arc<Self>, LoadError> {
        let module = Module::load(engine, cache, path, memory).await?;
        let (current, cache) = (ArcSwap::new(module), Arc::clone(cache));
        Ok(Arc::new(Self { current, engine: engine.clone(), cache, path: path.to_owned(), memory }))
    }

    /// The module that new attempts run on.
    pub fn current(&self) -> Arc<Module> {
        self.current.load_full()
    }

    /// Loads the file again, now. None: it is the module that runs already.
    pub async fn reload(&self) -> Result<Option<Arc<Module>>, LoadError> {
        let bytes = read(&self.path).await?;
        if digest(&bytes) == self.current().digest {
            return Ok(None);
        }
        let module = Module::from_bytes(&self.engine, &self.cache, &self.path, bytes, self.memory).await?;
        sabotage::at(Step::Swapping);
        self.current.store(Arc::clone(&module));
        Ok(Some(module))
    }

    /// Reloads whenever the file changes, and tells `on_swap` what came of it: once for each file that was put
    /// there, and again if one that was refused for a passing reason loads after all.
    pub fn watch(
        self: &Arc<Self>,
        on_swap: impl Fn(Result<&Module, &LoadError>) + Send + Sync + 'static,
    ) -> ModuleWatch {
        let slot = Arc::clone(self);
        ModuleWatch { task: tokio::spawn(async move { slot.follow(&on_swap).await }) }
    }

    async fn follow(&self, on_swap: &(impl Fn(Result<&Module, &LoadError>) + Send + Sync)) {
        // One event is as good as many: each makes the file be read anew.
        let (sender, mut events) = mpsc::channel(1);
        // Kept: it watches while it lives.
        let _watcher = watcher(&self.path, sender);
        let mut seen = stamp(&self.path);
        // It may have changed between the first load and the watch.
        self.exchange(on_swap, &mut seen).await;
        loop {
            let event = tokio::time::timeout(POLL, events.recv()).await;
            // Without a watcher the channel is closed, and only the clock is left.
            if matches!(event, Ok(None)) {
                tokio::time::sleep(POLL).await;
            }
            if stamp(&self.path) == seen {
                continue;
            }
            while let Ok(Some(())) = tokio::time::timeout(SETTLE, events.recv()).await {}
            seen = stamp(&self.path);
            self.exchange(on_swap, &mut seen).await;
        }
    }

    /// Reloads: again while the file keeps changing, and again with growing pauses where the machine was at fault and not
    /// the file.
    async fn exchange(&self, on_swap: &(impl Fn(Result<&Module, &LoadError>) + Send + Sync), seen: &mut Option<Stamp>) {
        let old = self.current().short_digest();
        let (mut pause, mut changes, mut reported) = (RETRY, 0, false);
        loop {
            let error = match self.reload().await {
                Ok(None) => return,
                Ok(Some(module)) => {
                    let new = module.short_digest();
                    tracing::info!(module = %self.path.display(), %old, %new, "module swapped");
                    on_swap(Ok(&module));
                    return;
                }
                Err(error) => error,
            };
            if self.changes_within(pause, seen).await && changes < MAX_RETRIES {
                (pause, changes, reported) = (RETRY, changes + 1, false);
                continue;
            }
            if !reported {
                tracing::error!(module = %self.path.display(), running = %old, %error, "new module refused");
                on_swap(Err(&error));
                reported = true;
            }
            if !error.is_transient() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for so long, but no longer than until the file changes.
    async fn changes_within(&self, limit: Duration, seen: &mut Option<Stamp>) -> bool {
        let end = Instant::now() + limit;
        loop {
            tokio::time::sleep(RETRY.min(limit)).await;
            let now = stamp(&self.path);
            if now != *seen {
                *seen = now;
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
        }
    }
}

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
    #[cfg(not(unix))]
    let inode = 0;
    Some(Stamp { modified: metadata.modified().ok(), bytes: metadata.len(), inode })
}

/// Watches the file's directory: a file that is replaced by renaming is another one, and a watch on it would end.
fn watcher(path: &Path, events: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let watch = || {
        let mut watcher = notify::recommended_watcher(move |_event| {
            // Full: an event waits already. What the event says does not matter, the file's stamp does.
            let _ = events.try_send(());
        })?;
        watcher.watch(parent, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    };
    watch()
        .map_err(|error: notify::Error| {
            tracing::warn!(dir = %parent.display(), %error, "no change events; looking every {POLL:?} instead");
        })
        .ok()
}
