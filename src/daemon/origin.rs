//! Where the configuration comes from, and reading it from there, at start and at each reload.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Diagnostic, EMBEDDED, Source, quote};

use super::args::Args;

const DEFAULT_FILE: &str = "/etc/echod/echod.toml";

/// No sane configuration is larger; whatever is, was not meant.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// See the module.
#[derive(Clone, Debug)]
pub enum Origin {
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

/// What was read.
#[derive(Debug)]
pub struct Texts {
    /// The texts in order; later ones override earlier ones.
    pub sources: Vec<Source>,
    /// Whether it is the built-in configuration, for want of any other.
    pub built_in: bool,
}

impl Origin {
    /// What the command line says.
    ///
    /// # Errors
    /// A message for whoever typed it.
    pub fn of(args: &Args) -> Result<Self, String> {
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

    /// Reads it.
    ///
    /// # Errors
    /// Everything that could not be read.
    pub fn read(&self) -> Result<Texts, Vec<Diagnostic>> {
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
                let mut files = read_with_drop_ins(Path::new(DEFAULT_FILE), false)?;
                let built_in = files.is_empty();
                if built_in {
                    files.push(Source {
                        name: "built-in".into(),
                        text: EMBEDDED.into(),
                    });
                }
                let reply = reply.as_deref().map(reply_source);
                Ok(Texts {
                    sources: reply.into_iter().chain(files).collect(),
                    built_in,
                })
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

/// The file, if it is there or has to be, and the drop-ins beside it, in name order.
fn read_with_drop_ins(file: &Path, required: bool) -> Result<Vec<Source>, Vec<Diagnostic>> {
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    let mut read = |path: &Path, required: bool| match read_text(path) {
        Ok(text) => sources.push(Source {
            name: path.display().to_string(),
            text,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {}
        Err(error) => problems.push(diagnostic(path, &error)),
    };
    read(file, required);
    let folder = file.with_file_name("echod.d");
    match drop_ins(&folder) {
        Ok(paths) => paths.iter().for_each(|path| read(path, true)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => problems.push(diagnostic(&folder, &error)),
    }
    if problems.is_empty() {
        Ok(sources)
    } else {
        Err(problems)
    }
}

fn drop_ins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_text(path: &Path) -> io::Result<String> {
    use std::io::Read;

    let mut text = String::new();
    let read = fs::File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(
            "larger than 1 MiB: is this the right file?",
        ));
    }
    Ok(text)
}

fn diagnostic(path: &Path, error: &io::Error) -> Diagnostic {
    let message = match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: the daemon's user must be able to read it; \
             where [daemon] user is set, a link to another folder needs a restart"
                .to_owned()
        }
        io::ErrorKind::InvalidData => "not UTF-8 text".to_owned(),
        _ => error.to_string(),
    };
    Diagnostic {
        file: path.display().to_string(),
        line: None,
        column: None,
        key: None,
        message,
    }
}
