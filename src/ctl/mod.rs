//! `echoctl`: operates the daemon over its control socket.
//!
//! Knows which command is which call, and what to print of the answer. Never decides anything
//! about the service: whatever the daemon refuses, it refuses for every client. Read on in
//! [`args`] for the command line, `location` for the socket, `selection` for the peers, `calls` and
//! [`client`] for a call, `refusal` for its errors, [`show`], `status` and [`lists`] for what is
//! printed, `listing` and [`watch`] for what is printed again and again, `reload` for configurations,
//! `pausing` for listeners that take no new clients;
//! `check` runs echod, `systemd` asks what is about to happen to a unit, `completion` answers a shell.

#![forbid(unsafe_code)]

pub(crate) mod args;
mod calls;
mod check;
pub(crate) mod client;
mod completion;
mod listing;
pub(crate) mod lists;
mod location;
mod pausing;
mod refusal;
mod reload;
mod selection;
pub(crate) mod show;
mod status;
mod systemd;
pub(crate) mod watch;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use serde_json::Value;

use crate::cli::arguments;
use crate::cli::exit::{self, Exit, Failure, print_or_end};
use crate::cli::text::{self, Paint};
use crate::protocol::{self, schema};

use args::{Cli, Command, ConfigCommand, KickArgs};
use calls::{decode, full_name};
use location::Location;
use refusal::{Complaint, is_parameter, no_backlog};

/// The entry point: reads the command line, calls the daemon, prints the answer. `others` are the
/// command lines of the programs beside this one, for their completions.
#[must_use]
pub(crate) fn main(others: fn() -> Vec<clap::Command>) -> ExitCode {
    if completion::answer::<Cli>() {
        return Exit::Done.into();
    }
    match Cli::try_parse() {
        Ok(cli) => {
            let session = Session::new(&cli, others);
            session.end(session.run(cli.command))
        }
        Err(error) if error.use_stderr() && wants_json() => {
            let text = error.render().to_string();
            let lines = text.lines().filter(|line| !line.is_empty());
            let lines = lines.map(|line| text::escape(line.trim())).collect();
            let usage = Failure {
                exit: Exit::Usage,
                messages: lines,
            };
            end_with_json(&usage.into(), io::stdout().is_terminal())
        }
        Err(error) => arguments::report(&error, "echoctl"),
    }
}

/// Whether a command line that is not understood has the option `--json`.
fn wants_json() -> bool {
    let words = std::env::args_os().skip(1);
    let mut options = words.take_while(|word| word != "--");
    // With a value, which it does not take, it is that option all the same.
    options.any(|word| word == "--json" || word.as_encoded_bytes().starts_with(b"--json="))
}

/// The error as an object on standard output, where the reply would be.
fn end_with_json(complaint: &Complaint, terminal: bool) -> ExitCode {
    if let Some(error) = complaint.json()
        && let Err(failure) = print_or_end(calls::json_text(&error, terminal).as_bytes())
    {
        // Whether or not it can be printed, it has happened.
        failure.complain("echoctl");
    }
    complaint.failure.exit.into()
}

/// One run of `echoctl`.
struct Session {
    socket: Location,
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
        let plain = Paint { colored: false };
        Self {
            socket: location::of_this_process(options.socket.clone()),
            timeout: cli.patience(),
            json: options.json,
            terminal,
            wide: options.wide,
            paint: options.color.paint(terminal),
            error_paint: match options.json {
                // It is part of an object then.
                true => plain,
                false => options.color.paint(io::stderr().is_terminal()),
            },
            others,
        }
    }

    /// Reports what went wrong, if anything; with `--json` as an object.
    fn end(&self, result: Result<(), Complaint>) -> ExitCode {
        match result {
            Err(complaint) if self.json => end_with_json(&complaint, self.terminal),
            result => exit::end("echoctl", result.map_err(|complaint| complaint.failure)),
        }
    }

    fn run(&self, command: Command) -> Result<(), Complaint> {
        match command {
            Command::Status => {
                let reply = self.call("GetStatus", &schema::Nothing {})?;
                self.answer(reply, |reply: schema::GetStatusReply| {
                    status::status(&reply.status, self.screen())
                })
            }
            Command::Listeners { name, watch } => self.listeners(name, watch),
            Command::Peers(args) => self.peers(&args),
            Command::Backlog { listener, backlog } => self.backlog(&listener, backlog),
            Command::Pause { which, hold } => self.pause(which, hold),
            Command::Resume(which) => self.resume(which),
            Command::Drain(args) => self.drain(args),
            Command::Kick(args) => self.kick(args),
            // Nothing is reloaded: the status has the result.
            Command::Reload { last: true, .. } => self.last_reload(),
            Command::Reload {
                dry_run,
                confirm,
                quiet,
                ..
            } => self.reload(dry_run, confirm, quiet),
            Command::Confirm => {
                let reply = self.call("Confirm", &schema::Nothing {})?;
                self.answer(reply, |reply| show::confirmed(&reply))
            }
            Command::Rollback { dry_run } => self.roll_back(dry_run),
            Command::Check { file } if self.json => {
                self.print_messages(&check::check_quietly(file.as_deref())?)
            }
            Command::Check { file } => Ok(check::check(file.as_deref())?),
            Command::Config(ConfigCommand::Show) => self.config_show(),
            // Every user that can connect may read it.
            Command::LogLevel { level: None } => {
                let reply = self.call("GetStatus", &schema::Nothing {})?;
                self.answer(reply, |reply: schema::GetStatusReply| {
                    text::escape(&reply.status.log_level) + "\n"
                })
            }
            Command::LogLevel { level } => {
                let reply = self.call("SetLogLevel", &schema::SetLogLevel { level })?;
                self.answer(reply, |reply| show::log_level(&reply))
            }
            Command::Upgrade => {
                let reply = self.call("Upgrade", &schema::Nothing {})?;
                self.answer(reply, |reply: schema::UpgradeReply| {
                    show::upgraded(&reply.result, self.screen())
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

    fn hand_over(&self, unit: Option<&str>) -> Result<(), Complaint> {
        if let Some(unit) = unit {
            let failed = |error| Failure::new(format!("systemctl: {}", text::cause(&error)));
            if let Some(reason) = systemd::why_no_successor(unit).map_err(failed)? {
                return self.print_messages(&[format!("{unit}: {reason}")]);
            }
        }
        let reply = self.call("HandOver", &schema::Nothing {})?;
        self.answer(reply, |reply| show::handed_over(&reply))
    }

    fn completions(&self, shell: Shell, program: &str) -> Result<(), Complaint> {
        let mut programs = (self.others)();
        programs.push(Cli::command());
        let Some(command) = programs.iter().find(|one| one.get_name() == program) else {
            let names: Vec<&str> = programs.iter().map(clap::Command::get_name).collect();
            let (last, others) = names.split_last().expect("there is echoctl");
            let message = format!(
                "completions: program \"{}\": not one of ours: use {} or {last}",
                text::escape(program),
                others.join(", ")
            );
            return Err(Failure::with(Exit::Usage, message).into());
        };
        let script = if program == "echoctl" {
            let failed = |error| Failure::new(format!("completions: {}", text::cause(&error)));
            completion::script(shell).map_err(failed)?
        } else {
            completion::script_of(command, program, shell)
        };
        Ok(print_or_end(&script)?)
    }

    fn backlog(&self, listener: &str, backlog: Option<i64>) -> Result<(), Complaint> {
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
                client::Error::Refused {
                    name, parameters, ..
                } if name == protocol::INVALID_PARAMETER
                    && is_parameter(parameters, "listener") =>
                {
                    no_backlog(listener).into()
                }
                _ => self.explain(error),
            })?;
            return self.answer(reply, |reply| {
                show::backlog_set(listener, &reply, self.paint)
            });
        }
        let asked = schema::ListListeners { name: Some(name) };
        let reply = self.call("ListListeners", &asked)?;
        let decoded: schema::ListListenersReply = decode(reply.clone())?;
        let listed = decoded.listeners.first();
        let Some(backlog) = listed.and_then(|listener| listener.backlog) else {
            return Err(no_backlog(listener).into());
        };
        self.answer(reply, |_: Value| {
            show::backlog(listener, &backlog, self.paint)
        })
    }

    fn kick(&self, args: KickArgs) -> Result<(), Complaint> {
        let dry_run = args.dry_run;
        let reply = self.call("ClosePeers", &selection::closed(args)?)?;
        let found: schema::ClosePeersReply = decode(reply.clone())?;
        let (0, Some(sources)) = (found.matched, found.sources) else {
            return self.answer(reply, |reply| show::kicked(&reply, dry_run, self.screen()));
        };
        if self.json {
            // The reply has the numbers.
            self.print_json(reply)?;
            return Err(Failure::quiet(Exit::Failed).into());
        }
        Err(Failure::new(show::nothing_to_close(sources)).into())
    }

    fn config_show(&self) -> Result<(), Complaint> {
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
}

#[cfg(test)]
mod tests;
