//! What the kernel says of a server: the time and the memory of a process and its children.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The unit of the times in `/proc/PID/stat`: 1/100 s on every Linux for user space.
const TICK: Duration = Duration::from_millis(10);

/// The time that a process and its children have been on a CPU.
///
/// Exact for those that live, with all threads that they ever had; children that have ended are in
/// the tick count of their parent.
pub(crate) fn cpu_time(pid: i32) -> Duration {
    let of_one = |pid: &i32| time_on_cpu(*pid) + time_of_ended_children(*pid);
    family(pid).iter().map(of_one).sum()
}

pub(crate) fn cpu_time_of_this_process() -> Duration {
    time_on_cpu(std::process::id() as i32)
}

/// The time of all children of this process that have ended (getrusage(2)).
pub(crate) fn cpu_time_of_ended_children() -> nix::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let times = [usage.user_time(), usage.system_time()];
    let micros = times.map(|time| time.num_microseconds().unsigned_abs());
    Ok(micros.into_iter().map(Duration::from_micros).sum())
}

/// The memory of a process and its children, in bytes; what several share is counted once.
pub(crate) fn memory_bytes(pid: i32) -> u64 {
    let of_one = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    family(pid).iter().map(of_one).sum()
}

/// A process and all its living descendants.
fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut index = 0;
    while index < all.len() {
        for task in tasks(all[index]) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            );
        }
        index += 1;
    }
    all
}

fn tasks(pid: i32) -> impl Iterator<Item = std::path::PathBuf> {
    let folder = fs::read_dir(format!("/proc/{pid}/task"));
    folder
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

/// Nothing of a process that no longer exists.
fn time_on_cpu(pid: i32) -> Duration {
    let clock = clock_getcpuclockid(Pid::from_raw(pid));
    let time = clock.and_then(|clock| clock.now());
    time.map_or(Duration::ZERO, Duration::from)
}

fn time_of_ended_children(pid: i32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may contain anything: fields 16 and 17 of proc_pid_stat(5).
    let fields = text.rsplit(')').next().unwrap_or("");
    let ticks: u32 = fields
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u32>().ok())
        .sum();
    TICK * ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id() as i32;
        assert!(cpu_time_of_this_process() > Duration::ZERO);
        assert!(cpu_time(pid) > Duration::ZERO);
        assert!(memory_bytes(pid) > 100_000);
    }
}
