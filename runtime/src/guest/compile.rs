//! From the bytes of a component to machine code, in a child process: compiling a large guest takes seconds and leaves
//! hundreds of megabytes behind, and a bug of the compiler should not take the host along.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use super::engine::code_config;
use super::error::LoadError;

/// The hidden subcommand of the binary that runs [`child_main`].
pub const CHILD_COMMAND: &str = "__compile";

/// The child's exit code for a component that is not valid (`EX_DATAERR`); its standard error says why.
const INVALID: u8 = 65;

/// Where modules are compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// In a child: this program with [`CHILD_COMMAND`], which must call [`child_main`].
    Child(PathBuf),
    /// In this process: for tests and small tools.
    InProcess,
}

impl Compiler {
    /// A child that is the program that runs now.
    pub fn current_exe() -> std::io::Result<Self> {
        Ok(Self::Child(std::env::current_exe()?))
    }

    /// Compiles the component in the file `input` to the file `output`. `path` is the module's own name, for errors.
    pub(crate) async fn run(&self, path: &Path, input: &Path, output: &Path, limit: Duration) -> Result<(), LoadError> {
        match self {
            Self::Child(program) => run_child(program, path, input, output, limit).await,
            Self::InProcess => {
                let (input, output) = (input.to_owned(), output.to_owned());
                let compiled = tokio::task::spawn_blocking(move || compile_file(&input, &output)).await;
                match compiled {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(CompileError::Invalid(reason))) => Err(invalid(path, reason)),
                    Ok(Err(CompileError::Io(reason))) => Err(failed(path, reason)),
                    Err(panic) => Err(failed(path, panic.to_string())),
                }
            }
        }
    }
}

fn failed(path: &Path, reason: String) -> LoadError {
    LoadError::Compiler { path: path.to_owned(), reason }
}

fn invalid(path: &Path, reason: String) -> LoadError {
    LoadError::Invalid { path: path.to_owned(), reason }
}

async fn run_child(program: &Path, path: &Path, input: &Path, output: &Path, limit: Duration) -> Result<(), LoadError> {
    let child = tokio::process::Command::new(program)
        .arg(CHILD_COMMAND)
        .arg(input)
        .arg(output)
        // The environment may hold passwords, and the compiler needs nothing of it.
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(path, format!("cannot start {}: {error}", program.display())))?;
    let ended = match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(ended) => ended.map_err(|error| failed(path, error.to_string()))?,
        Err(_) => return Err(LoadError::CompileTime { path: path.to_owned(), limit }),
    };
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    if ended.status.code() == Some(i32::from(INVALID)) {
        return Err(invalid(path, said));
    }
    // A signal, most likely from a machine out of memory, leaves no words.
    Err(failed(path, format!("{}: {said}", ended.status)))
}

/// The child's `main`: compiles the component in the first argument to the file in the second. Its environment and
/// arguments come from [`Compiler::Child`] and nobody else.
pub fn child_main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(input), Some(output), None) = (args.next(), args.next(), args.next()) else {
        return say(2, &format!("usage: {CHILD_COMMAND} INPUT OUTPUT"));
    };
    match compile_file(Path::new(&input), Path::new(&output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CompileError::Invalid(reason)) => say(INVALID, &reason),
        Err(CompileError::Io(reason)) => say(1, &reason),
    }
}

fn say(code: u8, words: &str) -> ExitCode {
    // The parent reads it; if it is gone, nobody does.
    let _ = writeln!(std::io::stderr(), "{words}");
    ExitCode::from(code)
}

enum CompileError {
    Invalid(String),
    Io(String),
}

fn compile_file(input: &Path, output: &Path) -> Result<(), CompileError> {
    let io = |path: &Path, error: std::io::Error| CompileError::Io(format!("{}: {error}", path.display()));
    let bytes = std::fs::read(input).map_err(|error| io(input, error))?;
    let engine = wasmtime::Engine::new(&code_config()).map_err(|error| CompileError::Io(format!("{error:#}")))?;
    let code = engine.precompile_component(&bytes).map_err(|error| CompileError::Invalid(format!("{error:#}")))?;
    let write = || {
        let mut file = std::fs::File::create(output)?;
        file.write_all(&code)?;
        file.sync_all()
    };
    write().map_err(|error| io(output, error))
}

/// Tells a component from everything else by its first bytes.
pub(crate) fn identify(path: &Path, bytes: &[u8]) -> Result<(), LoadError> {
    let not_wasm = |hint| Err(LoadError::NotWasm { path: path.to_owned(), hint });
    match bytes {
        [] => not_wasm("the file is empty"),
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, sections @ ..] => match missing_bytes(sections) {
            None => Ok(()),
            Some(missing) => Err(LoadError::Truncated { path: path.to_owned(), missing }),
        },
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(LoadError::CoreModule { path: path.to_owned() }),
        [0, b'a', b's', b'm', ..] if bytes.len() < 8 => {
            Err(LoadError::Truncated { path: path.to_owned(), missing: 8 - bytes.len() as u64 })
        }
        [0, b'a', b's', b'm', ..] => not_wasm("it has a binary version that this host does not know"),
        [0x7f, b'E', b'L', b'F', ..] => not_wasm("it is machine code; give the .wasm file that it was compiled from"),
        _ if bytes.trim_ascii_start().starts_with(b"(") => {
            not_wasm("it seems to be WebAssembly text; assemble it with `wasm-tools parse`")
        }
        _ => not_wasm("it does not start like WebAssembly"),
    }
}

/// How many bytes the last section lacks, at least; none if it is whole. A component is a row of sections, each an id,
/// a length and that many bytes, so half a file is told from a whole one without reading what it says.
fn missing_bytes(mut sections: &[u8]) -> Option<u64> {
    while let [_id, rest @ ..] = sections {
        let Some((length, payload)) = leb128(rest) else { return Some(1) };
        match usize::try_from(length).ok().and_then(|length| payload.get(length..)) {
            Some(next) => sections = next,
            None => return Some(length.saturating_sub(payload.len() as u64)),
        }
    }
    None
}

/// An unsigned number as WebAssembly writes it, and what follows it.
fn leb128(bytes: &[u8]) -> Option<(u64, &[u8])> {
    // Five bytes hold the 32 bits that a section's length may have.
    let last = bytes.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    let number = bytes[..=last].iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f));
    Some((number, &bytes[last + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_component_is_told_what_it_is() {
        let error = |bytes: &[u8]| identify(Path::new("h.wasm"), bytes).unwrap_err().to_string();
        assert!(error(b"").contains("empty"));
        assert!(error(b"\0asm\x01\0\0\0").contains("core module"));
        assert!(error(b"\0asm").contains("truncated"));
        assert!(error(b"\0asm\x02\0\0\0").contains("version"));
        assert!(error(b"\x7fELF").contains("machine code"));
        assert!(error(b" (component)").contains("wasm-tools parse"));
        assert!(error(b"GIF89a").contains("does not start like"));
        assert!(identify(Path::new("h.wasm"), b"\0asm\x0d\0\x01\0").is_ok());
    }

    #[test]
    fn half_a_component_is_known_by_its_last_section() {
        let section: Vec<u8> = [&[0, 0x80, 0x01], [7; 128].as_slice()].concat();
        assert_eq!(missing_bytes(&section.repeat(2)), None);
        assert_eq!(missing_bytes(&section[..100]), Some(31));
        assert_eq!(missing_bytes(&[0]), Some(1));
        assert_eq!(missing_bytes(&[0, 0x80]), Some(1));
        assert_eq!(missing_bytes(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Some(1), "no length has six bytes");
    }
}
