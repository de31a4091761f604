//! echod-bench: measures echod against its peers, and writes what it finds.
//!
//! The modules in reading order: what is measured ([`scenario`]), which servers are compared ([`contender`]),
//! how ([`measure`]), with what ([`load`]), and what is made of it ([`report`], [`svg`]). [`client`] measures echoprobe. It is one
//! program: it starts itself for each peer and each sample.

mod args;
mod client;
mod contender;
mod launch;
mod load;
mod machine;
mod measure;
mod micro;
mod peers;
mod process;
mod report;
mod scenario;
mod server;
mod statistics;
mod svg;
mod syscalls;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use args::{Args, Command, Options};
use contender::CONTENDERS;
use scenario::SCENARIOS;
use server::Site;

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echod-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    match args.command {
        None => compare(&args.options),
        Some(Command::List) => {
            list();
            Ok(())
        }
        Some(Command::Micro) => {
            micro::main();
            Ok(())
        }
        Some(Command::Syscalls(options)) => {
            let mut plan = options.plan()?;
            let site = Site::new(server::build("echod")?, options.server_cpu)?;
            measure::leave_out_who_does_not_start(&mut plan, &site)?;
            syscalls::run(&plan, &site)
        }
        Some(Command::Client(options)) => {
            let site = Site::new(server::build("echod")?, options.server_cpu)?;
            client::run(&options.plan()?, &site, &server::build("echoprobe")?)
        }
        Some(Command::Serve { peer, address }) => peers::serve(peer, address),
        Some(Command::Load { request }) => load::main(&request),
        Some(Command::Launch { cpu, command }) => launch::main(cpu, &command),
    }
}

fn compare(options: &Options) -> Result<()> {
    let mut plan = options.plan()?;
    let site = Site::new(server::build("echod")?, options.server_cpu)?;
    measure::leave_out_who_does_not_start(&mut plan, &site)?;
    let outcomes = measure::run(&plan, &site)?;
    print!("{}", report::terminal(&outcomes));
    if options.write {
        let facts = machine::facts(&site.echod, &plan.contenders);
        let page = report::page(&plan, &outcomes, &facts);
        write("docs/performance.md", &page)?;
        let place = facts
            .iter()
            .filter(|(name, _)| ["date", "processor", "kernel"].contains(&name.as_str()));
        let place: Vec<&str> = place.map(|(_, value)| value.as_str()).collect();
        write(
            "docs/performance.svg",
            &svg::picture(&outcomes, &place.join(", ")),
        )?;
    }
    Ok(())
}

/// Writes a file of the repository.
fn write(name: &str, text: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    println!("wrote {name}");
    Ok(())
}

fn list() {
    println!("scenarios:");
    for scenario in SCENARIOS {
        println!("  {:<20} {}", scenario.name, scenario.about);
    }
    println!("servers:");
    for contender in CONTENDERS {
        println!("  {:<20} {}", contender.name, contender.about);
    }
}
