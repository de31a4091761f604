//! Where the configuration comes from, and reading it from there, at a start and at each reload.
//!
//! Reads regular files only, so that it never waits for a FIFO or a device. A file that can't be read
//! is an error: only at a start does no file at all mean the built-in configuration, since nothing
//! that is in force is lost by it then.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::cli::exit::Exit;
use crate::cli::text::cause;
use crate::config::{DEFAULT_FILE, EMBEDDED, Source, is_drop_in, quote};
use crate::protocol::schema::{Diagnostic, OnDisk, bounded};

use super::args::Args;

/// What messages and `GetStatus` call the built-in configuration.
const BUILT_IN: &str = "built-in";

/// Of all files together. A larger one was not meant, and judging it would take long.
const BYTES_MAX: u64 = 1024 * 1024;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// The default file and its drop-ins, or the built-in configuration where there are none.
    Default {
        /// `--reply`, for the built-in one.
        reply: Option<String>,
    },
    /// `--config`: this file, which must be there, and its drop-ins.
    File(PathBuf),
    /// `--listen`, and `--reply`.
    Arguments(Vec<Source>),
}

/// What became of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Compared with what is in force.
    pub on_disk: OnDisk,
    /// Whether they are what the last reload rejected; none if it did not reject any.
    pub is_rejected: Option<bool>,
}

/// What was read.
#[derive(Clone, Debug)]
pub(crate) struct Texts {
    /// The texts in order; later ones override earlier ones.
    pub sources: Vec<Source>,
    /// Whether it is the built-in configuration, because there is no other.
    pub built_in: bool,
}

impl Texts {
    /// The names of the texts, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = self.sources.iter().map(|source| source.name.clone());
        names.collect()
    }

    /// A number that other texts do not have, as far as can be (FNV-1a). It is written down for a
    /// successor, so it is always computed in this way.
    pub(crate) fn fingerprint(&self) -> u64 {
        let parts = self
            .sources
            .iter()
            .flat_map(|source| [&source.name, &source.text]);
        hash(parts.map(String::as_str))
    }
}

/// The fingerprint of the texts, or of the errors where they could not be read.
pub(crate) fn fingerprint(read: &Result<Texts, Vec<Diagnostic>>) -> u64 {
    match read {
        Ok(texts) => texts.fingerprint(),
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            hash(errors.iter().map(String::as_str))
        }
    }
}

fn hash<'a>(parts: impl Iterator<Item = &'a str>) -> u64 {
    // No UTF-8 text has this byte, so that it can end each.
    let bytes = parts.flat_map(|part| part.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Origin {
    /// What the command line says.
    ///
    /// # Errors
    /// A message that names the argument.
    pub(crate) fn of(args: &Args) -> Result<Self, String> {
        if let Some(file) = &args.config {
            return Ok(Self::File(file.clone()));
        }
        if args.listen.is_empty() {
            return Ok(Self::Default {
                reply: args.reply.clone(),
            });
        }
        let mut sources: Vec<Source> = args.reply.iter().map(|reply| reply_source(reply)).collect();
        let mut names = Vec::new();
        for url in &args.listen {
            let (protocol, address) = split_url(url)?;
            // A name for each listener, since the URLs have none.
            let count = names.iter().filter(|name| **name == protocol).count();
            names.push(protocol);
            let name = if count == 0 {
                protocol.to_owned()
            } else {
                format!("{protocol}-{}", count + 1)
            };
            let address = quote(address);
            let text =
                format!("[listener.{name}]\nprotocol = \"{protocol}\"\naddress = {address}\n");
            sources.push(Source {
                name: format!("--listen {url}"),
                text,
            });
        }
        Ok(Self::Arguments(sources))
    }

    /// With which status a start ends that is refused for its configuration.
    pub(crate) fn rejection(&self) -> Exit {
        match self {
            Self::Arguments(_) => Exit::Usage,
            Self::Default { .. } | Self::File(_) => Exit::Configuration,
        }
    }

    /// The names of texts that were read, with absolute paths where they are those of files.
    pub(crate) fn absolute(&self, names: &[String]) -> Vec<String> {
        let absolute = |name: &String| match (self, std::path::absolute(name)) {
            (Self::File(_), Ok(path)) => path.display().to_string(),
            // The default file is absolute already; other names are no paths.
            _ => name.clone(),
        };
        names.iter().map(absolute).collect()
    }

    /// What became of the files since the texts of these names and this fingerprint were read, and
    /// others were `rejected`; none where there are no files, or it is not known what was read. It
    /// takes as long as the disk.
    pub(crate) fn compare(
        &self,
        names: &[String],
        in_force: Option<u64>,
        rejected: Option<u64>,
    ) -> Option<Comparison> {
        if matches!(self, Self::Arguments(_)) {
            return None;
        }
        let read = self.read(names);
        let present = fingerprint(&read);
        let on_disk = match read {
            Ok(_) if present == in_force? => OnDisk::Same,
            Ok(_) => OnDisk::Changed,
            // Then nothing was found out.
            Err(_) if are_descriptors_used_up() => return None,
            Err(_) if names.iter().any(|name| is_absent(Path::new(name))) => OnDisk::Missing,
            Err(_) => OnDisk::Unreadable,
        };
        Some(Comparison {
            on_disk,
            is_rejected: rejected.map(|rejected| rejected == present),
        })
    }

    /// Whether a configuration file was read.
    pub(super) fn has_file(&self, texts: &Texts) -> bool {
        !texts.built_in && !matches!(self, Self::Arguments(_))
    }

    /// Where a reload will look for it, and where what was read really is.
    pub(super) fn folders(&self, texts: &Texts) -> Vec<PathBuf> {
        let file = match self {
            Self::File(file) => Some(file.as_path()),
            Self::Default { .. } => Some(Path::new(DEFAULT_FILE)),
            Self::Arguments(_) => None,
        };
        let named = file.into_iter().flat_map(|file| {
            // A path without a folder is of the present one.
            let file = Path::new(".").join(file);
            [file.with_file_name(""), file.with_file_name("echod.d")]
        });
        // Names that are no paths lead nowhere.
        let read = texts.sources.iter();
        let real = read.filter_map(|source| fs::canonicalize(&source.name).ok());
        let real = real.filter_map(|file| Some(file.parent()?.into()));
        named.chain(real).collect()
    }

    /// Reads it. `in_force` has the names of the texts that the present configuration came from, and
    /// is empty at a first start. What was read once has to be there again: it may be missing for a
    /// moment only, and to serve something else in that moment would close every listener.
    ///
    /// # Errors
    /// Everything that could not be read.
    pub(crate) fn read(&self, in_force: &[String]) -> Result<Texts, Vec<Diagnostic>> {
        match self {
            Self::Arguments(sources) => Ok(Texts {
                sources: sources.clone(),
                built_in: false,
            }),
            Self::File(file) => Ok(Texts {
                sources: read_with_drop_ins(file, true)?,
                built_in: false,
            }),
            Self::Default { reply } => {
                let mut texts = read_default(Path::new(DEFAULT_FILE), in_force)?;
                let reply = reply.iter().map(|reply| reply_source(reply));
                texts.sources.splice(..0, reply);
                Ok(texts)
            }
        }
    }
}

fn reply_source(reply: &str) -> Source {
    Source {
        name: "--reply".into(),
        text: format!("[defaults]\nreply = {}\n", quote(reply)),
    }
}

fn split_url(url: &str) -> Result<(&'static str, &str), String> {
    const SCHEMES: [(&str, &str); 4] = [
        ("tcp://", "tcp"),
        ("udp://", "udp"),
        ("unix://", "unix-stream"),
        ("unixgram://", "unix-datagram"),
    ];
    let found = SCHEMES
        .iter()
        .find_map(|(scheme, protocol)| Some((*protocol, url.strip_prefix(scheme)?)));
    found.ok_or_else(|| {
        format!("--listen \"{url}\": not a URL of a listener: write tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH")
    })
}

/// The default file and its drop-ins, or the built-in configuration.
fn read_default(file: &Path, in_force: &[String]) -> Result<Texts, Vec<Diagnostic>> {
    let was_read = |name: &str| in_force.iter().any(|text| text == name);
    let required = was_read(&file.display().to_string());
    let mut sources = read_with_drop_ins(file, required)?;
    let built_in = sources.is_empty();
    if built_in {
        if !in_force.is_empty() && !was_read(BUILT_IN) {
            return Err(vec![diagnostic(file, &ErrorKind::NotFound.into())]);
        }
        sources.push(Source {
            name: BUILT_IN.into(),
            text: EMBEDDED.into(),
        });
    }
    Ok(Texts { sources, built_in })
}

/// The file, if it is there or has to be, and the drop-ins beside it, in name order.
fn read_with_drop_ins(file: &Path, required: bool) -> Result<Vec<Source>, Vec<Diagnostic>> {
    let mut paths = Vec::new();
    let mut problems = Vec::new();
    if required || !is_absent(file) {
        paths.push(file.to_path_buf());
    }
    let folder = file.with_file_name("echod.d");
    match drop_ins(&folder) {
        Ok(drop_ins) => paths.extend(drop_ins),
        Err(_) if is_absent(&folder) => {}
        Err(error) => problems.push(diagnostic(&folder, &error)),
    }
    let mut sources = Vec::new();
    let mut left = BYTES_MAX;
    for path in paths {
        match read_text(&path, left) {
            Ok(text) => {
                left -= text.len() as u64;
                sources.push(Source {
                    name: path.display().to_string(),
                    text,
                });
            }
            Err(error) => {
                problems.push(diagnostic(&path, &error));
                // What follows would only repeat it.
                if error.kind() == ErrorKind::FileTooLarge {
                    break;
                }
            }
        }
    }
    if problems.is_empty() {
        Ok(sources)
    } else {
        Err(bounded(problems, 0, "error"))
    }
}

/// Whether nothing can be opened, whatever it is.
fn are_descriptors_used_up() -> bool {
    let opened = fs::File::open("/dev/null").map_err(|error| error.raw_os_error());
    matches!(opened, Err(Some(errno)) if [Errno::EMFILE as i32, Errno::ENFILE as i32].contains(&errno))
}

/// Whether there is nothing of this name. A symbolic link to nothing is something.
fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// What the shell's `*.toml` matches: not the hidden files that editors leave beside one.
fn drop_ins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if is_drop_in(&name) {
            paths.push(folder.join(name));
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a regular file of at most `left` bytes.
fn read_text(path: &Path, left: u64) -> io::Result<String> {
    // To open a device may do something, such as to start a watchdog.
    must_be_file(&fs::metadata(path)?)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)?;
    // It may have been replaced since then, by a FIFO for example: open(2) did not wait for it, and
    // read(2) is not tried.
    must_be_file(&file.metadata()?)?;
    let mut text = String::new();
    let read = file.take(left + 1).read_to_string(&mut text)?;
    if read as u64 > left {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

fn must_be_file(metadata: &fs::Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(io::Error::other(format!("{what}, not a file")))
}

/// What is wrong with a file that is read because it was named, or lies among others.
fn diagnostic(path: &Path, error: &io::Error) -> Diagnostic {
    let is_drop_in = path
        .parent()
        .is_some_and(|folder| folder.ends_with("echod.d"));
    let message = match error.kind() {
        ErrorKind::NotFound if path.is_symlink() => {
            "a symbolic link to a file that does not exist: correct it, or remove it".to_owned()
        }
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::PermissionDenied => {
            "permission denied: the daemon's user must be able to read it; \
             where [daemon] user is set, a link to another folder needs a restart"
                .to_owned()
        }
        ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        ErrorKind::FileTooLarge => {
            "the configuration is larger than 1 MiB in all: is this the right file?".to_owned()
        }
        // The words of the system are enough.
        _ if error.raw_os_error().is_some() => cause(error),
        _ if is_drop_in => format!("{error}: remove it, or give it another name"),
        _ => format!("{error}: name another with --config"),
    };
    Diagnostic {
        file: path.display().to_string(),
        ..Diagnostic::general(message)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    /// The names of what is read, or the errors, without the folder.
    fn read(folder: &Path, in_force: &[&str]) -> String {
        let file = folder.join("echod.toml");
        let in_force: Vec<String> = in_force
            .iter()
            .map(|name| match *name {
                BUILT_IN => BUILT_IN.into(),
                name => folder.join(name).display().to_string(),
            })
            .collect();
        let lines: Vec<String> = match read_default(&file, &in_force) {
            Ok(texts) => texts.sources.into_iter().map(|text| text.name).collect(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
        let folder = format!("{}/", folder.display());
        lines.join("\n").replace(&folder, "")
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("echod.d")).unwrap();
        folder
    }

    #[test]
    fn without_a_file_a_start_takes_the_built_in_configuration_and_a_reload_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path(), &[]), "built-in");
        assert_eq!(read(folder.path(), &[BUILT_IN]), "built-in");
        fs::write(folder.path().join("echod.toml"), "").unwrap();
        assert_eq!(read(folder.path(), &[BUILT_IN]), "echod.toml");
    }

    #[test]
    fn a_file_that_was_read_must_be_there_again() {
        let folder = folder();
        let path = folder.path();
        assert_eq!(read(path, &["echod.toml"]), "echod.toml: no such file");
        fs::write(path.join("echod.d/10.toml"), "").unwrap();
        assert_eq!(
            read(path, &["echod.toml", "echod.d/10.toml"]),
            "echod.toml: no such file"
        );
        // Drop-ins come and go; but they are not replaced by the built-in configuration either.
        assert_eq!(read(path, &["echod.d/10.toml"]), "echod.d/10.toml");
        fs::remove_file(path.join("echod.d/10.toml")).unwrap();
        assert_eq!(read(path, &["echod.d/10.toml"]), "echod.toml: no such file");
    }

    #[test]
    fn a_link_to_nothing_is_an_error_at_a_start_too() {
        let folder = tempfile::tempdir().unwrap();
        symlink("release-1/echod.toml", folder.path().join("echod.toml")).unwrap();
        symlink("release-1/echod.d", folder.path().join("echod.d")).unwrap();
        let link = "a symbolic link to a file that does not exist: correct it, or remove it";
        assert_eq!(
            read(folder.path(), &[]),
            format!("echod.d: {link}\nechod.toml: {link}")
        );
    }

    #[test]
    fn hidden_files_and_other_names_are_no_drop_ins() {
        let folder = folder();
        let drop_ins = folder.path().join("echod.d");
        for name in [
            "20-b.toml",
            "10-a.toml",
            ".toml",
            ".hidden.toml",
            "README",
            "a.toml~",
        ] {
            fs::write(drop_ins.join(name), "").unwrap();
        }
        symlink("user@host.1234:17", drop_ins.join(".#10-a.toml")).unwrap();
        assert_eq!(
            read(folder.path(), &[]),
            "echod.d/10-a.toml\nechod.d/20-b.toml"
        );
    }

    #[test]
    fn what_is_no_file_is_an_error_with_its_name() {
        let folder = folder();
        let path = |name: &str| folder.path().join("echod.d").join(name);
        mkfifo(&path("1.toml"), Mode::S_IRWXU).unwrap();
        fs::create_dir(path("2.toml")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("3.toml")).unwrap();
        symlink("/dev/zero", path("4.toml")).unwrap();
        symlink("1.toml", path("5.toml")).unwrap();
        symlink("nowhere", path("6.toml")).unwrap();
        let rest = "not a file: remove it, or give it another name";
        assert_eq!(
            read(folder.path(), &[]),
            format!(
                "echod.d/1.toml: a FIFO, {rest}\n\
                 echod.d/2.toml: a directory, {rest}\n\
                 echod.d/3.toml: a socket, {rest}\n\
                 echod.d/4.toml: a device, {rest}\n\
                 echod.d/5.toml: a FIFO, {rest}\n\
                 echod.d/6.toml: a symbolic link to a file that does not exist: correct it, or remove it"
            )
        );
    }

    #[test]
    fn all_files_together_are_bounded() {
        let folder = folder();
        let half = " ".repeat(BYTES_MAX as usize / 2);
        for name in ["1.toml", "2.toml"] {
            fs::write(folder.path().join("echod.d").join(name), &half).unwrap();
        }
        assert_eq!(read(folder.path(), &[]), "echod.d/1.toml\nechod.d/2.toml");
        for name in ["3.toml", "4.toml"] {
            fs::write(folder.path().join("echod.d").join(name), "#").unwrap();
        }
        assert_eq!(
            read(folder.path(), &[]),
            "echod.d/3.toml: the configuration is larger than 1 MiB in all: is this the right file?"
        );
    }
}
