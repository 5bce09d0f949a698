//! What a guest runs, and its file systems as they are judged from outside, without a mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scratch, judge, run, sparse, tool};

/// How a program of [`Tools`] is run once they are mounted at /tools: with the libraries that it had on this system.
pub const RUN: &str = "/tools/ld.so --library-path /tools";

/// The tools without which [`Tools`] and the file systems cannot be made and judged.
pub const NEEDED: [&str; 5] = ["mke2fs", "e2fsck", "debugfs", "ldd", "strip"];

/// A file system of programs and files for a guest.
pub struct Tools {
    folder: PathBuf,
    image: PathBuf,
}

impl Tools {
    /// None yet.
    pub fn new(scratch: &Scratch) -> Self {
        let folder = scratch.join("tools.d");
        std::fs::create_dir(&folder).expect("a folder");
        Self { folder, image: scratch.join("tools.img") }
    }

    /// Adds a program of this system and its libraries.
    pub fn program(&self, program: &Path, name: &str) {
        run(Command::new("strip").arg("-o").arg(self.folder.join(name)).arg(program));
        for line in run(Command::new("ldd").arg(program)).lines() {
            let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let name = Path::new(library).file_name().expect("a name");
            let name = if name.to_string_lossy().starts_with("ld-") { "ld.so".as_ref() } else { name };
            std::fs::copy(library, self.folder.join(name)).expect("a library");
        }
    }

    /// Adds a file.
    pub fn file(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).expect("a file");
    }

    /// Adds a folder with all that is in it.
    pub fn folder(&self, from: &Path, name: &str) {
        run(Command::new("cp").arg("-rL").arg(from).arg(self.folder.join(name)));
    }

    /// The image of `size` bytes, for a disk of the guest.
    pub fn image(&self, size: u64) -> PathBuf {
        make_ext4(&self.image, size, Some(&self.folder));
        self.image.clone()
    }
}

/// Makes an ext4 of `size` bytes at `image`, with what is in `from`.
pub fn make_ext4(image: &Path, size: u64, from: Option<&Path>) {
    sparse(image, size);
    let mut mke2fs = tool("mke2fs");
    mke2fs.args(["-q", "-t", "ext4"]);
    if let Some(from) = from {
        mke2fs.arg("-d").arg(from);
    }
    run(mke2fs.arg(image));
}

/// Replays the journal as a mount does; after that nothing may be left to repair.
pub fn check_ext4(image: &Path) {
    // Exit code 1 says that the journal was replayed.
    let replay = judge::output(tool("e2fsck").args(["-y", "-E", "journal_only"]).arg(image));
    assert!(matches!(replay.status.code(), Some(0 | 1)), "journal replay: {replay:?}");
    run(tool("e2fsck").args(["-f", "-n"]).arg(image));
}

/// Copies a file out of an ext4 to `to`; false if it is not there.
pub fn take_out(image: &Path, file: &str, to: &Path) -> bool {
    let _ = std::fs::remove_file(to);
    run(tool("debugfs").args(["-R", &format!("dump {file} {}", to.display())]).arg(image));
    to.exists()
}

/// Copies a folder out of an ext4 into `to`.
pub fn take_out_folder(image: &Path, folder: &str, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    run(tool("debugfs").args(["-R", &format!("rdump {folder} {}", to.display())]).arg(image));
}
