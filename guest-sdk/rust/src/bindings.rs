//! The contract's imports and exports. The types are this crate's own, so nothing is converted on the way.
//!
//! Handler and compensation are two small worlds, which the linker unites: a component exports what its attributes ask
//! for, and no other function.

/// All imports, and the export of a handler.
pub mod message_handler {
    wit_bindgen::generate!({
        world: "message-handler",
        path: "wit",
        runtime_path: "::hapax_guest::bindings::runtime",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::hapax_guest::bindings::message_handler",
        with: {
            "hapax:handler/types@0.1.0/header-value": crate::HeaderValue,
            "hapax:handler/types@0.1.0/properties": crate::Properties,
            "hapax:handler/types@0.1.0/message": crate::Message,
            "hapax:handler/types@0.1.0/advice": crate::Advice,
            "hapax:handler/types@0.1.0/failure": crate::Failure,
            "hapax:handler/types@0.1.0/death": crate::Death,
            "hapax:handler/sql@0.1.0/value": crate::sql::Value,
            "hapax:handler/sql@0.1.0/executed": crate::sql::Executed,
            "hapax:handler/sql@0.1.0/result-set": crate::sql::ResultSet,
            "hapax:handler/sql@0.1.0/error-kind": crate::sql::ErrorKind,
            "hapax:handler/sql@0.1.0/error": crate::sql::Error,
            "hapax:handler/outbox@0.1.0/error-kind": crate::outbox::ErrorKind,
            "hapax:handler/outbox@0.1.0/error": crate::outbox::Error,
        },
    });
}

/// The export of a compensation, alone.
pub mod compensation {
    wit_bindgen::generate!({
        inline: "
            package hapax:guest-sdk;
            world compensation-only { export hapax:handler/compensation@0.1.0; }
        ",
        path: "wit",
        runtime_path: "::hapax_guest::bindings::runtime",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::hapax_guest::bindings::compensation",
        generate_all,
        with: {
            "hapax:handler/types@0.1.0/header-value": crate::HeaderValue,
            "hapax:handler/types@0.1.0/properties": crate::Properties,
            "hapax:handler/types@0.1.0/message": crate::Message,
            "hapax:handler/types@0.1.0/advice": crate::Advice,
            "hapax:handler/types@0.1.0/failure": crate::Failure,
            "hapax:handler/types@0.1.0/death": crate::Death,
        },
    });
}

/// `wit-bindgen`, for code generated in a handler's crate, which does not depend on it.
pub use wit_bindgen::rt as runtime;

/// Exports a [`Handler`](crate::Handler).
#[doc(hidden)]
#[macro_export]
macro_rules! __export_handler {
    ($handler:ident) => {
        impl ::hapax_guest::bindings::message_handler::exports::hapax::handler::handler::Guest for $handler {
            fn handle(message: ::hapax_guest::Message) -> ::core::result::Result<(), ::hapax_guest::Failure> {
                <$handler as ::hapax_guest::Handler>::handle(message)
            }
        }
        ::hapax_guest::bindings::message_handler::export!(
            $handler with_types_in ::hapax_guest::bindings::message_handler
        );
    };
}

/// Exports a [`Compensation`](crate::Compensation).
#[doc(hidden)]
#[macro_export]
macro_rules! __export_compensation {
    ($compensation:ident) => {
        impl ::hapax_guest::bindings::compensation::exports::hapax::handler::compensation::Guest for $compensation {
            fn compensate(
                message: ::hapax_guest::Message,
                death: ::hapax_guest::Death,
            ) -> ::core::result::Result<(), ::hapax_guest::Failure> {
                <$compensation as ::hapax_guest::Compensation>::compensate(message, death)
            }
        }
        ::hapax_guest::bindings::compensation::export!(
            $compensation with_types_in ::hapax_guest::bindings::compensation
        );
    };
}
