//! Records of long work: initial replication, resync, restore. One JSON file for each job, so that what ran, and how
//! it ended, survives a restart.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nbd_proxy::durable::{self, Step};
use nbd_proxy::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// The first copy of a machine's disks.
    InitialReplication,
    /// A later copy, of what is not known to be in the vault.
    Resync,
    /// A point written to local disks.
    Restore,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Not ended; after a restart it goes on, or begins again.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
    /// Given up because the operator said so.
    Cancelled,
}

/// A job's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Names the job.
    pub id: Uuid,
    /// What it does.
    pub kind: JobKind,
    /// For which machine.
    pub machine: String,
    /// How far it is.
    pub state: JobState,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Bytes done when the record was last written.
    pub bytes_done: u64,
    /// Bytes in all, as far as known.
    pub bytes_total: u64,
    /// Of a sync: bytes done that had to travel.
    #[serde(default)]
    pub bytes_shipped: u64,
    /// Of a sync: bytes among them that hashes could not decide upon.
    #[serde(default)]
    pub bytes_undecided: u64,
    /// Why it runs, for people.
    pub cause: String,
    /// What went wrong.
    pub error: Option<String>,
}

/// A folder of job records; cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    folder: PathBuf,
}

/// Ended jobs that are kept.
const KEEP: usize = 200;

impl Jobs {
    /// Opens `folder`, making it if need be.
    pub fn open(folder: &Path) -> Result<Self> {
        durable::make_folder(Step::JobsFolder, folder)
            .map_err(|e| Error::io("create the folder of job records", folder, e))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// All records, newest first. A record that cannot be read is left out: it is no reason to hide the others.
    pub fn list(&self) -> Result<Vec<Job>> {
        let entries =
            fs::read_dir(&self.folder).map_err(|e| Error::io("list job records", &self.folder, e))?;
        let mut jobs = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io("list job records", &self.folder, e))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read(&path)?.map(|bytes| serde_json::from_slice::<Job>(&bytes)) {
                    Some(Ok(job)) => jobs.push(job),
                    Some(Err(e)) => {
                        tracing::info!(path = %path.display(), error = %e, "unreadable job record")
                    }
                    None => {}
                }
            }
        }
        jobs.sort_by(|a, b| b.started.cmp(&a.started).then(b.id.cmp(&a.id)));
        Ok(jobs)
    }

    /// The record of `id`.
    pub fn get(&self, id: Uuid) -> Result<Option<Job>> {
        let path = self.path(id);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|e| Error::corrupt(path.display().to_string(), format!("no job record: {e}")))
    }

    /// Begins a job.
    pub fn start(&self, kind: JobKind, machine: &str, cause: &str) -> Result<Job> {
        let job = Job {
            id: Uuid::new_v4(),
            kind,
            machine: machine.to_owned(),
            state: JobState::Running,
            started: Timestamp::now(),
            ended: None,
            bytes_done: 0,
            bytes_total: 0,
            bytes_shipped: 0,
            bytes_undecided: 0,
            cause: cause.to_owned(),
            error: None,
        };
        self.save(&job)?;
        self.forget_old()?;
        Ok(job)
    }

    /// Writes a record.
    pub fn save(&self, job: &Job) -> Result<()> {
        let path = self.path(job.id);
        let bytes = serde_json::to_vec_pretty(job)
            .map_err(|e| Error::new(Kind::InvalidInput, path.display().to_string(), e.to_string()))?;
        durable::replace(Step::JobSaved, &path, &bytes)
            .map_err(|e| Error::io("write the job record", &path, e))
    }

    /// Ends a job.
    pub fn end(&self, mut job: Job, result: Result<(), &Error>) -> Result<Job> {
        job.ended = Some(Timestamp::now());
        match result {
            Ok(()) => job.state = JobState::Done,
            Err(e) => {
                job.state = JobState::Failed;
                job.error = Some(e.to_string());
            }
        }
        self.save(&job)?;
        Ok(job)
    }

    /// Ends a job that the operator does not want any more.
    pub fn cancel(&self, mut job: Job) -> Result<Job> {
        job.ended = Some(Timestamp::now());
        job.state = JobState::Cancelled;
        self.save(&job)?;
        Ok(job)
    }

    fn forget_old(&self) -> Result<()> {
        let ended = self.list()?.into_iter().filter(|job| job.state != JobState::Running);
        ended.skip(KEEP).try_for_each(|job| {
            let path = self.path(job.id);
            durable::remove_for_good(Step::JobForgotten, &path)
                .map_err(|e| Error::io("remove the job record", &path, e))
        })
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    durable::read(path).map_err(|e| Error::io("read the job record", path, e))
}

#[cfg(test)]
mod tests;
