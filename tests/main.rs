//! The programs as processes: one test binary, a file for each subject.
//!
//! Every test starts its own daemon in its own folder ([`harness::Daemon`]), waits for `READY=1`
//! and never sleeps for luck.

mod activation;
mod check;
mod control;
mod descriptors;
mod drivers;
mod echo;
mod exit;
mod harness;
mod interop;
mod life;
mod limits;
mod load;
mod log;
mod packaging;
mod privileges;
mod probe;
mod readme;
mod reload;
mod seeds;
mod smoke;
mod socket_files;
mod sockets;
mod start;
mod tidy;
mod upgrade;
mod varlink;
mod watchdog;
