//! A real guest: the distribution's kernel under software emulation, with a shell on its serial console.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Target, client::Place, judge, tool};

/// A line that the guest printed, and when it arrived here, in seconds since 1970.
#[derive(Clone, Debug)]
pub struct Line {
    pub time: f64,
    pub text: String,
}

#[derive(Default)]
struct Console {
    lines: Mutex<(Vec<Line>, bool)>,
    changed: Condvar,
}

/// A running guest.
pub struct Vm {
    qemu: Child,
    input: ChildStdin,
    console: Arc<Console>,
    commands: u32,
}

/// The parts without which no guest boots.
pub fn available() -> bool {
    let kit = super::folder().join("vm/initramfs.gz");
    judge::have(&["qemu-system-x86_64"]) && (kit.exists() || judge::absent("the VM kit"))
}

impl Vm {
    /// Boots a guest with `disks` as /dev/vda, /dev/vdb … and waits for its shell.
    pub fn boot(disks: &[Target]) -> Self {
        let mut command = machine();
        for (n, disk) in disks.iter().enumerate() {
            command.arg("-blockdev").arg(blockdev(&format!("n{n}"), disk));
            command.args(["-device", &format!("virtio-blk-pci,drive=n{n}")]);
        }
        Self::start(command)
    }

    /// The same with the image `tools` as the last disk, read-only and mounted at /tools.
    pub fn boot_with_tools(disks: &[Target], tools: &std::path::Path) -> Self {
        let mut command = machine();
        for (n, disk) in disks.iter().enumerate() {
            command.arg("-blockdev").arg(blockdev(&format!("n{n}"), disk));
            command.args(["-device", &format!("virtio-blk-pci,drive=n{n}")]);
        }
        let file = format!("driver=file,node-name=tools,read-only=on,filename={}", tools.display());
        command.args(["-blockdev", &file, "-device", "virtio-blk-pci,drive=tools"]);
        let mut vm = Self::start(command);
        let last = char::from(b'a' + u8::try_from(disks.len()).expect("a few disks"));
        vm.sh(&format!("mkdir -p /tools && mount -t ext4 -o ro /dev/vd{last} /tools"));
        vm
    }

    /// Boots a guest with the raw images `files` as /dev/vda, /dev/vdb …, past the host's cache.
    pub fn boot_files(files: &[std::path::PathBuf]) -> Self {
        let mut command = machine();
        for file in files {
            command.arg("-drive").arg(format!("if=virtio,format=raw,cache=none,file={}", file.display()));
        }
        Self::start(command)
    }

    /// Boots a guest whose /dev/vda is `disk`, every read compared with the file `reference`: a difference ends QEMU.
    pub fn boot_verified(disk: &Target, reference: &std::path::Path) -> Self {
        let mut command = machine();
        command.arg("-blockdev").arg(blockdev("test", disk));
        let file = format!("driver=file,node-name=file,filename={}", reference.display());
        command.args(["-blockdev", &file, "-blockdev", "driver=raw,node-name=raw,file=file"]);
        command.args(["-blockdev", "driver=blkverify,node-name=n0,raw=raw,test=test"]);
        command.args(["-device", "virtio-blk-pci,drive=n0"]);
        Self::start(command)
    }

    /// Boots a guest with `disk` as /dev/vda whose agent is reached at `socket`. Its disk is mounted at /mnt.
    pub fn boot_with_agent(disk: &Target, socket: &std::path::Path) -> Self {
        let mut command = machine_of("initramfs-agent.gz");
        command.arg("-blockdev").arg(blockdev("n0", disk)).args(["-device", "virtio-blk-pci,drive=n0"]);
        let chardev = format!("socket,id=qga0,server=on,wait=off,path={}", socket.display());
        command.args(["-chardev", &chardev, "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"]);
        let mut vm = Self::start(command);
        vm.sh("mount -t ext4 /dev/vda /mnt");
        vm.sh(
            "mkdir -p /var/run /run && qemu-ga -d -m virtio-serial -p /dev/vport*p1 -t /tmp -f /tmp/qga.pid",
        );
        vm
    }

    fn start(mut command: Command) -> Self {
        let mut qemu = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let console = Arc::new(Console::default());
        let (input, output) =
            (qemu.stdin.take().expect("its input"), qemu.stdout.take().expect("its output"));
        let listener = Arc::clone(&console);
        std::thread::spawn(move || listen(output, &listener));
        let mut vm = Self { qemu, input, console, commands: 0 };
        vm.wait_for("guest ready", Duration::from_secs(120));
        vm
    }

    /// Types a line and does not wait.
    pub fn type_line(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("a listening guest");
        self.input.flush().expect("a listening guest");
    }

    /// Runs a shell command and waits for its end; what it printed. It must succeed.
    pub fn sh(&mut self, line: &str) -> String {
        self.commands += 1;
        let end = format!("end-of-{}", self.commands);
        let from = self.lines().len();
        // The status is that of the line, not of the echo which ends what it may have left unended.
        self.type_line(&format!("{line}; status=$?; echo; echo {end} $status"));
        let last = self.wait_for(&format!("{end} "), Duration::from_secs(120));
        let printed: Vec<String> = self.lines()[from..].iter().map(|line| line.text.clone()).collect();
        let printed: Vec<String> = printed.into_iter().take_while(|text| !text.starts_with(&end)).collect();
        assert!(last.text.ends_with(" 0"), "{line:?} failed in the guest:\n{}", printed.join("\n"));
        printed.join("\n")
    }

    /// Mounts /dev/vda and writes files with syncs, without end.
    pub fn begin_writing(&mut self) {
        self.sh("mount -t ext4 /dev/vda /mnt");
        self.sh(
            "(i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); dd if=/dev/urandom of=/mnt/f$((i % 40)) bs=16k \
            count=$((i % 9 + 1)) conv=fsync 2>/tmp/dd || { echo failed >/tmp/failed; cat /tmp/dd; break; }; done; \
            echo $i files >/tmp/end) & true",
        );
    }

    /// Ends that, unmounts and powers off. No write failed, no read gives what was not written, and the kernel saw no error.
    pub fn end_writing(mut self) {
        self.sh("touch /tmp/stop; while [ ! -e /tmp/end ]; do sleep 0.1; done; cat /tmp/end; [ ! -e /tmp/failed ]");
        self.sh(
            "sync; cat /mnt/f* | sha256sum >/tmp/a; echo 3 >/proc/sys/vm/drop_caches; cat /mnt/f* | sha256sum | cmp - /tmp/a",
        );
        self.sh("umount /mnt; ! dmesg | grep -i 'error'");
        self.power_off();
    }

    /// Waits for a line that has `text` in it.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Line {
        let deadline = Instant::now() + limit;
        let mut lines = self.console.lines.lock().expect("the console");
        let mut seen = 0;
        loop {
            if let Some(line) = lines.0[seen..].iter().find(|line| line.text.contains(text)) {
                return line.clone();
            }
            seen = lines.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            let all = || lines.0.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n");
            assert!(!lines.1, "the guest ended before {text:?}:\n{}", all());
            assert!(!left.is_zero(), "the guest did not say {text:?} in {limit:?}:\n{}", all());
            lines = self.console.changed.wait_timeout(lines, left).expect("the console").0;
        }
    }

    /// Everything it has said.
    pub fn lines(&self) -> Vec<Line> {
        self.console.lines.lock().expect("the console").0.clone()
    }

    /// kill -9
    pub fn kill(&mut self) {
        let _ = self.qemu.kill();
        self.qemu.wait().expect("the end of a killed guest");
    }

    /// Ends the guest's shell, which powers it off.
    pub fn power_off(mut self) {
        self.type_line("exit");
        super::until("the guest to power off", Duration::from_secs(60), || {
            self.qemu.try_wait().expect("the state of the guest")
        });
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The same for a guest with an agent.
pub fn agent_available() -> bool {
    available()
        && (super::folder().join("vm/initramfs-agent.gz").exists()
            || judge::absent("the VM kit's guest agent"))
}

fn machine() -> Command {
    machine_of("initramfs.gz")
}

fn machine_of(initramfs: &str) -> Command {
    let kit = super::folder().join("vm");
    let mut command = tool("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-nographic", "-no-reboot", "-m", "512", "-nic", "none"]);
    command.arg("-kernel").arg(kit.join("vmlinuz")).arg("-initrd").arg(kit.join(initramfs));
    command.args(["-append", "console=ttyS0 panic=-1 quiet"]);
    command
}

/// QEMU's options for one export, with the reconnection that documents advise.
pub fn blockdev(node: &str, disk: &Target) -> String {
    let server = match &disk.place {
        Place::Unix(path) => format!("server.type=unix,server.path={}", path.display()),
        Place::Tcp(port) => format!("server.type=inet,server.host=127.0.0.1,server.port={port}"),
    };
    format!("driver=nbd,node-name={node},{server},export={},reconnect-delay=60,discard=unmap", disk.export)
}

fn listen(mut output: impl Read, console: &Console) {
    let mut pending = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let len = output.read(&mut buf).unwrap_or(0);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_secs_f64();
        pending.extend(&buf[..len]);
        let mut lines = console.lines.lock().expect("the console");
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            lines.0.push(Line { time, text });
        }
        lines.1 = len == 0;
        drop(lines);
        console.changed.notify_all();
        if len == 0 {
            return;
        }
    }
}
