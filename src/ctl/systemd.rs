//! What systemd is about to do with a unit, as `systemctl(1)` reports it.
//!
//! A service does not learn whether its stop is part of a restart; the job of its unit shows it.

use std::io;
use std::process::Command;

/// Why the unit's process has no successor, or one that could not take over what it leaves; none
/// where it has.
///
/// # Errors
/// When systemctl can't be run, or does not know.
pub(super) fn why_no_successor(unit: &str) -> io::Result<Option<&'static str>> {
    let about_unit = show(&["--property=Job,FileDescriptorStoreMax", "--", unit])?;
    let Some(job) = value(&about_unit, "Job").filter(|job| !job.is_empty()) else {
        return Ok(Some("nothing is about to happen to it"));
    };
    let about_job = show(&["--property=JobType", "--", job])?;
    let job = value(&about_job, "JobType").unwrap_or_default();
    let room = value(&about_unit, "FileDescriptorStoreMax").unwrap_or_default();
    Ok(judge(job, room))
}

fn judge(job: &str, room: &str) -> Option<&'static str> {
    match (job, room) {
        ("restart", "" | "0") => Some("FileDescriptorStoreMax= in the unit is 0: nothing is kept"),
        ("restart", _) => None,
        _ => Some("it is stopped and not restarted"),
    }
}

fn show(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("systemctl")
        .arg("show")
        .args(arguments)
        // With it, systemctl would take itself for the service.
        .env_remove("NOTIFY_SOCKET")
        .output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(said.trim().to_owned()))
}

fn value<'a>(text: &'a str, property: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(property)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_restart_with_room_for_descriptors_has_a_successor() {
        assert_eq!(judge("restart", "4096"), None);
        assert!(judge("restart", "0").is_some());
        assert!(judge("stop", "4096").is_some());
        assert!(judge("", "4096").is_some());
    }

    #[test]
    fn a_property_is_read_by_its_whole_name() {
        let text = "FileDescriptorStoreMax=7\nJob=82\n";
        assert_eq!(value(text, "Job"), Some("82"));
        assert_eq!(value(text, "FileDescriptorStoreMax"), Some("7"));
        assert_eq!(value(text, "FileDescriptor"), None);
    }
}
