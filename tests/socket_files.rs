//! The files of Unix sockets: never taken from a live process, never changed through a link, made
//! anew when they are lost.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::{Daemon, close_unix, eventually, exchange};

fn unix(name: &str, path: &str, more: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"unix-stream\"\naddress = \"{path}\"\n{more}\n")
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    metadata.permissions().mode() & 0o7777
}

/// The lock that each echod holds while it binds in the folder, held by this process.
fn locked(folder: &Path) -> Flock<fs::File> {
    let folder = fs::File::open(folder).expect("a folder");
    let locked = Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
    locked.expect("a lock")
}

/// Starts echod, which must fail with this status; what it says.
fn refused(config: &str, status: i32) -> String {
    let mut daemon = Daemon::spawn(config, |_| {});
    assert_eq!(daemon.wait().code(), Some(status), "{}", daemon.log());
    daemon.log()
}

#[test]
fn two_listeners_on_one_file_are_refused_whatever_they_call_it() {
    let folder = tempfile::tempdir().expect("a folder");
    symlink(".", folder.path().join("here")).expect("a link");
    let path = |name: &str| folder.path().join(name).display().to_string();
    for protocol in ["unix-stream", "unix-datagram"] {
        let config = unix("a", &path("s"), "") + &unix("b", &path("here/s"), "");
        let config = config.replace("unix-stream", protocol);
        let said = refused(&config, 78);
        assert!(said.contains("listener \"b\": bind "), "{said}");
        assert!(said.contains("listener \"a\" has this file"), "{said}");
        assert!(!folder.path().join("s").exists(), "nothing is left");
    }
    // At a reload as well.
    let daemon = Daemon::start(&unix("a", &path("s"), ""));
    let both = unix("a", &path("s"), "") + &unix("b", &path("here/s"), "");
    let with_control = unix("a", &path("s"), "") + &unix("c", "{dir}/../{name}/control.sock", "");
    let name = daemon.folder.path().file_name().expect("a name").display();
    let with_control = with_control.replace("{name}", &name.to_string());
    for (config, owner) in [
        (both, "listener \"a\""),
        (with_control, "the control socket"),
    ] {
        let result = daemon.reload_with(&config);
        assert_eq!(result["outcome"], "rejected", "{result}");
        let error = result["errors"][0]["message"].as_str().expect("an error");
        assert!(error.contains(&format!("{owner} has this file")), "{error}");
    }
    // But the file can pass from the one to the other.
    let inode = || fs::metadata(path("s")).expect("it is there").ino();
    let before = inode();
    let result = daemon.reload_with(&unix("b", &path("here/s"), ""));
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(inode(), before);
    let mut client = UnixStream::connect(path("s")).expect("connected");
    assert_eq!(exchange(&mut client, b"still here"), b"still here");
}

#[test]
fn a_path_is_not_taken_while_another_process_is_starting_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    // As another daemon between bind(2) and listen(2), for longer than the second one waits: a
    // connection is refused there, as at a socket that a killed process has left.
    let locked = locked(folder.path());
    let starting = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
    let address = SockAddr::unix(&path).expect("an address");
    starting.bind(&address).expect("bound");
    let inode = fs::metadata(&path).expect("it is there").ino();
    let config = unix("a", &path.display().to_string(), "");
    let said = refused(&config, 1);
    assert!(said.contains("a running process serves it"), "{said}");
    assert_eq!(fs::metadata(&path).expect("it is there").ino(), inode);
    drop((starting, locked));
    let daemon = Daemon::start(&config);
    let mut client = UnixStream::connect(&path).expect("connected");
    assert_eq!(exchange(&mut client, b"mine now"), b"mine now");
    drop(daemon);
}

#[test]
fn a_lock_that_any_user_can_take_prevents_neither_a_start_nor_a_reload() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |number| folder.path().join(format!("s{number}"));
    // Left by a killed daemon.
    close_unix(UnixListener::bind(path(0)).expect("bound"), &path(0));
    let _locked = locked(folder.path());
    let some = |count: usize| {
        let one = |number| {
            unix(
                &format!("l{number}"),
                &path(number).display().to_string(),
                "",
            )
        };
        (0..count).map(one).collect::<String>()
    };
    let daemon = Daemon::start(&some(2));
    let result = daemon.reload_with(&some(6));
    assert_eq!(result["outcome"], "applied", "{result}");
    for number in 0..6 {
        let mut client = UnixStream::connect(path(number)).expect("connected");
        assert_eq!(exchange(&mut client, b"hello"), b"hello");
    }
    // One wait for all paths of the start, and one for all of the reload.
    let log = daemon.log();
    let warnings = log.matches("another process keeps the folder locked");
    assert_eq!(warnings.count(), 2, "{log}");
}

/// It was removed.
#[test]
fn a_stale_socket_stays_when_a_reload_is_rejected_or_only_tried() {
    let daemon = Daemon::start(&unix("a", "{dir}/a", ""));
    let path = daemon.path("stale");
    close_unix(UnixListener::bind(&path).expect("bound"), &path);
    let inode = || fs::symlink_metadata(&path).expect("it is there").ino();
    let before = inode();
    let config = unix("a", "{dir}/a", "") + &unix("b", "{dir}/stale", "");
    // An address for documentation, which no host has (RFC 5737).
    let refused = "[listener.z]\nprotocol = \"tcp\"\naddress = \"192.0.2.1:7\"\n";
    let result = daemon.reload_with(&format!("{config}{refused}"));
    assert_eq!(result["outcome"], "rejected", "{result}");
    assert_eq!(inode(), before);
    daemon.write_config(&config);
    let reply = daemon.ctl_json(&["reload", "--dry-run"]);
    assert_eq!(reply["result"]["outcome"], "applied", "{reply}");
    assert_eq!(inode(), before);
    let result = daemon.reload();
    assert_eq!(result["outcome"], "applied", "{result}");
    let mut client = UnixStream::connect(&path).expect("connected");
    assert_eq!(exchange(&mut client, b"anew"), b"anew");
    let names = fs::read_dir(daemon.path(".")).expect("a folder");
    let names = names.filter_map(|entry| entry.expect("an entry").file_name().into_string().ok());
    let left: Vec<_> = names.filter(|name| name.starts_with(".echod-")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn a_lost_file_is_made_anew_by_the_next_reload() {
    let config = |mode: &str| {
        let mode = format!("mode = \"{mode}\"");
        unix("a", "{dir}/s", &mode) + &unix("b", "{dir}/t", "")
    };
    let daemon = Daemon::start(&config("0600"));
    let path = daemon.path("s");
    let mut before = UnixStream::connect(&path).expect("connected");
    exchange(&mut before, b"before");
    for (wanted, outcome) in [("0600", "unchanged"), ("0666", "applied")] {
        fs::remove_file(&path).expect("removed");
        let result = daemon.reload_with(&config(wanted));
        assert_eq!(result["outcome"], outcome, "{result}");
        let warning = result["warnings"][0]["message"]
            .as_str()
            .expect("a warning");
        assert!(
            warning.contains("file was gone and is made anew"),
            "{warning}"
        );
        assert_eq!(format!("{:04o}", mode(&path)), wanted);
        let mut client = UnixStream::connect(&path).expect("connected");
        assert_eq!(exchange(&mut client, b"again"), b"again");
    }
    assert_eq!(exchange(&mut before, b"still"), b"still");
    let result = daemon.reload();
    assert_eq!(result["warnings"], json!([]), "{result}");
}

#[test]
fn a_lost_control_socket_is_made_anew_by_the_next_reload() {
    let mut daemon = Daemon::start(&format!(
        "[control]\nmode = \"0606\"\n{}",
        unix("a", "{dir}/s", "")
    ));
    let path = daemon.path("control.sock");
    let mut client = daemon.control();
    let mut reload = |dry_run: bool| {
        daemon.forget_notifications();
        let reply = client.ask("Reload", &json!({ "dry_run": dry_run }));
        let result = reply.expect("a reply")["parameters"]["result"].clone();
        assert_eq!(result["outcome"], "unchanged", "{result}");
        let warnings = result["warnings"].as_array().expect("a list").iter();
        let warnings = warnings.map(|warning| warning["message"].as_str().expect("a text"));
        warnings.collect::<Vec<_>>().join("; ")
    };
    let socket = format!("control socket: {}: ", path.display());
    fs::remove_file(&path).expect("removed");
    let gone = format!("{socket}the socket's file was gone and ");
    assert_eq!(reload(true), format!("{gone}would be made anew"));
    assert!(!path.exists());
    assert_eq!(reload(false), format!("{gone}is made anew"));
    assert_eq!(mode(&path), 0o606);
    assert_eq!(daemon.ctl_json(&["status"])["status"]["state"], "serving");
    assert_eq!(reload(false), "");

    // What has taken its place is left alone.
    fs::remove_file(&path).expect("removed");
    fs::write(&path, "data").expect("written");
    let unreachable = "; echoctl can't reach this daemon any more";
    for dry_run in [true, false] {
        let said = reload(dry_run);
        assert!(
            said.contains("not a socket") && said.ends_with(unreachable),
            "{said}"
        );
    }
    assert_eq!(fs::read(&path).expect("it is there"), b"data");
    fs::remove_file(&path).expect("removed");
    let other = UnixListener::bind(&path).expect("bound");
    for dry_run in [true, false] {
        let said = reload(dry_run);
        assert!(
            said.contains("already running") && said.ends_with(unreachable),
            "{said}"
        );
    }
    close_unix(other, &path);
    // It leaves a stale socket, which is no other process's.
    assert_eq!(reload(false), format!("{gone}is made anew"));
    assert_eq!(daemon.ctl_json(&["status"])["status"]["state"], "serving");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(!path.exists(), "it is one of ours");
}

#[test]
fn a_mode_is_never_set_through_a_link_and_that_is_one_warning() {
    let config = |mode: &str| unix("a", "{dir}/s", &format!("mode = \"{mode}\""));
    let daemon = Daemon::start(&config("0600"));
    let (path, private) = (daemon.path("s"), daemon.path("private"));
    fs::write(&private, "secret").expect("written");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::remove_file(&path).expect("removed");
    symlink(&private, &path).expect("a link");
    let result = daemon.reload_with(&config("0666"));
    assert_eq!(result["outcome"], "applied", "{result}");
    let warning =
        "there is a file that is not a socket; no client reaches the listener there any more";
    let warnings = result["warnings"].as_array().expect("a list");
    assert_eq!(warnings.len(), 1, "{result}");
    assert!(warnings[0].to_string().contains(warning), "{result}");
    assert_eq!(mode(&private), 0o600);
    assert_eq!(fs::read(&private).expect("it is there"), b"secret");
    // Nor is it removed with the listener.
    let result = daemon.reload_with(&unix("b", "{dir}/t", ""));
    assert_eq!(result["outcome"], "applied", "{result}");
    eventually("the listener is gone", || {
        daemon.ctl(&["listeners", "a"]).status.code() == Some(1)
    });
    assert_eq!(fs::read_link(&path).expect("a link"), private);
}
