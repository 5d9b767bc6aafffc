//! Where the programs and modules lie that are measured, and what is not there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::stage::Place;
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
            Program::Script { language, .. } => self.script(*language).map(drop),
            Program::Bare { .. } | Program::Classic { .. } | Program::LookUp { .. } => Ok(()),
        };
        found.err().map(|error| error.to_string())
    }

    /// The command that runs the classic recipe in that language on a place.
    ///
    /// # Errors
    /// When something is missing.
    pub(crate) fn script_command(
        &self,
        language: Language,
        place: &Place,
        workers: u16,
        processes: u16,
    ) -> Result<(PathBuf, Vec<OsString>)> {
        let Script { interpreter, file } = self.script(language)?;
        let mut args: Vec<OsString> = vec![file.into()];
        args.extend(["--amqp".into(), place.vhost.url().into(), "--redis".into(), place.locks.url().into()]);
        args.extend(["--database".into(), (&place.database).into()]);
        args.extend(["--workers".into(), workers.to_string().into()]);
        args.extend(["--processes".into(), processes.to_string().into()]);
        Ok((interpreter, args))
    }

    fn script(&self, language: Language) -> Result<Script> {
        match language {
            Language::Python => Ok(Script {
                interpreter: there(self.toolchains.join("classic-python/bin/python"))?,
                file: there(Path::new(SOURCES).join("classic/python/classic.py"))?,
            }),
            Language::Node => {
                let folder = self.toolchains.join("classic-node");
                there(folder.join("node_modules"))?;
                let source = there(Path::new(SOURCES).join("classic/node/classic.mjs"))?;
                // ES modules look for packages in folders above their own file, and nowhere else.
                copy_modules(&source, &folder)?;
                Ok(Script { interpreter: "node".into(), file: folder.join("classic.mjs") })
            }
        }
    }
}

struct Script {
    interpreter: PathBuf,
    file: PathBuf,
}

fn there(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "there is no {}: run `make bench`", path.display());
    Ok(path)
}

/// Copies a module and those beside it into `folder`.
fn copy_modules(source: &Path, folder: &Path) -> Result<()> {
    let beside = source.parent().context("a script in no folder")?;
    for entry in std::fs::read_dir(beside).with_context(|| format!("reading {}", beside.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|extension| extension == "mjs"))
        else {
            continue;
        };
        std::fs::copy(&path, folder.join(name)).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}
