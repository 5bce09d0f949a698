//! The rows of the check, in the order in which they are tried.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use nbd_proxy::{Error, Kind};

use super::{Row, Verdict};
use crate::store::{self, Store};

/// Names that are raced for, and racers for each.
const RACES: usize = 8;
const RACERS: usize = 8;
/// More objects than a page of any store's listing holds.
const MANY: usize = 1_050;
const PARALLEL: usize = 32;
/// Larger than any delta.
const LARGE: usize = 48 << 20;
/// A clock that is off by more makes ages wrong, in seconds …
const SKEW_WARN: i64 = 60;
/// … and beyond this S3 refuses requests.
const SKEW_FAIL: i64 = 900;

type Seen = Result<(Verdict, String), Error>;

/// A check under way.
pub(super) struct Probe<'a> {
    pub store: &'a Store,
    pub folder: String,
    pub rows: Vec<Row>,
}

fn small(text: &str) -> object_store::PutPayload {
    Bytes::copy_from_slice(text.as_bytes()).into()
}

fn pass(seen: impl Into<String>) -> Seen {
    Ok((Verdict::Pass, seen.into()))
}

fn fail(seen: impl Into<String>) -> Seen {
    Ok((Verdict::Fail, seen.into()))
}

impl Probe<'_> {
    pub async fn run(&mut self) {
        let works = self.read_back().await;
        self.note(
            "write and read back",
            works,
            "a vault cannot be here: check credentials, permissions and the URL",
        );
        if self.rows.iter().any(|row| row.verdict == Verdict::Fail) {
            let rest = [
                "create if absent",
                "race for one name",
                "taken again after a deletion",
                "ranges",
                "large objects",
                "listing",
                "missing objects",
                "clock",
                "deletion",
                "storage class",
                "many requests at once",
            ];
            for name in rest {
                let seen = "not tried: nothing can be written and read back".to_owned();
                self.note(name, Ok((Verdict::Unknown, seen)), "try again once the first row passes");
            }
            return;
        }
        let seen = self.create_if_absent().await;
        self.note("create if absent", seen, "two sites could both own a machine's line; with one writer only, say single_writer = true in [vault]");
        let seen = self.race().await;
        self.note("race for one name", seen, "two sites could both own a machine's line; with one writer only, say single_writer = true in [vault]");
        let seen = self.after_deletion().await;
        self.note("taken again after a deletion", seen, "Lifeboat does not rely on it: a writer that stalled looks at the catalogue before it believes that a name was free");
        let seen = self.ranges().await;
        self.note("ranges", seen, "points could not be opened");
        let seen = self.large().await;
        self.note(
            "large objects",
            seen,
            "a first copy ships objects of up to 36 MiB: a proxy in between may limit them",
        );
        let seen = self.listing().await;
        self.note("listing", seen, "machines, points and what may be pruned are found by listings");
        let seen = self.missing().await;
        self.note(
            "missing objects",
            seen,
            "an object that is not there could not be told from a store that fails",
        );
        let seen = self.clock().await;
        self.note(
            "clock",
            seen,
            "set this host's clock: S3 refuses requests that are 15 minutes off, and people compare times",
        );
        let seen = self.deletion().await;
        self.note("deletion", seen, "while objects cannot be deleted, pruning frees nothing: right for a locked bucket until its time is over, else grant the permission");
        let seen = self.storage_class().await;
        self.note(
            "storage class",
            seen,
            "objects in an archive class take hours to be read: no restore could begin before",
        );
        let seen = self.burst().await;
        self.note(
            "many requests at once",
            seen,
            "Lifeboat waits as the store asks and tries again; restores are slower",
        );
    }

    /// Removes what was written; returns how many objects stay.
    pub async fn tidy_up(&self) -> u64 {
        let Ok(listed) = self.store.list(&self.folder).await else { return 0 };
        let delete = |object: store::Listed| async move { self.store.delete(&object.key).await.is_err() };
        let failed = stream::iter(listed).map(delete).buffer_unordered(PARALLEL);
        failed.filter(|failed| std::future::ready(*failed)).count().await as u64
    }

    fn note(&mut self, name: &str, seen: Seen, means: &str) {
        let (verdict, seen) = seen.unwrap_or_else(|error| (Verdict::Fail, error.to_string()));
        let means = if matches!(verdict, Verdict::Pass) { String::new() } else { means.to_owned() };
        self.rows.push(Row { name: name.to_owned(), verdict, seen, means });
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    async fn read_back(&self) -> Seen {
        let key = self.key("first");
        self.store.create(&key, small("what was written")).await?;
        let back = self.store.get(&key, 1 << 20).await?;
        if back.as_ref() != b"what was written" {
            return fail(format!("{} other bytes came back", back.len()));
        }
        pass("what was written came back at once")
    }

    async fn create_if_absent(&self) -> Seen {
        let key = self.key("once");
        self.store.create(&key, small("first")).await?;
        match self.store.create(&key, small("second")).await {
            Err(error) if error.kind == Kind::Exists => {}
            Err(error) => {
                return fail(format!("a taken name is refused in a way that says something else: {error}"));
            }
            Ok(()) => return fail("a taken name was written over: the store ignores the condition"),
        }
        let back = self.store.get(&key, 1 << 20).await?;
        if back.as_ref() == b"first" {
            pass("the second one was refused")
        } else {
            fail("it said no, and wrote")
        }
    }

    async fn race(&self) -> Seen {
        for name in 0..RACES {
            let key = self.key(&format!("race-{name}"));
            let run = |racer: usize| {
                let key = key.clone();
                async move { (racer, self.store.create(&key, small(&racer.to_string())).await) }
            };
            let ended: Vec<_> = stream::iter(0..RACERS).map(run).buffer_unordered(RACERS).collect().await;
            let mut winners = Vec::new();
            for (racer, result) in ended {
                match result {
                    Ok(()) => winners.push(racer),
                    Err(error) if error.kind == Kind::Exists => {}
                    Err(error) => return Err(error),
                }
            }
            let back = self.store.get(&key, 1 << 20).await?;
            let [winner] = winners[..] else {
                return fail(format!(
                    "{} of {RACERS} were told that they had created one name",
                    winners.len()
                ));
            };
            if back.as_ref() != winner.to_string().as_bytes() {
                return fail("who was told that he had created a name had not");
            }
        }
        pass(format!("{RACES} names, {RACERS} at once for each: exactly one got it"))
    }

    async fn after_deletion(&self) -> Seen {
        let key = self.key("again");
        self.store.create(&key, small("first")).await?;
        if let Err(error) = self.store.delete(&key).await {
            return Ok((Verdict::Note, format!("nothing can be deleted now: {error}")));
        }
        match self.store.create(&key, small("second")).await {
            Ok(()) => Ok((Verdict::Note, "a deletion, or a delete marker, frees the name".to_owned())),
            Err(error) if error.kind == Kind::Exists => {
                Ok((Verdict::Note, "a deleted name stays taken".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    async fn ranges(&self) -> Seen {
        let key = self.key("ranges");
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        self.store.create(&key, Bytes::from(bytes.clone()).into()).await?;
        for range in [0..1usize, 1..2, 255..70_000, 99_999..100_000] {
            let back = self.store.get_range(&key, range.start as u64..range.end as u64).await?;
            if back.as_ref() != &bytes[range.clone()] {
                return fail(format!("bytes {} to {} came back wrong", range.start, range.end));
            }
        }
        if self.store.get_start(&key, 200_000).await?.len() != bytes.len() {
            return fail("a range past the end does not give what is there");
        }
        match self.store.get_range(&key, 99_990..100_010).await {
            Err(error) if error.kind == Kind::Corrupt => pass("exact, and short ones are told"),
            Err(error) => {
                fail(format!("a range past the end is told in a way that means something else: {error}"))
            }
            Ok(_) => fail("a range past the end was answered with bytes that were never written"),
        }
    }

    async fn large(&self) -> Seen {
        let key = self.key("large");
        let mut word = 0x9E37_79B9_7F4A_7C15_u64;
        let mut bytes = Vec::with_capacity(LARGE);
        while bytes.len() < LARGE {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let bytes = Bytes::from(bytes);
        let begun = std::time::Instant::now();
        if let Err(error) = self.store.create(&key, bytes.clone().into()).await {
            return fail(format!("{} MiB in one request: {error}", LARGE >> 20));
        }
        let up = begun.elapsed();
        for at in [0, LARGE / 2, LARGE - 65_536] {
            let back = self.store.get_range(&key, at as u64..(at + 65_536) as u64).await?;
            if back != bytes[at..at + 65_536] {
                return fail(format!("bytes at {at} came back wrong"));
            }
        }
        pass(format!("{} MiB in one request, in {:.1} s", LARGE >> 20, up.as_secs_f64()))
    }

    async fn listing(&self) -> Seen {
        let folder = self.key("list");
        let names: Vec<String> = (0..MANY).map(|number| format!("{folder}/{number:020}")).collect();
        let write = |key: &String| {
            let key = key.clone();
            async move { self.store.put(&key, small("x")).await }
        };
        let written: Vec<_> = stream::iter(&names).map(write).buffer_unordered(PARALLEL).collect().await;
        written.into_iter().collect::<Result<(), _>>()?;
        // A neighbour whose name begins with the folder's.
        self.store.put(&format!("{folder}-not/1"), small("x")).await?;
        let listed: Vec<String> =
            self.store.list(&folder).await?.into_iter().map(|object| object.key).collect();
        if listed != names {
            return fail(format!("{} objects listed right after {MANY} were written", listed.len()));
        }
        let folders = self.store.list_folders(&self.folder).await?;
        if folders != ["list", "list-not"] {
            return fail(format!("folders are listed as {folders:?}"));
        }
        pass(format!("{MANY} objects, complete right after they were written, neighbours kept apart"))
    }

    async fn missing(&self) -> Seen {
        match self.store.get(&self.key("never"), 100).await {
            Err(error) if store::is_missing_object(&error) => pass("told as what they are"),
            Err(error) => fail(format!("told as something else: {error}")),
            Ok(_) => fail("answered with an object that was never written"),
        }
    }

    async fn clock(&self) -> Seen {
        let key = self.key("clock");
        let before = Timestamp::now();
        self.store.put(&key, small("x")).await?;
        let there = self.store.describe(&key).await?.modified;
        let after = Timestamp::now();
        let off = if there < before {
            before.as_second() - there.as_second()
        } else {
            (there.as_second() - after.as_second()).max(0)
        };
        let verdict = match off {
            0..=SKEW_WARN => Verdict::Pass,
            _ if off < SKEW_FAIL => Verdict::Warn,
            _ => Verdict::Fail,
        };
        Ok((verdict, format!("the store's clock and this host's are {off} s apart")))
    }

    async fn deletion(&self) -> Seen {
        let key = self.key("first");
        let versioned = self.store.describe(&key).await?.version.is_some();
        if let Err(error) = self.store.delete(&key).await {
            return Ok((Verdict::Warn, format!("refused: {error}")));
        }
        match self.store.get(&key, 100).await {
            Err(error) if store::is_missing_object(&error) && versioned => Ok((
                Verdict::Note,
                "deleted by a marker; the version stays until the bucket's own rules remove it".to_owned(),
            )),
            Err(error) if store::is_missing_object(&error) => pass("what is deleted is gone"),
            Err(error) => Err(error),
            Ok(_) => Ok((Verdict::Warn, "what was deleted is still there".to_owned())),
        }
    }

    async fn storage_class(&self) -> Seen {
        match self.store.describe(&self.key("once")).await?.storage_class {
            None => pass("the store names none"),
            Some(class)
                if ["GLACIER", "DEEP_ARCHIVE", "ARCHIVE"].contains(&class.to_ascii_uppercase().as_str()) =>
            {
                fail(format!("new objects go to {class}"))
            }
            Some(class) => pass(class),
        }
    }

    async fn burst(&self) -> Seen {
        let key = self.key("once");
        let read = |_| async { self.store.get(&key, 100).await };
        let answers: Vec<_> =
            stream::iter(0..4 * PARALLEL).map(read).buffer_unordered(2 * PARALLEL).collect().await;
        let refused: Vec<Error> = answers.into_iter().filter_map(Result::err).collect();
        match refused.first() {
            None => pass(format!("{} at a time were answered", 2 * PARALLEL)),
            Some(error) if error.kind == Kind::Unavailable => {
                Ok((Verdict::Warn, format!("{} of {} were put off: {error}", refused.len(), 4 * PARALLEL)))
            }
            Some(error) => fail(error.to_string()),
        }
    }
}
