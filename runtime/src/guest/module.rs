//! A module: a component that was compiled, linked and checked, ready to be instantiated any number of times.

use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

use super::cache::{ModuleCache, hex};
use super::compile::identify;
use super::engine::Engine;
use super::error::LoadError;
use super::grants::{ConsumerContext, Grants, Limits};
use super::host;
use super::instance::{Instance, InstanceError};
use super::state::State;
use super::{Failure, ModuleDigest};
use crate::ledger::database::Dialect;
use crate::sabotage::{self, Breach};

/// Version of the contract that this host has.
pub(crate) const CONTRACT: &str = "0.1.0";
/// What a handler exports.
pub(crate) const HANDLER: &str = "hapax:handler/handler@0.1.0";
/// What a handler that can compensate exports.
pub(crate) const COMPENSATION: &str = "hapax:handler/compensation@0.1.0";

const CONTRACT_PACKAGE: &str = "hapax:handler/";
const CONTRACT_INTERFACES: [&str; 4] = ["types", "context", "sql", "outbox"];
const WASI_PACKAGES: [&str; 6] =
    ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];

/// Largest module in bytes.
const MAX_MODULE: u64 = 256 << 20;
/// How long a module may take to start when it is checked.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A handler component, compiled and checked.
pub struct Module {
    /// The SHA-256 of its bytes: its name in the inbox, in logs and in metrics.
    pub digest: ModuleDigest,
    /// Where it was loaded from.
    pub path: PathBuf,
    /// It exports `compensation`.
    pub has_compensation: bool,
    /// Interfaces that it imports, in its order.
    pub imports: Vec<String>,
    /// What it exports, in its order.
    pub exports: Vec<String>,
    pub(crate) pre: InstancePre<State>,
    pub(crate) handle: ComponentExportIndex,
    pub(crate) compensate: Option<ComponentExportIndex>,
    pub(crate) engine: Engine,
}

impl Module {
    /// Reads, compiles, links and starts a module once, in as much memory as its consumer's instances will have. What
    /// comes back can be instantiated there.
    pub async fn load(engine: &Engine, cache: &ModuleCache, path: &Path, memory: u64) -> Result<Arc<Self>, LoadError> {
        Self::from_bytes(engine, cache, path, read(path).await?, memory).await
    }

    /// The same for a file that was read before.
    pub(crate) async fn from_bytes(
        engine: &Engine,
        cache: &ModuleCache,
        path: &Path,
        bytes: Vec<u8>,
        memory: u64,
    ) -> Result<Arc<Self>, LoadError> {
        let (digest, component) = compile(engine, cache, path, bytes).await?;
        let shape = Shape::of(&component);
        shape.check(path)?;
        let module = Arc::new(link(engine, path, digest, &component, shape)?);
        if !sabotage::broken(Breach::ModuleUnchecked) {
            start_once(&module, memory).await?;
        }
        Ok(module)
    }

    /// The first 8 bytes of the digest: what an inbox row keeps.
    pub fn inbox_digest(&self) -> [u8; 8] {
        let mut short = [0; 8];
        short.copy_from_slice(&self.digest[..8]);
        short
    }

    /// The first 8 bytes of the digest in hex: how people see it.
    pub fn short_digest(&self) -> String {
        hex(&self.digest[..8])
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("digest", &self.short_digest()).field("path", &self.path).finish_non_exhaustive()
    }
}

/// What a component says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
}

/// What an import is to this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Import {
    /// Part of the contract.
    Contract,
    /// WASI, real but empty.
    Wasi,
    /// Known, and calls are refused.
    Denied,
    /// The contract in a version that this host does not have.
    OtherVersion,
    /// Not known.
    Unknown,
}

impl Shape {
    pub(crate) fn of(component: &Component) -> Self {
        let (engine, ty) = (component.engine(), component.component_type());
        Self {
            imports: ty.imports(engine).map(|(name, _)| name.to_owned()).collect(),
            exports: ty.exports(engine).map(|(name, _)| name.to_owned()).collect(),
        }
    }

    /// The errors that need no linker, in words better than a linker's.
    pub(crate) fn check(&self, path: &Path) -> Result<(), LoadError> {
        let path = path.to_owned();
        let contract = |name: &&String| name.starts_with(CONTRACT_PACKAGE) && !is_contract_version(name);
        if let Some(name) = self.imports.iter().chain(&self.exports).find(contract) {
            return Err(LoadError::OtherVersion { path, name: name.clone() });
        }
        if !self.exports.iter().any(|name| name.starts_with("hapax:handler/handler@")) {
            return Err(LoadError::MissingExport { path, missing: HANDLER, exports: self.exports.clone() });
        }
        let imports: Vec<_> = self.imports.iter().filter(|name| classify(name) == Import::Unknown).cloned().collect();
        if !imports.is_empty() {
            return Err(LoadError::UnknownImport { path, imports });
        }
        Ok(())
    }
}

/// Says what an import is to this host.
pub(crate) fn classify(import: &str) -> Import {
    if let Some(rest) = import.strip_prefix(CONTRACT_PACKAGE) {
        let interface = rest.split('@').next().unwrap_or_default();
        return match () {
            () if !is_contract_version(import) => Import::OtherVersion,
            () if CONTRACT_INTERFACES.contains(&interface) => Import::Contract,
            () => Import::Unknown,
        };
    }
    if host::denied::is_denied(import) {
        return Import::Denied;
    }
    let wasi_0_2 = import.rsplit_once('@').is_some_and(|(_, version)| version.starts_with("0.2."));
    if wasi_0_2 && WASI_PACKAGES.iter().any(|package| import.starts_with(package)) {
        return Import::Wasi;
    }
    Import::Unknown
}

/// Whether a name of the contract has a version that this host's is compatible with: 0.1.x.
fn is_contract_version(name: &str) -> bool {
    name.rsplit_once('@').is_some_and(|(_, version)| version.starts_with("0.1."))
}

/// Reads a module, up to a limit.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let path = path.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        let error = |source| LoadError::Read { path: path.clone(), source };
        let file = fs::File::open(&path).map_err(error)?;
        let mut bytes = Vec::new();
        file.take(MAX_MODULE + 1).read_to_end(&mut bytes).map_err(error)?;
        if bytes.len() as u64 > MAX_MODULE {
            let bytes = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(MAX_MODULE + 1);
            return Err(LoadError::TooLarge { path, bytes, limit: MAX_MODULE });
        }
        Ok(bytes)
    });
    task.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// The digest of a module's bytes.
pub(crate) fn digest(bytes: &[u8]) -> ModuleDigest {
    Sha256::digest(bytes).into()
}

pub(crate) async fn compile(
    engine: &Engine,
    cache: &ModuleCache,
    path: &Path,
    bytes: Vec<u8>,
) -> Result<(ModuleDigest, Component), LoadError> {
    identify(path, &bytes)?;
    let digest = digest(&bytes);
    let component = cache.component(engine, path, &digest, bytes).await?;
    Ok((digest, component))
}

fn link(
    engine: &Engine,
    path: &Path,
    digest: ModuleDigest,
    component: &Component,
    shape: Shape,
) -> Result<Module, LoadError> {
    let error = |error: wasmtime::Error| LoadError::Link { path: path.to_owned(), reason: format!("{error:#}") };
    let pre = linker(component).and_then(|linker| linker.instantiate_pre(component)).map_err(error)?;
    let function = |interface: &str, name: &str| {
        let interface = component.get_export_index(None, interface)?;
        component.get_export_index(Some(&interface), name)
    };
    let handle = function(HANDLER, "handle").ok_or_else(|| LoadError::MissingExport {
        path: path.to_owned(),
        missing: HANDLER,
        exports: shape.exports.clone(),
    })?;
    let compensate = function(COMPENSATION, "compensate");
    Ok(Module {
        digest,
        path: path.to_owned(),
        has_compensation: compensate.is_some(),
        imports: shape.imports,
        exports: shape.exports,
        pre,
        handle,
        compensate,
        engine: engine.clone(),
    })
}

pub(crate) fn linker(component: &Component) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(component.engine());
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    host::context::add_to_linker(&mut linker)?;
    host::sql::add_to_linker(&mut linker)?;
    host::outbox::add_to_linker(&mut linker)?;
    host::denied::add_to_linker(&mut linker, component)?;
    Ok(linker)
}

/// Makes one instance and throws it away: the types of the exports are checked, and the module's own start code runs.
async fn start_once(module: &Arc<Module>, memory: u64) -> Result<(), LoadError> {
    let path = module.path.clone();
    match Instance::new(module, &consumer_for_check(memory)).await {
        Ok(_instance) => Ok(()),
        Err(InstanceError::Engine(busy)) => Err(busy.into()),
        Err(InstanceError::Contract(reason)) => Err(LoadError::Link { path, reason }),
        Err(InstanceError::Start(Failure { message, detail, .. })) => {
            let reason = detail.map_or_else(|| message.clone(), |detail| format!("{message}\n{detail}"));
            Err(LoadError::Start { path, reason })
        }
    }
}

/// A consumer that grants nothing but memory. Were it more than the real one has, a module could pass here, replace one
/// that works, and then not start.
fn consumer_for_check(memory: u64) -> Arc<ConsumerContext> {
    let limits = Limits { memory, time: START_LIMIT, ..Limits::default() };
    let name = "(check)";
    let ping = Duration::from_secs(60);
    Arc::new(ConsumerContext::new(name, name, Dialect::Sqlite, Grants::default(), limits, None, ping))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(imports: &[&str], exports: &[&str]) -> Shape {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Shape { imports: owned(imports), exports: owned(exports) }
    }

    #[test]
    fn imports_are_known_by_package_and_version() {
        for (name, expected) in [
            ("hapax:handler/sql@0.1.0", Import::Contract),
            ("hapax:handler/sql@0.1.7", Import::Contract),
            ("hapax:handler/sql@0.2.0", Import::OtherVersion),
            ("hapax:handler/sql", Import::OtherVersion),
            ("hapax:handler/state@0.1.0", Import::Unknown),
            ("wasi:cli/environment@0.2.6", Import::Wasi),
            ("wasi:sockets/tcp@0.2.0", Import::Wasi),
            ("wasi:http/outgoing-handler@0.2.3", Import::Denied),
            ("wasi:cli/environment@0.3.0", Import::Unknown),
            ("wasi:nn/graph@0.2.0", Import::Unknown),
            ("acme:thing/x@1.0.0", Import::Unknown),
            ("print", Import::Unknown),
        ] {
            assert_eq!(classify(name), expected, "{name}");
        }
    }

    #[test]
    fn errors_name_what_is_missing_and_what_is_there() {
        let error = |shape: Shape| shape.check(Path::new("h.wasm")).unwrap_err().to_string();
        let text = error(shape(&[], &["wasi:cli/run@0.2.0"]));
        assert!(text.contains("does not export hapax:handler/handler@0.1.0"), "{text}");
        assert!(text.contains("it exports wasi:cli/run@0.2.0"), "{text}");
        let text = error(shape(&["acme:a/b@1.0.0"], &[HANDLER]));
        assert!(text.contains("imports acme:a/b@1.0.0"), "{text}");
        let text = error(shape(&[], &["hapax:handler/handler@0.2.0"]));
        assert!(text.contains("this host has version 0.1.0"), "{text}");
        assert!(shape(&["wasi:io/poll@0.2.6"], &[HANDLER]).check(Path::new("h.wasm")).is_ok());
    }
}
