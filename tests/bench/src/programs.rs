//! Where the programs and modules lie that are measured, and what is not there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use hapax_tests::proc::Launch;

use crate::variant::{Handler, Language, Program, Variant};

/// The bench's own folder in the sources.
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// Who finds what the build left.
pub(crate) struct Programs {
    target: PathBuf,
    toolchains: PathBuf,
}

impl Programs {
    /// Looks from this program, which lies in target/PROFILE.
    ///
    /// # Errors
    /// When this program's own path is unknown.
    pub(crate) fn find() -> Result<Self> {
        let exe = std::env::current_exe().context("finding this program's own path")?;
        let target = exe.ancestors().nth(2).context("this program lies in no target folder")?.to_owned();
        let toolchains = std::env::var_os("HAPAX_TOOLCHAINS").map_or_else(|| target.join("toolchains"), PathBuf::from);
        Ok(Self { target, toolchains })
    }

    /// The handler in that language.
    ///
    /// # Errors
    /// When it was not built.
    pub(crate) fn module(&self, handler: Handler) -> Result<PathBuf> {
        there(self.target.join(match handler {
            Handler::Rust => "wasm32-wasip2/release/stock.wasm",
            Handler::Python => "guests/stock_python.wasm",
            Handler::TypeScript => "guests/stock_typescript.wasm",
        }))
    }

    /// Why a variant cannot be measured here, if so: some need compilers and packages of other languages.
    pub(crate) fn missing(&self, variant: &Variant) -> Option<String> {
        let found = match &variant.program {
            Program::Hapax(hapax) => self.module(hapax.handler).map(drop),
            Program::Script { language, .. } => self.script(*language, Vec::new()).map(drop),
            Program::Bare { .. } | Program::Classic { .. } | Program::LookUp { .. } => Ok(()),
        };
        found.err().map(|error| error.to_string())
    }

    /// The classic recipe in that language, about to be started with these arguments.
    ///
    /// # Errors
    /// When something is missing.
    pub(crate) fn script(&self, language: Language, args: Vec<OsString>) -> Result<Launch> {
        let script = |file: &str| there(Path::new(SOURCES).join("classic").join(file));
        let with_args = |script: PathBuf| std::iter::once(script.into_os_string()).chain(args);
        Ok(match language {
            Language::Python => {
                let python = there(self.toolchains.join("classic-python/bin/python"))?;
                Launch::program(python, with_args(script("python/classic.py")?))
            }
            Language::Node => {
                let packages = there(self.toolchains.join("classic-node/node_modules"))?;
                Launch::program("node", with_args(script("node/classic.mjs")?)).env("NODE_PATH", packages)
            }
        })
    }
}

fn there(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "there is no {}: run `make bench`", path.display());
    Ok(path)
}
