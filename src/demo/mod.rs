//! `holdfast demo`: a failover that anybody can watch and check. Writers append numbered records to a volume, the
//! primary is killed in the middle of it, the other takes over, every acknowledged record is looked for, the old
//! primary comes back, and in the end both disks are compared byte for byte.

mod disks;
mod ledger;
mod report;
mod story;
mod writer;

use anyhow::{Result, bail};

use crate::cli::DemoArgs;
use crate::output;
use crate::signals::StopFlag;

use report::{Narrator, Outcome};

/// Tells the story and judges it.
pub(crate) fn run(arguments: &DemoArgs) -> Result<()> {
    let stop = StopFlag::install()?;
    let narrator = Narrator::new();
    let outcome = story::tell(arguments, &stop, &narrator);
    narrator.finish();
    let outcome = outcome?;
    if arguments.json {
        // The person who watches gets the summary too; standard output is for the program that reads.
        output::say(&report::summary(&outcome));
        output::print_json(&outcome, false)?;
    } else {
        output::print(&report::summary(&outcome))?;
    }
    judge(&outcome)
}

fn judge(outcome: &Outcome) -> Result<()> {
    if outcome.lost > 0 || outcome.corrupt > 0 {
        bail!("{} acknowledged records are lost, {} are corrupt", outcome.lost, outcome.corrupt);
    }
    if !outcome.replicas_identical {
        bail!("the two disks differ");
    }
    Ok(())
}
