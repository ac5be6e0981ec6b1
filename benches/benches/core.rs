//! The core alone: requests a second through a Primary and a Secondary without I/O, nanoseconds by stage, and the
//! proof that a request allocates nothing in steady state. Fails if one does.
//!
//! `--requests N` sets the length of a round (default 100000), `--rounds N` their number (default 5).

use std::process::ExitCode;
use std::time::Instant;

use holdfast_benches::counting::{self, Counting};
use holdfast_benches::measure::{Table, median, option, thousands};
use holdfast_benches::pair::{Job, Pair, STAGES, Spent, Stage, Tally};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Blocks that are written and not applied while they are read from memory.
const HELD_BLOCKS: u64 = 32;

struct Case {
    name: &'static str,
    job: Job,
    depth: usize,
}

const CASES: [Case; 8] = [
    Case { name: "write 4 KiB, depth 1", job: Job::Write, depth: 1 },
    Case { name: "write 4 KiB, depth 32", job: Job::Write, depth: 32 },
    Case { name: "write, 1 in 8 a flush, depth 32", job: Job::WriteFlush, depth: 32 },
    Case { name: "trim 4 KiB, depth 32", job: Job::Trim, depth: 32 },
    Case { name: "read 4 KiB from disk, depth 1", job: Job::Read, depth: 1 },
    Case { name: "read 4 KiB from disk, depth 32", job: Job::Read, depth: 32 },
    Case { name: "read 4 KiB from memory, depth 1", job: Job::ReadHeld { blocks: HELD_BLOCKS }, depth: 1 },
    Case { name: "read 4 KiB from memory, depth 32", job: Job::ReadHeld { blocks: HELD_BLOCKS }, depth: 32 },
];

/// What one case came to.
#[derive(Default)]
struct Figures {
    seconds: Vec<f64>,
    tally: Tally,
    stages: [[Spent; STAGES.len()]; 2],
    staged_requests: u64,
}

fn main() -> ExitCode {
    let (requests, rounds): (u64, u32) = (option("requests", 100_000), option("rounds", 5));
    let mut pair = Pair::new();
    // Long enough for the journals to have been around a few times, and for every list to have its size.
    pair.run(Job::Write, 1, 40_000);
    pair.run(Job::Write, 32, 150_000);
    pair.run(Job::WriteFlush, 32, 20_000);
    pair.run(Job::Trim, 32, 50_000);
    pair.run(Job::Write, 32, 50_000);
    pair.run(Job::Read, 32, 20_000);
    pair.check();

    let mut figures: Vec<Figures> = CASES.iter().map(|_| Figures::default()).collect();
    for _ in 0..rounds {
        for (case, figures) in CASES.iter().zip(&mut figures) {
            run_round(&mut pair, case, figures, requests);
        }
        pair.check();
    }
    for (case, figures) in CASES.iter().zip(&mut figures) {
        prepare(&mut pair, case);
        pair.start_timing();
        figures.staged_requests = pair.run(case.job, case.depth, requests).requests;
        figures.stages = pair.stop_timing();
        pair.check();
    }
    print_rates(&figures);
    print_stages(&figures);
    print_allocations(&mut pair, &figures)
}

/// Puts something in memory for the cases that read from there.
fn prepare(pair: &mut Pair, case: &Case) {
    if matches!(case.job, Job::ReadHeld { .. }) {
        pair.run(Job::WriteHeld { blocks: HELD_BLOCKS }, 32, 8 * HELD_BLOCKS);
    }
}

fn run_round(pair: &mut Pair, case: &Case, figures: &mut Figures, requests: u64) {
    prepare(pair, case);
    let began = Instant::now();
    let tally = pair.run(case.job, case.depth, requests);
    let seconds = began.elapsed().as_secs_f64();
    figures.seconds.push(seconds / tally.requests as f64);
    figures.tally = figures.tally.plus(tally);
}

/// Nanoseconds of one node for each request, without the driver's copies.
fn core_ns(stages: &[Spent; STAGES.len()], requests: u64) -> f64 {
    let all: u64 = stages.iter().map(|spent| spent.ns).sum();
    (all - stages[Stage::DriverCopies as usize].ns) as f64 / requests as f64
}

fn print_rates(figures: &[Figures]) {
    let headings = [
        "case",
        "requests/s",
        "events/s",
        "events each",
        "ns each",
        "Primary ns",
        "Secondary ns",
        "copies ns",
    ];
    let mut table = Table::new(&headings);
    for (case, figures) in CASES.iter().zip(figures) {
        let seconds = median(figures.seconds.clone());
        let events = figures.tally.events as f64 / figures.tally.requests as f64;
        let copies: u64 = figures.stages.iter().map(|stages| stages[Stage::DriverCopies as usize].ns).sum();
        table.row(vec![
            case.name.to_owned(),
            thousands(1.0 / seconds),
            thousands(events / seconds),
            format!("{events:.2}"),
            thousands(seconds * 1e9),
            thousands(core_ns(&figures.stages[0], figures.staged_requests)),
            thousands(core_ns(&figures.stages[1], figures.staged_requests)),
            thousands(copies as f64 / figures.staged_requests as f64),
        ]);
    }
    table.print("Both machines and their driver on one thread, protocol C, no I/O (medians; the last three columns timed apart)");
}

fn print_stages(figures: &[Figures]) {
    for (case, figures) in
        CASES.iter().zip(figures).filter(|(case, _)| !matches!(case.job, Job::ReadHeld { .. }))
    {
        let mut table = Table::new(&["stage", "node", "calls per 1000", "ns a call", "ns a request"]);
        for (node, stages) in ["Primary", "Secondary"].iter().zip(&figures.stages) {
            for ((_, name), spent) in STAGES.iter().zip(stages).filter(|(_, spent)| spent.calls > 0) {
                let requests = figures.staged_requests as f64;
                table.row(vec![
                    (*name).to_owned(),
                    (*node).to_owned(),
                    format!("{:.1}", spent.calls as f64 * 1000.0 / requests),
                    thousands(spent.ns as f64 / spent.calls as f64),
                    format!("{:.1}", spent.ns as f64 / requests),
                ]);
            }
        }
        table.print(&format!("By stage: {}", case.name));
    }
}

/// Timed messages that a thousand requests may come with; more would not be rare.
const TIMED_MESSAGES_MAX: u64 = 1;

/// Prints what was allocated. A superblock may be, at a checkpoint, and a message that the clock causes; nothing
/// that a request causes may.
fn print_allocations(pair: &mut Pair, figures: &[Figures]) -> ExitCode {
    let headings =
        ["case", "requests", "by requests", "per 1000", "superblocks", "timed messages", "by these", "each"];
    let mut table = Table::new(&headings);
    let mut is_clean = true;
    for (case, figures) in CASES.iter().zip(figures) {
        let tally = figures.tally;
        let rare = tally.superblocks + tally.timed_messages;
        is_clean &=
            tally.allocations == 0 && tally.timed_messages * 1000 <= tally.requests * TIMED_MESSAGES_MAX;
        table.row(vec![
            case.name.to_owned(),
            thousands(tally.requests as f64),
            tally.allocations.to_string(),
            format!("{:.3}", tally.allocations as f64 * 1000.0 / tally.requests as f64),
            tally.superblocks.to_string(),
            tally.timed_messages.to_string(),
            tally.allocations_rare.to_string(),
            format!("{:.1}", tally.allocations_rare as f64 / rare.max(1) as f64),
        ]);
    }
    table.print("Allocations in steady state");
    let places = counting::trace(100, || {
        for case in &CASES {
            prepare(pair, case);
            pair.run(case.job, case.depth, 20_000);
        }
    });
    println!("Where allocations come from (of the first 100 in another 20,000 requests of each case):");
    for (place, count) in &places {
        println!("  {count:>4}  {place}");
    }
    if is_clean {
        println!("\nok: no request allocates");
        return ExitCode::SUCCESS;
    }
    println!("\nFAILED: requests allocate in steady state");
    ExitCode::FAILURE
}
