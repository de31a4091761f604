//! Calls of the control protocol: answered from the daemon as it is, or carried out.
//!
//! Everything that can be wrong with a request was found by `protocol`; here is what the daemon does
//! about one that is right, and the line of the log that says which caller has changed what.

use std::time::Instant;

use crate::cli::text::cause;
use crate::config::render;
use crate::protocol::schema;
use crate::protocol::wire;
use crate::protocol::{self, Effect, Outcome, View};

use crate::sys::process;

use super::Daemon;
use super::control::{Audit, Call, Reply, Server};
use super::listeners::{self, Standing};
use super::log;
use super::origin::Comparison;
use super::reload::{Asker, Request, Wanted};

impl Daemon {
    /// What `GetStatus` returns, with what was `found` of the files.
    pub(super) fn status(&self, found: Option<Comparison>) -> schema::Status {
        let totals = self.listeners.totals();
        let control = self.server.as_ref().map(Server::path);
        let control = control.and_then(|path| std::path::absolute(path).ok());
        schema::Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            state: self.stage.name().into(),
            driver: self.workers.driver().name().into(),
            workers: self.workers.count() as u32,
            config: self.origin.absolute(&self.files.names),
            generation: self.history.generation,
            last_reload: self.history.last.clone(),
            listeners: self.listeners.count() as u64,
            connections: totals.connections(),
            bytes_received: totals.bytes_received,
            bytes_sent: totals.bytes_sent,
            // Both are absent where the files could not be compared.
            config_on_disk: found.map(|found| found.on_disk),
            rejected_on_disk: found.and_then(|found| found.is_rejected),
            control_socket: control.map(|path| path.display().to_string()),
            log_level: level_name(::log::max_level()),
            max_connections: self.listeners.max_connections(),
            descriptors: process::open_descriptors(),
            max_descriptors: process::descriptor_limit(),
            refused: listeners::refused(&totals),
            closed: listeners::closed(&totals),
            faults: totals.faults,
            restart_required: self.restart_required(),
            confirm_in_ms: self.reloads.confirm_until().map(|until| {
                let left = until.saturating_duration_since(Instant::now());
                u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
            }),
            listener_states: self.listeners.states(),
        }
    }
}

impl View for Daemon {
    fn listeners(&self) -> Vec<schema::Listener> {
        self.listeners.report()
    }

    fn listener(&self, name: &str) -> Option<schema::Listener> {
        self.listeners.report_one(name)
    }

    fn has_listener(&self, name: &str) -> bool {
        self.listeners.has(name)
    }

    fn has_backlog(&self, name: &str) -> Option<bool> {
        self.listeners.has_backlog(name)
    }

    fn config(&self) -> String {
        render(&self.listeners.complete(&self.config))
    }
}

impl Daemon {
    /// Answers a call, or begins what will be answered later.
    pub(super) fn handle_call(&mut self, call: &Call, now: Instant) {
        let reply = match protocol::handle(&call.request, self.roles.of(&call.caller), self) {
            Outcome::Reply(reply) => Some(reply),
            Outcome::Denied => {
                let (caller, method) = (call.caller.describe(), &call.request.method);
                ::log::warn!(caller = call.caller.uid; "control: {caller} may not call {method:?}");
                Some(protocol::permission_denied())
            }
            Outcome::Effect(effect) => {
                let audit = Audit::of(&call.caller, &effect);
                self.carry_out(effect, call, audit, now)
            }
        };
        if let Some((server, reply)) = self.server.as_mut().zip(reply) {
            server.reply(call.id, Reply::One(reply), now);
        }
    }

    /// Does what a call asks for; none if it will be answered later. There is an `audit` of a change.
    fn carry_out(
        &mut self,
        effect: Effect,
        call: &Call,
        audit: Option<Audit>,
        now: Instant,
    ) -> Option<wire::Reply> {
        match effect {
            // The reply waits for the disk, not this thread.
            Effect::GetStatus => {
                self.files.ask(call.id);
                None
            }
            Effect::ListPeers { query, sort, limit } => {
                self.server.as_mut()?.list_peers(call, query, sort, limit);
                None
            }
            Effect::ClosePeers {
                query,
                dry_run,
                list,
            } => {
                self.server
                    .as_mut()?
                    .close_peers(call, query, dry_run, list, audit);
                None
            }
            Effect::SetBacklog { listener, backlog } => {
                Some(self.set_backlog(&listener, backlog, audit.as_ref()))
            }
            Effect::PauseListener { listener, hold } => {
                let to = if hold {
                    Standing::Holding
                } else {
                    Standing::Paused
                };
                self.set_standing(call, listener.as_deref(), to, audit.as_ref(), now);
                None
            }
            Effect::ResumeListener { listener } => {
                let to = Standing::Listening;
                self.set_standing(call, listener.as_deref(), to, audit.as_ref(), now);
                None
            }
            Effect::DrainListener { listener, deadline } => {
                let time = deadline.unwrap_or(self.config.daemon.drain_timeout);
                let to = Standing::draining(now + time);
                self.set_standing(call, listener.as_deref(), to, audit.as_ref(), now);
                None
            }
            Effect::Reload {
                dry_run,
                confirm_within,
            } => {
                let asker = Asker { id: call.id, audit };
                let wanted = Wanted::OnDisk { confirm_within };
                self.request_reload(Request::of_caller(asker, wanted, dry_run));
                None
            }
            Effect::Confirm => Some(self.confirm(audit.as_ref(), now)),
            Effect::RollBack { dry_run } => {
                let asker = Asker { id: call.id, audit };
                self.request_reload(Request::of_caller(asker, Wanted::Before, dry_run));
                None
            }
            Effect::Upgrade => {
                audit.iter().for_each(Audit::record_beginning);
                self.upgrade(Some(call.id), now);
                None
            }
            Effect::HandOver => {
                audit.iter().for_each(Audit::record_beginning);
                self.hand_over_to_process(call.id, now);
                None
            }
            Effect::SetLogLevel { level } => Some(self.set_log_level(level, audit.as_ref())),
        }
    }

    fn set_backlog(&mut self, name: &str, backlog: u32, audit: Option<&Audit>) -> wire::Reply {
        let (before, after) = match self.listeners.set_backlog(name, backlog) {
            Ok(changed) => changed,
            Err(error) => {
                ::log::error!(listener = name; "listener \"{name}\": backlog {backlog}: {}", cause(&error));
                // The reply says that nothing has changed.
                let present = self.listeners.report_one(name);
                let present = present.and_then(|listener| listener.backlog);
                let present = present.unwrap_or_default();
                (present, present)
            }
        };
        if let Some(audit) = audit {
            audit.record(format_args!(
                "{} → {}, effective {}",
                before.requested, after.requested, after.effective
            ));
        }
        protocol::reply(&schema::SetBacklogReply { before, after })
    }

    fn set_log_level(&mut self, level: ::log::LevelFilter, audit: Option<&Audit>) -> wire::Reply {
        let before = ::log::max_level();
        if let Some(audit) = audit {
            // The line is there if one of the two levels has it.
            log::set_level(before.max(level));
            audit.record(format_args!(
                "{} → {}",
                level_name(before),
                level_name(level)
            ));
        }
        log::set_level(level);
        self.config.log.level = level;
        self.log_level_overridden = true;
        let (before, after) = (level_name(before), level_name(level));
        protocol::reply(&schema::SetLogLevelReply { before, after })
    }

    /// Lets the workers make the next search among the peers, unless that is for a successor.
    pub(super) fn search_peers(&mut self, now: Instant) {
        let held = self.is_settling();
        let Some(server) = &mut self.server else {
            return;
        };
        server.hold_searches(held);
        if let Some(search) = server.search(&self.listeners, self.workers.count(), now) {
            self.workers.command_all(|_| search.command());
        }
    }
}

fn level_name(level: ::log::LevelFilter) -> String {
    level.as_str().to_ascii_lowercase()
}
