//! The pool of workers: started, spoken to, ended.
//!
//! A worker that fails takes the process down with it: half a service that looks whole is worse
//! than one that is restarted.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cli::exit::{Exit, Failure};
use crate::cli::text::{cause, counted};
use crate::config::{self, DriverChoice};
use crate::driver::epoll::Epoll;
use crate::driver::region::ensure_room;
use crate::driver::uring::Uring;
use crate::driver::{Driver, Waker};
use crate::protocol::schema::Diagnostic;
use crate::sys::process;
use crate::worker::Worker;
use crate::worker::mailbox::{Command, Mailbox, Report};

use super::drivers::{self, Kind};

/// See the module.
#[derive(Debug)]
pub(super) struct Workers {
    driver: Kind,
    handles: Vec<Handle>,
    reports: Receiver<Report<OwnedFd>>,
    control: Waker,
}

#[derive(Debug)]
struct Handle {
    commands: Sender<Command<OwnedFd>>,
    waker: Waker,
    thread: JoinHandle<()>,
}

/// Why a pool could not be started.
#[derive(Debug)]
enum StartError {
    /// One of the threads got no driver.
    Driver(io::Error),
    /// All else.
    Thread(io::Error),
}

/// Why the program does not even begin.
pub(super) fn no_room(error: &io::Error) -> Failure {
    Failure::new(format!(
        "no memory to start ({}): raise LimitAS= or MemoryMax= in the unit, or \"ulimit -v\"",
        cause(error)
    ))
}

/// Why there are no workers, and what to do about it.
fn failed(error: &io::Error) -> (Exit, Diagnostic) {
    let message = match error.raw_os_error() {
        // Memory is mapped, and of it only what is used counts; but a limit of the address space
        // counts all of it.
        Some(libc::ENOMEM) => format!(
            "workers: no memory for the buffers ({}): raise LimitAS= or MemoryMax= in the unit, or \
             \"ulimit -v\", or lower [daemon] workers",
            cause(error)
        ),
        // pthread_create(3) does not tell the two apart.
        Some(libc::EAGAIN) => format!(
            "workers: no memory for the stack of a thread, or too many threads ({}): raise LimitAS= \
             or TasksMax= in the unit, \"ulimit -v\" or \"ulimit -u\", or lower [daemon] workers",
            cause(error)
        ),
        _ => format!("workers: {}", cause(error)),
    };
    (Exit::Failed, Diagnostic::general(message))
}

/// The stack of a worker's thread, in bytes.
const STACK_BYTES: usize = 2 << 20;

/// Starts the thread of a worker, and waits until it is ready to serve.
fn start_thread(
    index: usize,
    run: impl FnOnce() + Send + 'static,
    driver: &Receiver<io::Result<Waker>>,
) -> Result<(JoinHandle<()>, Waker), StartError> {
    ensure_room(STACK_BYTES).map_err(StartError::Thread)?;
    let thread = std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(StartError::Thread)?;
    let made = driver
        .recv()
        .map_err(|error| StartError::Thread(io::Error::other(error)))?;
    Ok((thread, made.map_err(StartError::Driver)?))
}

/// How many workers are configured, or as many as there are processors for this process, by affinity
/// and cgroup quota.
pub(super) fn count(config: &config::Daemon) -> usize {
    config.workers.map_or_else(available_cpus, usize::from)
}

/// The processors for this process.
fn available_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Workers {
    /// Starts `count` workers, with the driver that is configured, or the best that there is for all.
    ///
    /// # Errors
    /// What is wrong, and what to do about it, with the status to end with.
    pub(super) fn start(count: usize, config: &config::Daemon) -> Result<Self, (Exit, Diagnostic)> {
        let busy_poll = config.busy_poll.unwrap_or_default();
        if config.driver != DriverChoice::Epoll {
            match Self::start_on(Kind::IoUring, count, busy_poll, Uring::new) {
                Ok(workers) => return Ok(workers),
                Err(StartError::Driver(error)) if config.driver == DriverChoice::IoUring => {
                    return Err(drivers::refused(&error));
                }
                Err(StartError::Driver(error)) => log::info!("{}", drivers::replaced(&error)),
                Err(StartError::Thread(error)) => return Err(failed(&error)),
            }
        }
        Self::start_on(Kind::Epoll, count, busy_poll, Epoll::new).map_err(|error| {
            let (StartError::Driver(error) | StartError::Thread(error)) = error;
            failed(&error)
        })
    }

    /// Starts `count` workers, each with a processor of its own if there are several, or none at all.
    fn start_on<D: Driver<Socket = OwnedFd> + 'static>(
        driver: Kind,
        count: usize,
        busy_poll: Duration,
        new: fn() -> io::Result<D>,
    ) -> Result<Self, StartError> {
        let control = Waker::new().map_err(StartError::Thread)?;
        let (report_sender, reports) = channel();
        let cpus = process::allowed_cpus();
        let mut workers = Self {
            driver,
            handles: Vec::with_capacity(count),
            reports,
            control: control.clone(),
        };
        for index in 0..count {
            let cpu = (cpus.len() > 1 && count > 1).then(|| cpus[index % cpus.len()]);
            let (commands, command_receiver) = channel();
            let mailbox = Mailbox {
                commands: command_receiver,
                reports: report_sender.clone(),
                control: control.clone(),
            };
            let (waker_sender, waker_receiver) = channel();
            let run = move || {
                if let Some(cpu) = cpu
                    && let Err(error) = process::pin_to_cpu(cpu)
                {
                    log::debug!("worker {index}: not kept on CPU {cpu}: {}", cause(&error));
                }
                // A driver belongs to the thread that uses it, so it is made there.
                match new() {
                    Ok(driver) => {
                        let waker = driver.waker();
                        let worker = Worker::new(index, count, busy_poll, driver, mailbox);
                        // The starter waits for it, and needs memory itself when it continues.
                        let _ = waker_sender.send(Ok(waker));
                        serve(index, worker);
                    }
                    Err(error) => _ = waker_sender.send(Err(error)),
                }
            };
            match start_thread(index, run, &waker_receiver) {
                Ok((thread, waker)) => workers.handles.push(Handle {
                    commands,
                    waker,
                    thread,
                }),
                // Those there are have nothing yet.
                Err(error) => {
                    workers.stop();
                    return Err(error);
                }
            }
        }
        Ok(workers)
    }

    /// The way to the kernel that all of them take.
    pub(super) fn driver(&self) -> Kind {
        self.driver
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.handles.len()
    }

    /// What there is to say about workers that spin.
    pub(super) fn busy_poll_warning(&self, config: &config::Daemon) -> Option<String> {
        let (workers, cpus) = (self.count(), available_cpus());
        let spins = config.busy_poll.is_some() && workers > cpus;
        spins.then(|| {
            format!(
                "[daemon] busy-poll: {workers} workers spin on {} and take them from each other: \
                 write workers = {cpus} or less, or busy-poll = \"off\"",
                counted(cpus as u64, "CPU")
            )
        })
    }

    /// All their wakers, for code that has to wake them from elsewhere.
    pub(super) fn wakers(&self) -> Vec<Waker> {
        self.handles
            .iter()
            .map(|handle| handle.waker.clone())
            .collect()
    }

    /// Gives one of them a command.
    pub(super) fn command(&self, worker: usize, command: Command<OwnedFd>) {
        let handle = &self.handles[worker];
        // A worker ends only with the process, or when told to.
        if handle.commands.send(command).is_ok() {
            handle.waker.wake();
        }
    }

    /// Gives each of them a command.
    pub(super) fn command_all(&self, command: impl Fn(usize) -> Command<OwnedFd>) {
        for worker in 0..self.handles.len() {
            self.command(worker, command(worker));
        }
    }

    /// Readable when there are reports.
    pub(super) fn control(&self) -> &Waker {
        &self.control
    }

    /// The reports that have arrived.
    pub(super) fn take_reports(&self) -> Vec<Report<OwnedFd>> {
        self.control.drain();
        self.reports.try_iter().collect()
    }

    /// Ends them all, closing every socket that they have.
    pub(super) fn stop(self) {
        self.command_all(|_| Command::Stop);
        for handle in self.handles {
            // One that panicked has ended the process already.
            let _ = handle.thread.join();
        }
    }
}

fn serve<D: Driver>(index: usize, mut worker: Worker<D>) {
    let failure = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("worker {index}: waiting for the kernel: {}", cause(&error)),
        Err(_) => format!("worker {index}: panicked, which is a bug in echod; the service ends"),
    };
    log::error!("{failure}");
    log::logger().flush();
    std::process::exit(Exit::Failed as i32);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command as Program;

    use log::LevelFilter;

    use super::*;
    use crate::worker::mailbox::{ListenerId, SocketId, SocketKind};

    /// Set in the process that is to be taken down.
    const VICTIM: &str = "ECHOD_TEST_WORKER_PANICS";

    /// The process is this test again, for it does not survive.
    #[test]
    fn a_worker_that_panics_takes_the_process_down_and_says_so() {
        if std::env::var_os(VICTIM).is_some() {
            provoke_a_panic();
        }
        let output = Program::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "daemon::workers::tests::a_worker_that_panics_takes_the_process_down_and_says_so",
            ])
            .env(VICTIM, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("echod: thread worker-1 panicked at src/"),
            "{said}"
        );
        assert!(
            said.contains("echod: worker 1: panicked, which is a bug in echod; the service ends"),
            "{said}"
        );
    }

    /// Breaks a promise that the control plane gives its workers.
    fn provoke_a_panic() {
        super::super::log::start(&config::Log {
            target: config::LogTarget::Stderr,
            level: LevelFilter::Info,
            facility: "daemon".into(),
            connections: false,
        })
        .unwrap();
        let workers = Workers::start(2, &config::Config::embedded().daemon).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        workers.command(
            1,
            Command::AddSocket {
                listener: ListenerId(7),
                id: SocketId(7),
                kind: SocketKind::Datagram,
                socket: socket.into(),
            },
        );
        // Should the panic go unnoticed, the test fails for the exit code.
        std::thread::sleep(Duration::from_secs(20));
        std::process::exit(0);
    }
}
