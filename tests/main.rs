//! The programs as processes: one test binary, a file for each subject.
//!
//! Every test starts its own daemon in its own folder ([`harness::Daemon`]), waits for `READY=1`
//! and never sleeps for luck.

mod activation;
mod check;
mod completion;
mod control;
mod descriptor_limit;
mod drivers;
mod echo;
mod examples;
mod exit;
mod harness;
mod interop;
mod lifecycle;
mod limits;
mod load;
mod log;
mod memory_limit;
mod operator;
mod packaging;
mod pausing;
mod privileges;
mod probe;
mod readme;
mod reload;
mod smoke;
mod socket_files;
mod start;
mod terminal;
mod tidy;
mod upgrade;
mod varlink;
mod watchdog;
