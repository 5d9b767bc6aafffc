//! What an order looks like in a message.

use hapax_guest::{Failure, FromMessage, Message};
use serde::{Deserialize, Deserializer, de};

/// An order: how many of which goods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Order {
    /// Which goods. Goods ids have up to 19 digits, more than a floating point number can tell apart.
    #[serde(deserialize_with = "exact_id")]
    pub goods_id: i64,
    /// How many; at least 1.
    #[serde(default = "one", deserialize_with = "positive")]
    pub quantity: i64,
}

/// A JSON object, or the bare goods id that the classic producers send.
impl FromMessage for Order {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        let text = message.body_text()?.trim();
        if text.starts_with('{') {
            return message.body_json();
        }
        match text.parse() {
            Ok(goods_id) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Self { goods_id, quantity: one() }),
            _ => Err(Failure::permanent("undecodable", "the body is neither a JSON object nor a bare 64-bit goods id")),
        }
    }
}

fn one() -> i64 {
    1
}

/// A number or a string of digits; never by way of a floating point number.
fn exact_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    let text = match &value {
        serde_json::Value::Number(number) => number.to_string(),
        serde_json::Value::String(text) => text.clone(),
        other => {
            return Err(de::Error::custom(format!("goods_id is {other}; expected an integer or a string of digits")));
        }
    };
    text.parse().map_err(|_| de::Error::custom(format!("goods_id is {value}; expected a 64-bit integer")))
}

fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match i64::deserialize(deserializer)? {
        quantity @ 1.. => Ok(quantity),
        quantity => Err(de::Error::custom(format!("quantity is {quantity}; expected at least 1"))),
    }
}
