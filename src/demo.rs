//! `lifeboat demo`: the whole story on a scratch folder, told as it happens.
//!
//! Nothing here is staged: the daemon is this program's own `run` in a process of its own, which is killed with -9;
//! the commands are those a user would type; the client speaks NBD over the export's socket; what was on the disk at each
//! point is hashed through the export before the disk is lost, and what comes back is hashed from the restored file.

mod scene;
mod writer;

use std::path::Path;
use std::time::{Duration, Instant};

use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::output;
use scene::Scene;
use writer::Writer;

/// How many points are taken and restored.
const POINTS: usize = 3;
/// How long the client writes before each.
const BETWEEN: Duration = Duration::from_millis(1500);

/// What came of it.
#[derive(Debug, Serialize)]
struct Outcome {
    points: Vec<Proof>,
    seconds: f64,
}

/// One point: what the disk held, and what came back.
#[derive(Debug, Serialize)]
struct Proof {
    point: String,
    before: String,
    restored: String,
    equal: bool,
}

/// What `cut --json` answers, as far as the story goes.
#[derive(Debug, Deserialize)]
struct Cut {
    point: String,
    bytes: u64,
}

/// Tells the story in `dir`, or in a new temporary folder.
pub async fn tell(dir: Option<&Path>, keep: bool, json: bool) -> Result<()> {
    let dir = dir.map(Path::to_owned);
    let told = tokio::task::spawn_blocking(move || story(dir.as_deref(), keep, json)).await;
    told.map_err(|error| Error::new(Kind::Io, "demo", format!("it ended early: {error}")).source(error))?
}

fn story(dir: Option<&Path>, keep: bool, json: bool) -> Result<()> {
    let begun = Instant::now();
    let say = |text: &str| if json { Ok(()) } else { output::line(text) };
    let mut scene = Scene::set(dir, keep)?;
    say(&format!("A scratch folder: {}", scene.dir().display()))?;
    say(&format!(
        "A disk image of {}, {} of it written, a vault that is an empty folder, and a key that encrypts it, kept apart.",
        output::size(scene::DISK_BYTES),
        output::size(scene::DATA_BYTES)
    ))?;
    say("\nLifeboat starts and serves the disk over NBD:")?;
    say("  $ lifeboat run")?;
    scene.start()?;
    let writer = Writer::start(&scene.export(), scene::EXPORT)?;
    say("A client connects and writes without pause, while the disk is copied for the first time.")?;
    say("  $ lifeboat wait demo --for protected")?;
    scene.command(&["wait", scene::MACHINE, "--for", "protected", "--timeout", "60s"])?;
    say("The first point is in the vault. From here on only changes travel.\n")?;

    let mut taken = Vec::new();
    for _ in 0..POINTS {
        std::thread::sleep(BETWEEN);
        let still = writer.hold()?;
        let before = scene::hash_export(&scene.export())?;
        let cut: Cut = scene.command_json(&["cut", scene::MACHINE, "--timeout", "60s"])?;
        let writes = still.writes();
        drop(still);
        say("  $ lifeboat cut demo")?;
        say(&format!(
            "  point {} after {writes} writes: {} to the vault; the disk's SHA-256 is {}…",
            cut.point,
            output::size(cut.bytes),
            short(&before)
        ))?;
        taken.push((cut.point, before));
    }

    say(
        "\nNow the worst: Lifeboat is killed with -9 in mid-write, the disk and everything beside it is deleted.",
    )?;
    scene.lose_everything()?;
    let writes = writer.end();
    say(&format!(
        "The client had {writes} writes acknowledged and is cut off; those since the last point are what an RPO is. \
         Only the vault and its key are left.\n"
    ))?;

    let mut proofs = Vec::new();
    for (point, before) in taken {
        say(&format!("  $ lifeboat restore demo --vault file://… --key-file … --point {point} --to …"))?;
        let restored = scene.restore(&point)?;
        let equal = restored == before;
        say(&format!(
            "  restored; its SHA-256 is {}…: {}",
            short(&restored),
            if equal { "equal" } else { "DIFFERENT" }
        ))?;
        proofs.push(Proof { point, before, restored, equal });
    }
    let outcome = Outcome { points: proofs, seconds: begun.elapsed().as_secs_f64() };
    if let Some(wrong) = outcome.points.iter().find(|proof| !proof.equal) {
        return Err(Error::corrupt(
            format!("point {}", wrong.point),
            "what was restored is not what the disk held",
        ));
    }
    scene.end(&say)?;
    output::answer(json, &outcome, |outcome| {
        format!(
            "\nAll {} points came back bit for bit, in {:.0} seconds.",
            outcome.points.len(),
            outcome.seconds
        )
    })
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}
