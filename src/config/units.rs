//! Sizes, durations, rates and hours as people write them: a number *with its unit*. A bare number is refused: it is how "30" comes to
//! mean half a minute to one and half an hour to another.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use jiff::civil::{Time, Weekday};
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use uploader::replicate::ResyncWindow;
use uploader::store::limit::When;

/// A size in bytes, written `"64 MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A duration, written `"30s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// How old points may be, written `"24h"`, `"7d"`, `"8w"` or `"1y"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age(pub Duration);

/// Bytes a second, written `"50 MiB/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

/// Hours of the day in local time, written `"18:30-06:00"`, or `"always"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(pub ResyncWindow);

/// Hours of the week in local time, written `"mon-fri 08:00-18:00"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeekHours(pub When);

/// Bytes a second, written `"20 MB/s"`, or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitRate(pub Option<u64>);

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

/// Reads `"24h"`, `"7d"`, `"8w"` or `"1y"`: a day has 24 hours, a year 365 days.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let days = [("d", 1), ("w", 7), ("y", 365)].into_iter().find_map(|(unit, days)| {
        let number = text.strip_suffix(unit)?.trim().parse::<u64>().ok()?;
        number.checked_mul(days * 24 * 3600).map(Duration::from_secs)
    });
    let example = "write an age as \"24h\", \"7d\", \"8w\" or \"1y\"";
    days.map_or_else(|| parse_span(text).map_err(|_| format!("\"{text}\" is not an age; {example}")), Ok)
}

/// Reads `"50 MiB/s"`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let size = text.trim().strip_suffix("/s").map(parse_size);
    size.unwrap_or_else(|| Err(format!("\"{text}\" is not a rate; write it as \"50 MiB/s\"")))
}

/// Reads `"18:30-06:00"` or `"always"`.
pub fn parse_window(text: &str) -> Result<ResyncWindow, String> {
    let example = "write \"18:30-06:00\" (local time), or \"always\"";
    if text.trim() == "always" {
        return Ok(ResyncWindow::Always);
    }
    let time = |text: &str| Time::strptime("%H:%M", text.trim()).ok();
    let ends = text.split_once('-').and_then(|(from, to)| Some((time(from)?, time(to)?)));
    match ends {
        Some((from, to)) if from == to => Err(format!("the window \"{text}\" never opens; {example}")),
        Some((from, to)) => Ok(ResyncWindow::Daily { from, to }),
        None => Err(format!("\"{text}\" names no hours of the day; {example}")),
    }
}

/// Reads `"mon-fri 08:00-18:00"`, `"sat,sun"` or `"22:00-06:00"`.
pub fn parse_week_hours(text: &str) -> Result<When, String> {
    let example = "write \"mon-fri 08:00-18:00\", \"sat,sun\" or \"22:00-06:00\" (local time)";
    let wrong = || format!("\"{text}\" names no hours of the week; {example}");
    let (mut days, mut hours) = (None, None);
    for part in text.split_whitespace() {
        let slot =
            if part.starts_with(|first: char| first.is_ascii_digit()) { &mut hours } else { &mut days };
        if slot.replace(part).is_some() {
            return Err(wrong());
        }
    }
    if days.is_none() && hours.is_none() {
        return Err(wrong());
    }
    let days = days.map_or(Some(WEEK.iter().map(|(_, day)| *day).collect()), parse_days).ok_or_else(wrong)?;
    let (from, to) = match hours.map(parse_window).transpose()? {
        Some(ResyncWindow::Daily { from, to }) => (from, to),
        _ => (Time::midnight(), Time::midnight()),
    };
    Ok(When { days, from, to })
}

const WEEK: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

fn parse_days(text: &str) -> Option<Vec<Weekday>> {
    let number = |name: &str| WEEK.iter().position(|(known, _)| name.eq_ignore_ascii_case(known));
    let mut days = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        let count = (last + 7 - first) % 7 + 1;
        days.extend(WEEK.iter().cycle().skip(first).take(count).map(|(_, day)| *day));
    }
    Some(days)
}

/// Reads `"20 MB/s"` or `"unlimited"`.
pub fn parse_limit(text: &str) -> Result<Option<u64>, String> {
    match text.trim() {
        "unlimited" => Ok(None),
        rate => match parse_rate(rate)? {
            0 => Err("\"0\" would never end: pause the machine instead".to_owned()),
            rate => Ok(Some(rate)),
        },
    }
}

impl<'de> serde::Deserialize<'de> for WeekHours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "hours of the week, such as \"mon-fri 08:00-18:00\"";
        deserializer.deserialize_any(Quantity { what, parse: parse_week_hours }).map(Self)
    }
}

impl<'de> serde::Deserialize<'de> for LimitRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "a size a second, such as \"20 MB/s\", or \"unlimited\"";
        deserializer.deserialize_any(Quantity { what, parse: parse_limit }).map(Self)
    }
}

impl<'de> serde::Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "a size a second, such as \"50 MiB/s\"";
        deserializer.deserialize_any(Quantity { what, parse: parse_rate }).map(Self)
    }
}

impl<'de> serde::Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "an age with its unit, such as \"7d\"";
        deserializer.deserialize_any(Quantity { what, parse: parse_age }).map(Self)
    }
}

impl<'de> serde::Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let what = "hours of the day, such as \"18:30-06:00\", or \"always\"";
        deserializer.deserialize_any(Quantity { what, parse: parse_window }).map(Self)
    }
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
