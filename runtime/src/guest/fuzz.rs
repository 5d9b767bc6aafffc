//! Files that somebody may take for a module.

use std::path::Path;
use std::sync::LazyLock;

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::cache::ModuleCache;
use super::compile::Compiler;
use super::engine::{Engine, EngineSettings};
use super::module::Module;

const MEMORY: u64 = 16 << 20;

/// What modules are loaded with.
struct Loader {
    runtime: Runtime,
    engine: Engine,
    cache: ModuleCache,
    _folder: TempDir,
}

static LOADER: LazyLock<Loader> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime starts");
    let folder = tempfile::tempdir().expect("there is a folder for compiled modules");
    let cache = ModuleCache::open(folder.path(), Compiler::InProcess).expect("a cache opens");
    let settings = EngineSettings { max_instances: 4, memory_per_instance: MEMORY };
    let engine = runtime.block_on(async { Engine::new(settings) }).expect("an engine starts");
    Loader { runtime, engine, cache, _folder: folder }
});

/// Whatever a file holds, it is loaded or refused, and the refusal says which file it is about.
#[test]
fn any_file_is_loaded_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Loader { runtime, engine, cache, .. } = &*LOADER;
        let loaded = Module::from_bytes(engine, cache, Path::new("fuzz.wasm"), bytes.to_vec(), MEMORY);
        if let Err(error) = runtime.block_on(loaded) {
            assert!(error.to_string().contains("fuzz.wasm"), "{error} does not say which file");
        }
    });
}
