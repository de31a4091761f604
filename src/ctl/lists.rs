//! Tables of listeners and peers, once or again and again.
//!
//! Knows the types of the protocol, and which columns are the important ones; never how they were
//! received. All text from the daemon or the network is escaped here.

use crate::cli::table::{COMMA, Column, Table, wrapped};
use crate::cli::text::{Paint, age, bytes, counted, escape, microseconds};
use crate::protocol::schema::{Backlog, Listener, ListenerState, Peer};

use super::watch::{List, Rates};

/// How a table is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Its colors.
    pub paint: Paint,
    /// The columns of the terminal; none where a table may be as wide as it is.
    pub width: Option<usize>,
}

/// What is shown of a listener; the most important have the lowest rank: which one it is, whether it
/// serves, how many clients and how many not. The length of a queue is of interest once a listener is
/// full, which CONNECTIONS says; how it is configured is in the configuration.
const LISTENER_COLUMNS: &[Column] = &[
    Column::names("NAME", 0),
    Column::names("PROTOCOL", 0),
    Column::lists("ADDRESSES", 1),
    Column::names("REPLY", 8),
    Column::names("STATE", 0),
    Column::numbers("SOCKETS", 10),
    Column::numbers("BACKLOG", 6),
    Column::numbers("QUEUED", 4),
    Column::numbers("CONNECTIONS", 0),
    Column::numbers("ACCEPTED", 7),
    Column::numbers("DATAGRAMS", 3),
    Column::numbers("REFUSED", 2),
    Column::numbers("RECEIVED", 9),
    Column::numbers("SENT", 9),
    Column::numbers("IN/S", 0),
    Column::numbers("OUT/S", 0),
];

/// What is shown of a peer. The protocol says whether there is a connection to close.
const PEER_COLUMNS: &[Column] = &[
    Column::numbers("ID", 0),
    Column::names("LISTENER", 3),
    Column::names("PROTOCOL", 4),
    Column::whole("ADDRESS", 0),
    Column::whole("LOCAL", 9),
    Column::names("VIA", 10),
    Column::numbers("AGE", 2),
    Column::numbers("IDLE", 1),
    Column::numbers("RECEIVED", 5),
    Column::numbers("SENT", 5),
    Column::numbers("IN/S", 1),
    Column::numbers("OUT/S", 1),
    Column::numbers("RTT", 6),
    Column::numbers("RETRANSMITS", 10),
    Column::numbers("UNSENT", 7),
    Column::numbers("PID", 7),
    Column::numbers("UID", 7),
];

pub(super) fn joined(texts: &[String]) -> String {
    escape(&texts.join(COMMA))
}

/// All listeners; with rates where they are watched.
#[must_use]
pub(crate) fn listeners(listeners: &[Listener], rates: Option<&Rates>, screen: Screen) -> List {
    let mut table = Table::new(LISTENER_COLUMNS);
    for listener in listeners {
        // Datagram listeners have no backlog and no connections, all others no datagrams.
        let of_backlog = |value: &dyn Fn(&Backlog) -> String| {
            let backlog = listener.backlog.as_ref();
            backlog.map_or(String::new(), value)
        };
        let datagrams = match listener.backlog {
            Some(_) => String::new(),
            None => listener.datagrams_received.to_string(),
        };
        let [received, sent] = rate_cells(rates, &listener.name);
        table.row(vec![
            escape(&listener.name),
            escape(&listener.protocol),
            joined(&listener.addresses),
            escape(&listener.reply),
            listener.state.name().to_owned(),
            listener.sockets.to_string(),
            of_backlog(&|backlog| match backlog.effective {
                0 => "?".into(),
                effective => effective.to_string(),
            }),
            of_backlog(&|backlog| backlog.queued.to_string()),
            of_backlog(&|_| connections_cell(listener)),
            of_backlog(&|_| listener.accepted.to_string()),
            datagrams,
            listener.refused.values().sum::<u64>().to_string(),
            bytes(listener.bytes_received),
            bytes(listener.bytes_sent),
            received,
            sent,
        ]);
    }
    let rendered = table.render(screen.paint, screen.width);
    List {
        table: rendered.text,
        footer: listener_totals(listeners, screen) + &hint(rendered.left_out),
    }
}

/// The last line below a table of listeners, or as many as a narrow terminal takes.
fn listener_totals(listeners: &[Listener], screen: Screen) -> String {
    let sum = |value: fn(&Listener) -> u64| listeners.iter().map(value).sum::<u64>();
    let is_retired = |listener: &&Listener| listener.state == ListenerState::Retired;
    let retired = listeners.iter().filter(is_retired).count();
    let mut parts = vec![counted((listeners.len() - retired) as u64, "listener")];
    if retired > 0 {
        parts.push(format!("{retired} retired"));
    }
    parts.push(counted(sum(|listener| listener.connections), "connection"));
    parts.push(format!(
        "{} received",
        bytes(sum(|listener| listener.bytes_received))
    ));
    parts.push(format!(
        "{} sent",
        bytes(sum(|listener| listener.bytes_sent))
    ));
    let line = parts.join(COMMA);
    let lines = wrapped(
        line.split_inclusive(COMMA),
        screen.width.unwrap_or(usize::MAX),
    );
    lines.join("\n  ") + "\n"
}

/// How to see the columns that there was no room for: a line, or nothing.
fn hint(left_out: usize) -> String {
    match left_out {
        0 => String::new(),
        1 => "1 more column: --wide\n".to_owned(),
        _ => format!("{left_out} more columns: --wide\n"),
    }
}

/// `812`, or `3/3 full`.
fn connections_cell(listener: &Listener) -> String {
    let Listener {
        connections,
        max_connections,
        ..
    } = *listener;
    // A daemon of an earlier version does not say how many there may be.
    if max_connections > 0 && connections >= u64::from(max_connections) {
        format!("{connections}/{max_connections} full")
    } else {
        connections.to_string()
    }
}

/// The bytes per second in each direction, while they are watched; not known at the first look.
fn rate_cells(rates: Option<&Rates>, key: &str) -> [String; 2] {
    match rates.map(|rates| rates.of(key)) {
        Some(Some(rates)) => rates.map(bytes),
        Some(None) => ["-".to_owned(), "-".to_owned()],
        None => Default::default(),
    }
}

/// A list of peers; `total` counts those too that are not listed. With rates where they are watched.
#[must_use]
pub(crate) fn peers(peers: &[Peer], total: u64, rates: Option<&Rates>, screen: Screen) -> List {
    // The total includes peers beyond --limit.
    let listed = peers.len() as u64;
    let totals = if listed == total {
        counted(total, "peer")
    } else {
        format!("{listed} of {}", counted(total, "peer"))
    };
    let List { table, footer } = peer_table(peers, rates, screen);
    List {
        table,
        footer: totals + "\n" + &footer,
    }
}

/// Peers without their number; nothing where there are none.
pub(super) fn peer_table(peers: &[Peer], rates: Option<&Rates>, screen: Screen) -> List {
    if peers.is_empty() {
        return List::default();
    }
    let mut table = Table::new(PEER_COLUMNS);
    let number = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
    // What does not apply to a peer is empty, and a column without content is left out.
    for peer in peers {
        let [received, sent] = rate_cells(rates, &peer.id.to_string());
        table.row(vec![
            peer.id.to_string(),
            escape(&peer.listener),
            escape(&peer.protocol),
            escape(&peer.address),
            escape(&peer.local_address),
            escape(peer.via.as_deref().unwrap_or_default()),
            age(peer.age_ms),
            age(peer.idle_ms),
            bytes(peer.bytes_received),
            bytes(peer.bytes_sent),
            received,
            sent,
            peer.rtt_us.map_or(String::new(), microseconds),
            number(peer.retransmits),
            peer.send_queue.map_or(String::new(), bytes),
            number(peer.pid.map(u64::from)),
            number(peer.uid.map(u64::from)),
        ]);
    }
    let rendered = table.render(screen.paint, screen.width);
    List {
        table: rendered.text,
        footer: hint(rendered.left_out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
        let start = page.find(from).expect("the section is there");
        let length = page[start..].find(to).expect("it has an end");
        &page[start..start + length]
    }

    /// The manual page explains what stands at the head of each table.
    #[test]
    fn every_column_is_in_the_manual_page() {
        let page = include_str!("../../docs/man/echoctl.1");
        let listeners = section(page, ".It Cm listeners", ".Cm peers\n");
        let peers = section(page, ".Cm peers\n", ".It Cm backlog");
        for (columns, text) in [(LISTENER_COLUMNS, listeners), (PEER_COLUMNS, peers)] {
            let items: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix(".It "))
                .flat_map(|item| item.split(" , "))
                .collect();
            for column in columns {
                let header = column.header();
                assert!(items.contains(&header), "{header}");
            }
        }
    }
}
