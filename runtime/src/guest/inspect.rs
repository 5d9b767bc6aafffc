//! What `hapax check` says about a module: its world, its imports, and whether the grants suit them.

use std::path::{Path, PathBuf};

use super::ModuleDigest;
use super::cache::ModuleCache;
use super::engine::Engine;
use super::error::LoadError;
use super::grants::Grants;
use super::module::{COMPENSATION, Import, Module, Shape, classify, compile, read};

/// A module as seen from outside.
#[derive(Debug)]
pub struct Inspection {
    /// Where it is.
    pub path: PathBuf,
    /// The SHA-256 of its bytes.
    pub digest: ModuleDigest,
    /// Its size in bytes.
    pub bytes: u64,
    /// The world of the contract that it fits; none if it fits none.
    pub world: Option<&'static str>,
    /// What it imports, in its order.
    pub imports: Vec<(String, ImportStatus)>,
    /// What it exports, in its order.
    pub exports: Vec<String>,
    /// Why it cannot be used; none if it can.
    pub problem: Option<LoadError>,
}

/// What becomes of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStatus {
    /// The host provides it.
    Provided,
    /// It works if the consumer has grants for it.
    NeedsGrant(NeededGrant),
    /// It links, and every call is refused.
    Denied,
    /// This host does not have it: the module does not load.
    Missing,
}

/// Which grants an import needs to be of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeededGrant {
    /// `grants.tables`
    Tables,
    /// `grants.publish`
    Publish,
}

/// Something about grants that `hapax check` should mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantFinding {
    /// The module imports `sql`, and no table is granted.
    #[error("the module imports hapax:handler/sql, and `grants.tables` is empty: every statement will be denied")]
    NoTables,
    /// The module imports `outbox`, and no exchange is granted.
    #[error("the module imports hapax:handler/outbox, and `grants.publish` is empty: every message will be denied")]
    NoPublish,
    /// Tables are granted to a module that cannot use them.
    #[error("`grants.tables` is not used: the module does not import hapax:handler/sql")]
    UnusedTables,
    /// Exchanges are granted to a module that cannot use them.
    #[error("`grants.publish` is not used: the module does not import hapax:handler/outbox")]
    UnusedPublish,
}

impl Module {
    /// Looks at a module as [`Module::load`] does, and reports instead of failing: an error only where there is no
    /// component to report on.
    pub async fn inspect(
        engine: &Engine,
        cache: &ModuleCache,
        path: &Path,
        memory: u64,
    ) -> Result<Inspection, LoadError> {
        let bytes = read(path).await?;
        let size = bytes.len() as u64;
        let (digest, component) = compile(engine, cache, path, bytes.clone()).await?;
        let shape = Shape::of(&component);
        let problem = Self::from_bytes(engine, cache, path, bytes, memory).await.err();
        let imports = shape.imports.into_iter().map(|name| (status(&name), name)).map(|(s, n)| (n, s)).collect();
        let world = match &problem {
            Some(LoadError::MissingExport { .. } | LoadError::OtherVersion { .. } | LoadError::Link { .. }) => None,
            _ if shape.exports.iter().any(|name| same_interface(name, COMPENSATION)) => Some("compensating-handler"),
            _ => Some("message-handler"),
        };
        Ok(Inspection { path: path.to_owned(), digest, bytes: size, world, imports, exports: shape.exports, problem })
    }
}

impl Inspection {
    /// Compares what the module imports with what the consumer is granted. Grants of functions and config values cannot
    /// be compared: nobody sees which ones a module asks for.
    pub fn findings(&self, grants: &Grants) -> Vec<GrantFinding> {
        let needs = |grant| self.imports.iter().any(|(_, status)| *status == ImportStatus::NeedsGrant(grant));
        let tables = match (needs(NeededGrant::Tables), grants.tables.0.is_empty()) {
            (true, true) => Some(GrantFinding::NoTables),
            (false, false) => Some(GrantFinding::UnusedTables),
            _ => None,
        };
        let publish = match (needs(NeededGrant::Publish), grants.publish.is_empty()) {
            (true, true) => Some(GrantFinding::NoPublish),
            (false, false) => Some(GrantFinding::UnusedPublish),
            _ => None,
        };
        tables.into_iter().chain(publish).collect()
    }
}

fn status(import: &str) -> ImportStatus {
    match classify(import) {
        Import::Contract if same_interface(import, "hapax:handler/sql@") => {
            ImportStatus::NeedsGrant(NeededGrant::Tables)
        }
        Import::Contract if same_interface(import, "hapax:handler/outbox@") => {
            ImportStatus::NeedsGrant(NeededGrant::Publish)
        }
        Import::Contract | Import::Wasi => ImportStatus::Provided,
        Import::Denied => ImportStatus::Denied,
        Import::OtherVersion | Import::Unknown => ImportStatus::Missing,
    }
}

fn same_interface(a: &str, b: &str) -> bool {
    a.split('@').next() == b.split('@').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::grants::PublishGrant;

    fn inspection(imports: &[&str]) -> Inspection {
        Inspection {
            path: "h.wasm".into(),
            digest: [0; 32],
            bytes: 0,
            world: Some("message-handler"),
            imports: imports.iter().map(|&name| (name.to_owned(), status(name))).collect(),
            exports: Vec::new(),
            problem: None,
        }
    }

    #[test]
    fn grants_are_compared_with_imports() {
        let publish = vec![PublishGrant { exchange: String::new(), routing_key: "#".into() }];
        let granted = Grants { publish, ..Grants::default() };
        let both = inspection(&["hapax:handler/sql@0.1.0", "hapax:handler/outbox@0.1.0"]);
        assert_eq!(both.findings(&Grants::default()), [GrantFinding::NoTables, GrantFinding::NoPublish]);
        assert_eq!(both.findings(&granted), [GrantFinding::NoTables]);
        assert_eq!(inspection(&[]).findings(&granted), [GrantFinding::UnusedPublish]);
        assert_eq!(inspection(&["wasi:io/poll@0.2.6"]).findings(&Grants::default()), []);
    }
}
