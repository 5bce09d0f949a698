//! The task that turns the crank: when to step, what to do about errors, what commands mean.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nbd_proxy::{Error, Kind};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Command;
use super::engine::Engine;
use super::journal::Journal;
use super::state::State;
use super::status::{DiskState, Health, Phase};
use super::sync::ASKED;

/// Whether steps are made.
enum Mode {
    /// The next one is due.
    Running(Instant),
    /// The operator has paused the machine.
    Paused,
    /// A permanent error: only the operator can go on.
    Stopped(Error),
}

/// How a step, or the waiting for one, ended.
enum Event {
    Due,
    Done(nbd_proxy::Result<()>),
    Command(Option<Command>),
}

struct Task {
    engine: Engine,
    mode: Mode,
    /// Failed attempts in a row.
    failures: usize,
    /// Credentials were loaded again after a refusal, once.
    reloaded: bool,
}

pub(super) async fn run(engine: Engine, mut commands: mpsc::Receiver<Command>) {
    let mut task = Task { engine, mode: Mode::Running(Instant::now()), failures: 0, reloaded: false };
    task.load_pause();
    loop {
        let event = task.wait(&mut commands).await;
        let event = match event {
            Event::Due => task.step(&mut commands).await,
            event => event,
        };
        match event {
            Event::Command(None) => return,
            Event::Command(Some(Command::Stop(reply))) => {
                task.engine.forget();
                let _ = reply.send(());
                return;
            }
            Event::Command(Some(command)) => task.obey(command),
            Event::Done(Ok(())) => task.succeeded(),
            Event::Done(Err(error)) => task.failed(error),
            Event::Due => {}
        }
    }
}

impl Task {
    /// Waits until a step is due or a command comes.
    async fn wait(&mut self, commands: &mut mpsc::Receiver<Command>) -> Event {
        loop {
            let due = match &self.mode {
                Mode::Running(due) if self.engine.has_waiters() && self.failures == 0 => {
                    (*due).min(Instant::now())
                }
                Mode::Running(due) => *due,
                // Far enough: only a command changes these.
                _ => Instant::now() + Duration::from_secs(3600),
            };
            tokio::select! {
                biased;
                command = commands.recv() => return Event::Command(command),
                () = self.engine.inbox().arrived.notified() => match &self.mode {
                    // Who asked in mid-step may have been served already.
                    Mode::Running(_) if self.engine.inbox().is_empty() => {}
                    Mode::Running(_) => return Event::Due,
                    Mode::Paused => self.engine.refuse_waiters(&paused(&self.engine.settings().machine)),
                    Mode::Stopped(error) => {
                        let error = copy(error);
                        self.engine.refuse_waiters(&error);
                    }
                },
                () = tokio::time::sleep_until(due.into()) => {
                    if matches!(self.mode, Mode::Running(_)) {
                        return Event::Due;
                    }
                }
            }
        }
    }

    /// Makes a step; a command that changes what is to be done drops it, which is what a kill would do.
    async fn step(&mut self, commands: &mut mpsc::Receiver<Command>) -> Event {
        self.mode = Mode::Running(Instant::now() + self.engine.settings().until_due());
        let step = self.engine.step();
        tokio::pin!(step);
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Resume(reply)) => {
                        let _ = reply.send(Ok(()));
                    }
                    command => return Event::Command(command),
                },
                result = &mut step => return Event::Done(result),
            }
        }
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.reloaded = false;
        self.engine.show(|status| {
            status.well();
            status.phase = Phase::Idle;
            status.activity.clear();
        });
    }

    fn failed(&mut self, error: Error) {
        self.engine.forget();
        let machine = self.engine.settings().machine.clone();
        let reload = error.kind == Kind::Denied && !std::mem::replace(&mut self.reloaded, true);
        if !error.is_transient() && !reload {
            tracing::error!(%machine, %error, "replication stopped");
            let state = if error.kind == Kind::Fenced { DiskState::Fenced } else { DiskState::Failed };
            self.engine.show(|status| {
                status.health = Health::Critical;
                status.cause = format!("{}: {}", error.object, error.message);
                status.remedy.clone_from(&error.remedy);
                status.phase = Phase::Stopped;
                status.activity.clear();
                status.next_retry = None;
                status.all_disks(state);
            });
            self.engine.refuse_waiters(&error);
            self.mode = Mode::Stopped(error);
            return;
        }
        let gaps = &self.engine.settings().retry_gaps;
        let gap = gaps.get(self.failures).or(gaps.last()).copied().unwrap_or(Duration::from_secs(60));
        let gap = if reload { Duration::ZERO } else { gap };
        self.failures += 1;
        tracing::info!(%machine, %error, attempt = self.failures, ?gap, "replication will be tried again");
        self.mode = Mode::Running(Instant::now() + gap);
        self.engine.show(|status| {
            status.health = Health::Warning;
            status.cause = format!("{}: {}", error.object, error.message);
            status.remedy.clone_from(&error.remedy);
            status.phase = Phase::Waiting;
            status.next_retry = Timestamp::now().checked_add(gap).ok();
        });
    }

    fn obey(&mut self, command: Command) {
        self.engine.forget();
        match command {
            Command::Pause(reply) => {
                let written = self.write_pause(true);
                if written.is_ok() {
                    self.pause();
                }
                let _ = reply.send(written);
            }
            Command::Resume(reply) => {
                let written = self.write_pause(false);
                if written.is_ok() {
                    self.go_on();
                }
                let _ = reply.send(written);
            }
            Command::Resync(reply) => {
                let begun = self.begin_again();
                if begun.is_ok() {
                    self.show_resync();
                }
                let _ = reply.send(begun);
            }
            Command::Stop(reply) => {
                let _ = reply.send(());
            }
        }
    }

    fn pause(&mut self) {
        self.mode = Mode::Paused;
        self.engine.show(|status| {
            status.phase = Phase::Paused;
            status.activity.clear();
            status.next_retry = None;
            status.all_disks(DiskState::Paused);
        });
        self.engine.refuse_waiters(&paused(&self.engine.settings().machine));
    }

    fn go_on(&mut self) {
        self.failures = 0;
        self.reloaded = false;
        self.mode = Mode::Running(Instant::now());
    }

    /// Whoever asks after the reply must not be told that the disks are protected still.
    fn show_resync(&mut self) {
        self.engine.show(|status| ASKED.clone_into(&mut status.sync_cause));
        if matches!(self.mode, Mode::Paused) {
            return;
        }
        self.go_on();
        self.engine.show(|status| {
            status.phase = Phase::Starting;
            let state = if status.head.is_some() { DiskState::Resync } else { DiskState::Initial };
            status.all_disks(state);
        });
    }

    /// A pause outlives the process. Unreadable state is left for the first step to complain about.
    fn load_pause(&mut self) {
        let settings = self.engine.settings();
        if let Ok(Some(state)) = State::load(&settings.state_dir, &settings.machine)
            && state.paused
        {
            self.engine.show(|status| {
                status.generation = state.generation;
                status.head = state.point;
                status.newest = state.time;
            });
            self.pause();
        }
    }

    fn write_pause(&self, paused: bool) -> nbd_proxy::Result<()> {
        let settings = self.engine.settings();
        // Before the first contact with the vault there is no state yet: one about no vault keeps the pause.
        let state = State::load(&settings.state_dir, &settings.machine)?;
        let mut state = state.unwrap_or_else(|| State::new(&settings.machine, Uuid::nil()));
        if state.paused == paused {
            return Ok(());
        }
        state.paused = paused;
        state.save(&settings.state_dir)
    }

    /// Forgets what the vault is known to hold of the disks, so that all of them are copied whole. The sync under way,
    /// if any, is given up: nothing of it is needed.
    fn begin_again(&self) -> nbd_proxy::Result<()> {
        let settings = self.engine.settings();
        let Some(mut state) = State::load(&settings.state_dir, &settings.machine)? else { return Ok(()) };
        state.disks.clear();
        state.resync_asked = true;
        let sync = state.sync.take();
        state.save(&settings.state_dir)?;
        Journal::remove(&settings.state_dir, &settings.machine)?;
        if let Some(job) = sync.map(|sync| settings.jobs.get(sync.job)).transpose()?.flatten() {
            let given_up = Error::new(Kind::NotReady, &settings.machine, "given up for a whole resync");
            settings.jobs.end(job, Err(&given_up))?;
        }
        Ok(())
    }
}

fn paused(machine: &str) -> Error {
    Error::new(Kind::NotReady, machine, "replication is paused").remedy("`lifeboat resume` goes on")
}

fn copy(error: &Error) -> Error {
    Error::new(error.kind, &error.object, &error.message).remedy(&error.remedy)
}
