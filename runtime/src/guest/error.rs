//! Why a module cannot be used. Every error names the file, and says what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::engine::EngineError;

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: {source}; is `module` the path of a component, seen from the config file?", path.display())]
    Read {
        /// The module.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too large to be a handler.
    #[error("{}: has {bytes} bytes; modules may have {limit}", path.display())]
    TooLarge {
        /// The module.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Not WebAssembly at all.
    #[error("{}: is not a WebAssembly component: {hint}", path.display())]
    NotWasm {
        /// The module.
        path: PathBuf,
        /// What it seems to be, and what to do.
        hint: &'static str,
    },
    /// A core module.
    #[error(
        "{}: this is a core module, not a component; \
         build for wasm32-wasip2 or wrap it with `wasm-tools component new`",
        path.display()
    )]
    CoreModule {
        /// The module.
        path: PathBuf,
    },
    /// It ends too early.
    #[error("{}: is truncated: {missing} bytes are missing; copy it again, and replace modules by renaming", path.display())]
    Truncated {
        /// The module.
        path: PathBuf,
        /// How many bytes its last section lacks, at least.
        missing: u64,
    },
    /// It is broken, or uses a feature of WebAssembly that is not supported.
    #[error("{}: is not a valid component: {reason}", path.display())]
    Invalid {
        /// The module.
        path: PathBuf,
        /// The validator's words.
        reason: String,
    },
    /// It was compiled for another world.
    #[error(
        "{}: does not export {missing}, so it is not a message handler; it exports {}. \
         Build it for the world hapax:handler/message-handler@{}",
        path.display(),
        list(exports),
        super::CONTRACT
    )]
    MissingExport {
        /// The module.
        path: PathBuf,
        /// What a handler exports.
        missing: &'static str,
        /// What this one exports.
        exports: Vec<String>,
    },
    /// It was compiled for a version of the contract that this host does not have.
    #[error(
        "{}: uses {name}; this host has version {} of the contract. Rebuild the handler, or use a newer host",
        path.display(),
        super::CONTRACT
    )]
    OtherVersion {
        /// The module.
        path: PathBuf,
        /// The import or export.
        name: String,
    },
    /// It imports what this host does not know.
    #[error("{}: imports {}, which this host does not have; handlers may import hapax:handler and WASI 0.2", path.display(), list(imports))]
    UnknownImport {
        /// The module.
        path: PathBuf,
        /// The imports.
        imports: Vec<String>,
    },
    /// An import or export has another type than the contract says.
    #[error("{}: does not fit the contract: {reason}", path.display())]
    Link {
        /// The module.
        path: PathBuf,
        /// The linker's words.
        reason: String,
    },
    /// It cannot even start.
    #[error("{}: links, but fails to start: {reason}", path.display())]
    Start {
        /// The module.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The compiler itself failed.
    #[error("{}: the compiler failed: {reason}", path.display())]
    Compiler {
        /// The module.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The compiler took too long.
    #[error("{}: compiling took longer than {limit:?} and was stopped", path.display())]
    CompileTime {
        /// The module.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// The cache cannot be used.
    #[error("module cache {}: {reason}", dir.display())]
    Cache {
        /// The cache's directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no place in the pool to check it in.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl LoadError {
    /// True where the same file may load in a moment: it was being written, or the machine was busy. False where the
    /// file itself must change.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Read { .. }
                | Self::Truncated { .. }
                | Self::Compiler { .. }
                | Self::CompileTime { .. }
                | Self::Cache { .. }
                | Self::Engine(_)
        )
    }
}

/// Names in a row; `nothing` for none.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names.len() {
        0 => "nothing".to_owned(),
        n if n > SHOWN => format!("{}, … ({n} in all)", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}
