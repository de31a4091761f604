//! `echoctl`: steers the daemon over its control socket.
//!
//! Knows which command is which call, and what to print of the answer. Never decides anything
//! about the service: whatever the daemon refuses, it refuses for every client. Read on in
//! [`args`] for the command line, [`client`] for a call and [`show`] for tables; `systemd` asks what
//! is about to happen to a unit.

#![forbid(unsafe_code)]

pub mod args;
pub mod client;
pub mod show;
mod systemd;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::terminal::{self, complain};
use crate::cli::text::{self, Paint};
use crate::protocol::wire::Parameters;
use crate::protocol::{self, peers::parse_network, schema};

use args::{Cli, Command, ConfigCommand, KickArgs, PeersArgs};
use client::Client;

/// The exit status of `echod --check` for a configuration that has errors (sysexits.h).
const CHECK_REJECTED: i32 = 78;

/// How often `peers --watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How `echoctl` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotRunning = 3,
    NotPermitted = 4,
    Rejected = 5,
    TimedOut = 6,
}

/// Why a command did not work: for the person, and for the program that called us.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    /// Without our name; nothing is printed if it is empty.
    text: String,
}

impl Failure {
    fn new(exit: Exit, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { exit, text }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        use client::Error;
        let exit = match &error {
            Error::NotRunning { .. } => Exit::NotRunning,
            Error::NotPermitted { .. } => Exit::NotPermitted,
            Error::TimedOut { .. } => Exit::TimedOut,
            Error::Broken { .. } => Exit::Failed,
            Error::Refused { name, parameters } => return refusal(name, parameters),
        };
        Self::new(exit, text::escape(&error.to_string()))
    }
}

/// An error reply in the words of a person.
fn refusal(name: &str, parameters: &Parameters) -> Failure {
    let parameter = |key| parameters.get(key).map_or(String::new(), Value::to_string);
    let (exit, told) = match name {
        protocol::PERMISSION_DENIED => (
            Exit::NotPermitted,
            format!(
                "permission denied: you are uid {}; only root and the daemon's own user may change the daemon itself",
                nix::unistd::geteuid()
            ),
        ),
        protocol::LISTENER_NOT_FOUND => (
            Exit::Failed,
            format!("listener {}: there is none of this name", parameter("name")),
        ),
        protocol::UPGRADE_REFUSED => {
            let reason = parameters.get("reason").and_then(Value::as_str);
            (
                Exit::Failed,
                format!("no successor: {}", reason.unwrap_or("?")),
            )
        }
        protocol::CONFIG_REJECTED => (Exit::Rejected, "configuration rejected".to_owned()),
        protocol::INVALID_BACKLOG => (
            Exit::Failed,
            format!(
                "backlog {}: not possible: give a number from 1 to 2147483647",
                parameter("backlog")
            ),
        ),
        protocol::INVALID_PARAMETER => {
            let key = parameters.get("parameter").and_then(Value::as_str);
            let told = match key.unwrap_or_default() {
                "sort" => {
                    let names = protocol::SortKey::ALL.map(protocol::SortKey::name);
                    format!("sort: not a key: use one of {}", names.join(", "))
                }
                "level" => "level: not one: use off, error, warn, info, debug or trace".to_owned(),
                "address" => "address: not one: write 192.0.2.1 or 192.0.2.0/24".to_owned(),
                key => format!("{key}: missing, unknown, or not what it should be"),
            };
            (Exit::Failed, told)
        }
        protocol::METHOD_NOT_FOUND => (
            Exit::Failed,
            format!("{}: this echod has no such method", parameter("method")),
        ),
        _ => {
            let parameters = Value::Object(parameters.clone());
            (Exit::Failed, format!("{name} {parameters}"))
        }
    };
    Failure::new(exit, text::escape(&told))
}

/// The entry point: reads the command line, does what it says, tells how it went. `others` are the
/// command lines of the programs beside this one, for their completions.
#[must_use]
pub fn main(others: fn() -> Vec<clap::Command>) -> ExitCode {
    let cli = Cli::parse();
    let session = Session::new(&cli, others);
    let exit = match session.run(cli.command) {
        Ok(()) => Exit::Done,
        Err(Failure { exit, text }) => {
            if !text.is_empty() {
                complain(&format!("echoctl: {text}\n"));
            }
            exit
        }
    };
    ExitCode::from(exit as u8)
}

/// One run of `echoctl`.
struct Session {
    socket: PathBuf,
    timeout: Duration,
    json: bool,
    terminal: bool,
    /// Of what is printed.
    paint: Paint,
    /// Of what is complained about.
    error_paint: Paint,
    /// What can be completed besides `echoctl` itself.
    others: fn() -> Vec<clap::Command>,
}

impl Session {
    fn new(cli: &Cli, others: fn() -> Vec<clap::Command>) -> Self {
        let options = &cli.options;
        let terminal = io::stdout().is_terminal();
        let socket = socket_path(
            options.socket.clone(),
            |name| std::env::var_os(name),
            nix::unistd::geteuid().is_root(),
            Path::exists,
        );
        Self {
            socket,
            timeout: cli.patience(),
            json: options.json,
            terminal,
            paint: options.color.paint(terminal),
            error_paint: options.color.paint(io::stderr().is_terminal()),
            others,
        }
    }

    fn run(&self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Status => {
                let reply = self.call("GetStatus", &schema::Nothing {})?;
                self.answer(reply, |reply: schema::GetStatusReply| {
                    show::status(&reply.status, self.paint)
                })
            }
            Command::Listeners { name } => self.listeners(name),
            Command::Peers(args) => self.peers(&args),
            Command::Backlog { listener, backlog } => self.backlog(&listener, backlog),
            Command::Kick(args) => self.kick(args),
            Command::Reload { last: true, .. } => self.last_reload(),
            Command::Reload { dry_run, .. } => self.reload(dry_run),
            Command::Check { file } => check(file.as_deref()),
            Command::Config(ConfigCommand::Show) => self.config_show(),
            Command::LogLevel { level } => {
                let level = Some(level);
                let reply = self.call("SetLogLevel", &schema::SetLogLevel { level })?;
                self.answer(reply, |reply| show::log_level(&reply))
            }
            Command::Upgrade => {
                let reply = self.call("Upgrade", &schema::Nothing {})?;
                self.answer(reply, |reply: schema::UpgradeReply| {
                    show::upgraded(&reply.result)
                })
            }
            Command::HandOver { if_restarting } => self.hand_over(if_restarting.as_deref()),
            Command::Call {
                method,
                parameters,
                more,
            } => self.call_raw(&method, parameters.as_deref(), more),
            Command::Completions { shell, program } => self.completions(shell, &program),
        }
    }

    fn hand_over(&self, unit: Option<&str>) -> Result<(), Failure> {
        if let Some(unit) = unit {
            let failed = |error| Failure::new(Exit::Failed, format!("systemctl: {error}"));
            if let Some(reason) = systemd::why_nobody_comes(unit).map_err(failed)? {
                return print(format!("{unit}: {reason}\n").as_bytes());
            }
        }
        let reply = self.call("HandOver", &schema::Nothing {})?;
        self.answer(reply, |reply| show::handed_over(&reply))
    }

    fn completions(&self, shell: Shell, program: &str) -> Result<(), Failure> {
        let mut programs = (self.others)();
        programs.push(Cli::command());
        let Some(command) = programs.iter_mut().find(|one| one.get_name() == program) else {
            let names: Vec<&str> = programs.iter().map(clap::Command::get_name).collect();
            let (last, others) = names.split_last().expect("there is echoctl");
            let told = format!(
                "completions: program \"{}\": not one of ours: use {} or {last}",
                text::escape(program),
                others.join(", ")
            );
            return Err(Failure::new(Exit::Usage, told));
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, command, program, &mut script);
        print(&script)
    }

    fn listeners(&self, name: Option<String>) -> Result<(), Failure> {
        let single = name.is_some();
        let reply = self.call("ListListeners", &schema::ListListeners { name })?;
        self.answer(reply, |reply: schema::ListListenersReply| {
            match reply.listeners.as_slice() {
                [listener] if single => show::listener(listener, self.paint),
                listeners => show::listeners(listeners, self.paint),
            }
        })
    }

    fn peers(&self, args: &PeersArgs) -> Result<(), Failure> {
        let asked = schema::ListPeers {
            listener: args.listener.clone(),
            address: args.address.clone(),
            older_ms: args.older.map(milliseconds),
            idle_ms: args.idle.map(milliseconds),
            sort: args.sort.clone(),
            limit: args.limit,
        };
        loop {
            let reply = self.all_pages("ListPeers", &asked)?;
            if args.watch && self.terminal && !self.json {
                // Home, and clear what is below.
                print(b"\x1b[H\x1b[J")?;
            }
            self.answer(reply, |reply: schema::ListPeersReply| {
                show::peers(&reply.peers, reply.total, self.paint)
            })?;
            if !args.watch {
                return Ok(());
            }
            thread::sleep(WATCH_INTERVAL);
        }
    }

    fn backlog(&self, listener: &str, backlog: Option<i64>) -> Result<(), Failure> {
        let name = listener.to_owned();
        if backlog.is_some() {
            let asked = schema::SetBacklog {
                listener: Some(name),
                backlog,
            };
            let mut client = self.connect()?;
            let set = client.call(&full_name("SetBacklog"), schema::parameters(&asked));
            let reply = set.map_err(|error| match &error {
                client::Error::Refused { name, parameters }
                    if name == protocol::INVALID_PARAMETER
                        && is_parameter(parameters, "listener") =>
                {
                    no_backlog(listener)
                }
                _ => self.explain(error),
            })?;
            return self.answer(reply, |reply| {
                show::backlog_set(listener, &reply, self.paint)
            });
        }
        let asked = schema::ListListeners { name: Some(name) };
        let reply = self.call("ListListeners", &asked)?;
        if self.json {
            return self.print_json(reply);
        }
        let reply: schema::ListListenersReply = decode(reply)?;
        match reply
            .listeners
            .first()
            .and_then(|listener| listener.backlog)
        {
            Some(backlog) => print(show::backlog(listener, &backlog, self.paint).as_bytes()),
            None => Err(no_backlog(listener)),
        }
    }

    fn kick(&self, args: KickArgs) -> Result<(), Failure> {
        let dry_run = args.dry_run;
        let reply = self.call("ClosePeers", &selection(args)?)?;
        self.answer(reply, |reply| show::kicked(&reply, dry_run))
    }

    fn reload(&self, dry_run: bool) -> Result<(), Failure> {
        let asked = schema::Reload {
            dry_run: dry_run.then_some(true),
        };
        match self
            .connect()?
            .call(&full_name("Reload"), schema::parameters(&asked))
        {
            Ok(reply) => self.answer(reply, |reply: schema::ReloadReply| {
                if dry_run {
                    show::reload_plan(&reply.result, self.paint)
                } else {
                    show::reload(&reply.result, self.paint)
                }
            }),
            Err(client::Error::Refused { name, parameters })
                if name == protocol::CONFIG_REJECTED =>
            {
                let reply: schema::ReloadReply = decode(parameters.clone())?;
                if self.json {
                    self.print_json(parameters)?;
                }
                Err(self.rejected(&reply.result))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn last_reload(&self) -> Result<(), Failure> {
        let reply = self.call("GetStatus", &schema::Nothing {})?;
        let status: schema::GetStatusReply = decode(reply.clone())?;
        let result = status.status.last_reload;
        self.answer(reply, |_: schema::GetStatusReply| {
            show::reload(&result, self.paint)
        })?;
        match result.outcome {
            schema::ReloadOutcome::Rejected => Err(self.rejected(&result)),
            _ => Ok(()),
        }
    }

    /// Says all that is wrong with a configuration.
    fn rejected(&self, result: &schema::ReloadResult) -> Failure {
        complain(&show::errors(&result.errors, self.error_paint));
        let count = result.error_count();
        let told = format!("configuration rejected: {count}; nothing has changed");
        Failure::new(Exit::Rejected, told)
    }

    fn config_show(&self) -> Result<(), Failure> {
        let reply = self.call("GetConfig", &schema::Nothing {})?;
        // A file gets it as it is.
        let terminal = self.terminal;
        self.answer(reply, |reply: schema::GetConfigReply| {
            if terminal {
                text::escape_lines(&reply.toml)
            } else {
                reply.toml
            }
        })
    }

    fn call_raw(&self, method: &str, parameters: Option<&str>, more: bool) -> Result<(), Failure> {
        let parameters = match serde_json::from_str(parameters.unwrap_or("{}")) {
            Ok(Value::Object(parameters)) => parameters,
            Ok(_) => return Err(Failure::new(Exit::Usage, "JSON: not an object: write {…}")),
            Err(cause) => return Err(Failure::new(Exit::Usage, format!("JSON: {cause}"))),
        };
        let mut client = self.connect()?;
        client.send(&full_name(method), parameters, more)?;
        loop {
            let reply = client.next_reply()?;
            self.print_json(reply.parameters)?;
            if !reply.continues {
                return Ok(());
            }
        }
    }

    fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.socket, self.timeout)?)
    }

    /// Asks for one reply.
    fn call(&self, method: &str, asked: &impl Serialize) -> Result<Parameters, Failure> {
        let mut client = self.connect()?;
        let reply = client.call(&full_name(method), schema::parameters(asked));
        reply.map_err(|error| self.explain(error))
    }

    /// Asks for several replies, which become one: their lists joined.
    fn all_pages(&self, method: &str, asked: &impl Serialize) -> Result<Parameters, Failure> {
        let mut client = self.connect()?;
        client.send(&full_name(method), schema::parameters(asked), true)?;
        let mut merged = Parameters::new();
        loop {
            let reply = client.next_reply().map_err(|error| self.explain(error))?;
            for (key, value) in reply.parameters {
                match (merged.get_mut(&key), value) {
                    (Some(Value::Array(all)), Value::Array(mut page)) => all.append(&mut page),
                    (_, value) => {
                        merged.insert(key, value);
                    }
                }
            }
            if !reply.continues {
                return Ok(merged);
            }
        }
    }

    /// Why the daemon refused, with what it takes another call to know.
    fn explain(&self, error: client::Error) -> Failure {
        let client::Error::Refused { name, parameters } = &error else {
            return error.into();
        };
        let mut failure = refusal(name, parameters);
        if name == protocol::LISTENER_NOT_FOUND
            && let Ok(reply) = self.call("ListListeners", &schema::ListListeners::default())
            && let Ok(reply) = decode::<schema::ListListenersReply>(reply)
        {
            let names = reply.listeners.into_iter().map(|listener| listener.name);
            let names: Vec<String> = names.collect();
            failure.text += &format!("; there are: {}", text::escape(&names.join(", ")));
        }
        failure
    }

    /// Prints a reply: as it came, or as people read it.
    fn answer<T: DeserializeOwned>(
        &self,
        reply: Parameters,
        show: impl FnOnce(T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            return self.print_json(reply);
        }
        print(show(decode(reply)?).as_bytes())
    }

    fn print_json(&self, reply: Parameters) -> Result<(), Failure> {
        let value = Value::Object(reply);
        let json = if self.terminal {
            format!("{value:#}")
        } else {
            value.to_string()
        };
        print((text::escape_json(&json) + "\n").as_bytes())
    }
}

/// Prints data. Who stops reading has seen enough: that is no failure.
fn print(data: &[u8]) -> Result<(), Failure> {
    match terminal::print(data) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(Exit::Done, "")),
        Err(cause) => Err(Failure::new(
            Exit::Failed,
            format!("standard output: {cause}"),
        )),
    }
}

fn decode<T: DeserializeOwned>(reply: Parameters) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(reply)).map_err(|cause| {
        let told = format!("the reply is not understood, is echod of another version? ({cause})");
        Failure::new(Exit::Failed, text::escape(&told))
    })
}

fn full_name(method: &str) -> String {
    if method.contains('.') {
        method.to_owned()
    } else {
        format!("{}.{method}", protocol::INTERFACE)
    }
}

fn milliseconds(time: Duration) -> u64 {
    // What is more than Varlink's integers hold is longer than anything has lasted.
    u64::try_from(time.as_millis()).map_or(i64::MAX as u64, |time| time.min(i64::MAX as u64))
}

/// Whether this is the parameter that an error complains about.
fn is_parameter(parameters: &Parameters, name: &str) -> bool {
    parameters.get("parameter").and_then(Value::as_str) == Some(name)
}

fn no_backlog(listener: &str) -> Failure {
    let told = format!("listener {listener:?}: datagrams have no backlog");
    Failure::new(Exit::Failed, text::escape(&told))
}

/// What `kick` was told to close.
fn selection(args: KickArgs) -> Result<schema::ClosePeers, Failure> {
    let mut asked = schema::ClosePeers {
        id: None,
        listener: args.listener,
        address: args.address,
        older_ms: args.older.map(milliseconds),
        idle_ms: args.idle.map(milliseconds),
        dry_run: args.dry_run.then_some(true),
    };
    let twice = |option| {
        let told = format!("SELECTOR and {option} mean the same: give one of them");
        Failure::new(Exit::Usage, told)
    };
    if let Some(selector) = args.selector {
        if let Ok(id) = selector.parse() {
            asked.id = Some(id);
        } else if parse_network(&selector).is_some() {
            if asked.address.replace(selector).is_some() {
                return Err(twice("--address"));
            }
        } else if asked.listener.replace(selector).is_some() {
            return Err(twice("--listener"));
        }
    }
    Ok(asked)
}

/// Where the daemon's socket is, if nobody says otherwise: where the daemon itself would put it.
fn socket_path(
    option: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
    root: bool,
    exists: impl Fn(&Path) -> bool,
) -> PathBuf {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let system = PathBuf::from("/run/echod/control.sock");
    if let Some(path) = option {
        return path;
    }
    if let Some(path) = variable("ECHOCTL_SOCKET") {
        return path.into();
    }
    if let Some(directories) = variable("RUNTIME_DIRECTORY") {
        // systemd puts a colon between several (systemd.exec(5)).
        let first = std::env::split_paths(&directories)
            .next()
            .unwrap_or_default();
        return first.join("control.sock");
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(directory) if !root => {
            let own = Path::new(&directory).join("echod/control.sock");
            // Who has no daemon of his own means the system's.
            if exists(&own) || !exists(&system) {
                own
            } else {
                system
            }
        }
        _ => system,
    }
}

/// Runs `echod --check`: the one beside us, else the one in PATH.
fn check(file: Option<&Path>) -> Result<(), Failure> {
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("echod"));
    let program = beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "echod".into());
    let mut command = process::Command::new(&program);
    command.arg("--check");
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    let failed = |told| Failure::new(Exit::Failed, told);
    let status = command
        .status()
        .map_err(|cause| failed(format!("{}: {cause}", program.display())))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(CHECK_REJECTED) => Err(Failure::new(Exit::Rejected, "")),
        _ => Err(failed(format!("{} --check: {status}", program.display()))),
    }
}

#[cfg(test)]
mod tests;
