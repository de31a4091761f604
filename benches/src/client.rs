//! What a message costs the client: `echoprobe load` beside this program's own load generator, which
//! does nothing else, against the same server and in turn.
//!
//! A client that costs much is itself what it measures. The ratio of a round is the processor time
//! that echoprobe spends on a message, as a multiple of the generator's. Of both it is the time of
//! the whole process, its start included, over all of its messages; and as echoprobe sends and
//! receives datagrams in batches, the generator does so, too, in every scenario with datagrams.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::contender::CONTENDERS;
use crate::launch;
use crate::load::Load;
use crate::measure::{self, Plan};
use crate::process;
use crate::server::{Server, Site};
use crate::statistics::Figure;

/// Measures, and prints a line for each scenario.
pub(crate) fn run(plan: &Plan, site: &Site, echoprobe: &Path) -> Result<()> {
    let ours = CONTENDERS.iter().find(|contender| contender.is_ours());
    let server = Server::start(ours.context("echod is a contender")?, site)?;
    println!(
        "processor time of echoprobe for a message, load generator = 1.00 (median, quartiles)"
    );
    for scenario in &plan.scenarios {
        let Some((load, options)) = same_work(scenario.load) else {
            continue;
        };
        let mut ratios = Vec::new();
        let mut costs = (0.0, 0.0);
        for round in 0..plan.rounds {
            // Neither always comes first.
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    let generate =
                        || Ok(measure::take_sample(plan, load, &server)?.messages_in_all);
                    costs.0 = cost(generate)?;
                } else {
                    costs.1 = cost(|| probe(plan, echoprobe, &server, &options))?;
                }
            }
            ratios.push(costs.1 / costs.0);
        }
        if let Some(Figure { median, low, high }) = Figure::of(ratios) {
            let name = scenario.name;
            println!("{name:20} {median:.2} ({low:.2}-{high:.2})");
        }
    }
    Ok(())
}

/// The processor time of a client for a message, in seconds: it runs and returns how many there were.
fn cost(run: impl FnOnce() -> Result<u64>) -> Result<f64> {
    let before = process::cpu_time_of_ended_children()?;
    let messages = run()?;
    let used = process::cpu_time_of_ended_children()? - before;
    Ok(used.as_secs_f64() / messages as f64)
}

/// The work as the generator is given it, and in the words of echoprobe; none if it has none for it.
fn same_work(mut load: Load) -> Option<(Load, Vec<String>)> {
    let (scheme, connections, bytes, depth) = match &mut load {
        Load::Tcp {
            connections,
            bytes,
            depth,
            spins: false,
        } => ("tcp", connections, bytes, depth),
        Load::Udp {
            flows,
            bytes,
            depth,
            batches,
        } => {
            *batches = true;
            ("udp", flows, bytes, depth)
        }
        _ => return None,
    };
    let numbers = [("-c", connections), ("-s", bytes), ("-d", depth)];
    let numbers = numbers
        .into_iter()
        .flat_map(|(name, number)| [name.into(), number.to_string()]);
    let words = [scheme.to_string()].into_iter().chain(numbers).collect();
    Some((load, words))
}

/// Runs echoprobe once; how many messages came back. There is no warm-up, whose messages it does not
/// report.
fn probe(plan: &Plan, echoprobe: &Path, server: &Server, options: &[String]) -> Result<u64> {
    let time = |time: std::time::Duration| format!("{}ms", time.as_millis());
    let output = launch::command(plan.client_cpu)?
        .arg(echoprobe)
        .args([
            "load",
            "--json",
            &format!("{}://{}", options[0], server.address),
        ])
        .args(&options[1..])
        .args(["--time", &time(plan.time), "--warm-up", "0s"])
        .stdin(Stdio::null())
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    if report["corrupt"] != 0 {
        bail!("WRONG BYTES came back: {report}");
    }
    report["messages"].as_u64().context("a number of messages")
}
