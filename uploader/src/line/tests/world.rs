//! A world in which nothing happens by itself: programs over one store, each standing before its next step.
//!
//! A request is two steps: it arrives, where it has its effect; its reply comes. Between any two steps of a program others may make
//! any number of theirs, which is what a stall at that await is. A request may be lost, its reply may be lost, and one whose caller
//! has given up may still arrive later. Deleting puts a marker over the versions of a name: it is free again. Time stands until it is
//! advanced, which is a step too.
//!
//! A program's state is a function of what it has been told so far, so two ways to the same store, clock and tales are one, and
//! only one is followed further. A reply changes nothing but who gets it: once time cannot pass any more, it makes no
//! difference what others do before it, so nothing is tried before it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::elapsed::{Elapsed, Moment};
use crate::line::BOUND;
use crate::store::Store;

/// What becomes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It goes well.
    Well,
    /// The request or the reply is lost.
    Lost,
    /// The caller gives up; the request arrives later.
    Late,
}

/// A step of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// A program goes on.
    Program(usize, Fate),
    /// A late request arrives.
    Land,
    /// Time passes.
    Time,
}

/// What a program stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Before {
    Arrival {
        put: bool,
    },
    Reply {
        put: bool,
    },
    /// Nothing, until then.
    Until(Duration),
}

/// What happened, as nobody in the world can know.
#[derive(Default)]
pub struct Truth {
    /// What was first created under each name.
    pub first: BTreeMap<String, Bytes>,
    /// What each program takes for durable, in the order in which it came to know.
    pub believed: Vec<(usize, String, Bytes)>,
}

#[derive(Default)]
struct State {
    /// The versions of each name; nothing is a marker.
    names: BTreeMap<String, Vec<Option<Bytes>>>,
    /// Puts that nobody waits for any more.
    late: Vec<(String, Bytes)>,
    clock: Duration,
    time_left: u32,
    faults_left: u32,
    /// Not only puts of the first program can be lost.
    anything: bool,
    before: Vec<Option<Before>>,
    told: Vec<u64>,
    fate: Option<Fate>,
    truth: Truth,
}

impl State {
    fn create(&mut self, key: &str, bytes: Bytes) -> bool {
        let versions = self.names.entry(key.to_owned()).or_default();
        if versions.last().is_some_and(Option::is_some) {
            return false;
        }
        versions.push(Some(bytes.clone()));
        self.truth.first.entry(key.to_owned()).or_insert(bytes);
        true
    }

    fn there(&self, key: &str) -> Option<Bytes> {
        self.names.get(key)?.last()?.clone()
    }

    fn tell(&mut self, program: usize, what: &impl Hash) {
        let mut hasher = DefaultHasher::new();
        (self.told[program], what).hash(&mut hasher);
        self.told[program] = hasher.finish();
    }
}

type Program = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub struct World {
    state: Arc<Mutex<State>>,
    programs: Vec<Option<Program>>,
    path: Vec<Move>,
}

impl World {
    /// Time can pass so often, by twice [`BOUND`] each, and so many faults happen.
    pub fn new(time: u32, faults: u32) -> Self {
        let state = State { time_left: time, faults_left: faults, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), programs: Vec::new(), path: Vec::new() }
    }

    /// Not only puts of the first program can be lost, or late.
    pub fn lose_anything(&self) {
        lock(&self.state).anything = true;
    }

    /// Something is there from the beginning.
    pub fn put(&self, key: &str, bytes: Bytes) {
        assert!(lock(&self.state).create(key, bytes));
    }

    /// Adds a program; it runs up to its first step.
    pub fn add<F: Future<Output = ()> + Send + 'static>(&mut self, program: impl FnOnce(Seat) -> F) {
        let seat = Seat { state: Arc::clone(&self.state), program: self.programs.len() };
        lock(&self.state).before.push(None);
        lock(&self.state).told.push(0);
        self.programs.push(Some(Box::pin(program(seat))));
        self.poll(self.programs.len() - 1);
    }

    fn poll(&mut self, program: usize) {
        let Some(future) = &mut self.programs[program] else { return };
        let done = future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if done {
            self.programs[program] = None;
            lock(&self.state).before[program] = None;
        }
    }

    fn moves(&self) -> Vec<Move> {
        let state = lock(&self.state);
        let mut moves = Vec::new();
        let faults = state.faults_left > 0;
        let replied = state.before.iter().position(|before| matches!(before, Some(Before::Reply { .. })));
        let only = replied.filter(|_| state.time_left == 0);
        let chosen = |program: &usize| only.is_none_or(|only| only == *program);
        for (program, before) in state.before.iter().enumerate().filter(|(program, _)| chosen(program)) {
            let mut can = |fate| moves.push(Move::Program(program, fate));
            match before {
                Some(Before::Until(time)) if *time <= state.clock => can(Fate::Well),
                Some(Before::Arrival { put } | Before::Reply { put }) => {
                    can(Fate::Well);
                    let faults = faults && (state.anything || (*put && program == 0));
                    if faults {
                        can(Fate::Lost);
                    }
                    if faults && matches!(before, Some(Before::Arrival { put: true })) {
                        can(Fate::Late);
                    }
                }
                _ => {}
            }
        }
        if !state.late.is_empty() && only.is_none() {
            moves.push(Move::Land);
        }
        if state.time_left > 0 && self.programs.iter().any(Option::is_some) {
            moves.push(Move::Time);
        }
        moves
    }

    /// Nobody stands before anything but the end of time.
    fn all_done(&self) -> bool {
        lock(&self.state).before.iter().flatten().all(|before| matches!(before, Before::Until(_)))
    }

    fn make(&mut self, step: Move) {
        self.path.push(step);
        match step {
            Move::Program(program, fate) => {
                let mut state = lock(&self.state);
                state.faults_left -= u32::from(fate != Fate::Well);
                state.fate = Some(fate);
                drop(state);
                self.poll(program);
            }
            Move::Land => {
                let mut state = lock(&self.state);
                let (key, bytes) = state.late.remove(0);
                state.create(&key, bytes);
            }
            Move::Time => {
                let mut state = lock(&self.state);
                state.time_left -= 1;
                state.clock += 2 * BOUND;
            }
        }
    }

    fn key(&self) -> u64 {
        let state = lock(&self.state);
        let mut hasher = DefaultHasher::new();
        (&state.names, &state.late, state.clock, state.faults_left).hash(&mut hasher);
        (&state.before, &state.told).hash(&mut hasher);
        hasher.finish()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

/// Says the way to a failure.
struct Says<'a>(&'a [Move]);

impl Drop for Says<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("after {:?}", self.0);
        }
    }
}

/// Makes every step that is possible in every state that can be reached from `begin`; `check` looks at each, and is told when nothing
/// can happen any more. Returns how many states there are.
pub fn every_state(begin: impl Fn() -> World, check: impl Fn(&Truth, bool)) -> usize {
    let mut known = HashSet::new();
    let mut open: Vec<Vec<Move>> = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let mut world = begin();
        path.into_iter().for_each(|step| world.make(step));
        while known.insert(world.key()) {
            let moves = world.moves();
            let says = Says(&world.path);
            let over = moves.is_empty();
            assert!(!over || world.all_done(), "nothing can happen, and not all is done");
            check(&lock(&world.state).truth, over);
            drop(says);
            let Some((first, others)) = moves.split_first() else { break };
            open.extend(others.iter().map(|step| [&world.path[..], &[*step]].concat()));
            world.make(*first);
        }
    }
    known.len()
}

/// A program's place: its way to the store, the clock and the truth.
#[derive(Clone)]
pub struct Seat {
    state: Arc<Mutex<State>>,
    program: usize,
}

impl Seat {
    pub fn store(&self) -> Store {
        Store::new(Arc::new(self.clone()), "memory://world")
    }

    pub fn clock(&self) -> Elapsed {
        let seat = self.clone();
        Elapsed::new(move || {
            let mut state = lock(&seat.state);
            let now = state.clock;
            state.tell(seat.program, &now);
            Moment::new(now, now)
        })
    }

    /// Says that the entry under `key` is durable.
    pub fn believes(&self, key: String, bytes: Bytes) {
        lock(&self.state).truth.believed.push((self.program, key, bytes));
    }

    /// Waits until twice [`BOUND`] has passed.
    pub async fn wait(&self) {
        let until = lock(&self.state).clock + 2 * BOUND;
        self.stand(Before::Until(until)).await;
    }

    async fn stand(&self, before: Before) -> Fate {
        lock(&self.state).before[self.program] = Some(before);
        let mut stood = false;
        let fate = std::future::poll_fn(|_| {
            if !std::mem::replace(&mut stood, true) {
                return Poll::Pending;
            }
            Poll::Ready(lock(&self.state).fate.take().unwrap())
        })
        .await;
        lock(&self.state).tell(self.program, &(before, fate));
        fate
    }

    /// A request that has `effect`; `late` is kept if the caller gives up.
    async fn request<T: Hash>(
        &self,
        late: Option<(String, Bytes)>,
        effect: impl FnOnce(&mut State) -> T + Send,
    ) -> Result<T> {
        let lost = || Error::Generic { store: "world", source: "lost".into() };
        let put = late.is_some();
        match self.stand(Before::Arrival { put }).await {
            Fate::Well => {}
            Fate::Lost => return Err(lost()),
            Fate::Late => {
                lock(&self.state).late.extend(late);
                return Err(lost());
            }
        }
        let answer = {
            let mut state = lock(&self.state);
            let answer = effect(&mut state);
            // It is on its way: two states with different answers on their way are two.
            state.tell(self.program, &answer);
            answer
        };
        if self.stand(Before::Reply { put }).await == Fate::Lost {
            return Err(lost());
        }
        Ok(answer)
    }

    /// Removes the entry under `key`, in one step.
    pub async fn delete(&self, key: &str) {
        self.stand(Before::Until(Duration::ZERO)).await;
        let mut state = lock(&self.state);
        if state.there(key).is_some() {
            state.names.get_mut(key).unwrap().push(None);
        }
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seat {}", self.program)
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seat {}", self.program)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Seat {
    async fn put_opts(&self, location: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        let (key, bytes) = (location.to_string(), Bytes::from(payload));
        let late = Some((key.clone(), bytes.clone()));
        match self.request(late, |state| state.create(&key, bytes)).await? {
            true => Ok(PutResult { e_tag: None, version: None, extensions: Default::default() }),
            false => Err(Error::AlreadyExists { path: key, source: "there".into() }),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let key = location.to_string();
        let Some(bytes) = self.request(None, |state| state.there(&key)).await? else {
            return Err(Error::NotFound { path: key, source: "not there".into() });
        };
        // A whole store is what makes an answer of the right form.
        let answer = InMemory::new();
        answer.put(location, bytes.into()).await?;
        answer.get_opts(location, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (seat, folder) = (self.clone(), prefix.map(ToString::to_string).unwrap_or_default());
        let listing = async move {
            let within = |key: &String| key.starts_with(&format!("{folder}/"));
            let keys = seat.request(None, |state| {
                state.names.keys().filter(|key| within(key) && state.there(key).is_some()).cloned().collect()
            });
            let keys: Vec<String> = keys.await?;
            let meta = |key: String| {
                Ok(ObjectMeta {
                    location: Path::from(key),
                    last_modified: Default::default(),
                    size: 0,
                    e_tag: None,
                    version: None,
                })
            };
            Ok::<_, Error>(stream::iter(keys.into_iter().map(meta)))
        };
        stream::once(listing).try_flatten().boxed()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".into(), implementer: "world".into() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(Error::NotImplemented { operation: "delimiter".into(), implementer: "world".into() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".into(), implementer: "world".into() })
    }
}
