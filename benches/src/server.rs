//! A running server: started on an address of its own, waited for, and ended with its children.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::contender::{Contender, Foreign, Program, find_program};
use crate::launch;

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it is left alone between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long one look waits for an echo.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// Ports below those that clients are given; each server gets one of its own.
const PORT_MIN: u16 = 20_000;
const PORTS: u16 = 10_000;

/// What servers are started with.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) echod: PathBuf,
    pub(crate) cpu: usize,
    folder: tempfile::TempDir,
    next_port: AtomicU16,
}

impl Site {
    pub(crate) fn new(echod: PathBuf, cpu: usize) -> Result<Self> {
        Ok(Self {
            echod,
            cpu,
            folder: tempfile::tempdir()?,
            // Two runs at one time seldom look for the same ones.
            next_port: AtomicU16::new((std::process::id() % u32::from(PORTS)) as u16),
        })
    }

    fn address(&self) -> Result<SocketAddr> {
        for _ in 0..PORTS {
            let number = self.next_port.fetch_add(1, Ordering::Relaxed) % PORTS;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT_MIN + number));
            if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
                return Ok(address);
            }
        }
        bail!("no port is free from {PORT_MIN} on");
    }
}

/// Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts it and waits until it echoes.
    pub(crate) fn start(contender: &Contender, site: &Site) -> Result<Self> {
        let address = site.address()?;
        let said = site.folder.path().join(format!("{}.log", address.port()));
        let log = File::create(&said)?;
        let mut command = launch::command(site.cpu)?;
        add_program(&mut command, contender, site, address)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self { address, child };
        server.wait_until_it_echoes(contender.serves_udp, &said)?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn wait_until_it_echoes(&mut self, udp: bool, said: &Path) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if tcp_echoes(self.address) && (!udp || udp_echoes(self.address)) {
                return Ok(());
            }
            if self.child.try_wait()?.is_some() {
                bail!("it ended: {}", last_line(said));
            }
            if Instant::now() >= deadline {
                bail!("it echoes nothing: {}", last_line(said));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It leads a session of its own, so this is it and its children. Those of its children that
        // made themselves independent see their connections end.
        _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        _ = self.child.wait();
    }
}

fn tcp_echoes(address: SocketAddr) -> bool {
    let echo = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LOOK_TIMEOUT))?;
        stream.write_all(b"?")?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte == *b"?")
    };
    echo().unwrap_or(false)
}

fn udp_echoes(address: SocketAddr) -> bool {
    let echo = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(LOOK_TIMEOUT))?;
        socket.send(b"?")?;
        let mut byte = [0];
        socket.recv(&mut byte)?;
        Ok(byte == *b"?")
    };
    echo().unwrap_or(false)
}

fn last_line(said: &Path) -> String {
    let text = fs::read_to_string(said).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").into()
}

/// Appends what is run, writing its configuration where it has one.
fn add_program(
    command: &mut Command,
    contender: &Contender,
    site: &Site,
    address: SocketAddr,
) -> Result<()> {
    let file = |ending: &str| {
        let name = format!("{}.{ending}", address.port());
        site.folder.path().join(name)
    };
    let (ip, port) = (address.ip(), address.port());
    match contender.program {
        Program::Echod { driver } => {
            let config = file("toml");
            fs::write(&config, echod_config(driver, contender.spins, address))?;
            command.arg(&site.echod).arg("--config").arg(config);
            command.arg("--socket").arg(file("sock"));
        }
        Program::Peer(peer) => {
            let name = peer.to_possible_value().expect("every peer has a name");
            command.arg(std::env::current_exe()?);
            command.args(["serve", name.get_name(), &address.to_string()]);
        }
        Program::Foreign(foreign) => {
            let program = find_program(foreign.name())
                .with_context(|| format!("{} is not installed", foreign.name()))?;
            command.arg(program);
            match foreign {
                Foreign::Xinetd => {
                    let config = file("conf");
                    fs::write(&config, xinetd_config(address))?;
                    command.arg("-dontfork").arg("-f").arg(config);
                    command.arg("-pidfile").arg(file("pid"));
                }
                Foreign::Socat => {
                    let listen =
                        format!("TCP-LISTEN:{port},bind={ip},fork,reuseaddr,nodelay,backlog=1024");
                    command.args([&listen, "PIPE"]);
                }
                Foreign::Ncat => {
                    command.args(["-l", &ip.to_string(), &port.to_string()]);
                    command.args(["-k", "-m", "10000", "-e", "/bin/cat"]);
                }
            }
        }
    }
    Ok(())
}

/// Everything at its default but what the measurement needs: one worker, and room for all clients.
fn echod_config(driver: &str, spins: bool, address: SocketAddr) -> String {
    let busy_poll = if spins { "busy-poll = \"200us\"\n" } else { "" };
    format!(
        "[daemon]\nworkers = 1\ndriver = \"{driver}\"\n{busy_poll}\n\
         [log]\ntarget = \"stderr\"\n\n\
         [listener.tcp]\nprotocol = \"tcp\"\naddress = \"{address}\"\nmax-connections = 20000\n\n\
         [listener.udp]\nprotocol = \"udp\"\naddress = \"{address}\"\n"
    )
}

fn xinetd_config(address: SocketAddr) -> String {
    format!(
        "service echo\n{{\n\
         \ttype = INTERNAL UNLISTED\n\tid = echo-stream\n\tsocket_type = stream\n\
         \tprotocol = tcp\n\tbind = {}\n\tport = {}\n\twait = no\n\tuser = root\n\
         \tinstances = UNLIMITED\n\tcps = 1000000 1\n\tdisable = no\n}}\n",
        address.ip(),
        address.port()
    )
}

/// Builds a program as it is shipped, and says where it is.
pub(crate) fn build(program: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new(cargo)
        .args(["build", "--release", "--bin", program])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(manifest)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo")?;
    if !output.status.success() {
        bail!("{program} could not be built");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("cargo did not say where {program} is"))
}
