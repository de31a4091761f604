//! The program that continues this process: found where this one was started from, asked whether it
//! can take over, and executed.
//!
//! Knows files, processes and `execve(2)`. Never decides when that happens, and knows nothing of
//! what is handed over.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::unistd::{AccessFlags, access, execve};

use crate::cli::text::cause;
use crate::daemon::{record, signals};

use super::environment;

/// How long the new program may take for each answer.
pub(super) const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// How much of its output is read, in bytes; how long it may keep the output open after its end; and
/// how many lines of errors are passed on.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
const OUTPUT_TIME_MAX: Duration = Duration::from_secs(1);
const ERRORS_MAX: usize = 20;

/// How often to look whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The command line that this process was started with, for the program that continues it.
#[derive(Clone, Debug)]
pub(crate) struct CommandLine {
    program: Program,
    arguments: Vec<OsString>,
}

/// What the first argument says about the program's place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Program {
    /// It is at this path, which may lead through symbolic links.
    Path(PathBuf),
    /// It is the first of this name in the folders of `$PATH`.
    Name(OsString),
}

impl CommandLine {
    /// Of this process.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        Ok(Self {
            program: Program::named(name)?,
            arguments: arguments.collect(),
        })
    }

    /// Asks the program that is there now whether it can take over, and, with `check`, whether it
    /// accepts the configuration that is there now. Returns the file that was asked: a link on the
    /// way to it may change before it is executed.
    ///
    /// # Errors
    /// Why not, in words.
    pub(in crate::daemon) fn ask(&self, check: bool) -> Result<PathBuf, String> {
        let path = self.program.find()?;
        let file = path
            .canonicalize()
            .map_err(|error| format!("{} can't take over: {}", path.display(), cause(&error)))?;
        let path = path.display();
        let question = ["--can-take-over".into(), record::VERSION.to_string().into()];
        let answer = self
            .run(&file, &question)
            .map_err(|error| format!("{path} can't take over: {error}"))?;
        // There are programs that succeed whatever their arguments are.
        if answer.trim_end() != record::YES {
            return Err(format!("{path} can't take over: it is not echod"));
        }
        if check {
            let check = [self.arguments.as_slice(), &["--check".into()], &question].concat();
            self.run(&file, &check)
                .map_err(|error| format!("{path} --check: {error}"))?;
        }
        Ok(file)
    }

    /// Executes this file, with the same command line and this environment. Returns only if that
    /// fails.
    pub(in crate::daemon) fn execute(
        &self,
        file: &Path,
        environment: Vec<OsString>,
    ) -> io::Result<Infallible> {
        let c_string = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
        let c_strings = |texts: Vec<OsString>| -> io::Result<Vec<CString>> {
            texts.into_iter().map(c_string).collect()
        };
        // The successor finds its own successor by the same name.
        let arguments = [&[self.program.name()], self.arguments.as_slice()].concat();
        let file = c_string(file.into())?;
        Ok(execve(
            &file,
            &c_strings(arguments)?,
            &c_strings(environment)?,
        )?)
    }

    /// Runs the program to its end and returns its output.
    fn run(&self, file: &Path, arguments: &[OsString]) -> Result<String, String> {
        let mut command = Command::new(file);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // What the service manager passes is for this process, not for one that only answers.
        for (name, _) in std::env::vars_os() {
            let bytes = name.as_encoded_bytes();
            if environment::is_for_one_program(bytes)
                || bytes == b"NOTIFY_SOCKET"
                || bytes == b"WATCHDOG_USEC"
            {
                command.env_remove(name);
            }
        }
        let child = signals::start_unblocked(|| command.spawn()).map_err(|error| cause(&error))?;
        finish(child)
    }
}

impl Program {
    /// A name without a folder was looked up in `$PATH` by the process that started this one,
    /// unless it is an invented one: then what runs is not found there.
    fn named(name: OsString) -> io::Result<Self> {
        let path = Path::new(&name);
        if path.components().count() > 1 {
            return Ok(Self::Path(std::path::absolute(path)?));
        }
        let named = Self::Name(name);
        let Ok(this) = std::env::current_exe() else {
            // Without /proc, there is nothing to compare with.
            return Ok(named);
        };
        let is_this = |found: &Path| found.canonicalize().is_ok_and(|found| found == this);
        Ok(match named.find() {
            Ok(found) if is_this(&found) => named,
            _ => Self::Path(this),
        })
    }

    /// The first argument of a program that is to be found in the same way.
    fn name(&self) -> OsString {
        match self {
            Self::Path(path) => path.into(),
            Self::Name(name) => name.clone(),
        }
    }

    /// The path of the program now.
    fn find(&self) -> Result<PathBuf, String> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            Self::Name(name) => {
                let folders = std::env::var_os("PATH").unwrap_or_default();
                let found = |is_program: fn(&Path) -> bool| search(name, &folders, is_program);
                let path = found(is_executable).and_then(|path| std::path::absolute(path).ok());
                path.ok_or_else(|| match found(Path::is_file) {
                    Some(path) => format!("{}: not executable", path.display()),
                    None => format!("{}: not found in $PATH", name.display()),
                })
            }
        }
    }
}

/// The first path of a program of this name in these folders (`execvp(3)`).
fn search(name: &OsStr, folders: &OsStr, is_program: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    std::env::split_paths(folders)
        .map(|folder| folder.join(name))
        .find(|path| is_program(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

/// Waits for the end of a program; returns its output, or, if it fails, its errors.
fn finish(mut child: Child) -> Result<String, String> {
    let (output, errors) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let until = Instant::now() + ANSWER_TIME_MAX;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(POLL_INTERVAL),
            Ok(None) => {
                // It may end in this very moment.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", ANSWER_TIME_MAX.as_secs()));
            }
            Err(error) => return Err(cause(&error)),
        }
    };
    // A process that it has left behind may still have the other end open.
    let text = |output: &Receiver<String>| output.recv_timeout(OUTPUT_TIME_MAX).unwrap_or_default();
    if status.success() {
        return Ok(text(&output));
    }
    let errors = text(&errors);
    let lines: Vec<&str> = errors
        .lines()
        .map(|line| line.trim_start_matches("<3>").trim_start_matches("echod: "))
        .filter(|line| !line.is_empty())
        .take(ERRORS_MAX)
        .collect();
    Err(match lines.as_slice() {
        [] => status.to_string(),
        lines => lines.join("; "),
    })
}

/// Reads a stream to its end, in a thread of its own, since the end may never come.
fn read_all(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, text) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            // What came before an error is worth as much.
            let _ = stream.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        }
        // The receiver waits for a limited time only.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_first_program_of_the_path() {
        let found = |programs: &[&str]| {
            let is_program =
                |path: &Path| programs.iter().any(|program| path == Path::new(program));
            search("echod".as_ref(), "/a:/b:/c".as_ref(), is_program)
        };
        assert_eq!(found(&["/b/echod", "/c/echod"]), Some("/b/echod".into()));
        assert_eq!(found(&["/b/other"]), None);
    }

    /// `exec -a NAME`, and service managers, may give any.
    #[test]
    fn an_invented_name_is_not_looked_up() {
        let this = std::env::current_exe().unwrap();
        for name in ["sh", "no-such-program", "-echod", ""] {
            let program = Program::named(name.into()).unwrap();
            assert_eq!(program, Program::Path(this.clone()), "{name:?}");
        }
    }

    #[test]
    fn a_path_is_kept_with_the_links_in_it() {
        let program = Program::named("/srv/current/echod".into()).unwrap();
        assert_eq!(program.find(), Ok("/srv/current/echod".into()));
    }
}
