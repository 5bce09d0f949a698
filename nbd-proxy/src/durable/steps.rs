//! The central list: every durable step of Lifeboat, each taken in exactly one place of the code.
//!
//! Of the layers above there are only names here, so that one list can be gone through. A step is followed by the operations that
//! its function in [`super`] does, in their order; on either side of each stands a failpoint, `STEP.OP.before` and
//! `STEP.OP.after`. A new step is a line here and its name where it is taken; `tests/death_at_every_durable_step/` is red until one of
//! its scenes gets there.

/// What is done to a file or an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A file or folder is made, or opened where it is there.
    Create,
    /// Content is made durable.
    Sync,
    /// A file gets another name.
    Rename,
    /// A name goes.
    Remove,
    /// The names in a folder are made durable.
    SyncFolder,
    /// An object is put into a vault.
    Put,
    /// An object is deleted from a vault.
    Delete,
}

/// On which side of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing of it has been done.
    Before,
    /// It is done, and nobody has heard of it.
    After,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident: $($op:ident)+;)+) => {
        /// A durable step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step { $($(#[$doc])* $step,)+ }

        /// Every step with its operations.
        pub const ALL: &[(Step, &[Op])] = &[$((Step::$step, &[$(Op::$op),+]),)+];
    };
}

steps! {
    // The change log: nbd-proxy/src/log/folder.rs; its close: nbd-proxy/src/disk/recover.rs
    /// The folder of a disk's change log and tracking.
    DiskFolder: Create;
    /// The file of the next segment is opened, or made.
    SegmentMade: Create;
    /// It has its header, and gets the name that makes it a segment.
    SegmentNamed: Rename;
    /// A segment is one no more, and kept for reuse.
    SegmentKept: Rename;
    /// A segment, or a file kept for one, goes.
    SegmentRemoved: Remove;
    /// At a clean close: a segment that was being written.
    SegmentClosed: Sync;
    /// At a clean close: a segment that was complete.
    SegmentSettled: Sync;
    /// At a clean close: the names of all of these.
    LogClosed: SyncFolder;

    // The disk: nbd-proxy/src/backing/raw.rs
    /// A flush.
    BackingFlushed: Sync;
    /// A write that is to be durable.
    BackingWritten: Sync;

    // What a disk's tracking remembers: nbd-proxy/src/disk/
    /// The file of the tracking state.
    StateMade: Create;
    /// Both of its slots, at first.
    StateFilled: Sync;
    /// The tracking state.
    StateWritten: Sync;
    /// The file of the intent map.
    IntentMade: Create;
    /// Both of its slots, at first.
    IntentFilled: Sync;
    /// The intent map.
    IntentWritten: Sync;
    /// The bitmap of an unlogged disk, at a clean close.
    BitmapSaved: Create Sync SyncFolder;
    /// The file that says which segments there must be.
    EndsMade: Create;
    /// At a clean close: what it says.
    EndsClosed: Sync;
    /// The folder of all of these, that went away under a running proxy.
    FolderRemade: Create;
    /// Its name, and those above.
    FolderNamed: SyncFolder;
    /// The note beside the image.
    VoidDeclared: Create Sync SyncFolder;
    /// The note goes.
    VoidLifted: Remove SyncFolder;

    // A daemon: src/control/server.rs
    /// The folder of local state.
    StateFolder: Create;

    // What an uploader remembers: uploader/src/replicate/, uploader/src/jobs.rs
    /// The writer's state.
    WriterSaved: Create Sync Rename SyncFolder;
    /// The journal of a sync.
    JournalMade: Create;
    /// A line of the journal.
    JournalWritten: Sync;
    /// The name of a journal that has begun.
    JournalNamed: SyncFolder;
    /// The journal goes.
    JournalRemoved: Remove SyncFolder;
    /// The folder of job records.
    JobsFolder: Create;
    /// A job's record.
    JobSaved: Create Sync Rename SyncFolder;
    /// What was asked of the vault, by day.
    UsageSaved: Create Sync Rename SyncFolder;
    /// An old job's record goes.
    JobForgotten: Remove SyncFolder;

    // A vault: uploader/src/store/open.rs, vault.rs, cipher/ring.rs, seed.rs, commit.rs, line.rs, catalogue.rs, holds.rs, prune/
    /// The folder that is a vault.
    VaultFolder: Create;
    /// The marker that makes it one.
    MarkerPut: Put;
    /// The data key, wrapped for a secret.
    KeyPut: Put;
    /// A secret opens the vault no more.
    KeyRemoved: Delete;
    /// Of a seed: what entries rely on.
    SeedPut: Put;
    /// Of a seed: an entry, the marker, a wrapped key.
    SeedCreated: Put;
    /// A delta.
    DeltaPut: Put;
    /// An entry of the line, which commits what it names.
    EntryPut: Put;
    /// A catalogue, which says what thinning left.
    CataloguePut: Put;
    /// A reader's hold.
    HoldPut: Put;
    /// The reader is done.
    HoldDeleted: Delete;
    /// An object that is written to learn the store's time.
    ClockPut: Put;
    /// The time is known.
    ClockDeleted: Delete;
    /// An object that nobody needs goes.
    Swept: Delete;

    // A restore: uploader/src/restore.rs, uploader/src/restore/output.rs
    /// The folder that a restore writes to.
    RestoreFolder: Create;
    /// The partial file of a disk.
    RestoreMade: Create;
    /// It is complete.
    RestoreSynced: Sync;
    /// It gets the name of the disk.
    RestoreNamed: Rename;
    /// The name is to stay.
    RestoreKept: SyncFolder;
    /// The partial file of a restore that failed goes.
    RestoreGivenUp: Remove;
}
