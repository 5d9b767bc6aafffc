//! Interfaces that the host knows and no grant gives: they link, and calling them is refused.
//!
//! Some toolchains import what the code never calls, `wasi:http` for one. Refusing such a module at load would refuse
//! handlers that do nothing wrong.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, ResourceType};

use super::super::state::State;

/// Packages whose interfaces link without doing anything. Files and sockets of WASI need no line here: they are linked
/// for real, with no directory and no network behind them.
const PACKAGES: [&str; 4] = ["wasi:http/", "wasi:logging/", "wasi:config/", "wasi:keyvalue/"];

/// A guest called a function that it was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the handler called {interface}#{function}, which is not granted to it")]
pub(crate) struct NotGranted {
    interface: String,
    function: String,
}

/// Whether an import is known, and never granted.
pub(crate) fn is_denied(import: &str) -> bool {
    PACKAGES.iter().any(|package| import.starts_with(package))
}

/// Defines every denied import of `component` as functions that trap.
pub(crate) fn add_to_linker(linker: &mut Linker<State>, component: &Component) -> wasmtime::Result<()> {
    let engine = component.engine();
    // A resource belongs to the first import that names it; an interface that merely uses another one's names it again
    // and must not define it.
    let mut resources: Vec<ResourceType> = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(instance) = import.ty else { continue };
        let denied = is_denied(name);
        for (item, export) in instance.exports(engine) {
            match export.ty {
                ComponentItem::Resource(resource) if !resources.contains(&resource) => {
                    resources.push(resource);
                    if denied {
                        linker.instance(name)?.resource(item, ResourceType::host::<NotGranted>(), |_, _| Ok(()))?;
                    }
                }
                ComponentItem::ComponentFunc(_) if denied => {
                    let refusal = NotGranted { interface: name.to_owned(), function: item.to_owned() };
                    linker
                        .instance(name)?
                        .func_new(item, move |_, _, _, _| Err(wasmtime::Error::from(refusal.clone())))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_known_and_sockets_are_not_denied_here() {
        assert!(is_denied("wasi:http/outgoing-handler@0.2.6"));
        assert!(!is_denied("wasi:sockets/tcp@0.2.6"));
        assert!(!is_denied("acme:thing/x@1.0.0"));
    }
}
