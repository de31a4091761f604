//! How many system calls a message costs, as `strace -c` counts them.
//!
//! strace slows a server down, and one that is slower finds more messages at each turn: these
//! figures say what a server does, not how fast.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::contender::find_program;
use crate::measure::{self, Plan};
use crate::server::{Server, Site};

/// How long strace may take to attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls that are rarer belong to connections, not to messages.
const SHARE_MIN: f64 = 0.0005;

/// Counts and prints, for each server in each scenario.
pub(crate) fn run(plan: &Plan, site: &Site) -> Result<()> {
    if find_program("strace").is_none() {
        bail!("strace is not installed; it counts the calls (apt-get install strace)");
    }
    let folder = tempfile::tempdir()?;
    let summary = folder.path().join("summary");
    for scenario in &plan.scenarios {
        println!("{}: {}", scenario.name, scenario.about);
        println!("  {:<20} calls per message", "server");
        for contender in &plan.contenders {
            if !contender.takes_part(scenario) {
                continue;
            }
            let server = Server::start(contender, site)?;
            let strace = Command::new("strace")
                .args(["-c", "-f", "-q", "-p", &server.pid().to_string(), "-o"])
                .arg(&summary)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("strace")?;
            let mut strace = Strace(strace);
            wait_until_traced(server.pid(), &mut strace)?;
            let sample = measure::take_sample(plan, scenario.load, &server)?;
            strace.stop()?;
            let calls = counts(&fs::read_to_string(&summary)?);
            println!("{}", line(contender.name, &calls, sample.messages_in_all));
        }
    }
    Ok(())
}

struct Strace(Child);

impl Strace {
    /// Makes it write what it has counted.
    fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // It detaches from the server when it ends; after `stop` it has ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn wait_until_traced(pid: i32, strace: &mut Strace) -> Result<()> {
    let deadline = Instant::now() + ATTACH_TIMEOUT;
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        if tracer.is_some_and(|tracer| tracer.trim() != "0") {
            return Ok(());
        }
        if strace.0.try_wait()?.is_some() || Instant::now() >= deadline {
            bail!("strace may not trace here (ptrace(2): CAP_SYS_PTRACE)");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn line(name: &str, calls: &[(String, u64)], messages: u64) -> String {
    let per_message = |count: u64| count as f64 / messages.max(1) as f64;
    let all = calls.iter().map(|(_, count)| count).sum();
    let each: Vec<String> = calls
        .iter()
        .filter(|(_, count)| per_message(*count) >= SHARE_MIN)
        .map(|(call, count)| format!("{call} {:.3}", per_message(*count)))
        .collect();
    format!("  {name:<20} {:.3}: {}", per_message(all), each.join(", "))
}

/// The calls in a summary of `strace -c`, most frequent first.
fn counts(summary: &str) -> Vec<(String, u64)> {
    let mut calls: Vec<(String, u64)> = summary
        .lines()
        .filter_map(|line| {
            // % time, seconds, usecs/call, calls, errors (may be empty), syscall
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (name, count) = (*fields.last()?, fields.get(3)?.parse::<u64>().ok()?);
            (fields.len() >= 5 && name != "total").then(|| (name.to_owned(), count))
        })
        .collect();
    calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_strace_is_understood() {
        let summary = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           6       100           sendto
 40.00    0.000400           2       200        10 recvfrom
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           3       300        10 total
";
        let expected = [("recvfrom".into(), 200), ("sendto".into(), 100)];
        assert_eq!(counts(summary), expected);
    }
}
