//! `echoctl reload` and `rollback`: what came of it, or would, or came of the last one.

use std::time::Duration;

use serde::Serialize;

use crate::cli::exit::{Exit, Failure};
use crate::protocol::{self, schema};

use super::calls::{decode, full_name};
use super::refusal::{self, Complaint};
use super::{Session, client, show};

impl Session {
    pub(super) fn reload(
        &self,
        dry_run: bool,
        confirm: Option<Duration>,
        quiet: bool,
    ) -> Result<(), Complaint> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let asked = schema::Reload {
            dry_run: dry_run.then_some(true),
            confirm_within_ms: confirm.map(millis),
        };
        self.change("Reload", &asked, dry_run, quiet)
    }

    pub(super) fn roll_back(&self, dry_run: bool) -> Result<(), Complaint> {
        let asked = schema::Rollback {
            dry_run: dry_run.then_some(true),
        };
        self.change("Rollback", &asked, dry_run, false)
    }

    /// Asks for another configuration, and prints what came of it.
    fn change(
        &self,
        method: &str,
        asked: &impl Serialize,
        dry_run: bool,
        quiet: bool,
    ) -> Result<(), Complaint> {
        match self
            .connect()?
            .call(&full_name(method), schema::parameters(asked))
        {
            // For a program a reply is always an object, as is an error.
            Ok(_) if quiet && !self.json => Ok(()),
            Ok(reply) => self.answer(reply, |reply: schema::ReloadReply| {
                if dry_run {
                    show::reload_plan(&reply.result, self.screen())
                } else {
                    show::reload(&reply.result, self.screen())
                }
            }),
            Err(client::Error::Refused {
                name, parameters, ..
            }) if name == protocol::CONFIG_REJECTED => {
                if quiet && !self.json {
                    return Err(Failure::quiet(Exit::Configuration).into());
                }
                let reply: schema::ReloadReply = decode(parameters.clone())?;
                Err(refusal::rejected(self.rejection(&reply.result), parameters))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn last_reload(&self) -> Result<(), Complaint> {
        let reply = self.call("GetStatus", &schema::Nothing {})?;
        let status: schema::GetStatusReply = decode(reply.clone())?;
        let result = status.status.last_reload;
        let printed = self.answer(reply, |_: schema::GetStatusReply| {
            show::reload(&result, self.screen())
        });
        match result.outcome {
            // For a program the reply says it.
            schema::ReloadOutcome::Rejected if self.json => {
                Err(Failure::quiet(Exit::Configuration).into())
            }
            schema::ReloadOutcome::Rejected => {
                Err(Failure::configuration(self.rejection(&result)).into())
            }
            _ => printed,
        }
    }

    /// All that is wrong with a configuration, and that it is not in force.
    fn rejection(&self, result: &schema::ReloadResult) -> Vec<String> {
        let mut messages = show::errors(&result.errors, self.error_paint);
        let count = result.error_count();
        let what = if result.rollback {
            "rollback"
        } else {
            "configuration"
        };
        messages.push(format!("{what} rejected: {count}; nothing has changed"));
        messages
    }
}
