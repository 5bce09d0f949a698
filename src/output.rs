//! How answers look: JSON with stable keys, tables for people, errors with what to do.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytesize::ByteSize;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use nbd_proxy::{Error, Kind, Result};
use serde::Serialize;

use crate::control::ErrorBody;

/// Writes a line to stdout at once. A reader that has gone away is not an error: it has read enough.
pub fn line(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Io, "stdout", format!("cannot write the answer: {error}")).source(error))
        }
        _ => Ok(()),
    }
}

/// Writes `answer` as JSON when asked for, else as `people` has it.
pub fn answer<T: Serialize>(json: bool, answer: &T, people: impl FnOnce(&T) -> String) -> Result<()> {
    if !json {
        return line(people(answer).trim_end());
    }
    match serde_json::to_string_pretty(answer) {
        Ok(text) => line(&text),
        Err(error) => Err(Error::new(Kind::Io, "answer", format!("cannot write it as JSON: {error}"))),
    }
}

/// Writes `error` to stderr.
pub fn print_error(error: &Error, json: bool) {
    let text = match serde_json::to_string(&ErrorBody::from(error)) {
        Ok(text) if json => text,
        _ if error.remedy.is_empty() => format!("error: {}: {}", error.object, error.message),
        _ => format!("error: {}: {}\n  what to do: {}", error.object, error.message, error.remedy),
    };
    // There is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A table without frills: it survives a pipe.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    // Cells are padded, also at the end of a line.
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Bytes for people: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// A duration for people: `1h 4m`, of its two largest units.
pub fn age(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, name) in units {
        if rest >= unit && parts.len() < 2 {
            parts.push(format!("{}{name}", rest / unit));
            rest %= unit;
        } else if !parts.is_empty() {
            break;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// `done` of `total` in whole percent; all of nothing is 100.
pub fn percent(done: u64, total: u64) -> u64 {
    let share = u128::from(done.min(total)) * 100;
    share.checked_div(u128::from(total)).and_then(|percent| u64::try_from(percent).ok()).unwrap_or(100)
}

/// A point's time for people, to the millisecond and never before the point itself: who restores to the time that was
/// shown gets this point, not the one before.
pub fn instant(at: Timestamp) -> String {
    let up = TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Ceil);
    at.round(up).unwrap_or(at).to_string()
}

/// A time for people: RFC 3339 to the second.
pub fn time(at: Timestamp) -> String {
    at.round(Unit::Second).unwrap_or(at).to_string()
}

/// The word by which a state is known in JSON.
pub fn word<T: Serialize>(state: &T) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// A progress bar on a terminal, and nothing anywhere else.
#[derive(Clone, Debug)]
pub struct Bar(Option<(ProgressBar, Arc<AtomicU64>)>);

impl Bar {
    /// A bar that counts bytes.
    pub fn bytes(what: &'static str, json: bool) -> Self {
        if json || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(Some((ProgressBar::new(0).with_style(style).with_message(what), Arc::default())))
    }

    /// `done` of `total` bytes are through. Threads may tell it out of order: a bar never goes back.
    pub fn at(&self, done: u64, total: u64) {
        let Some((bar, most)) = &self.0 else { return };
        if bar.length() != Some(total) {
            bar.set_length(total);
        }
        let before = most.fetch_max(done, Relaxed);
        bar.inc(done.saturating_sub(before));
        if done >= total {
            bar.set_message("writing down and checking");
            bar.force_draw();
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some((bar, _)) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_ages_and_shares() {
        let ages =
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3_660, "1h 1m"), (3_605, "1h"), (90_000, "1d 1h")];
        for (seconds, expected) in ages {
            assert_eq!(age(seconds), expected);
        }
        assert_eq!(
            [percent(0, 0), percent(2, 5), percent(9, 5), percent(u64::MAX - 1, u64::MAX)],
            [100, 40, 100, 99]
        );
    }

    #[test]
    fn the_time_that_is_shown_of_a_point_names_that_point() {
        let at: Timestamp = "2026-05-04T10:00:00.123456789Z".parse().unwrap();
        assert_eq!(instant(at), "2026-05-04T10:00:00.124Z");
        assert!(instant(at).parse::<Timestamp>().unwrap() >= at);
        assert_eq!(time(at), "2026-05-04T10:00:00Z");
    }

    #[test]
    fn a_state_is_shown_by_the_word_of_its_json() {
        assert_eq!(word(&Kind::InvalidInput), "invalid-input");
    }
}
