//! Sizes and durations as people write them: a number *with its unit*. A bare number is refused: it is how "30" comes to
//! mean half a minute to one and half an hour to another.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// A size in bytes, written `"64 MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A duration, written `"30s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// Reads `"64 MiB"`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if !text.ends_with(|last: char| last.is_ascii_alphabetic()) {
        return Err(format!("\"{text}\" has no unit; write a size as \"64 MiB\""));
    }
    match text.parse::<ByteSize>() {
        Ok(size) => Ok(size.as_u64()),
        Err(_) => Err(format!(
            "\"{text}\" is not a size; write it as \"64 MiB\" (B, KiB, MiB, GiB, TiB, kB, MB, …)"
        )),
    }
}

/// Reads `"30s"`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let example = "write a duration as \"30s\", \"5m\" or \"1h 30m\"";
    if text.ends_with(|last: char| last.is_ascii_digit()) {
        return Err(format!("\"{text}\" has no unit; {example}"));
    }
    let span =
        text.parse::<SignedDuration>().map_err(|_| format!("\"{text}\" is not a duration; {example}"))?;
    Duration::try_from(span).map_err(|_| format!("\"{text}\" is negative; {example}"))
}

impl<'de> serde::Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(Quantity { what: "a size with its unit, such as \"64 MiB\"", parse: parse_size })
            .map(Self)
    }
}

impl<'de> serde::Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(Quantity {
                what: "a duration with its unit, such as \"30s\"",
                parse: parse_span,
            })
            .map(Self)
    }
}

/// A text with a unit; everything else is told what to write.
struct Quantity<T> {
    what: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Err(E::invalid_type(Unexpected::Other(&format!("the number {number} without a unit")), &self))
    }
}
