//! Foreign tools: is it there, run it, what did it say.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Where the tool `name` is: in the lab, on the path, or in the folders for root that a user's path lacks.
pub fn find(name: &str) -> Option<PathBuf> {
    let lab = super::folder();
    let own = match name.strip_prefix("qemu7:") {
        Some(tool) => return Some(lab.join("qemu7/usr/bin").join(tool)).filter(|path| path.exists()),
        None => ["cargo/bin", "nbd-server/bin", "venv/bin", "npm/node_modules/.bin"]
            .map(|folder| lab.join(folder)),
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        own.into_iter().chain(std::env::split_paths(&path)).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A command for a tool that [`have`] has seen.
pub fn tool(name: &str) -> Command {
    Command::new(find(name).unwrap_or_else(|| panic!("{name} is not installed: scripts/lab install")))
}

/// Whether all of `judges` are there. If not it says so, and in CI fails: a test that passes over its judge proves nothing.
pub fn have(judges: &[&str]) -> bool {
    let missing: Vec<&str> = judges.iter().copied().filter(|name| find(name).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    absent(&missing.join(", "))
}

/// Says that `what` is missing; in CI that is a failure. Always false.
pub fn absent(what: &str) -> bool {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "missing in CI: {what}; see scripts/lab install");
    eprintln!("SKIPPED: {what} is missing; scripts/lab install brings it");
    false
}

/// Runs `command`; its standard output, if it succeeds.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text on stdout")
}

/// Runs `command` to its end, whatever comes of it.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
