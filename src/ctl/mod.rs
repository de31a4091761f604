//! `echoctl`: operates the daemon over its control socket.
//!
//! Knows which command is which call, and what to print of the answer. Never decides anything
//! about the service: whatever the daemon refuses, it refuses for every client. Read on in
//! [`args`] for the command line, `location` for the socket, `selection` for the peers, [`client`]
//! for a call, `refusal` for its errors, [`show`] and [`lists`] for what is printed, and [`watch`]
//! for what is printed again and again; `check` runs echod, `systemd` asks what is about to happen to
//! a unit.

#![forbid(unsafe_code)]

pub mod args;
mod check;
pub mod client;
pub mod lists;
mod location;
mod refusal;
mod selection;
pub mod show;
mod systemd;
pub mod watch;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use terminal_size::{Height, Width, terminal_size};

use crate::cli::arguments;
use crate::cli::exit::{self, Exit, Failure, print_or_end};
use crate::cli::terminal::complain;
use crate::cli::text::{self, Paint};
use crate::protocol::wire::Parameters;
use crate::protocol::{self, schema};

use args::{Cli, Command, ConfigCommand, KickArgs, PeersArgs, WatchArgs};
use check::check;
use client::Client;
use lists::Screen;
use location::socket_path;
use refusal::{is_parameter, no_backlog, refusal};
use watch::{List, Rates};

/// The entry point: reads the command line, calls the daemon, prints the answer. `others` are the
/// command lines of the programs beside this one, for their completions.
#[must_use]
pub fn main(others: fn() -> Vec<clap::Command>) -> ExitCode {
    let cli: Cli = match arguments::parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let session = Session::new(&cli, others);
    exit::end("echoctl", session.run(cli.command))
}

/// One run of `echoctl`.
struct Session {
    socket: PathBuf,
    timeout: Duration,
    json: bool,
    terminal: bool,
    /// Show every column of a table.
    wide: bool,
    /// Of what is printed.
    paint: Paint,
    /// Of errors.
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
            // A folder that may not be searched may well have it.
            |path| path.try_exists().unwrap_or(true),
        );
        Self {
            socket,
            timeout: cli.patience(),
            json: options.json,
            terminal,
            wide: options.wide,
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
            Command::Listeners { name, watch } => self.listeners(name, watch),
            Command::Peers(args) => self.peers(&args),
            Command::Backlog { listener, backlog } => self.backlog(&listener, backlog),
            Command::Kick(args) => self.kick(args),
            // Nothing is reloaded: the status has the result.
            Command::Reload { last: true, .. } => self.last_reload(),
            Command::Reload { dry_run, quiet, .. } => self.reload(dry_run, quiet),
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
                    show::upgraded(&reply.result, self.paint)
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
            let failed = |error| Failure::new(format!("systemctl: {error}"));
            if let Some(reason) = systemd::why_no_successor(unit).map_err(failed)? {
                return print_or_end(format!("{unit}: {reason}\n").as_bytes());
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
            let message = format!(
                "completions: program \"{}\": not one of ours: use {} or {last}",
                text::escape(program),
                others.join(", ")
            );
            return Err(Failure::with(Exit::Usage, message));
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, command, program, &mut script);
        print_or_end(&script)
    }

    fn listeners(&self, name: Option<String>, watch: WatchArgs) -> Result<(), Failure> {
        let single = name.is_some();
        let asked = schema::ListListeners { name };
        self.list(watch, |rates| {
            let reply = self.call("ListListeners", &asked)?;
            self.listed(reply, |reply: schema::ListListenersReply| {
                let counts = reply.listeners.iter().map(|listener| {
                    let counts = [listener.bytes_received, listener.bytes_sent];
                    (listener.name.clone(), counts)
                });
                rates.update(Instant::now(), counts);
                match reply.listeners.as_slice() {
                    [listener] if single => List {
                        footer: show::listener(listener, self.paint),
                        ..List::default()
                    },
                    listeners => lists::listeners(listeners, rates_of(rates, watch), self.screen()),
                }
            })
        })
    }

    fn peers(&self, args: &PeersArgs) -> Result<(), Failure> {
        let asked = selection::listed(args);
        self.list(args.watch, |rates| {
            let reply = self.all_pages("ListPeers", &asked)?;
            self.listed(reply, |reply: schema::ListPeersReply| {
                let counts = reply.peers.iter().map(|peer| {
                    let counts = [peer.bytes_received, peer.bytes_sent];
                    (peer.id.to_string(), counts)
                });
                rates.update(Instant::now(), counts);
                let rates = rates_of(rates, args.watch);
                lists::peers(&reply.peers, reply.total, rates, self.screen())
            })
        })
    }

    /// Prints a list once, or again and again in the same place.
    fn list(
        &self,
        watch: WatchArgs,
        mut look: impl FnMut(&mut Rates) -> Result<List, Failure>,
    ) -> Result<(), Failure> {
        let mut rates = Rates::default();
        let mut is_first = true;
        loop {
            let list = look(&mut rates)?;
            match terminal_size().filter(|_| watch.watch && self.terminal && !self.json) {
                Some((Width(width), Height(height))) => {
                    // Nothing of what is on the screen is left beside the list.
                    let clear = if is_first { "\x1b[2J" } else { "" };
                    let drawn = watch::redraw(&list, (width.into(), height.into()));
                    print_or_end((clear.to_owned() + &drawn).as_bytes())?;
                }
                None => print_or_end(list.whole().as_bytes())?,
            }
            if !watch.watch {
                return Ok(());
            }
            is_first = false;
            thread::sleep(watch.interval);
        }
    }

    /// A reply as a list; as it came, it is a footer alone.
    fn listed<T: DeserializeOwned>(
        &self,
        reply: Parameters,
        show: impl FnOnce(T) -> List,
    ) -> Result<List, Failure> {
        if self.json {
            return Ok(List {
                footer: self.json_text(reply),
                ..List::default()
            });
        }
        Ok(show(decode(reply)?))
    }

    /// How wide and in which colors tables are.
    fn screen(&self) -> Screen {
        let width = terminal_size().map(|(Width(width), _)| usize::from(width));
        Screen {
            paint: self.paint,
            width: width.filter(|_| self.terminal && !self.wide),
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
            // The daemon names the parameter; that datagrams are the reason is known here.
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
            Some(backlog) => print_or_end(show::backlog(listener, &backlog, self.paint).as_bytes()),
            None => Err(no_backlog(listener)),
        }
    }

    fn kick(&self, args: KickArgs) -> Result<(), Failure> {
        let dry_run = args.dry_run;
        let reply = self.call("ClosePeers", &selection::closed(args)?)?;
        self.answer(reply, |reply| show::kicked(&reply, dry_run))
    }

    fn reload(&self, dry_run: bool, quiet: bool) -> Result<(), Failure> {
        let asked = schema::Reload {
            dry_run: dry_run.then_some(true),
        };
        match self
            .connect()?
            .call(&full_name("Reload"), schema::parameters(&asked))
        {
            Ok(_) if quiet => Ok(()),
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
                if quiet {
                    return Err(Failure::quiet(Exit::Configuration));
                }
                let reply: schema::ReloadReply = decode(parameters.clone())?;
                if self.json {
                    // It is rejected whether or not anything reads that.
                    let _ = self.print_json(parameters);
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
        let printed = self.answer(reply, |_: schema::GetStatusReply| {
            show::reload(&result, self.paint)
        });
        match result.outcome {
            schema::ReloadOutcome::Rejected => Err(self.rejected(&result)),
            _ => printed,
        }
    }

    /// Prints all that is wrong with a configuration.
    fn rejected(&self, result: &schema::ReloadResult) -> Failure {
        complain(&show::errors(&result.errors, self.error_paint));
        let count = result.error_count();
        let message = format!("configuration rejected: {count}; nothing has changed");
        Failure::with(Exit::Configuration, message)
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
            Ok(_) => {
                return Err(Failure::with(Exit::Usage, "JSON: not an object: write {…}"));
            }
            Err(cause) => return Err(Failure::with(Exit::Usage, format!("JSON: {cause}"))),
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
            failure.messages[0] += &format!("; there are: {}", text::escape(&names.join(", ")));
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
        print_or_end(show(decode(reply)?).as_bytes())
    }

    fn print_json(&self, reply: Parameters) -> Result<(), Failure> {
        print_or_end(self.json_text(reply).as_bytes())
    }

    fn json_text(&self, reply: Parameters) -> String {
        let value = Value::Object(reply);
        let json = if self.terminal {
            format!("{value:#}")
        } else {
            value.to_string()
        };
        text::escape_json(&json) + "\n"
    }
}

/// The rates, where a list is watched; once there are none.
fn rates_of(rates: &Rates, watch: WatchArgs) -> Option<&Rates> {
    watch.watch.then_some(rates)
}

fn decode<T: DeserializeOwned>(reply: Parameters) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(reply)).map_err(|cause| {
        let message =
            format!("the reply is not understood, is echod of another version? ({cause})");
        Failure::new(text::escape(&message))
    })
}

fn full_name(method: &str) -> String {
    if method.contains('.') {
        method.to_owned()
    } else {
        format!("{}.{method}", protocol::INTERFACE)
    }
}

#[cfg(test)]
mod tests;
