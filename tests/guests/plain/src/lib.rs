//! The smallest handler, without compensation: a body that is not empty is one SQL statement without parameters.
//! An empty body is ok; a statement that fails ends the attempt by policy, with the code `sql`.
#![cfg(target_arch = "wasm32")]

mod bindings {
    wit_bindgen::generate!({ world: "message-handler", path: "../../../wit" });
}

use bindings::hapax::handler::sql;
use bindings::hapax::handler::types::{Advice, Failure, Message};

struct Plain;
bindings::export!(Plain with_types_in bindings);

impl bindings::exports::hapax::handler::handler::Guest for Plain {
    fn handle(message: Message) -> Result<(), Failure> {
        let fail =
            |advice, code: &str, message| Err(Failure { advice, code: Some(code.into()), message, detail: None });
        match String::from_utf8(message.body) {
            Ok(empty) if empty.is_empty() => Ok(()),
            Ok(statement) => match sql::execute(&statement, &[]) {
                Ok(_) => Ok(()),
                Err(error) => fail(Advice::ByPolicy, "sql", error.message),
            },
            Err(error) => fail(Advice::Never, "undecodable", error.to_string()),
        }
    }
}
