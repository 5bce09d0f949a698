//! Databases in a guest, cut in the middle of their transactions: every point opens, passes the database's own check, and has every
//! transaction that was acknowledged before the cut.
//!
//! The guest says on its serial console what was acknowledged; what arrived here before a cut was asked for, or before the
//! instant that the point names, must be in the point, and of what came later an unbroken row at most. Both databases depend on two
//! disks being of one instant: SQLite commits each transaction on the first disk, with a write-ahead log, and then on the second, with
//! a rollback journal; PostgreSQL has its tables on the first and its log on the second. In the end the host is lost, and all
//! that is judged comes from the vault.
//!
//! `LIFEBOAT_DATABASE_CUTS` is the number of cuts under SQLite, `LIFEBOAT_POSTGRES_CUTS` that under PostgreSQL: none unless it is set,
//! for it has to be installed (`scripts/lab install postgres`).

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lab::guest::{NEEDED, RUN, Tools, check_ext4, make_ext4, take_out, take_out_folder};
use lab::vm::{self, Line, Vm};
use lab::{Lifeboat, MIB, Random, Scratch, Setup, Store, judge, run, scale, tool};

/// Twenty accounts, whose sum stays zero, and a table of what was done, with an index.
const SCHEMA: &str = "CREATE TABLE account(n INTEGER PRIMARY KEY, v BIGINT NOT NULL);\n\
    CREATE TABLE done(n INTEGER PRIMARY KEY, body TEXT NOT NULL);\n\
    CREATE INDEX bodies ON done(body);\n";

/// What must come out as `COUNT|HIGHEST|0`.
const STATE: &str =
    "SELECT count(*) || '|' || coalesce(max(n), 0) || '|' || (SELECT sum(v) FROM account) FROM done;";

fn accounts() -> String {
    (0..20).map(|n| format!("INSERT INTO account VALUES({n}, 0);\n")).collect()
}

/// A transaction as the guest's shell writes it, in the tables whose names begin with `of`; then what is said of it on the console.
fn transaction(of: &str, body: &str, name: &str) -> String {
    format!(
        "BEGIN; INSERT INTO {of}done VALUES($i, {body}); UPDATE {of}account SET v = v - $i WHERE n = $((i % 20)); \
         UPDATE {of}account SET v = v + $i WHERE n = $((i * 7 % 20)); COMMIT; SELECT 'kept {name} $i';"
    )
}

/// A loop that writes `each` for i = 1, 2 … into `database`, without end.
fn endless(first: &str, each: &str, database: &str) -> String {
    format!(
        "(echo \"{first}\"; i=0; while :; do i=$((i + 1)); echo \"{each}\"; done) | {database}\necho database ended\n"
    )
}

/// The machine whose guest has a database on its disks `a` and `b`, and what is known of its points.
struct Protected {
    lifeboat: Lifeboat,
    scratch: Scratch,
    /// Until when, at least, a point has everything, in seconds since 1970: the cut was asked for then.
    asked: Vec<(String, f64)>,
    said: Vec<Line>,
}

impl Protected {
    /// A machine with a disk for each of `folders`, which become its file systems.
    fn new(scratch: Scratch, folders: [&Path; 2], size: u64) -> Self {
        let images = scratch.join("images");
        std::fs::create_dir(&images).expect("a folder");
        for (name, folder) in ["a", "b"].into_iter().zip(folders) {
            make_ext4(&images.join(format!("vm1-{name}.img")), size, Some(folder));
        }
        let setup = Setup::new().disk("a", size).disk("b", size).interval("2s").policy("retry = [\"1s\"]");
        let lifeboat = setup.create(&scratch, &Store::folder(&scratch)).run_apart();
        Self { lifeboat, scratch, asked: Vec::new(), said: Vec::new() }
    }

    /// Boots a guest, has it `begin`, and takes `cuts` in the middle of what it does; then the host is lost.
    fn cut_in_the_middle(&mut self, tools: &Path, begin: &[&str], cuts: u64) {
        let disks: Vec<_> = self.lifeboat.disks().iter().map(|disk| disk.target.clone()).collect();
        let mut guest = Vm::boot_with_tools(&disks, tools);
        guest.sh("mkdir /mnt/a /mnt/b && mount -t ext4 /dev/vda /mnt/a && mount -t ext4 /dev/vdb /mnt/b");
        begin.iter().for_each(|line| drop(guest.sh(line)));
        guest.type_line("sh /tools/load.sh 2>&1 &");
        guest.wait_for("kept a 20", Duration::from_secs(120));
        self.lifeboat.wait_protected();
        let seed = scale("LIFEBOAT_SEED", u64::from(std::process::id()));
        eprintln!("LIFEBOAT_SEED={seed}");
        let mut random = Random::new(seed);
        for _ in 0..cuts {
            std::thread::sleep(Duration::from_millis(random.below(1500)));
            let asked =
                SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_secs_f64();
            self.asked.push((self.lifeboat.cut_id(), asked));
        }
        guest.kill();
        self.lifeboat.kill_proxy();
        self.lifeboat.kill_uploader();
        self.said = guest.lines();
        let ended = self.said.iter().find(|line| line.text.contains("database ended"));
        assert!(ended.is_none(), "the database failed in the guest: {:?}", self.said);
        self.lifeboat.disks().iter().for_each(|disk| std::fs::remove_file(&disk.image).expect("the image"));
    }

    /// Restores every point and has `judge` say how many transactions each disk's database holds.
    fn every_point_holds(&self, names: &[&str], judge: impl Fn([&Path; 2], &Path) -> Vec<u64>) {
        let points = self.lifeboat.points();
        let mut between = 0;
        for point in &points {
            let to = self.scratch.join("restored");
            let images = self.lifeboat.restore(&point.id, &to);
            images.iter().for_each(|image| check_ext4(image));
            let held = judge([&images[0], &images[1]], &to);
            let asked = self.asked.iter().find(|(id, _)| *id == point.id).map_or(0.0, |(_, asked)| *asked);
            for (name, held) in names.iter().zip(&held) {
                let needed = self.acknowledged(name, point.time.max(asked));
                assert!(*held >= needed, "point {} has {held} of {needed} acknowledged in {name}", point.id);
                between += held - needed;
            }
            if let [a, b] = held[..] {
                assert!(a == b || a == b + 1, "point {}: {a} on the first disk, {b} on the second", point.id);
            }
            std::fs::remove_dir_all(&to).expect("the restored folder");
        }
        let last = self.acknowledged(names[0], f64::MAX);
        assert!(points.len() > self.asked.len(), "points came by themselves as well");
        assert!(last > 20, "only {last} transactions: {:?}", self.said);
        eprintln!(
            "{} points of {last} transactions; {between} were in a point and not told yet",
            points.len()
        );
    }

    /// The highest transaction of `name` that was acknowledged before `time`.
    fn acknowledged(&self, name: &str, time: f64) -> u64 {
        let before = self.said.iter().filter(|line| line.time < time);
        let numbers = before.filter_map(|line| match line.text.split_whitespace().collect::<Vec<_>>()[..] {
            ["kept", of, number] if of == name => number.parse().ok(),
            _ => None,
        });
        numbers.max().unwrap_or(0)
    }
}

/// The number of transactions in a database whose [`STATE`] is `state`: an unbroken row from the first on, each of them whole.
fn transactions(state: &str) -> u64 {
    let fields: Vec<u64> = state.split('|').map(|field| field.parse().expect("a number")).collect();
    assert!(fields[0] == fields[1] && fields[2] == 0, "{state}: not a row of whole transactions");
    fields[0]
}

#[test]
fn sqlite_has_what_it_acknowledged() {
    if !(vm::available() && judge::have(&NEEDED) && judge::have(&["sqlite3"])) {
        return;
    }
    let scratch = Scratch::new();
    let tools = Tools::new(&scratch);
    tools.program(&judge::find("sqlite3").expect("it is there"), "sqlite3");
    // A rollback journal is gone for good only when its folder is synced as well.
    let first = "ATTACH '/mnt/a/db' AS a; ATTACH '/mnt/b/db' AS b; PRAGMA a.synchronous = FULL; \
        PRAGMA b.synchronous = EXTRA; PRAGMA a.wal_autocheckpoint = 50;";
    let body = "hex(randomblob($((i % 40 * 37))))";
    let each = transaction("a.", body, "a") + &transaction("b.", body, "b");
    tools.file("load.sh", &endless(first, &each, &format!("{RUN} /tools/sqlite3 -batch -bail :memory:")));
    let folders = ["a", "b"].map(|name| scratch.join(name));
    for (folder, journal) in folders.iter().zip(["WAL", "DELETE"]) {
        std::fs::create_dir(folder).expect("a folder");
        let made = format!("PRAGMA journal_mode = {journal};\n{SCHEMA}{}", accounts());
        run(tool("sqlite3").arg(folder.join("db")).arg(made));
    }
    let tools = tools.image(32 * MIB);
    let mut protected = Protected::new(scratch, [&folders[0], &folders[1]], 64 * MIB);
    protected.cut_in_the_middle(&tools, &[], scale("LIFEBOAT_DATABASE_CUTS", 8));
    protected.every_point_holds(&["a", "b"], |images, to| images.map(|image| sqlite(image, to)).to_vec());
}

/// Opens the database of a file system as after a crash; how many transactions it has.
fn sqlite(image: &Path, to: &Path) -> u64 {
    let db = to.join("db");
    let beside = |end: &str| PathBuf::from(format!("{}{end}", db.display()));
    // What a run before has left does not belong to this one.
    ["-wal", "-shm", "-journal"].iter().for_each(|end| drop(std::fs::remove_file(beside(end))));
    assert!(take_out(image, "/db", &db), "no database");
    for end in ["-wal", "-journal"] {
        // There may be none.
        take_out(image, &format!("/db{end}"), &beside(end));
    }
    let said = run(tool("sqlite3").arg(&db).arg(format!("PRAGMA integrity_check; {STATE}")));
    let (check, state) = said.trim().split_once('\n').unwrap_or((&said, ""));
    assert_eq!(check, "ok", "the database is damaged");
    transactions(state)
}

/// Where PostgreSQL's programs and its `share` folder are.
fn postgres_home() -> Option<(PathBuf, PathBuf)> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest =
        versions.map(|entry| entry.file_name()).max_by_key(|name| name.to_string_lossy().parse::<u32>().ok());
    let home = newest.map(|version| {
        (
            Path::new("/usr/lib/postgresql").join(&version).join("bin"),
            Path::new("/usr/share/postgresql").join(&version),
        )
    });
    home.filter(|(bin, _)| bin.join("postgres").exists())
}

/// A command that runs as nobody: PostgreSQL wants no root.
fn as_nobody(program: &Path) -> Command {
    let mut command = tool("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).current_dir("/");
    command
}

#[test]
fn postgresql_has_what_it_acknowledged() {
    let cuts = scale("LIFEBOAT_POSTGRES_CUTS", 0);
    if cuts == 0 {
        eprintln!("SKIPPED: LIFEBOAT_POSTGRES_CUTS is not set; scripts/soak sets it");
        return;
    }
    let Some((bin, share)) = postgres_home() else {
        judge::absent("PostgreSQL");
        return;
    };
    if !(vm::available() && judge::have(&NEEDED) && judge::have(&["setpriv"])) {
        return;
    }
    let scratch = Scratch::new();
    run(Command::new("chmod").arg("711").arg(scratch.path()));
    let folders = ["a", "b"].map(|name| scratch.join(name));
    for folder in &folders {
        std::fs::create_dir(folder).expect("a folder");
        run(Command::new("chown").arg("65534:65534").arg(folder));
    }
    let (data, log) = (folders[0].join("data"), folders[1].join("log"));
    let mut initdb = as_nobody(&bin.join("initdb"));
    // The one time zone that needs no files in the guest.
    initdb.env("TZ", "GMT");
    initdb.args([
        "--data-checksums",
        "--no-sync",
        "--locale=C",
        "--encoding=UTF8",
        "--auth=trust",
        "-U",
        "postgres",
    ]);
    run(initdb.arg("--wal-segsize=1").arg("-D").arg(&data).arg("-X").arg(&log));
    let accounts = accounts();
    single_user(&bin, &data, &format!("CREATE EXTENSION amcheck;\n{SCHEMA}{accounts}"));
    relink(&data, Path::new("/mnt/b/log"));

    let tools = Tools::new(&scratch);
    for name in ["postgres", "psql"] {
        tools.program(&bin.join(name), name);
    }
    tools.folder(&share, "share");
    let each = transaction("", "repeat(md5('$i'), $((i % 40)))", "a");
    let psql = format!("{RUN} /tools/psql -h /tmp -U postgres -qAt -P pager=off -v ON_ERROR_STOP=1 postgres");
    tools.file("load.sh", &endless("", &each, &psql));
    let server = "start-stop-daemon -S -b -c pg:pg -x /tools/ld.so -- --library-path /tools /tools/postgres -D /mnt/a/data \
         -k /tmp -c listen_addresses= -c dynamic_shared_memory_type=mmap \
         -c shared_buffers=4MB -c max_wal_size=4MB -c min_wal_size=2MB";
    let tools = tools.image(256 * MIB);
    let mut protected = Protected::new(scratch, [&folders[0], &folders[1]], 192 * MIB);
    let begin = [
        "chmod 755 /; chmod 1777 /tmp; mkdir -p /etc /usr/share/postgresql",
        "echo pg:x:65534:65534::/tmp:/bin/sh >/etc/passwd; echo pg:x:65534: >/etc/group",
        &format!("ln -s /tools/share {}; mkdir -p {}", share.display(), bin.with_file_name("lib").display()),
        server,
        &format!(
            "n=0; until {psql} -c 'SELECT 1' || [ $n -gt 60 ]; do n=$((n + 1)); sleep 1; done; [ $n -le 60 ]"
        ),
    ];
    protected.cut_in_the_middle(&tools, &begin, cuts);
    protected.every_point_holds(&["a"], |images, to| vec![postgres(&bin, images, to)]);
}

/// Recovers the cluster of two file systems as after a crash; how many transactions it has.
fn postgres(bin: &Path, [tables, log]: [&Path; 2], to: &Path) -> u64 {
    take_out_folder(tables, "/data", to);
    take_out_folder(log, "/log", to);
    let data = to.join("data");
    relink(&data, &to.join("log"));
    run(Command::new("chmod").arg("711").arg(to));
    let indexes = "SELECT 'checked ' || count(bt_index_check(c.oid, true)) FROM pg_class c JOIN pg_am a ON a.oid = c.relam \
        WHERE a.amname = 'btree' AND c.relpersistence = 'p';";
    let state = STATE.replace("SELECT count", "SELECT 'state ' || count");
    let said = single_user(bin, &data, &format!("{indexes}\n{state}\n"));
    let value = |name: &str| {
        let at = said.find(&format!("= \"{name} ")).unwrap_or_else(|| panic!("no {name} in {said}"));
        said[at..].split('"').nth(1).and_then(|value| value.split(' ').nth(1)).expect("a value").to_owned()
    };
    assert!(value("checked").parse::<u32>().expect("a number") > 50, "{said}");
    let transactions = transactions(&value("state"));
    // It has ended well, so that every page is on disk with its checksum.
    run(as_nobody(&bin.join("pg_checksums")).arg("--check").arg("-D").arg(&data));
    transactions
}

/// Points a cluster to its log.
fn relink(data: &Path, log: &Path) {
    let link = data.join("pg_wal");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(log, &link).expect("a link");
}

/// Has PostgreSQL, alone, carry out `commands`; what it says.
fn single_user(bin: &Path, data: &Path, commands: &str) -> String {
    let mut command = as_nobody(&bin.join("postgres"));
    command.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(data).arg("postgres");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("PostgreSQL");
    child.stdin.take().expect("its input").write_all(commands.as_bytes()).expect("a listening PostgreSQL");
    let output = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "PostgreSQL: {}\n{said}", output.status);
    said
}
