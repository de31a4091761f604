//! The user that the service runs as, and what it may do once everything is bound.
//!
//! Started as root with `[daemon] user`, the daemon becomes that user, keeps one capability, and has
//! the kernel hold it to the files that it needs (`landlock(7)`). That holds for the calling thread
//! and for those that it starts, and can't be undone: it has to come after all that needs root and
//! before the first thread. [`choose`], [`rules`] and [`describe`] decide without a system call;
//! the others do it. Privileges never come back.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, make_bitflags, path_beneath_rules,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{self, Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};

use crate::cli::text::cause;
use crate::config;
use crate::protocol::schema::Diagnostic;

use super::socket_file;

/// What is kept: a reload may name a port below 1024, and so may the successor after an upgrade.
const KEPT: Capability = Capability::CAP_NET_BIND_SERVICE;

/// What may be read, beside the configuration: names of users and groups, libraries, and what the
/// kernel tells of itself.
const READABLE: [&str; 8] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/dev/urandom",
    "/dev/zero",
];

/// The first version of Landlock that knows of TCP.
const ABI_WITH_TCP: i32 = 4;

/// The user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    user: String,
    uid: Uid,
    gid: Gid,
    /// Whether the group was asked for, or is the one that the user has.
    is_group_asked: bool,
}

/// A socket, or a folder for one, that was created as root and is given to this user.
#[derive(Debug)]
pub(super) struct CreatedPath {
    pub path: PathBuf,
    pub is_folder: bool,
    /// Its group was configured, and stays.
    pub keeps_group: bool,
}

/// The Landlock rules in force, which the kernel does not report.
///
/// A program that we become by exec is held to it too. Hand this on to it: there may be 16 layers at
/// most, and each would be one more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Landlock {
    /// The version that is in force.
    pub abi: i32,
    /// Where sockets may be made and removed, and below.
    pub folders: Vec<PathBuf>,
}

impl Landlock {
    /// Whether no socket may be made at this path.
    pub(super) fn forbids(&self, path: &Path) -> bool {
        let folder = folder(path);
        !self
            .folders
            .iter()
            .any(|allowed| folder.starts_with(allowed))
    }

    /// The folders, for people.
    pub(super) fn places(&self) -> String {
        let folders = self
            .folders
            .iter()
            .map(|folder| folder.display().to_string());
        let folders: Vec<String> = folders.collect();
        if folders.is_empty() {
            "nowhere".into()
        } else {
            folders.join(", ")
        }
    }
}

/// The user that the configuration names; none if the process is run by that user.
///
/// # Errors
/// There is no such user or group, or this process can't become it.
pub(super) fn find(settings: &config::Daemon) -> Result<Option<Identity>, Diagnostic> {
    find_as(settings, unistd::geteuid(), unistd::getegid())
}

/// Whether a start as root would find the user and the group, and become them.
///
/// # Errors
/// Why not.
pub(super) fn check(settings: &config::Daemon) -> Result<(), Diagnostic> {
    find_as(settings, Uid::from_raw(0), Gid::from_raw(0)).map(drop)
}

fn find_as(settings: &config::Daemon, uid: Uid, gid: Gid) -> Result<Option<Identity>, Diagnostic> {
    let Some(user) = &settings.user else {
        return Ok(None);
    };
    let wanted = look_up(user, settings.group.as_deref())?;
    choose(wanted, uid, gid).map_err(|message| Diagnostic::about("daemon.user", message))
}

/// The group that may connect to the control socket, if one is configured.
///
/// # Errors
/// There is no such group.
pub(super) fn control_group(settings: &config::Control) -> Result<Option<Gid>, Diagnostic> {
    let name = settings.group.as_deref();
    name.map(|name| find_group("control", name)).transpose()
}

fn find_group(table: &str, name: &str) -> Result<Gid, Diagnostic> {
    group_of_name(name).map_err(|reason| {
        let message = format!("[{table}] group \"{name}\": {reason}");
        Diagnostic::about(format!("{table}.group"), message)
    })
}

/// The number of a group.
///
/// # Errors
/// Why there is none.
pub(super) fn group_of_name(name: &str) -> Result<Gid, String> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(format!("there is no such group: groupadd --system {name}")),
        Err(errno) => Err(cause(&errno.into())),
    }
}

/// A user.
///
/// # Errors
/// Why there is none.
pub(super) fn user_of_name(name: &str) -> Result<User, String> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(format!(
            "there is no such user: useradd --system --user-group {name}"
        )),
        Err(errno) => Err(cause(&errno.into())),
    }
}

fn look_up(user: &str, group: Option<&str>) -> Result<Identity, Diagnostic> {
    let found = user_of_name(user).map_err(|reason| {
        let message = format!("[daemon] user \"{user}\": {reason}");
        Diagnostic::about("daemon.user", message)
    })?;
    let gid = match group {
        None => found.gid,
        Some(name) => find_group("daemon", name)?,
    };
    Ok(Identity {
        user: user.into(),
        uid: found.uid,
        gid,
        is_group_asked: group.is_some(),
    })
}

fn choose(wanted: Identity, uid: Uid, gid: Gid) -> Result<Option<Identity>, String> {
    let same_group = gid == wanted.gid || !wanted.is_group_asked;
    if uid == wanted.uid && same_group {
        return Ok(None);
    }
    let user = &wanted.user;
    if !uid.is_root() {
        let what = if uid == wanted.uid { "group" } else { "user" };
        return Err(format!(
            "[daemon] user \"{user}\": only root can take another {what}: start it as root, or leave user and group empty"
        ));
    }
    if wanted.uid.is_root() {
        return Err(format!(
            "[daemon] user \"{user}\": root stays root, with its own group: leave both empty, or name another user"
        ));
    }
    Ok(Some(wanted))
}

/// Becomes this user for good. The user owns the files that were `made`, sockets and their folders,
/// and may create others beside them; and read what is below `readable`. Returns what Landlock holds us
/// to, if the kernel has it.
///
/// # Errors
/// What can't be done. The process is then neither the one nor the other, and has to end.
pub(super) fn drop_to(
    identity: &Identity,
    made: &[CreatedPath],
    readable: Vec<PathBuf>,
) -> Result<Option<Landlock>, String> {
    let user = &identity.user;
    for made in made {
        give(made, identity).map_err(|error| {
            format!(
                "{}: give it to \"{user}\": {}",
                made.path.display(),
                cause(&error)
            )
        })?;
    }
    become_user(identity).map_err(|error| format!("[daemon] user \"{user}\": {error}"))?;
    let programs = fs::read_to_string("/proc/self/maps")
        .map_err(|error| format!("/proc/self/maps: {}", cause(&error)))?;
    confine(rules(readable, made, &programs)).map_err(|error| format!("Landlock: {error}"))
}

fn give(made: &CreatedPath, identity: &Identity) -> io::Result<()> {
    // Not by its name: where others may write too, that may be another file's by now.
    let file = socket_file::open_by_name(&made.path)?;
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    let is_kind = if made.is_folder {
        kind.is_dir()
    } else {
        kind.is_socket()
    };
    let owners = [unistd::geteuid(), identity.uid].map(Uid::as_raw);
    if !is_kind || !owners.contains(&metadata.uid()) {
        return Err(io::Error::other("somebody has put another file there"));
    }
    if metadata.uid() == identity.uid.as_raw() {
        // A predecessor has given it.
        return Ok(());
    }
    let is_ours = metadata.gid() == unistd::getegid().as_raw();
    let group = (is_ours && !made.keeps_group).then_some(identity.gid);
    socket_file::change_owner(&file, Some(identity.uid), group)
}

fn become_user(identity: &Identity) -> Result<(), String> {
    let step = |name: &'static str| move |errno: Errno| format!("{name}: {}", errno.desc());
    let caps = |error: caps::errors::CapsError| error.to_string();
    // A container may have started us without it.
    let mut kept = CapsHashSet::new();
    if caps::has_cap(None, CapSet::Permitted, KEPT).map_err(caps)? {
        kept.insert(KEPT);
    }
    let name = std::ffi::CString::new(identity.user.as_str()).map_err(|error| error.to_string())?;
    unistd::initgroups(&name, identity.gid).map_err(step("its groups"))?;
    unistd::setresgid(identity.gid, identity.gid, identity.gid).map_err(step("its group"))?;
    // What is not kept by this is lost with root, and could not be kept below.
    caps::securebits::set_keepcaps(true).map_err(caps)?;
    unistd::setresuid(identity.uid, identity.uid, identity.uid).map_err(step("setresuid"))?;
    caps::securebits::set_keepcaps(false).map_err(caps)?;
    for set in [
        CapSet::Effective,
        CapSet::Permitted,
        CapSet::Inheritable,
        CapSet::Ambient,
    ] {
        caps::set(None, set, &kept).map_err(caps)?;
    }
    prctl::set_no_new_privs().map_err(step("no_new_privs"))
}

/// What may be done where.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    read: Vec<PathBuf>,
    /// And run.
    execute: Vec<PathBuf>,
    /// Sockets may be made and removed.
    sockets: Vec<PathBuf>,
}

/// `maps` is what is mapped now, as `/proc/self/maps` has it: where the program, its loader and its
/// libraries are now is where their successors will be. Rules are on folders because they follow
/// the file and not its name.
fn rules(readable: Vec<PathBuf>, made: &[CreatedPath], maps: &str) -> Rules {
    let program = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let is_code = fields.nth(1)?.contains('x');
        // The name is the last field and may have blanks.
        let name = line.find('/').map(|at| &line[at..])?;
        is_code.then(|| folder(Path::new(name)))
    };
    let mut read: Vec<PathBuf> = READABLE.iter().map(PathBuf::from).collect();
    read.extend(readable);
    let mut rules = Rules {
        read,
        execute: maps.lines().filter_map(program).collect(),
        sockets: made
            .iter()
            .filter(|made| !made.is_folder)
            .map(|made| folder(&made.path))
            .collect(),
    };
    for paths in [&mut rules.read, &mut rules.execute, &mut rules.sockets] {
        paths.sort();
        paths.dedup();
    }
    rules
}

/// The folder that a file is in.
fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
        _ => ".".into(),
    }
}

/// Takes the rules on, as far as the kernel knows them; none if it knows nothing of that.
fn confine(rules: Rules) -> Result<Option<Landlock>, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let execute: BitFlags<AccessFs> = read | AccessFs::Execute;
    // The mode of a socket, its owner and connecting to it are not Landlock's business.
    // A folder is locked while a socket is bound there, which takes opening it.
    let sockets = make_bitflags!(AccessFs::{MakeSock | RemoveFile | ReadDir});
    let null = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});
    // A later version would also forbid to answer the datagrams of sockets in other folders.
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::ConnectTcp)?
        .create()?
        .add_rules(path_beneath_rules(&rules.read, read))?
        .add_rules(path_beneath_rules(&rules.execute, execute))?
        .add_rules(path_beneath_rules(&rules.sockets, sockets))?
        .add_rules(path_beneath_rules(["/dev/null"], null))?
        .restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _)
        | (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => None,
        (_, LandlockStatus::Available { effective_abi, .. }) => Some(Landlock {
            abi: effective_abi as i32,
            folders: rules.sockets,
        }),
    })
}

/// Says in the log what is in force, as the kernel tells it.
pub(super) fn announce(identity: Option<&Identity>, landlock: Option<&Landlock>) {
    let user = |uid| Some(User::from_uid(Uid::from_raw(uid)).ok()??.name);
    let group = |gid| Some(Group::from_gid(Gid::from_raw(gid)).ok()??.name);
    match fs::read_to_string("/proc/self/status") {
        Ok(status) => {
            let standing = Standing::parse(&status);
            log::info!("in force: {}", describe(&standing, user, group, landlock));
        }
        Err(error) => log::info!("in force: unknown: /proc/self/status: {}", cause(&error)),
    }
    if identity.is_some() && landlock.is_none() {
        log::info!(
            "this kernel has no Landlock, or it is not enabled (lsm= on its command line): \
             files are as open as they are to the user"
        );
    }
}

/// The user of a thread, and what it may do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Standing {
    uid: u32,
    /// The group first, then the others.
    gids: Vec<u32>,
    /// A bit for each capability in effect.
    capabilities: u64,
    no_new_privileges: bool,
    is_filtered: bool,
}

impl Standing {
    /// Of a file `status` in `/proc` (`proc_pid_status(5)`).
    fn parse(status: &str) -> Self {
        let mut standing = Self::default();
        for line in status.lines() {
            let Some((name, values)) = line.split_once(':') else {
                continue;
            };
            let mut values = values.split_ascii_whitespace();
            match name {
                // Real, effective, saved, and of the file system.
                "Uid" => standing.uid = number(values.nth(1)),
                "Gid" => standing.gids.insert(0, number(values.nth(1))),
                "Groups" => standing.gids.extend(values.map(|gid| number(Some(gid)))),
                "CapEff" => {
                    let mask = values
                        .next()
                        .map(|mask| u64::from_str_radix(mask, 16).unwrap_or_default());
                    standing.capabilities = mask.unwrap_or_default();
                }
                "NoNewPrivs" => standing.no_new_privileges = number(values.next()) != 0,
                "Seccomp" => standing.is_filtered = number(values.next()) != 0,
                _ => {}
            }
        }
        let mut seen = Vec::new();
        standing.gids.retain(|gid| {
            let is_new = !seen.contains(gid);
            seen.push(*gid);
            is_new
        });
        standing
    }
}

fn number(text: Option<&str>) -> u32 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn describe(
    standing: &Standing,
    user: impl Fn(u32) -> Option<String>,
    group: impl Fn(u32) -> Option<String>,
    landlock: Option<&Landlock>,
) -> String {
    let uid = standing.uid;
    let user = user(uid).map_or_else(
        || format!("uid {uid}"),
        |name| format!("{name} (uid {uid})"),
    );
    // One that no database knows has a number only.
    let groups = standing.gids.iter();
    let groups: Vec<String> = groups
        .map(|&gid| group(gid).unwrap_or_else(|| gid.to_string()))
        .collect();
    let landlock = landlock.map_or_else(
        || "no".into(),
        |landlock| {
            let tcp = if landlock.abi >= ABI_WITH_TCP {
                ", no TCP connections to others"
            } else {
                ""
            };
            format!(
                "ABI {}, makes files in {}{tcp}",
                landlock.abi,
                landlock.places()
            )
        },
    );
    let remark = if uid == 0 {
        "; running as root: [daemon] user would change that"
    } else {
        ""
    };
    let yes = |is| if is { "yes" } else { "no" };
    format!(
        "user {user}, groups {}; capabilities: {}; no new privileges: {}; system calls filtered: {}; Landlock: {landlock}{remark}",
        groups.join(", "),
        capabilities(standing.capabilities),
        yes(standing.no_new_privileges),
        yes(standing.is_filtered),
    )
}

fn capabilities(mask: u64) -> String {
    /// A process that has more has nearly all.
    const NAMES_MAX: usize = 4;
    let all = caps::all();
    let held = all
        .iter()
        .filter(|capability| mask & capability.bitmask() != 0);
    let mut names: Vec<String> = held
        .map(|capability| {
            let name = capability.to_string().to_ascii_lowercase();
            name.trim_start_matches("cap_").into()
        })
        .collect();
    names.sort();
    match names.len() {
        0 => "none".into(),
        1..=NAMES_MAX => names.join(", "),
        many => format!("{many} of {}", all.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::process::{Command, Stdio};

    use expect_test::expect;

    use super::*;

    fn identity(uid: u32, is_group_asked: bool) -> Identity {
        Identity {
            user: "echod".into(),
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(999),
            is_group_asked,
        }
    }

    #[test]
    fn only_root_becomes_another_user_and_nobody_becomes_who_they_are() {
        let choose = |wanted, uid, gid| choose(wanted, Uid::from_raw(uid), Gid::from_raw(gid));
        assert_eq!(
            choose(identity(999, false), 0, 0),
            Ok(Some(identity(999, false)))
        );
        // The group of the present user is kept, unless another one was asked for.
        assert_eq!(choose(identity(999, false), 999, 5), Ok(None));
        assert_eq!(choose(identity(999, true), 999, 999), Ok(None));
        assert_eq!(choose(identity(0, false), 0, 0), Ok(None));
        let refused = [(999, true, 999), (999, false, 1000), (0, true, 0)];
        let messages: Vec<String> = refused
            .into_iter()
            .map(|(wanted, asked, uid)| choose(identity(wanted, asked), uid, 5).unwrap_err() + "\n")
            .collect();
        expect![[r#"
            [daemon] user "echod": only root can take another group: start it as root, or leave user and group empty
            [daemon] user "echod": only root can take another user: start it as root, or leave user and group empty
            [daemon] user "echod": root stays root, with its own group: leave both empty, or name another user
        "#]]
        .assert_eq(&messages.concat());
    }

    #[test]
    fn programs_run_where_they_run_now_and_files_are_made_beside_the_sockets() {
        let maps = "55d0-55d1 r--p 00000000 fe:00 1 /opt/my echo/sbin/echod\n\
                    55d1-55d2 r-xp 00001000 fe:00 1 /opt/my echo/sbin/echod (deleted)\n\
                    7f00-7f01 r-xp 00001000 fe:00 2 /usr/lib/x86_64-linux-gnu/libc.so.6\n\
                    7f01-7f02 r-xp 00001000 fe:00 3 /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\n\
                    7f02-7f03 r--p 00000000 fe:00 4 /var/cache/data\n\
                    7f03-7f04 rw-p 00000000 00:00 0\n\
                    7ffe-7fff r-xp 00000000 00:00 0 [vdso]\n";
        let made = [
            ("/run/echod/control.sock", false),
            ("/run/echod", true),
            ("/run/echod/a.sock", false),
            ("b.sock", false),
        ];
        let made = made.map(|(path, is_folder)| CreatedPath {
            path: path.into(),
            is_folder,
            keeps_group: false,
        });
        let rules = rules(vec!["/srv/echod".into()], &made, maps);
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            rules.execute,
            paths(&["/opt/my echo/sbin", "/usr/lib/x86_64-linux-gnu"])
        );
        assert_eq!(rules.sockets, paths(&["/run/echod", "."]));
        let read = |path: &str| rules.read.contains(&path.into());
        assert!(read("/srv/echod") && read("/etc"), "{:?}", rules.read);
    }

    #[test]
    fn what_is_in_force_is_said_in_a_line() {
        let status = |ids: &str, rest: &str| {
            Standing::parse(&format!("Name:\techod\nUid:\t{ids}\nGid:\t{ids}\n{rest}\n"))
        };
        let user = |uid| (uid != 7).then(|| format!("user{uid}"));
        let group = |gid| (gid != 7).then(|| format!("group{gid}"));
        let landlock = |abi, folders: &[&str]| Landlock {
            abi,
            folders: folders.iter().map(PathBuf::from).collect(),
        };
        let dropped = status(
            "0 999 999 999",
            "Groups:\t999 4 7 \nCapEff:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2",
        );
        let other = status(
            "7 7 7 7",
            "Groups:\t\nCapEff:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0",
        );
        let root = status("0 0 0 0", "CapEff:\t000001fffeffffff");
        let lines = [
            describe(
                &dropped,
                user,
                group,
                Some(&landlock(7, &["/run/echod", "/srv"])),
            ),
            describe(&other, user, group, Some(&landlock(3, &[]))),
            describe(&root, user, group, None),
        ];
        expect![[r#"
            user user999 (uid 999), groups group999, group4, 7; capabilities: net_bind_service; no new privileges: yes; system calls filtered: yes; Landlock: ABI 7, makes files in /run/echod, /srv, no TCP connections to others
            user uid 7, groups 7; capabilities: none; no new privileges: no; system calls filtered: no; Landlock: ABI 3, makes files in nowhere
            user user0 (uid 0), groups group0; capabilities: 40 of 41; no new privileges: no; system calls filtered: no; Landlock: no; running as root: [daemon] user would change that"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn whoever_is_confined_reads_listens_and_answers_where_allowed_and_does_nothing_else() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let readable = tempfile::tempdir().unwrap();
        for folder in [&inside, &outside, &readable] {
            fs::write(folder.path().join("file"), "text").unwrap();
        }
        let client = UnixDatagram::bind(outside.path().join("client")).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let made = [CreatedPath {
            path: inside.path().join("sock"),
            is_folder: false,
            keeps_group: false,
        }];
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let rules = rules(vec![readable.path().into()], &made, &maps);
        // It holds for the thread, for good.
        let confined = move || {
            let Some(landlock) = confine(rules).unwrap() else {
                eprintln!("Landlock is NOT TESTED: this kernel has none");
                return;
            };
            let denied = |result: io::Result<()>| {
                result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
            };
            let read = |folder: &Path| fs::read(folder.join("file")).map(drop);
            read(readable.path()).unwrap();
            fs::read("/etc/passwd").unwrap();
            assert!(denied(read(inside.path())), "made to write, not to read");
            assert!(denied(read(outside.path())));
            let write = |folder: &Path| fs::write(folder.join("new"), "text");
            assert!(denied(write(readable.path())) && denied(write(inside.path())));
            fs::write("/dev/null", "text").unwrap();

            let (first, second) = (inside.path().join("a"), inside.path().join("b"));
            let socket = UnixListener::bind(&first).unwrap();
            fs::rename(&first, &second).unwrap();
            fs::remove_file(&second).unwrap();
            drop(socket);
            let elsewhere = outside.path().join("sock");
            assert!(landlock.forbids(&elsewhere) && !landlock.forbids(&first));
            assert!(denied(UnixListener::bind(elsewhere).map(drop)));
            assert!(denied(fs::remove_file(outside.path().join("file"))));

            // What an upgrade runs, and what no part of the service needs.
            let run = |program: &Path| {
                let mut command = Command::new(program);
                command.arg("--list").stdin(Stdio::null());
                command.stdout(Stdio::null()).status()
            };
            assert!(run(&std::env::current_exe().unwrap()).unwrap().success());
            assert!(denied(run(Path::new("/bin/ls")).map(drop)));

            // Datagrams are answered wherever they come from.
            let answer = UnixDatagram::unbound().unwrap();
            let to = client.local_addr().unwrap();
            answer
                .send_to(b"answer", to.as_pathname().unwrap())
                .unwrap();
            TcpListener::bind("127.0.0.1:0").unwrap();
            UdpSocket::bind("127.0.0.1:0")
                .unwrap()
                .connect(server.local_addr().unwrap())
                .unwrap();
            if landlock.abi >= ABI_WITH_TCP {
                let address = server.local_addr().unwrap();
                assert!(denied(TcpStream::connect(address).map(drop)));
            }
        };
        std::thread::spawn(confined).join().unwrap();
    }
}
