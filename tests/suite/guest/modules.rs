//! Modules: files that are no handlers, the cache, the compiler, the swap.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hapax::guest::Verdict;
use hapax::guest::cache::ModuleCache;
use hapax::guest::compile::Compiler;
use hapax::guest::error::LoadError;
use hapax::guest::grants::Grants;
use hapax::guest::inspect::{GrantFinding, ImportStatus, NeededGrant};
use hapax::guest::lane::LaneGuest;
use hapax::guest::module::Module;
use hapax::guest::swap::ModuleSlot;
use hapax_tests::component::{self, rebuilt, section, with_core_module};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::fake::Fake;
use super::{MEMORY, attempt, bench, consumer, engine, guest_path};

/// A folder for modules and one for their compiled forms.
struct Folder {
    dir: TempDir,
    cache: Arc<ModuleCache>,
}

fn folder() -> Folder {
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(ModuleCache::open(dir.path().join("cache"), Compiler::InProcess).unwrap());
    Folder { dir, cache }
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, bytes: &[u8]) -> PathBuf {
        let path = self.path("handler.wasm");
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn load(&self, path: &Path) -> Result<Arc<Module>, LoadError> {
        Module::load(engine(), &self.cache, path, MEMORY).await
    }

    async fn refused(&self, bytes: &[u8]) -> (LoadError, String) {
        let path = self.put(bytes);
        let error = self.load(&path).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("handler.wasm"), "an error names the file: {text}");
        (error, text)
    }

    /// The compiled code in the cache.
    fn code(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("cache")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "cwasm")).collect()
    }
}

/// A small guest's bytes.
fn plain() -> Vec<u8> {
    fs::read(guest_path("plain")).unwrap()
}

/// A core module whose start function counts to 2^30, which takes about a second.
fn slow_to_start() -> Vec<u8> {
    // (local i32) loop, local 0 + 1, tee, i32.const 2^30, i32.lt_u, br_if 0, end, end
    let mut body = vec![1, 1, 0x7f, 0x03, 0x40, 0x20, 0, 0x41, 1, 0x6a, 0x22, 0, 0x41];
    body.extend([0x80, 0x80, 0x80, 0x80, 0x04, 0x49, 0x0d, 0, 0x0b, 0x0b]);
    component::starting_with(&body)
}

/// A core module with a memory of 32 MiB.
fn large_from_the_start() -> Vec<u8> {
    [b"\0asm\x01\0\0\0".to_vec(), section(5, &[1, 0, 0x80, 0x04])].concat()
}

fn name(name: &str) -> Vec<u8> {
    [&[0, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
}

/// A component that imports an empty instance under one name, and exports an empty one under another.
fn importing_and_exporting(import: Option<&str>, export: &str) -> Vec<u8> {
    let mut bytes = component::EMPTY.to_vec();
    if let Some(import) = import {
        bytes.extend(section(7, &[1, 0x42, 0]));
        bytes.extend(section(10, &[&[1], name(import).as_slice(), &[5, 0]].concat()));
    }
    bytes.extend(section(5, &[1, 1, 0]));
    let instance = u8::from(import.is_some());
    bytes.extend(section(11, &[&[1], name(export).as_slice(), &[5, instance, 0]].concat()));
    bytes
}

#[tokio::test]
async fn a_file_that_is_no_handler_is_refused_in_words() {
    let folder = folder();
    let missing = folder.load(&folder.path("nowhere.wasm")).await.unwrap_err();
    assert!(matches!(missing, LoadError::Read { .. }) && missing.to_string().contains("nowhere.wasm"), "{missing}");
    let (error, text) = folder.refused(b"\0asm\x01\0\0\0").await;
    assert!(matches!(error, LoadError::CoreModule { .. }) && text.contains("wasm-tools component new"), "{text}");
    assert!(matches!(folder.refused(b"").await.0, LoadError::NotWasm { .. }));
    assert!(matches!(folder.refused(b"#!/bin/sh").await.0, LoadError::NotWasm { .. }));
    let (error, text) = folder.refused(component::EMPTY).await;
    assert!(matches!(error, LoadError::MissingExport { .. }) && text.contains("it exports nothing"), "{text}");
}

#[tokio::test]
async fn a_truncated_module_is_called_truncated() {
    let (folder, whole) = (folder(), plain());
    for length in [4, 7, 9, whole.len() / 2, whole.len() - 1] {
        let (error, text) = folder.refused(&whole[..length]).await;
        assert!(matches!(error, LoadError::Truncated { .. }), "{length} bytes: {text}");
    }
    let mut broken = whole.clone();
    broken[whole.len() / 2..][..64].fill(0xff);
    let (error, text) = folder.refused(&broken).await;
    assert!(matches!(error, LoadError::Invalid { .. }), "{text}");
    assert_eq!(folder.code().len(), 0, "nothing of this is cached");
}

#[tokio::test]
async fn what_this_host_does_not_know_is_named() {
    let folder = folder();
    let handler = "hapax:handler/handler@0.1.0";
    let (_, text) = folder.refused(&importing_and_exporting(Some("acme:thing/x@1.0.0"), handler)).await;
    assert!(text.contains("imports acme:thing/x@1.0.0, which this host does not have"), "{text}");
    let (_, text) = folder.refused(&importing_and_exporting(None, "hapax:handler/handler@0.2.0")).await;
    assert!(text.contains("uses hapax:handler/handler@0.2.0; this host has version 0.1.0"), "{text}");
    let (_, text) = folder.refused(&importing_and_exporting(Some("hapax:handler/sql@0.2.0"), handler)).await;
    assert!(text.contains("uses hapax:handler/sql@0.2.0"), "{text}");
    // The name is right, and there is no function in it.
    let (error, text) = folder.refused(&importing_and_exporting(None, handler)).await;
    assert!(matches!(error, LoadError::MissingExport { .. }), "{text}");
}

#[tokio::test]
pub(crate) async fn wrong_world_is_named_with_what_it_exports() {
    let folder = folder();
    let error = folder.load(&guest_path("wrong_world")).await.unwrap_err();
    assert!(matches!(error, LoadError::MissingExport { .. }), "{error}");
    assert!(error.to_string().contains("it exports other:thing/greeter@1.2.3"), "{error}");
    let inspection = Module::inspect(engine(), &folder.cache, &guest_path("wrong_world"), MEMORY).await.unwrap();
    assert_eq!(inspection.world, None);
    assert!(inspection.imports.contains(&("other:thing/wishes@1.2.3".to_owned(), ImportStatus::Missing)));
}

#[tokio::test]
pub(crate) async fn plain_is_inspected_and_has_no_compensation() {
    let folder = folder();
    let inspection = Module::inspect(engine(), &folder.cache, &guest_path("plain"), MEMORY).await.unwrap();
    assert_eq!(inspection.world, Some("message-handler"));
    assert!(inspection.problem.is_none(), "{:?}", inspection.problem);
    let sql = ("hapax:handler/sql@0.1.0".to_owned(), ImportStatus::NeedsGrant(NeededGrant::Tables));
    assert!(inspection.imports.contains(&sql), "{:?}", inspection.imports);
    assert_eq!(inspection.findings(&Grants::default()), [GrantFinding::NoTables]);
    let module = folder.load(&guest_path("plain")).await.unwrap();
    assert!(!module.has_compensation);
    let chaos = Module::inspect(engine(), &folder.cache, &guest_path("chaos"), MEMORY).await.unwrap();
    assert_eq!(chaos.world, Some("compensating-handler"));
}

#[tokio::test]
async fn a_module_is_compiled_once_and_a_spoilt_cache_is_never_loaded() {
    let folder = folder();
    let path = folder.put(&plain());
    folder.load(&path).await.unwrap();
    let [code] = folder.code().try_into().unwrap();
    let good = fs::read(&code).unwrap();
    let written = fs::metadata(&code).unwrap().created().ok();
    folder.load(&path).await.unwrap();
    assert_eq!(fs::metadata(&code).unwrap().created().ok(), written, "the second load compiles nothing");

    let mut altered = good.clone();
    altered[good.len() / 2] ^= 1;
    for spoilt in [altered, good[..good.len() / 2].to_vec(), Vec::new(), plain()] {
        fs::write(&code, &spoilt).unwrap();
        folder.load(&path).await.unwrap();
        assert!(fs::read(&code).unwrap() == good, "compiled again");
    }
    // An index that points at the right checksum of the wrong thing: code of another engine, or none at all.
    let index = fs::read_dir(folder.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    let index = index.into_iter().find(|path| path.extension().is_some_and(|e| e == "index")).unwrap();
    for foreign in ["", "no checksum", "../../../etc/passwd", &"0".repeat(64)] {
        fs::write(&index, foreign).unwrap();
        folder.load(&path).await.unwrap();
    }
    assert_eq!(folder.code().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_may_compile_the_same_module_at_once() {
    let folder = folder();
    let path = folder.put(&plain());
    let child = Compiler::Child(env!("CARGO_BIN_EXE_compile-child").into());
    // Two caches on one directory, as in two processes: nothing but the directory is shared.
    let caches = [child, Compiler::InProcess].map(|c| ModuleCache::open(folder.path("cache"), c).unwrap());
    let [first, second] = &caches;
    let load = |cache| Module::load(engine(), cache, &path, MEMORY);
    let (first, second) = tokio::join!(load(first), load(second));
    assert_eq!(first.unwrap().digest, second.unwrap().digest);
    let leftovers = fs::read_dir(folder.path("cache")).unwrap().count() - folder.code().len();
    assert_eq!(leftovers, 1, "one index, no temporary files");
}

#[tokio::test]
async fn the_compiler_may_fail_in_any_way() {
    let folder = folder();
    let path = folder.put(&plain());
    let with = |program: &str, limit| {
        let cache = ModuleCache::open(folder.path("cache"), Compiler::Child(program.into())).unwrap();
        let (cache, path) = (cache.with_compile_limit(limit), path.clone());
        async move { Module::load(engine(), &cache, &path, MEMORY).await.unwrap_err() }
    };
    let minute = Duration::from_secs(60);
    let error = with("/nowhere/hapax", minute).await;
    assert!(matches!(error, LoadError::Compiler { .. }) && error.to_string().contains("cannot start"), "{error}");
    let error = with("/bin/false", minute).await;
    let failed = error.to_string().contains("the compiler failed: exit status");
    assert!(matches!(error, LoadError::Compiler { .. }) && failed, "{error}");
    let script = folder.path("hangs");
    fs::write(&script, "#!/bin/sh\nexec /bin/sleep 60\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let error = with(script.to_str().unwrap(), Duration::from_millis(100)).await;
    assert!(matches!(error, LoadError::CompileTime { .. }), "{error}");
    let child = env!("CARGO_BIN_EXE_compile-child");
    let mut broken = plain();
    let middle = broken.len() / 2;
    broken[middle..][..64].fill(0xff);
    folder.put(&broken);
    let error = with(child, minute).await;
    assert!(matches!(error, LoadError::Invalid { .. }), "the child says what is wrong: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_takes_the_good_and_leaves_the_bad() {
    let folder = folder();
    let path = folder.put(&plain());
    let slot = ModuleSlot::load(engine(), &folder.cache, &path, MEMORY).await.unwrap();
    let first = slot.current().digest;
    #[expect(clippy::disallowed_methods, reason = "a few swaps, told from a callback that cannot wait")]
    let (sender, mut swaps) = mpsc::unbounded_channel();
    let _watch = slot.watch(move |result| {
        sender.send(result.map(|module| module.digest).map_err(ToString::to_string)).unwrap();
    });
    let mut guest = LaneGuest::new(Arc::clone(&slot), consumer(|_| {}));
    assert_eq!(guest.call(attempt(&json!("")), Fake::default().boxed()).await.module, first);
    tokio::time::sleep(Duration::from_millis(200)).await;

    // By renaming, as a deployment should.
    fs::write(folder.path("new"), rebuilt(&plain(), &[1])).unwrap();
    fs::rename(folder.path("new"), &path).unwrap();
    let second = next(&mut swaps).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(slot.current().digest, second);
    let finished = guest.call(attempt(&json!("")), Fake::default().boxed()).await;
    assert_eq!(finished.module, first, "a batch ends on the module it began with");
    guest.pin();
    assert_eq!(guest.call(attempt(&json!("")), Fake::default().boxed()).await.module, second);

    // A module that fails changes nothing.
    fs::write(folder.path("new"), b"\0asm\x01\0\0\0").unwrap();
    fs::rename(folder.path("new"), &path).unwrap();
    assert!(next(&mut swaps).await.unwrap_err().contains("core module"));
    assert_eq!(slot.current().digest, second);

    // In place and slowly, as an editor or a copy does: no half of it is ever taken, nor reported.
    let third = rebuilt(&plain(), &[2]);
    let mut file = fs::File::create(&path).unwrap();
    for piece in third.chunks(third.len() / 4) {
        std::io::Write::write_all(&mut file, piece).unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let swapped = next(&mut swaps).await.unwrap();
    assert!(swapped != second && swapped == slot.current().digest);
    assert!(swaps.try_recv().is_err());
    assert_eq!(guest.pin().digest, swapped);
    assert_eq!(guest.call(attempt(&json!("")), Fake::default().boxed()).await.module, swapped);
}

async fn next<T>(swaps: &mut mpsc::UnboundedReceiver<T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), swaps.recv()).await.expect("a swap in time").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_takes_too_long_fails_the_attempt_and_keeps_the_connection_alive() {
    let folder = folder();
    let path = folder.put(&with_core_module(&plain(), &slow_to_start()));
    let slot = ModuleSlot::load(engine(), &folder.cache, &path, MEMORY).await.unwrap();
    let consumer = consumer(|settings| {
        settings.limits.time = Duration::from_millis(200);
        settings.ping_every = Duration::from_millis(20);
    });
    let (mut guest, fake) = (LaneGuest::new(slot, consumer), Fake::default());
    let finished = guest.call(attempt(&json!("")), fake.boxed()).await;
    let Verdict::Failed(failure) = &finished.verdict else { panic!("{:?}", finished.verdict) };
    assert_eq!(failure.code.as_deref(), Some("timeout"));
    assert!(failure.message.contains("still starting after 200ms"), "{}", failure.message);
    assert!(finished.elapsed < Duration::from_millis(700), "{:?}", finished.elapsed);
    assert!(finished.connection.is_some() && !finished.touched_sql);
    assert!(fake.count("ping") >= 2, "{:?}", fake.sent());
}

#[tokio::test]
async fn a_module_that_needs_more_memory_than_its_consumer_has_is_refused() {
    let folder = folder();
    let large = with_core_module(&plain(), &large_from_the_start());
    let path = folder.put(&plain());
    let slot = ModuleSlot::load(engine(), &folder.cache, &path, 16 << 20).await.unwrap();
    let first = slot.current().digest;
    folder.put(&large);
    let error = slot.reload().await.unwrap_err();
    assert!(matches!(error, LoadError::Start { .. }), "{error}");
    assert!(error.to_string().contains("memory limit of 16 MiB reached"), "{error}");
    assert_eq!(slot.current().digest, first, "the one that works goes on");
    // Another consumer may allow more.
    ModuleSlot::load(engine(), &folder.cache, &path, MEMORY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_that_failed_for_a_passing_reason_is_made_up_for() {
    let folder = folder();
    let path = folder.put(&plain());
    let script = folder.path("compiler");
    let (child, ready) = (env!("CARGO_BIN_EXE_compile-child"), folder.path("ready"));
    let busy = format!("#!/bin/sh\n[ -e '{}' ] || exit 1\nexec '{child}' \"$@\"\n", ready.display());
    fs::write(&script, busy).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::write(&ready, "").unwrap();
    let cache = Arc::new(ModuleCache::open(folder.path("cache"), Compiler::Child(script)).unwrap());
    let slot = ModuleSlot::load(engine(), &cache, &path, MEMORY).await.unwrap();
    let first = slot.current().digest;
    #[expect(clippy::disallowed_methods, reason = "a few swaps, told from a callback that cannot wait")]
    let (sender, mut swaps) = mpsc::unbounded_channel();
    let _watch = slot.watch(move |result| {
        sender.send(result.map(|module| module.digest).map_err(ToString::to_string)).unwrap();
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    fs::remove_file(&ready).unwrap();
    fs::write(folder.path("new"), rebuilt(&plain(), &[1])).unwrap();
    fs::rename(folder.path("new"), &path).unwrap();
    let refused = next(&mut swaps).await.unwrap_err();
    assert!(refused.contains("the compiler failed"), "{refused}");
    assert_eq!(slot.current().digest, first);
    fs::write(&ready, "").unwrap();
    let second = next(&mut swaps).await.unwrap();
    assert!(second != first && second == slot.current().digest);
}

#[tokio::test]
async fn an_attempt_in_flight_ends_on_the_module_it_started_on() {
    let folder = folder();
    let path = folder.path("handler.wasm");
    fs::copy(guest_path("chaos"), &path).unwrap();
    let slot = ModuleSlot::load(engine(), &folder.cache, &path, MEMORY).await.unwrap();
    let old = slot.current().digest;
    let mut guest = LaneGuest::new(Arc::clone(&slot), consumer(|_| {}));
    let swap = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fs::write(&path, rebuilt(&plain(), &[9])).unwrap();
        slot.reload().await.unwrap().expect("another module");
    };
    let call = guest.call(attempt(&json!([{"sleep-ms": 1500}])), Fake::default().boxed());
    let (finished, ()) = tokio::join!(call, swap);
    assert_eq!((finished.verdict, finished.module), (Verdict::Ok, old));
    assert_ne!(slot.current().digest, old);
    assert_eq!(bench().await.module.short_digest().len(), 16);
}
