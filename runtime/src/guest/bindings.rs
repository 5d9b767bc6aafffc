//! The contract in Rust, generated from `wit/`. Only [`super::convert`] and the files in [`super::host`] touch it.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "message-handler",
    imports: {
        "hapax:handler/sql": async,
    },
    exports: { default: async },
});

pub(super) use self::hapax::handler::{context, outbox, sql, types};
