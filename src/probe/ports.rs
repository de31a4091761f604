//! The same flow from many source ports, a row for each: where several links are used in parallel,
//! the one that is bad shows as the ports that it carries.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::args::{Path, PortsArgs};
use super::interrupt::Interrupt;
use super::latency::{Latencies, Spread};
use super::ledger::Tally;
use super::ping::{self, check_pace};
use super::prober::{Course, Event, Outcome, Prober};
use super::progress;
use super::report::{Report, Verdict, milliseconds};
use super::route::{Address, Route, usage};
use super::{Console, Trouble};
use crate::cli::exit::Failure;
use crate::cli::text::{Align, Paint, Table, counted, microseconds};

/// A port whose median is so many times that of the middle one is slow.
const SLOW_FACTOR: f64 = 2.0;
/// And slower by so much, in microseconds: what is less, a busy host explains.
const SLOW_MICROS: f64 = 1000.0;

/// What came of one port.
#[derive(Debug, Serialize)]
struct Row {
    source_port: u16,
    #[serde(flatten)]
    report: Report,
    #[serde(skip)]
    tally: Tally,
}

/// The object for programs: the sum, and each port.
#[derive(Debug, Serialize)]
struct Ports<'a> {
    #[serde(flatten)]
    sum: Report,
    ports: &'a [Row],
}

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &PortsArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    check_pace(&args.url, args.pace.size, args.pace.expect)?;
    check(args, path)?;
    let route = match Route::resolve(&args.url, path) {
        Ok(route) => route,
        Err(trouble) => return console.unreached(&trouble),
    };
    let ports = match chosen(args, &route, path) {
        Ok(ports) => ports,
        Err(error) => return console.unreached(&route.trouble(&error)),
    };
    let began = Instant::now();
    let outcomes = match probe(args, &route, &ports, console, interrupt) {
        Ok(outcomes) => outcomes,
        Err(trouble) => return console.unreached(&trouble),
    };
    let rows: Vec<Row> = ports.into_iter().zip(outcomes).map(row).collect();
    let mut sum = Tally::default();
    rows.iter().for_each(|row| sum.merge(&row.tally));
    console.say(&table(&rows, console.paint))?;
    console.say(&remarks(&rows, &sum, console.paint))?;
    let dropped: u64 = rows.iter().filter_map(|row| row.report.dropped).sum();
    if dropped > 0 {
        console.warn(&ping::dropped(dropped));
    }
    let report = Report {
        duration_ms: Some(milliseconds(began.elapsed())),
        jitter_us: None,
        dropped: (dropped > 0).then_some(dropped),
        ..sum.report()
    };
    let ports = Ports {
        sum: report,
        ports: &rows,
    };
    console.report(&ports)?;
    Ok(sum.verdict())
}

fn row((source_port, outcome): (u16, Outcome)) -> Row {
    Row {
        source_port,
        report: outcome.report(),
        tally: outcome.tally,
    }
}

/// Whether the command line makes sense.
fn check(args: &PortsArgs, path: &Path) -> Result<(), Failure> {
    if !args.url.is_inet() {
        return Err(usage(
            "ports: a Unix socket has none: write tcp:// or udp://",
        ));
    }
    if path.source.is_some_and(|source| source.port != 0) {
        return Err(usage(
            "--source: the ports are those of --first: write an address alone",
        ));
    }
    let last = args.first.map_or(0, u32::from) + u32::from(args.ports) - 1;
    if last > u16::MAX.into() {
        return Err(usage(format!(
            "--first {}: {} ports from there on are not all below 65536",
            args.first.unwrap_or_default(),
            args.ports
        )));
    }
    Ok(())
}

/// The ports to send from: those that the command line says, or as many that are free.
fn chosen(args: &PortsArgs, route: &Route, path: &Path) -> io::Result<Vec<u16>> {
    if let Some(first) = args.first {
        return Ok((0..args.ports).map(|index| first + index).collect());
    }
    let kind = if args.url.is_stream() {
        Type::STREAM
    } else {
        Type::DGRAM
    };
    let any: IpAddr = match route.address() {
        Address::Inet(SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let address = path.source.and_then(|source| source.address).unwrap_or(any);
    let local = SocketAddr::new(address, 0);
    // All are bound before the first is let go, so that none comes twice.
    let sockets: Vec<Socket> = (0..args.ports)
        .map(|_| {
            let socket = Socket::new(Domain::for_address(local), kind.cloexec(), None)?;
            socket.bind(&local.into())?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    let port = |socket: &Socket| {
        let local = socket.local_addr()?.as_socket();
        Ok(local.map_or(0, |local| local.port()))
    };
    let mut ports = sockets.iter().map(port).collect::<io::Result<Vec<_>>>()?;
    ports.sort_unstable();
    Ok(ports)
}

/// Pings from all ports at once, each in a thread of its own.
fn probe(
    args: &PortsArgs,
    route: &Route,
    ports: &[u16],
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Vec<Outcome>, Trouble> {
    let course = Course {
        pace: args.pace.clone(),
        count: Some(args.count),
        deadline: None,
    };
    let routes: Vec<Route> = ports.iter().map(|port| route.from_port(*port)).collect();
    let probers = routes.iter().map(|route| Prober::new(route, &course));
    let probers: Vec<Prober<'_>> = probers.collect::<Result<_, _>>()?;
    let total = args.count * ports.len() as u64;
    let bar = progress::bar(console, total, "{bar:40} {pos}/{len} messages, {eta} left");
    let pause = args.pace.interval / u32::try_from(ports.len()).unwrap_or(1);
    let outcomes = thread::scope(|scope| {
        let threads: Vec<_> = probers
            .into_iter()
            .zip(0..)
            .map(|(prober, index)| {
                let bar = bar.clone();
                scope.spawn(move || {
                    // Spread over the interval: all at once would be a burst.
                    thread::sleep(pause * index);
                    prober.run(interrupt, |event| {
                        let ends = match event {
                            Event::Answered { .. } | Event::Missing(_) | Event::Failed { .. } => 1,
                            Event::Ended { count, .. } => count,
                        };
                        bar.inc(ends);
                    })
                })
            })
            .collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        ended.collect::<io::Result<Vec<_>>>()
    });
    outcomes.map_err(|error| route.trouble(&error))
}

fn table(rows: &[Row], paint: Paint) -> String {
    let mut table = Table::new(&[
        ("PORT", Align::Right),
        ("SENT", Align::Right),
        ("RECEIVED", Align::Right),
        ("LOST", Align::Right),
        ("LOSS", Align::Right),
        ("LATE", Align::Right),
        ("CORRUPT", Align::Right),
        ("MIN", Align::Right),
        ("P50", Align::Right),
        ("P99", Align::Right),
        ("MAX", Align::Right),
        ("ERRORS", Align::Left),
    ]);
    for Row {
        source_port,
        report,
        tally,
    } in rows
    {
        let count = |count: u64| {
            if count > 0 {
                count.to_string()
            } else {
                String::new()
            }
        };
        let time = |of: fn(&Spread) -> f64| {
            let spread = report.rtt_us.as_ref();
            spread.map_or(String::new(), |spread| shown(of(spread)))
        };
        table.row(vec![
            source_port.to_string(),
            tally.sent.to_string(),
            tally.received.to_string(),
            tally.lost.to_string(),
            ping::share(tally),
            count(tally.late),
            count(tally.corrupt + tally.misaddressed),
            time(|spread| spread.min),
            time(|spread| spread.p50),
            time(|spread| spread.p99),
            time(|spread| spread.max),
            tally.errors.to_string(),
        ]);
    }
    table.render(paint)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are positive, and whole microseconds are shown"
)]
fn shown(micros: f64) -> String {
    microseconds(micros.round() as u64)
}

/// What the table means.
fn remarks(rows: &[Row], sum: &Tally, paint: Paint) -> String {
    let mut text = format!(
        "{}, {} sent, {} received, {} lost ({})\n",
        counted(rows.len() as u64, "port"),
        sum.sent,
        sum.received,
        sum.lost,
        ping::share(sum)
    );
    let losing = listed(rows, |row| row.tally.lost > 0);
    match losing.len() {
        0 => {}
        all if all == rows.len() => {
            text += &paint.red("all ports lose: it is not one path of several\n");
        }
        some => {
            let told = format!("{some} of {} ports lose: {}\n", rows.len(), joined(&losing));
            text += &paint.red(&told);
        }
    }
    let medians = rows.iter().filter_map(|row| row.report.rtt_us);
    let mut middle = Latencies::default();
    medians.for_each(|spread| middle.record(Duration::from_secs_f64(spread.p50 / 1e6)));
    let middle = middle.quantile(0.5).as_secs_f64() * 1e6;
    let limit = (middle * SLOW_FACTOR).max(middle + SLOW_MICROS);
    let slow = listed(rows, |row| {
        row.report.rtt_us.is_some_and(|spread| spread.p50 > limit)
    });
    if !slow.is_empty() {
        let told = format!("slower than the others: {}\n", joined(&slow));
        text += &paint.yellow(&told);
    }
    text
}

fn listed(rows: &[Row], which: impl Fn(&Row) -> bool) -> Vec<u16> {
    let rows = rows.iter().filter(|row| which(row));
    rows.map(|row| row.source_port).collect()
}

fn joined(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    ports.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(source_port: u16, lost: u64, millis: u64) -> Row {
        let mut tally = Tally {
            sent: 10,
            received: 10 - lost,
            lost,
            ..Tally::default()
        };
        tally.latencies.record(Duration::from_millis(millis));
        Row {
            source_port,
            report: tally.report(),
            tally,
        }
    }

    fn check(rows: &[Row], meant: &str) {
        let mut sum = Tally::default();
        rows.iter().for_each(|row| sum.merge(&row.tally));
        assert_eq!(remarks(rows, &sum, Paint { colored: false }), meant);
    }

    #[test]
    fn the_ports_of_a_bad_path_are_named() {
        check(
            &[row(1, 0, 1), row(2, 3, 1), row(3, 0, 1)],
            "3 ports, 30 sent, 27 received, 3 lost (10 %)\n1 of 3 ports lose: 2\n",
        );
        check(
            &[row(1, 1, 1), row(2, 1, 1)],
            "2 ports, 20 sent, 18 received, 2 lost (10 %)\n\
             all ports lose: it is not one path of several\n",
        );
        check(
            &[row(1, 0, 5), row(2, 0, 5), row(3, 0, 40)],
            "3 ports, 30 sent, 30 received, 0 lost (0 %)\nslower than the others: 3\n",
        );
    }
}
