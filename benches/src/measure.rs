//! How the comparison is made: many short samples, all servers in turn, ratios within a round.
//!
//! A shared machine drifts, so two figures are compared only if they were taken within the same
//! round, moments apart; what is reported is the median of the rounds' ratios, and its quartiles.
//! The order rotates, so that no server always comes after the same one.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::contender::{BASE, Contender};
use crate::launch;
use crate::load::{Load, Request, Sample};
use crate::scenario::{Metric, Scenario};
use crate::server::{Server, Site};
use crate::statistics::Figure;

/// Memory hardly varies.
const MEMORY_ROUNDS: usize = 3;

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) scenarios: Vec<&'static Scenario>,
    pub(crate) contenders: Vec<&'static Contender>,
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) client_cpu: usize,
}

/// What came of one scenario.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) scenario: &'static Scenario,
    pub(crate) entries: Vec<Entry>,
}

/// What came of one server in one scenario.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) contender: &'static Contender,
    /// By round; none where it failed.
    pub(crate) samples: Vec<Option<Sample>>,
    /// Why it failed, the first time.
    pub(crate) failure: Option<String>,
}

impl Plan {
    fn takes_part(&self, scenario: &Scenario) -> impl Iterator<Item = &'static Contender> {
        self.contenders
            .iter()
            .copied()
            .filter(|contender| contender.takes_part(scenario))
    }

    fn rounds_of(&self, scenario: &Scenario) -> usize {
        match scenario.headline {
            Metric::Memory => self.rounds.min(MEMORY_ROUNDS),
            _ => self.rounds,
        }
    }

    fn samples(&self) -> usize {
        let of_one = |scenario: &&'static Scenario| {
            self.rounds_of(scenario) * self.takes_part(scenario).count()
        };
        self.scenarios.iter().map(of_one).sum()
    }

    fn request(&self, load: Load, server: &Server) -> Request {
        Request {
            load,
            address: server.address,
            server: server.pid(),
            warm_up: self.warm_up,
            time: self.time,
        }
    }
}

/// Leaves out those that do not start here, saying why. The base must.
pub(crate) fn leave_out_who_does_not_start(plan: &mut Plan, site: &Site) -> Result<()> {
    let mut starting = Vec::new();
    for contender in &plan.contenders {
        match Server::start(contender, site) {
            Ok(_) => starting.push(*contender),
            Err(error) if contender.name == BASE => return Err(error).context(BASE),
            Err(error) => eprintln!("echod-bench: {}: left out: {error:#}", contender.name),
        }
    }
    if !starting.iter().any(|contender| contender.is_ours())
        && plan.contenders.iter().any(|contender| contender.is_ours())
    {
        bail!("echod starts with none of its drivers");
    }
    plan.contenders = starting;
    Ok(())
}

/// Measures everything.
///
/// # Errors
/// When a server sends back anything but what it was sent.
pub(crate) fn run(plan: &Plan, site: &Site) -> Result<Vec<Outcome>> {
    let style = "{prefix:16} [{bar:30}] {pos}/{len} samples, {eta} left: {msg}";
    let bar = ProgressBar::new(plan.samples() as u64)
        .with_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    let mut outcomes = Vec::new();
    for (number, scenario) in plan.scenarios.iter().enumerate() {
        bar.set_prefix(scenario.name);
        if bar.is_hidden() {
            let of = plan.scenarios.len();
            eprintln!("echod-bench: {} ({} of {of})", scenario.name, number + 1);
        }
        outcomes.push(run_scenario(plan, scenario, site, &bar)?);
    }
    bar.finish_and_clear();
    Ok(outcomes)
}

fn run_scenario(
    plan: &Plan,
    scenario: &'static Scenario,
    site: &Site,
    bar: &ProgressBar,
) -> Result<Outcome> {
    // Servers stay up for all rounds, because those that sleep cost nothing; but those that spin, and
    // those whose memory is measured, are started each time.
    let starts_each_time =
        |contender: &Contender| contender.spins || scenario.headline == Metric::Memory;
    let mut entries = Vec::new();
    let mut servers = Vec::new();
    for contender in plan.takes_part(scenario) {
        let server = if starts_each_time(contender) {
            None
        } else {
            Some(Server::start(contender, site).context(contender.name)?)
        };
        servers.push(server);
        entries.push(Entry {
            contender,
            samples: Vec::new(),
            failure: None,
        });
    }
    for round in 0..plan.rounds_of(scenario) {
        for turn in 0..entries.len() {
            let index = (round + turn) % entries.len();
            let entry = &mut entries[index];
            bar.set_message(entry.contender.name);
            let taken = match &servers[index] {
                Some(server) => take_sample(plan, scenario.load, server),
                None => Server::start(entry.contender, site)
                    .and_then(|server| take_sample(plan, scenario.load, &server)),
            };
            bar.inc(1);
            entry.samples.push(match taken {
                Ok(sample) if sample.wrong > 0 => bail!(
                    "{}: {}: WRONG BYTES came back, {} times in one sample: no figure of it is worth anything",
                    scenario.name,
                    entry.contender.name,
                    sample.wrong
                ),
                Ok(sample) if sample.messages > 0 && sample.errors == 0 => Some(sample),
                Ok(sample) => {
                    let failure =
                        format!("{} messages, {} errors", sample.messages, sample.errors);
                    entry.failure.get_or_insert(failure);
                    None
                }
                Err(error) => {
                    entry.failure.get_or_insert(format!("{error:#}"));
                    None
                }
            });
        }
    }
    Ok(Outcome { scenario, entries })
}

/// Runs the load generator once.
pub(crate) fn take_sample(plan: &Plan, load: Load, server: &Server) -> Result<Sample> {
    let request = serde_json::to_string(&plan.request(load, server))?;
    let output = launch::command(plan.client_cpu)?
        .arg(std::env::current_exe()?)
        .args(["load", &request])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}", said.lines().last().unwrap_or("no word from the load"));
    }
    serde_json::from_slice(&output.stdout).context("what the load generator said")
}

impl Outcome {
    fn base(&self) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.contender.name == BASE)
    }

    pub(crate) fn entry(&self, contender: &Contender) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.contender.name == contender.name)
    }

    /// A metric of one server; none if it has no sample.
    pub(crate) fn figure(&self, entry: &Entry, metric: Metric) -> Option<Figure> {
        if metric == Metric::Memory {
            return entry.figure(|sample| sample.memory_per_connection / 1024.0);
        }
        let base = self.base()?;
        let rounds = entry.samples.iter().zip(&base.samples);
        let ratios = rounds.filter_map(|(own, base)| {
            let (own, base) = (own.as_ref()?, base.as_ref()?);
            Some(match metric {
                Metric::Throughput => own.rate() / base.rate(),
                // A server that was never seen on a CPU has no ratio.
                Metric::Cpu => (own.cpu_us() > 0.0).then(|| base.cpu_us() / own.cpu_us())?,
                Metric::Memory => unreachable!("handled above"),
            })
        });
        Figure::of(ratios)
    }
}

impl Entry {
    /// The median and quartiles of something that samples tell.
    pub(crate) fn figure(&self, of: impl Fn(&Sample) -> f64) -> Option<Figure> {
        Figure::of(self.samples.iter().flatten().map(of))
    }

    /// The share of datagrams that did not come back.
    pub(crate) fn lost(&self) -> f64 {
        let sum = |of: fn(&Sample) -> u64| self.samples.iter().flatten().map(of).sum::<u64>();
        let lost = sum(|sample| sample.lost) as f64;
        lost / (lost + sum(|sample| sample.messages) as f64).max(1.0)
    }
}
