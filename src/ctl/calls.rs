//! How the daemon is asked, and how a reply is printed: as it came, or as people read it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cli::exit::{Exit, Failure, print_or_end};
use crate::cli::text;
use crate::protocol::wire::Parameters;
use crate::protocol::{self, schema};

use super::Session;
use super::client::{self, Client};
use super::refusal::{Complaint, refusal};

impl Session {
    pub(super) fn connect(&self) -> Result<Client, Complaint> {
        self.socket.connect(self.timeout)
    }

    /// Asks for one reply.
    pub(super) fn call(
        &self,
        method: &str,
        asked: &impl Serialize,
    ) -> Result<Parameters, Complaint> {
        let mut client = self.connect()?;
        let reply = client.call(&full_name(method), schema::parameters(asked));
        reply.map_err(|error| self.explain(error))
    }

    /// Asks for several replies, which become one: their lists joined.
    pub(super) fn all_pages(
        &self,
        method: &str,
        asked: &impl Serialize,
    ) -> Result<Parameters, Complaint> {
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
    pub(super) fn explain(&self, error: client::Error) -> Complaint {
        let client::Error::Refused {
            method,
            name,
            parameters,
        } = &error
        else {
            return error.into();
        };
        let mut complaint = refusal(method, name, parameters);
        if name == protocol::LISTENER_NOT_FOUND
            && let Ok(reply) = self.call("ListListeners", &schema::ListListeners::default())
            && let Ok(reply) = decode::<schema::ListListenersReply>(reply)
        {
            // A retired one has connections, and nothing else that can be changed.
            let listeners = reply.listeners.into_iter();
            let names = listeners.map(|listener| match listener.state {
                schema::ListenerState::Retired => format!("{} (removed)", listener.name),
                _ => listener.name,
            });
            let names: Vec<String> = names.collect();
            complaint.failure.messages[0] +=
                &format!("; there are: {}", text::escape(&names.join(", ")));
        }
        complaint
    }

    /// Prints a reply: as it came, or as people read it.
    pub(super) fn answer<T: DeserializeOwned>(
        &self,
        reply: Parameters,
        show: impl FnOnce(T) -> String,
    ) -> Result<(), Complaint> {
        if self.json {
            return self.print_json(reply);
        }
        Ok(print_or_end(show(decode(reply)?).as_bytes())?)
    }

    pub(super) fn print_json(&self, reply: Parameters) -> Result<(), Complaint> {
        Ok(print_or_end(self.json_text(reply).as_bytes())?)
    }

    pub(super) fn json_text(&self, reply: Parameters) -> String {
        json_text(&Value::Object(reply), self.terminal)
    }

    /// What came of a command that makes no call, or not this time.
    pub(super) fn print_messages(&self, messages: &[String]) -> Result<(), Complaint> {
        let printed = if self.json {
            json_text(&json!({ "messages": messages }), self.terminal)
        } else {
            let lines = messages.iter().map(|line| text::escape(line) + "\n");
            lines.collect()
        };
        Ok(print_or_end(printed.as_bytes())?)
    }

    pub(super) fn call_raw(
        &self,
        method: &str,
        parameters: Option<&str>,
        more: bool,
    ) -> Result<(), Complaint> {
        let parameters = match serde_json::from_str(parameters.unwrap_or("{}")) {
            Ok(Value::Object(parameters)) => parameters,
            Ok(_) => {
                return Err(Failure::with(Exit::Usage, "JSON: not an object: write {…}").into());
            }
            Err(cause) => return Err(Failure::with(Exit::Usage, format!("JSON: {cause}")).into()),
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
}

pub(super) fn decode<T: DeserializeOwned>(reply: Parameters) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(reply)).map_err(|cause| {
        let message =
            format!("the reply is not understood, is echod of another version? ({cause})");
        Failure::new(text::escape(&message))
    })
}

pub(super) fn full_name(method: &str) -> String {
    if method.contains('.') {
        method.to_owned()
    } else {
        format!("{}.{method}", protocol::INTERFACE)
    }
}

/// For people on a terminal, else in one line.
pub(super) fn json_text(value: &Value, terminal: bool) -> String {
    let json = if terminal {
        format!("{value:#}")
    } else {
        value.to_string()
    };
    text::escape_json(&json) + "\n"
}
