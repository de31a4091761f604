//! Lists: networks, source ports, and users and groups. How they are read and shown.
//!
//! Each item is judged by itself, where it stands.

use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use super::findings::Remarks;
use super::typed::{Typed, Value};
use super::value;
use super::words::{nearest, quote};
use crate::policy::access::canonical_network;
use crate::policy::{RefusedPorts, SourcePorts};
use crate::protocol::peers::parse_network;

/// Networks, sorted and without duplicates: their order has no meaning, since the most specific entry
/// decides.
pub(super) fn networks(typed: &Typed, remarks: &mut Remarks<'_>) -> Arc<[IpNet]> {
    let Value::List(items) = &typed.value else {
        let message = "not a list: write e.g. [\"192.0.2.0/24\", \"2001:db8::/32\"]";
        remarks.refuse(typed, message);
        return Arc::default();
    };
    let mut networks = Vec::new();
    for item in items {
        let Some(network) = remarks.accept(item, network(item)) else {
            continue;
        };
        let meant = network.trunc();
        if meant != network {
            let message = format!("has bits beyond its prefix: it means \"{meant}\": write that");
            remarks.warn(item, &message);
        }
        networks.push(meant);
    }
    networks.sort_unstable();
    networks.dedup();
    networks.into()
}

/// A network, or a single address.
fn network(typed: &Typed) -> Result<IpNet, String> {
    let text = value::text(typed, "\"192.0.2.0/24\"")?;
    let network = parse_network(text)
        .ok_or("not a network: write e.g. \"192.0.2.0/24\" or \"2001:db8::/32\"")?;
    Ok(canonical_network(network))
}

/// Users and groups, sorted and without duplicates: their order has no meaning.
pub(super) fn accounts(typed: &Typed, remarks: &mut Remarks<'_>) -> Vec<String> {
    let Value::List(items) = &typed.value else {
        let message = "not a list: write e.g. [\"alice\", \"@echod\"]";
        remarks.refuse(typed, message);
        return Vec::new();
    };
    let accounts = items
        .iter()
        .filter_map(|item| remarks.accept(item, account(item)));
    let mut accounts: Vec<String> = accounts.collect();
    accounts.sort_unstable();
    accounts.dedup();
    accounts
}

/// The name or the number of a user, or with `@` in front of a group.
fn account(typed: &Typed) -> Result<String, String> {
    let text = value::text(typed, "\"alice\" or \"@echod\"")?;
    if value::is_account_name(text.strip_prefix('@').unwrap_or(text)) {
        Ok(text.into())
    } else {
        Err("not a user or group: write e.g. \"alice\", or \"@echod\" for a group".into())
    }
}

/// The value of `refuse-source-ports`. What is refused counts for the empty list.
pub(super) fn source_ports(typed: &Typed, remarks: &mut Remarks<'_>) -> RefusedPorts {
    const WORDS: &str = "write \"default\", \"none\" or a list, e.g. [7, 19, \"1024-2047\"]";
    let message = match &typed.value {
        Value::List(items) => {
            let ports = items
                .iter()
                .filter_map(|item| remarks.accept(item, ports(item)));
            return RefusedPorts::Listed(ports.collect());
        }
        Value::Text(text) if text == "default" => return RefusedPorts::Default,
        Value::Text(text) if text == "none" => return RefusedPorts::Listed(SourcePorts::none()),
        Value::Text(text) => match nearest(text, ["default", "none"]) {
            Some(near) => format!("unknown: did you mean \"{near}\"?"),
            None => format!("unknown: {WORDS}"),
        },
        _ => format!("not a list: {WORDS}"),
    };
    remarks.refuse(typed, &message);
    RefusedPorts::Listed(SourcePorts::none())
}

/// A port, or a range of them in quotes.
fn ports(typed: &Typed) -> Result<RangeInclusive<u16>, String> {
    const OUT_OF_RANGE: &str = "out of range: write ports from 0 to 65535";
    const NO_PORT: &str = "not a port: write e.g. 7, or \"1-1023\" for a range";
    let text = match &typed.value {
        Value::Integer(number) => {
            let port = u16::try_from(*number).map_err(|_| OUT_OF_RANGE)?;
            return Ok(port..=port);
        }
        Value::Text(text) => text.as_str(),
        _ => return Err(NO_PORT.into()),
    };
    let is_number =
        |text: &str| !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit());
    let (first, last) = match text.split_once('-') {
        Some((first, last)) if is_number(first) && is_number(last) => (first, last),
        None if is_number(text) => {
            return Err("a text, not a number: leave out the quotes".into());
        }
        _ => return Err(NO_PORT.into()),
    };
    let port = |text: &str| text.parse::<u16>().map_err(|_| OUT_OF_RANGE);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("backwards: write \"{last}-{first}\""));
    }
    Ok(first..=last)
}

/// A list of texts.
pub(super) fn show_texts(items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(|item| quote(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// Ports as numbers, ranges of them as texts.
pub(super) fn show_source_ports(ports: &RefusedPorts) -> String {
    let ports = match ports {
        RefusedPorts::Default => return quote("default"),
        RefusedPorts::Listed(ports) => ports,
    };
    if *ports == SourcePorts::none() {
        return quote("none");
    }
    let show = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => quote(&format!("{first}-{last}")),
    };
    let ranges: Vec<_> = ports.ranges().iter().map(show).collect();
    format!("[{}]", ranges.join(", "))
}
