//! `status` for people: a line for each machine and each disk, and below them what is wrong and what to do.

use uploader::replicate::Health;
use uploader::vault::Encryption;

use super::{Disk, Machine, Report};
use crate::output;

/// The report as text.
pub fn people(report: &Report) -> String {
    if report.machines.is_empty() {
        return "no machine".to_owned();
    }
    let rows = report.machines.iter().flat_map(|machine| {
        let first = vec![
            machine.name.clone(),
            output::word(&machine.health),
            machine.rpo_seconds.map_or_else(|| "no point yet".to_owned(), rpo),
            machine.point.clone().unwrap_or_else(|| "-".to_owned()),
            activity(machine),
        ];
        std::iter::once(first).chain(machine.disks.iter().map(disk))
    });
    let mut text = output::table(&["MACHINE", "HEALTH", "RPO", "POINT", ""], rows);
    for (machine, note) in
        report.machines.iter().flat_map(|each| each.notes.iter().map(move |note| (each, note)))
    {
        text.push_str(&format!("\n{}: the newest point: {note}", machine.name));
    }
    match report.machines.iter().find_map(|machine| machine.encryption) {
        None => {}
        Some(Encryption::None) => text.push_str("\nvault: not encrypted"),
        Some(encryption) => text.push_str(&format!("\nvault: encrypted, {encryption}")),
    }
    for machine in report.machines.iter().filter(|machine| machine.health != Health::Normal) {
        text.push_str(&trouble(machine));
    }
    text
}

fn activity(machine: &Machine) -> String {
    match (machine.activity.as_str(), machine.sync_cause.as_str()) {
        ("", cause) => cause.to_owned(),
        (activity, "") => activity.to_owned(),
        (activity, cause) => format!("{activity} ({cause})"),
    }
}

fn rpo(seconds: f64) -> String {
    // A time that fits no Duration is no age of a point.
    std::time::Duration::try_from_secs_f64(seconds)
        .map_or_else(|_| "-".to_owned(), |age| output::age(age.as_secs()))
}

fn disk(disk: &Disk) -> Vec<String> {
    let copied = if disk.bytes_total > 0 && disk.bytes_done < disk.bytes_total {
        let percent = output::percent(disk.bytes_done, disk.bytes_total);
        let undecided = match disk.bytes_undecided {
            0 => String::new(),
            bytes => format!(", {} undecided by hashes", output::size(bytes)),
        };
        format!("{percent} % of {} copied{undecided}; ", output::size(disk.bytes_total))
    } else {
        String::new()
    };
    let (waiting, log) = (output::size(disk.dirty_bytes), output::size(disk.log_bytes));
    let detail = format!("{copied}{waiting} to ship, {log} of log");
    vec![format!("  {}", disk.name), disk.state.clone(), String::new(), String::new(), detail]
}

fn trouble(machine: &Machine) -> String {
    let mut text = format!("\n{}: {}", machine.name, machine.cause);
    if !machine.remedy.is_empty() {
        text.push_str(&format!("\n  what to do: {}", machine.remedy));
    }
    if let Some(next) = machine.next_retry {
        text.push_str(&format!("\n  tried again at {}", output::time(next)));
    }
    text
}
