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
    use std::sync::Arc;

    use wasmtime::{Engine, Store};

    use super::*;
    use crate::guest::grants::{Grants, Limits};
    use crate::guest::lent::Lent;
    use crate::guest::module::linker;
    use crate::guest::output::Output;
    use crate::guest::testing::consumer;

    #[test]
    fn http_is_known_and_sockets_are_not_denied_here() {
        assert!(is_denied("wasi:http/outgoing-handler@0.2.6"));
        assert!(!is_denied("wasi:sockets/tcp@0.2.6"));
        assert!(!is_denied("acme:thing/x@1.0.0"));
    }

    fn section(id: u8, payload: &[u8]) -> Vec<u8> {
        [&[id, u8::try_from(payload.len()).unwrap()], payload].concat()
    }

    /// ```wat
    /// (component
    ///   (import "wasi:http/x@0.2.0" (instance $i (export "poke" (func)) (export "thing" (type (sub resource)))))
    ///   (core func $poke (canon lower (func $i "poke")))
    ///   (core module $m (import "h" "poke" (func)) (start 0))      ;; the start only if `calls`
    ///   (core instance (instantiate $m (with "h" (instance (export "poke" (func $poke)))))))
    /// ```
    fn component(calls: bool) -> Vec<u8> {
        let start: &[u8] = if calls { &[8, 1, 0] } else { &[] };
        let module = [
            b"\0asm\x01\0\0\0".as_slice(),
            &section(1, &[1, 0x60, 0, 0]),
            &section(2, b"\x01\x01h\x04poke\0\0"),
            start,
        ];
        [
            b"\0asm\x0d\0\x01\0".as_slice(),
            &section(7, b"\x01\x42\x03\x01\x40\0\x01\0\x04\0\x04poke\x01\0\x04\0\x05thing\x03\x01"),
            &section(10, b"\x01\0\x11wasi:http/x@0.2.0\x05\0"),
            &section(6, b"\x01\x01\0\0\x04poke"),
            &section(8, &[1, 1, 0, 0, 0]),
            &section(1, &module.concat()),
            &section(2, b"\x02\x01\x01\x04poke\0\0\0\0\x01\x01h\x12\0"),
        ]
        .concat()
    }

    #[tokio::test]
    async fn a_denied_import_links_and_calling_it_is_refused() {
        let engine = Engine::default();
        let consumer = consumer(Grants::default(), Limits::default());
        for calls in [false, true] {
            let component = Component::new(&engine, component(calls)).unwrap();
            let state = State::new(&consumer, &Arc::new(Lent::default()), &Arc::new(Output::default()));
            let mut store = Store::new(&engine, state);
            let linker = linker(&component).unwrap();
            let started = linker.instantiate_async(&mut store, &component).await;
            let refusal = started.err().map(|error| error.downcast::<NotGranted>().unwrap().to_string());
            let expected = "the handler called wasi:http/x@0.2.0#poke, which is not granted to it";
            assert_eq!(refusal.as_deref(), calls.then_some(expected));
        }
    }
}
