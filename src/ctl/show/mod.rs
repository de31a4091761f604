//! Replies as people read them: values in, text out.
//!
//! Knows the types of the protocol; never how they were received. All text from the daemon or the
//! network is escaped here.

use std::collections::BTreeMap;
use std::time::Duration;

use unicode_width::UnicodeWidthStr;

use crate::cli::table::{Column, Table, folded, wrapped};
use crate::cli::text::{Paint, bytes, counted, escape, microseconds};
use crate::protocol::schema::{
    Backlog, Change, ChangeAction, ClosePeersReply, ConfirmReply, Diagnostic, HandOverReply,
    Listener, ListenerState, ReloadOutcome, ReloadResult, SetBacklogReply, SetLogLevelReply,
    UpgradeResult,
};

use super::lists::{self, Screen};
use super::watch::Rates;

/// A text is not broken into shorter lines, whatever the terminal has room for.
const CHANGE_WIDTH_MIN: usize = 20;

/// A line of a list of names and values.
pub(super) fn field(name: &str, value: &str) -> String {
    format!("  {name:<15}{value}\n")
}

/// All about one listener; with rates where it is watched.
#[must_use]
pub(crate) fn listener(listener: &Listener, rates: Option<&Rates>, paint: Paint) -> String {
    let state = match listener.state {
        ListenerState::Listening => paint.green(listener.state.name()),
        _ => paint.yellow(listener.state.name()),
    };
    let name = paint.bold(&escape(&listener.name));
    let mut text = format!("{name}, {}, {state}\n", escape(&listener.protocol));
    let mut line = |name: &str, value: &str| text += &field(name, value);
    for (index, address) in listener.addresses.iter().enumerate() {
        line(if index == 0 { "addresses" } else { "" }, &escape(address));
    }
    line("reply", &escape(&listener.reply));
    line("sockets", &listener.sockets.to_string());
    // Datagram listeners count datagrams, all others connections.
    if let Some(backlog) = &listener.backlog {
        for (index, part) in backlog_lines(backlog).iter().enumerate() {
            line(if index == 0 { "backlog" } else { "" }, part);
        }
        line("connections", &connections(listener));
        line("accepted", &listener.accepted.to_string());
    } else {
        let received = counted(listener.datagrams_received, "datagram");
        line(
            "datagrams",
            &format!("{received} received, {} sent", listener.datagrams_sent),
        );
    }
    line("refused", &by_reason(&listener.refused));
    // A daemon of an earlier version does not say, and datagrams have none.
    if listener.backlog.is_some() && !listener.closed.is_empty() {
        line("closed", &by_reason(&listener.closed));
        line("faults", &listener.faults.to_string());
    }
    let rate = rates.and_then(|rates| rates.of(&listener.name));
    let [received, sent] = match rate {
        Some(rates) => rates.map(|rate| format!(", {} per second", bytes(rate))),
        None => Default::default(),
    };
    line("received", &(bytes(listener.bytes_received) + &received));
    line("sent", &(bytes(listener.bytes_sent) + &sent));
    if !listener.overridden.is_empty() {
        line(
            "overridden",
            &paint.yellow(&lists::joined(&listener.overridden)),
        );
    }
    text
}

/// How many there are, may be and have been: `812 of 10000, 900 at the peak`.
fn connections(listener: &Listener) -> String {
    let Listener {
        connections,
        max_connections,
        peak,
        ..
    } = listener;
    match max_connections {
        // A daemon of an earlier version does not say.
        0 => connections.to_string(),
        _ => format!("{connections} of {max_connections}, {peak} at the peak"),
    }
}

/// A sum and its parts: `12: 10 denied, 2 full`.
pub(super) fn by_reason(counts: &BTreeMap<String, u64>) -> String {
    let reasons: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{count} {}", escape(reason)))
        .collect();
    if reasons.is_empty() {
        return "0".to_owned();
    }
    format!("{}: {}", counts.values().sum::<u64>(), reasons.join(", "))
}

/// The backlog of a listener.
#[must_use]
pub(crate) fn backlog(listener: &str, backlog: &Backlog, paint: Paint) -> String {
    let lines = backlog_lines(backlog);
    let mut text = format!("{}: backlog {}\n", paint.bold(&escape(listener)), lines[0]);
    for line in &lines[1..] {
        text += &format!("  {line}\n");
    }
    text
}

/// The backlog of a listener that was given another.
#[must_use]
pub(crate) fn backlog_set(listener: &str, reply: &SetBacklogReply, paint: Paint) -> String {
    let before = format!("  before: {}\n", backlog_words(&reply.before));
    backlog(listener, &reply.after, paint) + &before
}

/// What was requested and what is in effect. For a Unix socket that the service manager has passed
/// neither is known.
fn backlog_words(backlog: &Backlog) -> String {
    match backlog {
        Backlog { requested: 0, .. } => "as the service manager has set it".into(),
        Backlog {
            requested,
            effective,
            ..
        } => format!("{requested} requested → {effective} effective"),
    }
}

/// What was asked for and what came of it, why these differ, and how full it is.
fn backlog_lines(backlog: &Backlog) -> Vec<String> {
    let Backlog {
        requested,
        effective,
        limit,
        queued,
        overflows,
    } = backlog;
    let mut lines = vec![backlog_words(backlog)];
    if effective < requested && limit <= effective {
        lines.push(format!(
            "capped at {limit}; raise it: sysctl -w net.core.somaxconn={requested}"
        ));
    } else if effective < requested {
        lines.push(format!(
            "capped when it was set; the limit is {limit} by now: set it again"
        ));
    }
    lines.push(format!(
        "{queued} queued now, {} so far",
        counted(*overflows, "overflow")
    ));
    lines
}

/// What came of `kick`: which connections, if they are listed, and how many.
#[must_use]
pub(crate) fn kicked(reply: &ClosePeersReply, dry_run: bool, screen: Screen) -> String {
    let ClosePeersReply {
        matched, closed, ..
    } = *reply;
    let mut line = match (matched, dry_run) {
        (0, _) => "no connection matches".to_owned(),
        (_, true) => format!("would close {}", counted(matched, "connection")),
        _ if matched == closed => format!("closed {}", counted(closed, "connection")),
        _ => format!("closed {closed} of {}", counted(matched, "connection")),
    };
    if let Some(sources) = reply.sources {
        line += &format!("; {}", nothing_to_close(sources));
    }
    let listed = reply.peers.as_deref().unwrap_or_default();
    let of = if dry_run { matched } else { closed };
    if listed.len() < usize::try_from(of).unwrap_or(usize::MAX) && reply.peers.is_some() {
        line += &format!("; the first {} are listed", listed.len());
    }
    lists::peer_table(listed, None, screen).table + &line + "\n"
}

/// Sources of datagrams are peers, but no connections.
#[must_use]
pub(crate) fn nothing_to_close(sources: u64) -> String {
    let verb = if sources == 1 { "has" } else { "have" };
    format!(
        "{} {verb} nothing to close: datagrams have no connection",
        counted(sources, "source")
    )
}

/// What was logged, and what is.
#[must_use]
pub(crate) fn log_level(reply: &SetLogLevelReply) -> String {
    format!("{} → {}\n", escape(&reply.before), escape(&reply.after))
}

/// What came of an upgrade.
#[must_use]
pub(crate) fn upgraded(result: &UpgradeResult, screen: Screen) -> String {
    let UpgradeResult {
        listeners,
        connections,
        lost,
        pause_us,
        ..
    } = result;
    let (from, to) = (escape(&result.from), escape(&result.to));
    let mut text = format!(
        "upgraded {from} → {to}: {} and {} kept; a pause of {}\n",
        counted(*listeners, "listener"),
        counted(*connections, "connection"),
        microseconds(*pause_us)
    );
    if *lost > 0 {
        let lost = counted(*lost, "connection");
        text += &format!("{lost} could not be kept: see the log\n");
    }
    text + &warnings(&result.warnings, screen)
}

/// What waits for the next process.
#[must_use]
pub(crate) fn handed_over(reply: &HandOverReply) -> String {
    format!(
        "{} and {} wait for the next process\n",
        counted(reply.listeners, "listener"),
        counted(reply.connections, "connection")
    )
}

/// What came of a reload: how it ended, warnings, changes.
#[must_use]
pub(crate) fn reload(result: &ReloadResult, screen: Screen) -> String {
    let line = reload_line(result, screen.paint);
    let pieces = line.split_inclusive(", ");
    let lines = wrapped(pieces, screen.width.unwrap_or(usize::MAX));
    lines.join("\n  ") + "\n" + &confirmation(result, screen.paint) + &details(result, screen)
}

/// What has to be confirmed now, and what has been.
fn confirmation(result: &ReloadResult, paint: Paint) -> String {
    let mut text = String::new();
    if let Some(earlier) = result.confirmed {
        text += &format!("confirms reload {earlier}\n");
    }
    if let Some(within) = result.confirm_within_ms.map(Duration::from_millis) {
        let within = humantime::format_duration(within);
        let line = format!("rolled back in {within} unless confirmed: echoctl confirm");
        text += &(paint.yellow(&line) + "\n");
    }
    text
}

/// What was confirmed.
#[must_use]
pub(crate) fn confirmed(reply: &ConfirmReply) -> String {
    format!("reload {} is confirmed\n", reply.id)
}

/// What a reload would do.
#[must_use]
pub(crate) fn reload_plan(result: &ReloadResult, screen: Screen) -> String {
    let outcome = match result.outcome {
        _ if result.rollback => "the previous configuration would be in force again",
        _ if result.waits_for_start() => "nothing would change before the next start",
        ReloadOutcome::Unchanged => "the configuration would be unchanged",
        _ => "the configuration would be applied",
    };
    let heading = screen.paint.bold("dry run, nothing has changed: ");
    format!("{heading}{outcome}\n{}", details(result, screen))
}

/// A line for each, or as many as it takes.
fn warnings(warnings: &[Diagnostic], screen: Screen) -> String {
    let line = |warning: &Diagnostic| {
        let line = format!("warning: {}", escape(&warning.to_string()));
        let line = folded(&line, screen.width.unwrap_or(usize::MAX));
        format!("{}\n", screen.paint.yellow(&line))
    };
    warnings.iter().map(line).collect()
}

/// Warnings, and the changes as a table.
fn details(result: &ReloadResult, screen: Screen) -> String {
    let mut text = warnings(&result.warnings, screen);
    let changes = result.changes.iter();
    let changes: Vec<_> = changes
        .filter(|change| change.action != ChangeAction::Keep)
        .collect();
    // Listeners that stay as they are would hide those that change.
    let kept = (result.changes.len() - changes.len()) as u64 + result.kept;
    let count = changes.len() as u64 + result.changes_omitted;
    if !changes.is_empty() {
        text += &change_table(&changes, screen);
    }
    if result.changes_omitted > 0 {
        text += &format!("... and {} more\n", result.changes_omitted);
    }
    if !result.summary.is_empty() {
        let summary = escape(&result.summary);
        let pieces = summary.split_inclusive(", ");
        let lines = wrapped(pieces, screen.width.unwrap_or(usize::MAX));
        text += &(lines.join("\n  ") + "\n");
    } else if count + kept > 0 {
        // A daemon of an earlier version has no summary, and a start none of changes.
        text += &format!("{}, {kept} kept as is\n", counted(count, "change"));
    }
    text
}

/// A row for each change, of several lines where the terminal is narrow: none of it may be cut off.
fn change_table(changes: &[&Change], screen: Screen) -> String {
    let mut table = Table::new(&[
        Column::names("ACTION", 0),
        Column::whole("LISTENER", 0),
        Column::numbers("CONNECTIONS", 0),
        Column::whole("CHANGE", 0),
    ]);
    let name = |change: &Change| escape(change.listener.as_deref().unwrap_or("(daemon)"));
    let names = changes.iter().map(|change| name(change).width());
    // The other columns, with two blanks behind each.
    let others =
        "ACTION  ".len() + names.fold("LISTENER".len(), usize::max) + "  CONNECTIONS  ".len();
    let room = screen
        .width
        .map_or(usize::MAX, |width| width.saturating_sub(others));
    for change in changes {
        // Alone, the text names its subject; here a column does.
        let prefix = format!("{}: ", change.listener.as_deref().unwrap_or("daemon"));
        let text = escape(change.text.strip_prefix(&prefix).unwrap_or(&change.text));
        let mut cells = [
            change.action.name().to_owned(),
            name(change),
            change.connections.to_string(),
        ];
        for line in wrapped(text.split_inclusive(' '), room.max(CHANGE_WIDTH_MIN)) {
            table.row([cells.to_vec(), vec![line]].concat());
            // An empty cell would be shown as one in which nothing stands.
            cells = [(); 3].map(|()| " ".to_owned());
        }
    }
    table.render(screen.paint, None).text
}

/// `applied, generation 4, in 1.20 ms, by signal, at 2026-01-02T03:04:05Z`
fn reload_line(result: &ReloadResult, paint: Paint) -> String {
    let words = if result.waits_for_start() {
        "unchanged before the next start"
    } else {
        result.outcome.words()
    };
    format!(
        "{}, generation {}, in {}, {}, at {}",
        outcome(result.outcome, words, paint),
        result.generation,
        microseconds(result.duration_us),
        result.trigger.words(),
        escape(&result.at),
    )
}

/// The color of how a reload ended.
pub(super) fn outcome(outcome: ReloadOutcome, words: &str, paint: Paint) -> String {
    match outcome {
        ReloadOutcome::Applied | ReloadOutcome::Unchanged => paint.green(words),
        ReloadOutcome::RolledBack => paint.yellow(words),
        ReloadOutcome::Rejected => paint.red(words),
    }
}

/// The errors of a configuration, a message each.
#[must_use]
pub(crate) fn errors(diagnostics: &[Diagnostic], paint: Paint) -> Vec<String> {
    let lines = diagnostics.iter();
    let lines = lines.map(|diagnostic| paint.red(&escape(&diagnostic.to_string())));
    lines.collect()
}

#[cfg(test)]
mod tests;
