//! The macros of `hapax-guest`; use them through that crate, which documents them.

mod export;
mod from_row;

use proc_macro::TokenStream;

/// Makes a function the handler of this component.
///
/// Its parameters are decoded from the message, each by its type: see `hapax_guest::FromMessage`. It returns
/// `Result<(), E>` for any `E: Into<Failure>`, or nothing. The function itself stays as it is, so tests can call it; a
/// type of the same name implements `hapax_guest::Handler`, for `testing::Fake::handle`.
#[proc_macro_attribute]
pub fn handler(attribute: TokenStream, item: TokenStream) -> TokenStream {
    export::expand(export::Role::Handler, attribute.into(), item.into()).into()
}

/// Makes a function the compensation of this component: it runs when a message will never be handled.
///
/// Its last parameter is the `Death` (or `&Death`); those before it are decoded from the message like a handler's. When
/// the handler died of a body that did not decode, and it does not decode here either, nothing was done that could be
/// undone, and the function is not called. A type of the same name implements `hapax_guest::Compensation`.
#[proc_macro_attribute]
pub fn compensation(attribute: TokenStream, item: TokenStream) -> TokenStream {
    export::expand(export::Role::Compensation, attribute.into(), item.into()).into()
}

/// Reads a row into a struct: fields by column name, or by position for a tuple struct.
///
/// `#[row(rename = "column")]` on a field names another column.
#[proc_macro_derive(FromRow, attributes(row))]
pub fn from_row(item: TokenStream) -> TokenStream {
    from_row::expand(item.into()).into()
}
