//! How every process that is measured is started: on its CPU, ahead of other work, and never
//! outliving us.
//!
//! This program calls itself to do so, because what is set here passes on through `execve(2)`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, setsid};

/// The highest there is: other work on the machine has to wait.
const NICE: &str = "-20";

/// A command that runs this program's subcommand `launch`, to which a command can be appended.
pub(crate) fn command(cpu: usize) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["launch", "--cpu", &cpu.to_string(), "--"]);
    Ok(command)
}

/// Becomes the command that is given.
pub(crate) fn main(cpu: usize, command: &[OsString]) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("CPU {cpu}"))?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    // A session of its own has a scheduling group of its own (sched(7), autogroup), whose nice
    // value counts against other sessions; where it may not be changed, we do without.
    setsid()?;
    _ = fs::write("/proc/self/autogroup", NICE);
    // nice(1) warns and continues where it may not.
    let error = Command::new("nice").args(["-n", NICE]).args(command).exec();
    Err(error).context("nice")
}

/// The CPUs that this process may use.
pub(crate) fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let is_in = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    Ok((0..CpuSet::count()).filter(is_in).collect())
}
