//! A daemon to test: started in a folder of its own, waited for, and ended with the test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before it is called broken. Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const ECHOD: &str = env!("CARGO_BIN_EXE_echod");
pub(crate) const ECHOCTL: &str = env!("CARGO_BIN_EXE_echoctl");
pub(crate) const ECHOPROBE: &str = env!("CARGO_BIN_EXE_echoprobe");

/// The drop-in that says which driver to use; it comes before those that tests write.
const DRIVER_FILE: &str = "00-driver.toml";

/// The driver that the tests are to run on; none for the daemon's own choice.
pub(crate) fn asked_driver() -> Option<String> {
    std::env::var("ECHOD_TEST_DRIVER").ok()
}

/// A listener of each kind that has a port.
pub(crate) const STREAM_AND_DATAGRAMS: &str = r#"
[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.datagrams]
protocol = "udp"
address = "127.0.0.1:0"
"#;

/// Listeners of every kind, to speak to.
pub(crate) const LISTENERS: &str = r#"
[listener.tcp]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.udp]
protocol = "udp"
address = "127.0.0.1:0"

[listener.stream]
protocol = "unix-stream"
address = "{dir}/stream"

[listener.datagram]
protocol = "unix-datagram"
address = "{dir}/datagram"
"#;

/// A running echod. It is killed when the test ends, if it has not ended by itself.
pub(crate) struct Daemon {
    pub(crate) folder: tempfile::TempDir,
    child: Child,
    notify: UnixDatagram,
}

impl Daemon {
    /// Starts echod with this configuration and waits until it is ready. `{dir}` in the text
    /// becomes the test's folder. Log lines go to standard error, into the file `log`. Where the
    /// text says no driver, a drop-in says the one that `ECHOD_TEST_DRIVER` asks for.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(config, |_| {})
    }

    /// The same, with changes to the command before it is run.
    pub(crate) fn start_with(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let mut daemon = Self::spawn(config, change);
        daemon.wait_for_notification("READY=1");
        daemon
    }

    /// The same, without waiting.
    pub(crate) fn spawn(config: &str, change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let notify =
            UnixDatagram::bind(folder.path().join("notify")).expect("a notification socket");
        notify
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        let path = folder.path().join("echod.toml");
        std::fs::write(
            &path,
            config.replace("{dir}", &folder.path().display().to_string()),
        )
        .expect("a configuration");
        if let Some(driver) = asked_driver()
            && !config.contains("driver = ")
        {
            let drop_ins = folder.path().join("echod.d");
            std::fs::create_dir(&drop_ins).expect("a folder");
            let text = format!("[daemon]\ndriver = \"{driver}\"\n");
            std::fs::write(drop_ins.join(DRIVER_FILE), text).expect("a drop-in");
        }
        let log = std::fs::File::create(folder.path().join("log")).expect("a log file");
        let mut command = Command::new(ECHOD);
        command
            .arg("--config")
            .arg(&path)
            .arg("--socket")
            .arg(folder.path().join("control.sock"))
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        change(&mut command);
        let child = command.stderr(log).spawn().expect("echod runs");
        Self {
            folder,
            child,
            notify,
        }
    }

    /// Waits for a message to the service manager that has this line; returns all of it.
    pub(crate) fn wait_for_notification(&mut self, line: &str) -> String {
        self.wait_for_notification_with(line, |found| found == line)
    }

    /// The same with a line of this kind.
    pub(crate) fn wait_for_notification_with(
        &mut self,
        what: &str,
        is_it: impl Fn(&str) -> bool,
    ) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut message = [0; 4096];
        loop {
            if let Ok(len) = self.notify.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..len]).into_owned();
                if text.lines().any(&is_it) {
                    return text;
                }
            } else if let Some(status) = self.child.try_wait().expect("a child of ours") {
                panic!("echod ended ({status}) before {what}: {}", self.log_file());
            }
            assert!(Instant::now() < deadline, "no {what}: {}", self.log_file());
        }
    }

    /// What it has logged until now, to the last line.
    pub(crate) fn log(&self) -> String {
        eventually("the log is written", || self.log_is_written());
        self.log_file()
    }

    /// The part of its log that has been written.
    fn log_file(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Whether the thread that writes the log has nothing left to write: only then it is asleep in
    /// ppoll(2) (`/proc/PID/task/TID/syscall`, proc(5)). A process that has ended has written all.
    pub(crate) fn log_is_written(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(self.proc("task")) else {
            return true;
        };
        let is_log = |thread: &PathBuf| {
            std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name == "log\n")
        };
        let mut threads = threads.filter_map(|thread| Some(thread.ok()?.path()));
        let Some(thread) = threads.find(is_log) else {
            // A thread that has not run yet does not have its name yet.
            let state = std::fs::read_to_string(self.proc("status")).unwrap_or_default();
            return !state.contains("\nState:") || state.contains("\nState:\tZ");
        };
        match std::fs::read_to_string(thread.join("syscall")) {
            Ok(call) => call.starts_with(&format!("{} ", libc::SYS_ppoll)),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                panic!("{}: {error}", thread.display())
            }
            // The process has ended.
            Err(_) => true,
        }
    }

    /// A path in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    /// Writes another configuration; it takes effect at the next reload.
    pub(crate) fn write_config(&self, config: &str) {
        let text = config.replace("{dir}", &self.folder.path().display().to_string());
        std::fs::write(self.path("echod.toml"), text).expect("a configuration");
    }

    /// The files that its configuration is read from: those of the harness and, in their folder
    /// `echod.d`, these.
    pub(crate) fn config_files(&self, drop_ins: &[&str]) -> Vec<String> {
        let mut files = vec![self.path("echod.toml")];
        files.extend(asked_driver().map(|_| self.path("echod.d").join(DRIVER_FILE)));
        files.extend(drop_ins.iter().map(|name| self.path("echod.d").join(name)));
        files
            .iter()
            .map(|file| file.display().to_string())
            .collect()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal)
            .expect("it is there");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "echod does not end: {}",
                self.log_file()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it is ready or has ended; returns how it ended, if it did.
    pub(crate) fn wait_until_ready_or_ended(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        let mut message = [0; 4096];
        loop {
            if let Ok(len) = self.notify.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..len]);
                if text.lines().any(|line| line == "READY=1") {
                    return None;
                }
            } else if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return Some(status);
            }
            assert!(Instant::now() < deadline, "neither: {}", self.log_file());
        }
    }

    /// Runs echoctl against it.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        Command::new(ECHOCTL)
            .env("ECHOCTL_SOCKET", self.path("control.sock"))
            .args(arguments)
            .output()
            .expect("echoctl runs")
    }

    /// Runs echoctl with `--json`, which must succeed, and returns what it prints.
    pub(crate) fn ctl_json(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(&[&["--json"], arguments].concat());
        assert!(
            output.status.success(),
            "echoctl {arguments:?}: {}",
            text(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// What `ListListeners` says of one listener.
    pub(crate) fn listener(&self, name: &str) -> Value {
        let reply = self.ctl_json(&["listeners", name]);
        reply["listeners"][0].clone()
    }

    /// The first address that a listener is bound to (with port 0: the one that it got).
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        let listener = self.listener(name);
        let address = listener["addresses"][0].as_str().expect("an address");
        address.parse().expect("an Internet address")
    }

    /// A TCP connection to a listener, with a timeout on everything.
    pub(crate) fn connect(&self, name: &str) -> TcpStream {
        connect(self.address(name))
    }
}

/// What the system says of the process, and other ways to start it.
impl Daemon {
    /// Starts it without a configuration file, with these arguments. `{dir}` in them becomes the
    /// test's folder.
    pub(crate) fn start_without_file(arguments: &[&str]) -> Self {
        Self::start_with("", |command| {
            let folder = folder_of(command);
            let arguments = arguments
                .iter()
                .map(|argument| {
                    argument
                        .replace("{dir}", &folder.display().to_string())
                        .into()
                })
                .chain(["--socket".into(), folder.join("control.sock").into()])
                .collect();
            *command = instead(command, ECHOD, arguments);
        })
    }

    /// A file of `/proc/PID`.
    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid()))
    }

    /// Memory that it has of its own, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.expect("VmRSS").parse().expect("a number")
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).expect("it runs").count()
    }

    /// The processor time that it has used.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(self.proc("stat")).expect("it runs");
        // The name, in parentheses, may have blanks; user and system time are fields 14 and 15.
        let after_name = stat.rsplit_once(')').expect("a name").1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|field| field.parse::<u64>().expect("ticks"))
            .sum();
        // A tick is 10 ms in everything that the kernel tells user space (USER_HZ).
        Duration::from_millis(ticks * 10)
    }

    /// Peers of a listener that were turned away for this reason.
    pub(crate) fn refused(&self, listener: &str, reason: &str) -> u64 {
        let refused = &self.listener(listener)["refused"][reason];
        refused.as_u64().expect("a known reason")
    }

    /// Connections of a listener.
    pub(crate) fn connections(&self, listener: &str) -> u64 {
        let connections = &self.listener(listener)["connections"];
        connections.as_u64().expect("a number")
    }
}

/// The test's folder, which the command of a daemon names.
pub(crate) fn folder_of(command: &Command) -> PathBuf {
    let config = command.get_args().nth(1).expect("--config FILE");
    Path::new(config).parent().expect("a folder").into()
}

/// Another program with other arguments, and all else as for the daemon.
pub(crate) fn instead(
    command: &Command,
    program: &str,
    arguments: Vec<std::ffi::OsString>,
) -> Command {
    let mut other = Command::new(program);
    other
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of echod ---\n{}", self.log_file());
        }
    }
}

/// A TCP connection with a timeout on everything.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends a message and reads as many bytes back.
pub(crate) fn exchange(stream: &mut (impl Read + Write), message: &[u8]) -> Vec<u8> {
    stream.write_all(message).expect("sent");
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).expect("answered");
    answer
}

/// A UDP socket on loopback with a timeout.
pub(crate) fn udp(local: &str) -> UdpSocket {
    let socket = UdpSocket::bind(local).expect("a UDP socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// Tries until it is so; fails with `what` when it never is.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the threads of a scope also when the test fails.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Output of a program as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl Daemon {
    /// A bare connection to its control socket.
    pub(crate) fn control(&self) -> Control {
        Control::connect(&self.path("control.sock"))
    }

    /// Reads the notifications that were sent until now, so that their queue, which is short, has
    /// room.
    pub(crate) fn forget_notifications(&self) {
        self.take_notifications();
    }

    /// The notifications that were sent until now, all in one text.
    pub(crate) fn take_notifications(&self) -> String {
        use nix::sys::socket::{MsgFlags, recv};
        use std::os::fd::AsRawFd;

        let mut all = String::new();
        let mut message = [0; 4096];
        let socket = self.notify.as_raw_fd();
        while let Ok(len) = recv(socket, &mut message, MsgFlags::MSG_DONTWAIT) {
            all += &text(&message[..len]);
        }
        all
    }

    /// Reloads over the control socket; what came of it, also when it was rejected.
    pub(crate) fn reload(&self) -> Value {
        self.forget_notifications();
        let reply = self
            .control()
            .ask("Reload", &serde_json::json!({}))
            .expect("a reply");
        reply["parameters"]["result"].clone()
    }

    /// The same with another configuration.
    pub(crate) fn reload_with(&self, config: &str) -> Value {
        self.write_config(config);
        self.reload()
    }

    /// What echoctl prints, which must succeed.
    pub(crate) fn ctl_text(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert!(
            output.status.success(),
            "echoctl {arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }
}

/// A bare connection to a control socket: what a client in another language is.
pub(crate) struct Control {
    pub(crate) stream: UnixStream,
    unread: Vec<u8>,
}

impl Control {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("a control connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    /// Calls a method of `io.echod.Control` and takes one reply, whatever it is. None when the
    /// daemon has closed the connection instead.
    pub(crate) fn ask(&mut self, method: &str, parameters: &Value) -> Option<Value> {
        let method = format!("io.echod.Control.{method}");
        let request = serde_json::json!({ "method": method, "parameters": parameters });
        let sent = self
            .stream
            .write_all(format!("{request}\0").as_bytes())
            .is_ok();
        if sent { self.reply() } else { None }
    }

    /// The next reply; none at the end of the connection.
    pub(crate) fn reply(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == 0) {
                let reply: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&reply[..end]).expect("JSON"));
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.unread.extend(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                // A read with a timeout is not repeated by the kernel after SIGCONT (signal(7)).
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("control connection: {error}"),
            }
        }
    }
}

/// A port that is free for TCP and UDP on every address. It is not one of those that the kernel
/// gives to clients, so that only a process that asks for its number can bind it before the caller.
pub(crate) fn free_port() -> u16 {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
    use std::sync::atomic::AtomicU16;

    // Every process begins elsewhere, so that two test runs on one machine keep out of each
    // other's way; within one, no port is given twice.
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() * 61 % 12_000) as u16;
    loop {
        let port = 20_000 + (first + TAKEN.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let any = (Ipv4Addr::UNSPECIFIED, port);
        let any_v6 = (Ipv6Addr::UNSPECIFIED, port);
        let free = |free: std::io::Result<()>| match free {
            Ok(()) => true,
            // On a host without IPv6 no other process can have it.
            Err(error) => error.kind() != std::io::ErrorKind::AddrInUse,
        };
        if free(TcpListener::bind(any).map(close_socket))
            && free(UdpSocket::bind(any).map(close_socket))
            && free(TcpListener::bind(any_v6).map(close_socket))
            && free(UdpSocket::bind(any_v6).map(close_socket))
        {
            return port;
        }
    }
}

/// What this reads of the kernel's tables of sockets, twice in a row the same: they are no snapshots,
/// and a row may be missed while the sockets of others come and go.
pub(crate) fn read_twice<T: PartialEq>(read: impl Fn() -> T) -> T {
    let mut last = read();
    loop {
        let next = read();
        if next == last {
            return next;
        }
        last = next;
    }
}

/// Closes a TCP or UDP socket, and returns when its address is free. A program that another test
/// starts in this moment has a copy of it, between its fork and its exec.
pub(crate) fn close_socket(socket: impl Into<OwnedFd>) {
    let socket = socket.into();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd()));
    let link = link.expect("an open descriptor").display().to_string();
    let inode = link.trim_matches(|sign: char| !sign.is_ascii_digit());
    drop(socket);
    eventually("the socket is gone", || {
        ["tcp", "tcp6", "udp", "udp6"].iter().all(|table| {
            // A host without IPv6 has no table of it. The columns: proc(5), `/proc/net/tcp`.
            let table = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
            let mut rows = table.lines().map(|row| row.split_whitespace().nth(9));
            rows.all(|found| found != Some(inode))
        })
    });
}

/// The same of a Unix socket at a path.
pub(crate) fn close_unix(socket: impl Into<OwnedFd>, path: &Path) {
    drop(socket.into());
    let datagrams = UnixDatagram::unbound().expect("a socket");
    eventually("no process has it", || {
        UnixStream::connect(path).is_err() && datagrams.connect(path).is_err()
    });
}

/// Has a shell run a line, such as `ulimit -n 64`, and then become this program.
pub(crate) fn after_shell_line(command: &mut Command, line: &str) {
    let mut arguments = vec!["-c".into(), format!("{line}; exec \"$0\" \"$@\"").into()];
    arguments.push(command.get_program().into());
    arguments.extend(command.get_args().map(Into::into));
    *command = instead(command, "sh", arguments);
}

/// Puts a copy of a program where any user may run it. The copying is another program's work: a
/// file that this process writes is open for writing in each program that another test starts in
/// that moment, until its exec, and can't be run ("text file busy").
pub(crate) fn install(program: &str, to: &Path) {
    let output = run(Command::new("install")
        .args(["-m", "0755", program])
        .arg(to));
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Runs a program that ends by itself, and returns what it said.
pub(crate) fn run(command: &mut Command) -> Output {
    run_within(PATIENCE, command)
}

/// The same of one that may take this long.
pub(crate) fn run_within(patience: Duration, command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let deadline = Instant::now() + patience;
    while child.try_wait().expect("a child of ours").is_none() {
        if Instant::now() >= deadline {
            // It may end in this very moment.
            let _ = child.kill();
            let output = child.wait_with_output().expect("a child of ours");
            panic!(
                "does not end: {command:?}: {}{}",
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("a child of ours")
}

/// `len` bytes that look random, others for each seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    // xorshift64*
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Reports on standard error that the current test leaves something untested, and why. Not with
/// `eprintln!`: the test harness captures that and drops it when the test passes.
pub(crate) fn not_tested(why: impl std::fmt::Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // In one write, so that the lines of other tests stay whole. Without standard error the report
    // has no reader.
    let line = format!("\nNOT TESTED: {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Whether this machine has IPv6; if not, reports that the test is skipped.
pub(crate) fn has_ipv6() -> bool {
    let has = UdpSocket::bind("[::1]:0").is_ok();
    if !has {
        not_tested("this machine has no ::1");
    }
    has
}

/// Lets this process open as many files as it may, and returns how many that is.
pub(crate) fn allow_many_descriptors() -> u64 {
    echod::internals::raise_descriptor_limit().expect("setrlimit")
}

/// A program that another test was starting had a copy of the socket, so that the address was in
/// use still after all that the test itself held was closed.
#[test]
fn an_address_is_free_when_its_socket_is_closed() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = socket.local_addr().expect("an address");
    let copy = socket.try_clone().expect("a copy");
    let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let open = std::fs::read_link(&link).expect("an open descriptor");
    let starting = std::thread::spawn(move || {
        eventually("the original is closed", || {
            std::fs::read_link(&link).ok().as_ref() != Some(&open)
        });
        drop(copy);
    });
    close_socket(socket);
    std::net::TcpListener::bind(address).expect("no other process has it");
    starting.join().expect("it did not panic");
}
