//! The task that turns the crank: when to step, what to do about errors, what commands mean.

use std::time::Duration;

use jiff::Timestamp;
use nbd_proxy::{Error, Kind};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Command;
use super::engine::{Engine, Step, Waits};
use super::journal::Journal;
use super::retry::{Next, Retry};
use super::state::State;
use super::status::{DiskState, Health, Phase};
use super::sync::ASKED;
use crate::jobs::Job;

/// Whether steps are made.
enum Mode {
    /// The next one is due, by the clock since boot.
    Running(Duration),
    /// The operator has paused the machine, maybe by cancelling a copy.
    Paused { cancelled: bool },
    /// A permanent error: only the operator can go on.
    Stopped(Error),
}

/// How a step, or the waiting for one, ended.
enum Event {
    Due,
    Done(nbd_proxy::Result<Step>),
    Command(Option<Command>),
}

struct Task {
    engine: Engine,
    mode: Mode,
    retry: Retry,
}

pub(super) async fn run(engine: Engine, mut commands: mpsc::Receiver<Command>) {
    let retry = Retry::new(engine.settings().retry_gaps.clone());
    let mut task = Task { engine, mode: Mode::Running(Duration::ZERO), retry };
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
            Event::Done(Ok(Step::Point)) => task.succeeded(),
            Event::Done(Ok(Step::Waits(waits))) => task.waits(&waits),
            Event::Done(Err(error)) => task.failed(error),
            Event::Due => {}
        }
    }
}

impl Task {
    /// Waits until a step is due or a command comes.
    async fn wait(&mut self, commands: &mut mpsc::Receiver<Command>) -> Event {
        loop {
            let left = match &self.mode {
                Mode::Running(_) if self.engine.has_waiters() && self.retry.failures() == 0 => {
                    Some(Duration::ZERO)
                }
                Mode::Running(due) => Some(due.saturating_sub(self.now())),
                // Only a command changes these.
                _ => None,
            };
            let clock = &self.engine.settings().elapsed;
            let due = async {
                match left {
                    Some(left) => clock.sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = commands.recv() => return Event::Command(command),
                () = self.engine.inbox().arrived.notified() => match &self.mode {
                    // Who asked in mid-step may have been served already.
                    Mode::Running(_) if self.engine.inbox().is_empty() => {}
                    Mode::Running(_) => return Event::Due,
                    Mode::Paused { .. } => self.engine.refuse_waiters(&self.paused()),
                    Mode::Stopped(error) => {
                        let error = copy(error);
                        self.engine.refuse_waiters(&error);
                    }
                },
                () = due => return Event::Due,
            }
        }
    }

    fn now(&self) -> Duration {
        self.engine.settings().elapsed.now().boot()
    }

    /// The next step is due after `gap`.
    fn due_in(&mut self, gap: Duration) {
        self.mode = Mode::Running(self.now() + gap);
    }

    /// Makes a step; a command that changes what is to be done drops it, which is what a kill would do.
    async fn step(&mut self, commands: &mut mpsc::Receiver<Command>) -> Event {
        self.due_in(self.engine.settings().until_due());
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
        self.retry.begin_again();
        self.engine.show(|status| {
            status.well();
            status.phase = Phase::Idle;
            status.activity.clear();
        });
    }

    /// Looks again at every interval: what it waits for may become needless, and clocks are put forward and back.
    fn waits(&mut self, waits: &Waits) {
        self.retry.begin_again();
        let settings = self.engine.settings();
        let (machine, now) = (settings.machine.clone(), settings.clock.now());
        let left = Duration::try_from(waits.until.duration_since(&now)).unwrap_or_default();
        let gap = left.min(settings.interval);
        self.due_in(gap);
        let until = waits.until.strftime("%Y-%m-%d %H:%M");
        let cause =
            format!("a whole compare waits for the resync window, which opens at {until} ({})", waits.cause);
        let remedy = format!("`lifeboat resync {machine} --now` begins at once; until then no point is made");
        if self.engine.status().cause != cause {
            tracing::warn!(%machine, cause = waits.cause, %until, "a whole compare waits for the resync window");
        }
        self.engine.refuse_waiters(&Error::new(Kind::NotReady, &machine, &cause).remedy(&remedy));
        self.engine.show(|status| {
            status.health = Health::Critical;
            (status.cause, status.remedy) = (cause, remedy);
            status.sync_cause.clone_from(&waits.cause);
            status.phase = Phase::Waiting;
            status.activity = "waits for the resync window".to_owned();
            status.next_retry = Some(waits.until.timestamp());
            let waiting = status.disks.iter_mut().filter(|disk| waits.disks.contains(&disk.name));
            waiting.for_each(|disk| disk.state = DiskState::Resync);
        });
    }

    fn failed(&mut self, error: Error) {
        self.engine.forget();
        let machine = self.engine.settings().machine.clone();
        let Next::In(gap) = self.retry.after(&error, self.now()) else {
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
        };
        let attempt = self.retry.failures();
        tracing::info!(%machine, %error, attempt, ?gap, "replication will be tried again");
        self.due_in(gap);
        self.engine.show(|status| {
            status.health = if status.fenced.is_some() { Health::Critical } else { Health::Warning };
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
                let written = self.change(|state| state.paused = true);
                if written.is_ok() {
                    self.pause(false);
                }
                let _ = reply.send(written);
            }
            Command::Resume(reply) => {
                let written = self.change(|state| (state.paused, state.cancelled) = (false, false));
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
            Command::Now(reply) => {
                let written = self.change(|state| state.start_now = true);
                if written.is_ok() && matches!(self.mode, Mode::Running(_)) {
                    self.go_on();
                }
                let _ = reply.send(written);
            }
            Command::Cancel(job, reply) => {
                let cancelled = self.cancel(job);
                if cancelled.is_ok() {
                    self.pause(true);
                }
                let _ = reply.send(cancelled);
            }
            Command::Stop(reply) => {
                let _ = reply.send(());
            }
        }
    }

    fn pause(&mut self, cancelled: bool) {
        self.mode = Mode::Paused { cancelled };
        let why = self.paused();
        self.engine.show(|status| {
            status.phase = Phase::Paused;
            status.activity.clear();
            status.next_retry = None;
            if cancelled {
                status.health = Health::Warning;
                status.cause.clone_from(&why.message);
                status.remedy.clone_from(&why.remedy);
            }
            status.all_disks(DiskState::Paused);
        });
        self.engine.refuse_waiters(&why);
    }

    fn paused(&self) -> Error {
        let machine = self.engine.settings().machine.as_str();
        if matches!(self.mode, Mode::Paused { cancelled: true }) {
            let message =
                "replication is paused: the copy was cancelled, and no point can be made without it";
            let remedy = format!("`lifeboat resync {machine}` begins it again; points that exist stay");
            return Error::new(Kind::NotReady, machine, message).remedy(remedy);
        }
        let message = "replication is paused: no points are made";
        Error::new(Kind::NotReady, machine, message).remedy(format!("`lifeboat resume {machine}` goes on"))
    }

    fn go_on(&mut self) {
        self.retry.begin_again();
        self.due_in(Duration::ZERO);
    }

    /// Whoever asks after the reply must not be told that the disks are protected still.
    fn show_resync(&mut self) {
        self.engine.show(|status| ASKED.clone_into(&mut status.sync_cause));
        if matches!(self.mode, Mode::Paused { cancelled: false }) {
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
            self.pause(state.cancelled);
        }
    }

    /// Changes the local state durably. Before the first contact with the vault there is none: one about no vault keeps
    /// what the operator wants.
    fn change(&self, change: impl FnOnce(&mut State)) -> nbd_proxy::Result<()> {
        let settings = self.engine.settings();
        let loaded = State::load(&settings.state_dir, &settings.machine)?;
        let mut state = loaded.clone().unwrap_or_else(|| State::new(&settings.machine, Uuid::nil()));
        change(&mut state);
        if loaded.as_ref() == Some(&state) { Ok(()) } else { state.save(&settings.state_dir) }
    }

    /// Forgets what the vault is known to hold of the disks, so that all of them are compared. The sync under way, if any,
    /// is given up: nothing of it is needed.
    fn begin_again(&self) -> nbd_proxy::Result<()> {
        let settings = self.engine.settings();
        let Some(mut state) = State::load(&settings.state_dir, &settings.machine)? else { return Ok(()) };
        state.resync_asked = true;
        if std::mem::take(&mut state.cancelled) {
            state.paused = false;
        }
        let given_up = Error::new(Kind::NotReady, &settings.machine, "given up for another resync");
        match self.give_up(state)? {
            Some(job) => settings.jobs.end(job, Err(&given_up)).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Gives up the sync that `job` is the record of.
    fn cancel(&self, job: Uuid) -> nbd_proxy::Result<()> {
        let settings = self.engine.settings();
        let state = State::load(&settings.state_dir, &settings.machine)?;
        let syncing = |state: &State| state.sync.as_ref().is_some_and(|sync| sync.job == job);
        let Some(mut state) = state.filter(syncing) else {
            let message = format!("does not run job {job} now");
            return Err(Error::new(Kind::NotFound, &settings.machine, message)
                .remedy("`lifeboat jobs` lists them; only copies that are running can be cancelled"));
        };
        (state.paused, state.cancelled) = (true, true);
        (state.resync_asked, state.start_now) = (false, false);
        tracing::warn!(machine = %settings.machine, %job, "the copy is cancelled; the machine is paused");
        match self.give_up(state)? {
            Some(job) => settings.jobs.cancel(job).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Makes `state` durable without its sync, and returns the sync's job. Logs that were shipped meanwhile are in the
    /// journal alone: without it, no disk is exact any more.
    fn give_up(&self, mut state: State) -> nbd_proxy::Result<Option<Job>> {
        let settings = self.engine.settings();
        state.disks.clear();
        let sync = state.sync.take();
        state.save(&settings.state_dir)?;
        Journal::remove(&settings.state_dir, &settings.machine)?;
        Ok(sync.map(|sync| settings.jobs.get(sync.job)).transpose()?.flatten())
    }
}

fn copy(error: &Error) -> Error {
    Error::new(error.kind, &error.object, &error.message).remedy(&error.remedy)
}
