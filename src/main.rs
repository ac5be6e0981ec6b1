//! The `holdfast` command. What each subcommand does lies in its own file; here are only the ways to end:
//! 0 done, 1 failed or refused, 2 used wrongly, 3 looked at and found damaged, or different.

mod attach;
mod bookmark;
mod branch;
mod cli;
mod client_certificate;
mod cluster_stacks;
mod configuration;
mod create;
mod daemon;
mod demo;
mod extract;
mod inspect;
mod nbd_client;
mod nbd_negotiation;
mod new_cluster;
mod new_file;
mod notify;
mod orchestrator;
mod orchestrator_cluster;
mod output;
mod power;
mod reload;
mod role;
mod sandbox;
mod scrub;
mod signals;
mod status;
mod switchover;
mod table;
mod target;
mod verify;
mod why;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

/// `inspect` has read a replica, and it is damaged; `verify` has found that copies differ.
const EXIT_DAMAGED: u8 = 3;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Create(arguments) => create::run(&arguments),
        Command::Replicator(arguments) => daemon::run(&arguments),
        Command::Orchestrator(arguments) => orchestrator::run(&arguments),
        Command::Cluster(arguments) => orchestrator_cluster::run(&arguments),
        Command::Explain(arguments) => why::explain(&arguments),
        Command::History(arguments) => why::history(&arguments),
        Command::Events(arguments) => why::events(&arguments),
        Command::Switchover(arguments) => switchover::run(&arguments),
        Command::Fence(arguments) => power::fence(&arguments),
        Command::ConfirmOff(arguments) => power::confirm_off(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Promote(arguments) => role::promote(&arguments),
        Command::Demote(arguments) => role::demote(&arguments),
        Command::Shrink(arguments) => role::shrink(&arguments),
        Command::MoveJournal(arguments) => create::move_journal(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Grow(arguments) => role::grow(&arguments),
        Command::Invalidate(arguments) => role::invalidate(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Scrub(arguments) => scrub::run(&arguments),
        Command::Resolve(arguments) => branch::resolve(&arguments),
        Command::Branch(command) => branch::run(&command),
        Command::FreezeApply(arguments) => role::freeze_apply(&arguments),
        Command::Thaw(arguments) => role::thaw(&arguments),
        Command::Bookmark(command) => bookmark::run(&command),
        Command::ClientCertificate(arguments) => client_certificate::run(&arguments),
        Command::OperatorCertificate(arguments) => client_certificate::run_operator(&arguments),
        Command::Attach(arguments) => attach::attach(&arguments),
        Command::Detach(arguments) => attach::detach(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Extract(arguments) => extract::run(&arguments),
        Command::Config(command) => configuration::run(&command),
        Command::Sandbox(arguments) => sandbox::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has gone: as for any filter, that is no failure of ours.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            let is_damage = error.downcast_ref::<inspect::Damaged>().is_some()
                || error.downcast_ref::<verify::Differs>().is_some();
            if is_damage { ExitCode::from(EXIT_DAMAGED) } else { ExitCode::FAILURE }
        }
    }
}
