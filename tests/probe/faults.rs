//! Every figure under faults, single and mixed, on each transport: what `ping`, `load` and `send`
//! report is what the service did, and each message has one fate.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use super::fault::{self, Fate, count, plan};
use super::{assert_adds_up, ended, json_of, number, numbers, probe_with};
use crate::harness::noise;

/// What comes after the timeout, and before the end of the wait for it. On a busy machine an answer
/// at once has taken two seconds.
const TIMEOUT: &str = "--timeout 5s";
const DELAY: Duration = Duration::from_millis(7500);

/// The size of messages, and of the pieces of an input.
const SIZE: usize = 64;

/// What happens to datagrams, and how often of a hundred.
const MIXTURE: &[(Fate, usize)] = &[
    (Fate::Lose, 10),
    (Fate::Delay, 8),
    (Fate::Duplicate, 8),
    (Fate::Swap, 8),
    (Fate::Corrupt, 5),
    (Fate::CorruptTwice, 3),
    (Fate::Shorten, 4),
    (Fate::Misaddress, 4),
];

/// Services of datagrams, with their plans, without these fates: one for each fault alone over UDP,
/// and mixtures over UDP and on Unix sockets.
fn datagrams(folder: &Path, len: usize, without: &[Fate]) -> Vec<(Vec<Fate>, String)> {
    let mut services = Vec::new();
    for is_unix in [false, true] {
        // Any sender on a Unix socket is the service.
        let has = |fate: &Fate| !(without.contains(fate) || is_unix && *fate == Fate::Misaddress);
        let mixture = MIXTURE.iter().copied().filter(|(fate, _)| has(fate));
        let mixture: Vec<(Fate, usize)> = mixture.collect();
        // One fault alone is the same on both.
        let alone = if is_unix { &[][..] } else { &mixture };
        let single = alone.iter().map(|(fate, _)| plan(1, len, &[(*fate, 20)]));
        let mixed = (1..=2).map(|seed| plan(seed, len, &mixture));
        for plan in single.chain(mixed) {
            let path = folder.join(services.len().to_string());
            let path = is_unix.then_some(path.as_path());
            let url = fault::planned_datagrams(path, plan.clone(), DELAY);
            services.push((plan, url));
        }
    }
    services
}

/// Makes services, some of them in a folder, and runs this for ten of them at once: nearly all of it
/// waits.
fn for_each<T: Send>(services: impl FnOnce(&Path) -> Vec<T>, run: impl Fn(T) + Sync) {
    let folder = tempfile::tempdir().expect("a folder");
    let all = Mutex::new(services(folder.path()));
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                while let Some(one) = { all.lock().expect("no panic").pop() } {
                    run(one);
                }
            });
        }
    });
}

/// The report equals the plan; what is beyond that was echoed.
#[track_caller]
fn assert_is_plan(report: &Value, plan: &[Fate]) {
    let of = |fates: &[Fate]| count(plan, fates);
    let beyond = number(report, "sent") - plan.len() as u64;
    let echoed = of(&[Fate::Echo, Fate::Duplicate, Fate::Swap]);
    for (field, count) in [
        ("received", echoed + beyond),
        ("lost", of(&[Fate::Lose, Fate::Misaddress])),
        ("late", of(&[Fate::Delay])),
        ("misaddressed", of(&[Fate::Misaddress])),
    ] {
        assert_eq!(report[field], count, "{field} of {report}");
    }
    let lost = report["errors"]["timed out"].as_u64().unwrap_or(0);
    assert_eq!(lost, of(&[Fate::Lose]), "{report}");
    assert_has_copies(report, plan);
}

/// So do the changes and the copies, and everything adds up.
#[track_caller]
fn assert_has_copies(report: &Value, plan: &[Fate]) {
    let of = |fates: &[Fate]| count(plan, fates);
    let changed = of(&[Fate::Corrupt, Fate::CorruptTwice, Fate::Shorten]);
    let copies = of(&[Fate::Duplicate, Fate::CorruptTwice]);
    let found = numbers(report, ["corrupt", "duplicates", "strays"]);
    assert_eq!(found, [changed, copies, 0], "{report}");
    assert_adds_up(report);
}

#[test]
fn ping_reports_of_datagrams_what_the_service_did() {
    let services = |folder: &Path| datagrams(folder, 300, &[]);
    for_each(services, |(plan, url)| {
        let (status, report) = json_of(&format!("ping {url} -c 300 -i 3ms -s {SIZE} {TIMEOUT}"));
        assert_is_plan(&report, &plan);
        // Copies and another order alone are no failure.
        let harmless = count(&plan, &[Fate::Echo, Fate::Duplicate, Fate::Swap]);
        assert_eq!(status == 0, harmless == 300, "{report}");
        assert_eq!(report["reordered"], fault::reordered(&plan), "{report}");
    });
}

#[test]
fn load_reports_of_datagrams_what_the_service_did() {
    // Its sockets are connected, so that they get no answers from elsewhere; and each waits for
    // itself, so that a swapped answer may arrive late.
    let without = [Fate::Swap, Fate::Misaddress];
    let services = |folder: &Path| datagrams(folder, 200, &without);
    for_each(services, |(plan, url)| {
        let line = format!("load {url} -c 3 --rate 75 -t 3s --warm-up 0s -s {SIZE} {TIMEOUT}");
        let (_, report) = json_of(&line);
        // The first answers the question whether a service is there.
        assert_is_plan(&report, &plan[1..]);
    });
}

#[test]
fn send_reports_of_datagrams_what_the_service_did() {
    let services = |folder: &Path| datagrams(folder, 15, &[]);
    for_each(services, |(plan, url)| {
        let size = SIZE.to_string();
        let arguments = ["send", &url, "--json", "--timeout", "4s", "-s", &size];
        let (_, report) = ended(&probe_with(&arguments, &noise(15 * SIZE, 7)));
        let of = |fates: &[Fate]| count(&plan, fates);
        // Each waits for the one before: a swapped one is late, and one that is delayed for longer
        // than the rest takes is lost.
        let missed = of(&[Fate::Lose, Fate::Misaddress, Fate::Delay, Fate::Swap]);
        let found = number(&report, "lost") + number(&report, "late");
        assert_eq!(found, missed, "{report}");
        assert_eq!(report["sent"], 15, "{report}");
        assert_has_copies(&report, &plan);
    });
}

/// Services of streams, over TCP and on a Unix socket, each with one fault and then with several.
fn streams(folder: &Path) -> Vec<(Vec<Fate>, String, fault::Met)> {
    let mut plans = vec![vec![Fate::Echo, Fate::Delay], vec![Fate::Echo, Fate::Stall]];
    for mixture in [
        &[(Fate::Corrupt, 10)][..],
        &[(Fate::Invert, 10)],
        &[(Fate::Cut, 10)],
        &[(Fate::Corrupt, 10), (Fate::Cut, 10)],
    ] {
        plans.push(plan(plans.len() as u64, 50, mixture));
    }
    let mut services = Vec::new();
    for is_unix in [false, true] {
        for plan in &plans {
            let path = folder.join(services.len().to_string());
            let path = is_unix.then_some(path.as_path());
            let (url, met) = fault::planned_streams(path, plan.clone(), SIZE, DELAY);
            services.push((plan.clone(), url, met));
        }
    }
    services
}

fn count_of(met: &fault::Met, fate: Fate) -> u64 {
    let met = met.lock().expect("counts");
    met.get(&fate).copied().unwrap_or(0)
}

/// What was answered came back; less of it where this number of messages ended their connections
/// with others on the way.
#[track_caller]
fn assert_is_what_was_met(report: &Value, met: &fault::Met, ended: u64) {
    let of = |fate| count_of(met, fate);
    let whole = number(report, "received") + number(report, "late");
    let answered = of(Fate::Echo) + of(Fate::Delay);
    let is_all = whole == answered || ended > 0 && whole < answered;
    assert!(is_all, "{answered} were answered: {report}");
    let lost = of(Fate::Cut) + of(Fate::Stall);
    assert!(number(report, "lost") >= lost, "{lost}: {report}");
    assert_adds_up(report);
}

#[test]
fn ping_reports_of_streams_what_the_service_did() {
    for_each(streams, |(plan, url, met)| {
        let (_, report) = json_of(&format!("ping {url} -c 100 -i 3ms -s {SIZE} {TIMEOUT}"));
        let of = |fate| count_of(&met, fate);
        // Bytes of no message end the connection, with what is behind them.
        assert_is_what_was_met(&report, &met, of(Fate::Invert));
        let (corrupt, inverted) = (number(&report, "corrupt"), of(Fate::Invert));
        let certain = of(Fate::Corrupt) + inverted.min(1);
        let range = certain..=of(Fate::Corrupt) + inverted;
        assert!(range.contains(&corrupt), "{plan:?}: {report}");
        assert_eq!(numbers(&report, ["sent", "strays"]), [100, 0], "{plan:?}");
        assert!(number(&report, "late") >= of(Fate::Delay), "{report}");
    });
}

#[test]
fn load_reports_of_streams_what_the_service_did() {
    for_each(streams, |(plan, url, met)| {
        let options = "-c 2 -d 2 -t 500ms --warm-up 0s";
        let (_, report) = json_of(&format!("load {url} {options} -s {SIZE} {TIMEOUT}"));
        // After the first wrong byte a connection is closed, whatever is on the way.
        let changed = count_of(&met, Fate::Corrupt) + count_of(&met, Fate::Invert);
        assert_is_what_was_met(&report, &met, changed);
        let range = changed.min(1)..=changed;
        assert!(range.contains(&number(&report, "corrupt")), "{plan:?}");
    });
}

#[test]
fn send_reports_of_streams_what_the_service_did() {
    for_each(streams, |(plan, url, _)| {
        let arguments = ["send", &url, "--json", "--timeout", "4s"];
        let (status, report) = ended(&probe_with(&arguments, &noise(50 * SIZE, 7)));
        let first = plan.iter().position(|fate| *fate != Fate::Echo);
        let first = first.expect("a fault");
        // Half of a message that is changed comes before the change.
        let right = match plan[first] {
            Fate::Corrupt => first * SIZE + SIZE / 2,
            _ => first * SIZE,
        };
        assert_eq!(report["received"], right, "{plan:?}: {report}");
        assert_eq!(status, 1, "{report}");
        assert_adds_up(&report);
    });
}
