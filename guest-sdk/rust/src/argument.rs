//! From a message to a function's parameters, and from what it returns to a verdict.

use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::DeserializeOwned;

use crate::failure::UNDECODABLE;
use crate::{Context, Death, Failure, Message};

/// A handler: what [`macro@crate::handler`] makes of a function.
pub trait Handler {
    /// Handles one message.
    fn handle(message: Message) -> Result<(), Failure>;
}

/// A compensation: what [`macro@crate::compensation`] makes of a function.
pub trait Compensation {
    /// Undoes what a message that will never be handled has caused.
    fn compensate(message: Message, death: Death) -> Result<(), Failure>;
}

/// What a handler's parameter can be.
///
/// | parameter | is |
/// |---|---|
/// | any `T: serde::de::DeserializeOwned`, [`Json<T>`] | the body, read as JSON |
/// | `String`, `&str` | the body, as text |
/// | `Vec<u8>`, `&[u8]` | the body's bytes |
/// | [`Message`], `&Message` | the whole message |
/// | [`Context`] | access to attempt, config, idempotency keys |
/// | your own type | whatever your implementation of this trait makes of it |
///
/// A body that does not decode is a permanent failure with the code `undecodable`.
pub trait FromMessage: Sized {
    /// Decodes this parameter.
    fn from_message(message: &Message) -> Result<Self, Failure>;
}

/// JSON: a body as a handler's parameter, and a value to and from a column of a JSON type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned> FromMessage for Json<T> {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        message.body_json().map(Self)
    }
}

impl FromMessage for String {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        message.body_text().map(str::to_owned)
    }
}

impl FromMessage for Vec<u8> {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        Ok(message.body.clone())
    }
}

impl FromMessage for Message {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        Ok(message.clone())
    }
}

impl FromMessage for Context {
    fn from_message(_: &Message) -> Result<Self, Failure> {
        Ok(Self)
    }
}

/// Carries a parameter's type to the right `decode`: method lookup tries [`ByFromMessage`], which takes it by one
/// reference, before [`ByJson`], which takes it by two. So a `String` is text, though serde could read it as JSON.
pub struct Tag<T>(PhantomData<T>);

impl<T> Tag<T> {
    #[expect(clippy::new_without_default, reason = "only macros construct it")]
    /// A tag for one parameter.
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

/// Decodes by [`FromMessage`].
pub trait ByFromMessage<T> {
    /// The parameter.
    fn decode(&self, message: &Message) -> Result<T, Failure>;
}

impl<T: FromMessage> ByFromMessage<T> for Tag<T> {
    fn decode(&self, message: &Message) -> Result<T, Failure> {
        T::from_message(message)
    }
}

/// Decodes JSON.
pub trait ByJson<T> {
    /// The parameter.
    fn decode(&self, message: &Message) -> Result<T, Failure>;
}

impl<T: DeserializeOwned> ByJson<T> for &Tag<T> {
    fn decode(&self, message: &Message) -> Result<T, Failure> {
        message.body_json()
    }
}

/// What a handler may return.
pub trait Returned {
    /// The verdict.
    fn into_result(self) -> Result<(), Failure>;
}

impl Returned for () {
    fn into_result(self) -> Result<(), Failure> {
        Ok(())
    }
}

impl<E: Into<Failure>> Returned for Result<(), E> {
    fn into_result(self) -> Result<(), Failure> {
        self.map_err(Into::into)
    }
}

/// The verdict of a compensation that cannot decode its message: if that is what the message died of, no handler ever
/// did anything, and there is nothing to undo.
pub fn nothing_to_undo(failure: Failure, death: &Death) -> Result<(), Failure> {
    let cause = death.failure.as_ref().and_then(|failure| failure.code.as_deref());
    match (failure.code.as_deref(), cause) {
        (Some(UNDECODABLE), Some(UNDECODABLE)) => Ok(()),
        _ => Err(failure),
    }
}
