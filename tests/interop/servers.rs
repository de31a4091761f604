//! Other people's echo servers under `echoprobe check`, against what the documentation says of them.

use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Daemon, ECHOPROBE, eventually, free_port, repository, text};

const SOCAT_TCP: &str = "socat TCP-LISTEN:PORT,bind=127.0.0.1,fork PIPE";
const SOCAT_UDP: &str = "socat UDP-LISTEN:PORT,fork PIPE";
const NCAT_TCP: &str = "ncat -4 -k -l 127.0.0.1 PORT -e /bin/cat";
const NCAT_UDP: &str = "ncat -4 -u -k -l PORT -e /bin/cat";

/// What the page says of its echo services, and what they need to be ours alone: other ports, and no
/// configuration but this.
const XINETD: &str = "\
defaults
{
    instances = UNLIMITED
    cps = 10000 1
}
service echo
{
    id = tcp
    type = INTERNAL UNLISTED
    socket_type = stream
    protocol = tcp
    bind = 127.0.0.1
    port = PORT
    wait = no
    user = root
}
service echo
{
    id = udp
    type = INTERNAL UNLISTED
    socket_type = dgram
    protocol = udp
    flags = IPv4
    port = PORT
    wait = yes
    user = root
}
";

/// A server with all that it starts, which is ended with it.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    pub(crate) folder: tempfile::TempDir,
}

impl Server {
    /// Runs a command line, in which `PORT` stands for a free one.
    pub(crate) fn start(line: &str) -> Self {
        let port = free_port();
        let folder = tempfile::tempdir().expect("a folder");
        let line = line
            .replace("PORT", &port.to_string())
            .replace("{dir}", &folder.path().display().to_string());
        let config = XINETD.replace("PORT", &port.to_string());
        fs::write(folder.path().join("xinetd.conf"), config).expect("a configuration");
        let mut words = line.split(' ');
        let child = Command::new(words.next().expect("a program"))
            .args(words)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self {
            child: child.unwrap_or_else(|error| panic!("{line}: {error}")),
            port,
            folder,
        }
    }

    pub(crate) fn xinetd() -> Self {
        let server = Self::start(
            "xinetd -dontfork -f {dir}/xinetd.conf -filelog {dir}/log -pidfile {dir}/pid",
        );
        server.wait_for_tcp();
        server.wait_for_udp();
        server
    }

    pub(crate) fn of_tcp(line: &str) -> Self {
        let server = Self::start(line);
        server.wait_for_tcp();
        server
    }

    pub(crate) fn of_udp(line: &str) -> Self {
        let server = Self::start(line);
        server.wait_for_udp();
        server
    }

    fn wait_for_tcp(&self) {
        eventually("it listens", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    fn wait_for_udp(&self) {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        client
            .connect(("127.0.0.1", self.port))
            .expect("an address");
        let patience = Duration::from_millis(200);
        client.set_read_timeout(Some(patience)).expect("a timeout");
        eventually("it answers", || {
            // Refused until the server has bound its socket.
            client.send(b"?").is_ok() && client.recv(&mut [0; 10]).is_ok()
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        // It may have ended by itself.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// What is found of a server. One that loses even its first datagram, as ncat does at times, is asked
/// again.
fn examine(url: &str) -> Vec<Value> {
    let mut said = String::new();
    for _ in 0..3 {
        let output = Command::new("timeout")
            .args(["60", ECHOPROBE, "check", url, "--json"])
            .output()
            .expect("timeout(1) runs");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(checks) = json["checks"].as_array() {
            eprintln!("{url}: {json:#}");
            return checks.clone();
        }
        said += &text(&output.stderr);
    }
    panic!("{url}: {said}");
}

/// Name and verdict of each check.
fn check(scheme: &str, port: u16) -> Vec<(String, String)> {
    let checks = examine(&format!("{scheme}://127.0.0.1:{port}"));
    let word = |check: &Value, name: &str| check[name].as_str().expect("a word").to_owned();
    checks
        .iter()
        .map(|check| {
            let verdict = word(check, "verdict").replace("not_applicable", "n/a");
            (word(check, "name"), verdict)
        })
        .collect()
}

/// The rows of the table below a heading: the cells, without their code marks.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let section = page.split(heading).nth(1).expect("the heading is there");
    let lines = section.lines().skip_while(|line| !line.starts_with('|'));
    lines
        .take_while(|line| line.starts_with('|'))
        .filter(|line| !line.starts_with("|--"))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect()
        })
        .collect()
}

/// What a program says of its version.
fn version(program: &str, option: &str) -> String {
    let output = Command::new(program).arg(option).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
#[ignore = "needs xinetd, socat and ncat: run by .ci/run"]
fn the_page_about_echo_servers_says_what_is_measured() {
    let page = fs::read_to_string(repository("docs/echo-servers.md")).expect("a page");
    for line in [SOCAT_TCP, SOCAT_UDP, NCAT_TCP, NCAT_UDP] {
        assert!(page.contains(&format!("`{line}`")), "{line}");
    }
    let daemon = Daemon::start(
        "[listener.tcp]\nprotocol = \"tcp\"\naddress = \"*:0\"\n\
         [listener.udp]\nprotocol = \"udp\"\naddress = \"*:0\"\n",
    );
    let xinetd = Server::xinetd();
    for (scheme, heading, ours, socat, ncat) in [
        ("tcp", "### Over TCP", "tcp", SOCAT_TCP, NCAT_TCP),
        ("udp", "### Over UDP", "udp", SOCAT_UDP, NCAT_UDP),
    ] {
        let start = match scheme {
            "tcp" => Server::of_tcp,
            _ => Server::of_udp,
        };
        let (socat, ncat) = (start(socat), start(ncat));
        let ports = [
            daemon.address(ours).port(),
            xinetd.port,
            socat.port,
            ncat.port,
        ];
        let table = table(&page, heading);
        let versions = [
            String::from("echod"),
            version("xinetd", "-version"),
            version("socat", "-V"),
            version("ncat", "--version"),
        ];
        for (index, (port, version)) in ports.into_iter().zip(versions).enumerate() {
            let head = &table[0][index + 1];
            let number = head.split(' ').nth(1).unwrap_or("");
            assert!(version.contains(number), "{head}: it is {version}");
            let measured = check(scheme, port);
            let names: Vec<&String> = measured.iter().map(|(name, _)| name).collect();
            let rows: Vec<&String> = table[1..].iter().map(|row| &row[0]).collect();
            assert_eq!(names, rows, "{heading}");
            for ((name, verdict), row) in measured.iter().zip(&table[1..]) {
                let cell = &row[index + 1];
                let is_said = cell.split(" or ").any(|word| word == verdict);
                assert!(
                    is_said,
                    "{head}: {name}: {verdict}, and the page says {cell}"
                );
            }
        }
    }
}
