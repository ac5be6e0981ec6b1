//! `cargo sim`: runs of the simulated world, by seed. See `docs/simulator.md`.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use holdfast_simulator::exhaust::exhaust;
use holdfast_simulator::plan::{Fault, Plan};
use holdfast_simulator::play::{Failure, keep_panics_quiet, play, shrink};
use holdfast_simulator::run::Outcome;
use holdfast_simulator::whole::Draw;

/// Whole replicas in a simulated world, moved by one seed.
#[derive(Parser)]
struct Options {
    /// Run this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Run these seeds, the last one excluded.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<(u64, u64)>,
    /// Run the seeds of this file: each line begins with one, and says why it is kept.
    #[arg(long, value_name = "FILE")]
    file: Option<std::path::PathBuf>,
    /// Run fresh seeds for so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// Find the smallest run of this seed that still fails.
    #[arg(long, value_name = "SEED")]
    shrink: Option<u64>,
    /// Fail or cut at the n-th I/O of small scenarios, for every n.
    #[arg(long)]
    exhaust: bool,
    /// With --exhaust: fail or cut a second time, so often, in the I/Os that follow.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pairs: u64,
    /// Run the whole stack: orchestrators, consensus, what runs above the volume.
    #[arg(long)]
    whole: bool,
    /// Steps of the safety phase, instead of what the seed says.
    #[arg(long)]
    ops: Option<usize>,
    /// Leave out these kinds of fault.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Go on after a failure, and count.
    #[arg(long)]
    keep_going: bool,
    /// Stop after so many failures.
    #[arg(long, value_name = "N", default_value_t = u64::MAX)]
    enough: u64,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
    /// Append failing seeds to this file.
    #[arg(long, value_name = "FILE")]
    record: Option<std::path::PathBuf>,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("it is written as A..B")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    Ok((number(from)?, number(to)?))
}

/// Sums over many runs.
#[derive(Default)]
struct Sums {
    runs: u64,
    failures: u64,
    rules: BTreeMap<String, u64>,
    total: Outcome,
    /// In how many runs each kind of fault was injected, and each rare thing happened.
    runs_with: BTreeMap<String, u64>,
}

impl Sums {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.total.acknowledged += outcome.acknowledged;
        self.total.reads += outcome.reads;
        self.total.flushes += outcome.flushes;
        self.total.ios += outcome.ios;
        self.total.virtual_ns += outcome.virtual_ns;
        for (fault, count) in &outcome.faults {
            *self.total.faults.entry(*fault).or_default() += count;
            *self.runs_with.entry(fault.name()).or_default() += 1;
        }
        for (mark, count) in &outcome.marks {
            *self.total.marks.entry(mark).or_default() += count;
            *self.runs_with.entry((*mark).to_string()).or_default() += 1;
        }
    }

    fn print(&self, took: Duration) {
        let total = &self.total;
        println!("faults injected (runs with any)");
        for fault in Fault::ALL {
            let count = total.faults.get(&fault).copied().unwrap_or_default();
            println!("  {:<36}{count:>12} {:>8}", fault.name(), self.with(&fault.name()));
        }
        println!("reached (runs with any)");
        for (mark, count) in &total.marks {
            println!("  {mark:<36}{count:>12} {:>8}", self.with(mark));
        }
        let hours = total.virtual_ns as f64 / 3.6e12;
        println!(
            "{} writes acknowledged, {} reads checked, {} flushes, {} I/Os, {hours:.1} h of virtual time",
            total.acknowledged, total.reads, total.flushes, total.ios
        );
        for (rule, count) in &self.rules {
            println!("  broken: {rule} in {count}");
        }
        let per_minute = self.runs as f64 / took.as_secs_f64().max(0.001) * 60.0;
        println!(
            "{} runs, {} failed, {:.1} s, {per_minute:.0} runs a minute",
            self.runs,
            self.failures,
            took.as_secs_f64()
        );
    }

    fn with(&self, what: &str) -> u64 {
        self.runs_with.get(what).copied().unwrap_or_default()
    }
}

fn plan_of(options: &Options, seed: u64) -> Plan {
    let mut plan = if options.whole { Draw::plan(seed) } else { Plan::draw(seed) };
    if let Some(steps) = options.ops {
        plan.steps = steps;
    }
    plan.chances.retain(|fault, _| !options.without.contains(&fault.name()));
    plan
}

fn print_failure(seed: u64, failure: &Failure, lines: usize) {
    println!("seed {seed} failed at {:.6} s of virtual time", failure.virtual_ns as f64 / 1e9);
    println!("  broken: {} ({})", failure.rule, failure.place);
    println!("  {}", failure.text);
    let from = failure.trace.len().saturating_sub(lines);
    for line in &failure.trace[from..] {
        println!("  {line}");
    }
}

/// Runs one seed; returns whether it passed.
fn run_seed(options: &Options, seed: u64, sums: &mut Sums) -> bool {
    let plan = plan_of(options, seed);
    match play(&plan, options.trace) {
        Ok(outcome) => {
            sums.add(&outcome);
            true
        }
        Err(failure) => {
            sums.add(&failure.outcome);
            sums.failures += 1;
            *sums.rules.entry(failure.rule.clone()).or_default() += 1;
            if options.keep_going {
                println!(
                    "seed {seed} failed: {} ({}): {}",
                    failure.rule,
                    failure.place,
                    first_line(&failure.text)
                );
            } else {
                let traced = play(&plan, true).expect_err("a seed fails every time");
                print_failure(seed, &traced, if options.trace { usize::MAX } else { 40 });
                let whole = if options.whole { " --whole" } else { "" };
                println!(
                    "again: cargo sim{whole} --seed {seed} --trace; smaller: cargo sim{whole} --shrink {seed}"
                );
            }
            if let Some(path) = &options.record {
                let line = format!("{seed} {}: {}\n", failure.rule, first_line(&failure.text));
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
                file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file can be written");
            }
            false
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

fn seeds_of(file: &std::path::Path) -> Vec<u64> {
    let text = std::fs::read_to_string(file).expect("the file of seeds can be read");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| line.split_whitespace().next().unwrap().parse().expect("a line begins with a seed"))
        .collect()
}

fn shrink_seed(options: &Options, seed: u64) -> ExitCode {
    let plan = plan_of(options, seed);
    let Err(failure) = play(&plan, false) else {
        println!("seed {seed} does not fail");
        return ExitCode::FAILURE;
    };
    println!("seed {seed}: {}", failure.rule);
    let small = shrink(&plan, &failure.rule, |what| println!("  still fails: {what}"));
    let failure = play(&small, true).expect_err("it still fails");
    println!("{small:#?}");
    print_failure(seed, &failure, 120);
    ExitCode::SUCCESS
}

/// Every I/O of a few small scenarios.
fn exhaust_all(options: &Options) -> ExitCode {
    let (began, mut runs, mut failures) = (Instant::now(), 0, 0);
    let (from, to) = options.seeds.unwrap_or((0, 2));
    for seed in from..to {
        runs += exhaust(seed, options.pairs, |strike, text| {
            failures += 1;
            println!("scenario {seed}, {strike:?}: {}", first_line(text));
        });
    }
    println!("{runs} runs, {failures} failed, {:.1} s", began.elapsed().as_secs_f64());
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let options = Options::parse();
    keep_panics_quiet();
    if let Some(seed) = options.shrink {
        return shrink_seed(&options, seed);
    }
    if options.exhaust {
        return exhaust_all(&options);
    }
    let (began, mut sums) = (Instant::now(), Sums::default());
    let mut seeds: Vec<u64> = options.seed.into_iter().collect();
    seeds.extend(options.file.iter().flat_map(|file| seeds_of(file)));
    seeds.extend(options.seeds.into_iter().flat_map(|(from, to)| from..to));
    let mut sound = true;
    for seed in seeds {
        sound &= run_seed(&options, seed, &mut sums);
        if (!sound && !options.keep_going) || sums.failures >= options.enough {
            break;
        }
    }
    if let (Some(minutes), true) = (options.minutes, sound || options.keep_going) {
        let until = began + Duration::from_secs_f64(minutes * 60.0);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set");
        let first = clock.as_secs() % 1_000_000_000 * 1_000_000;
        println!("fresh seeds from {first}");
        for seed in first.. {
            if Instant::now() >= until || (!sound && !options.keep_going) {
                break;
            }
            sound &= run_seed(&options, seed, &mut sums);
        }
    }
    sums.print(began.elapsed());
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
