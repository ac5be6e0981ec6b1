//! Plays plans: catches what fails, traces it, shrinks it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::plan::{Fault, Plan};
use crate::rule::rule_of;
use crate::run::{Outcome, Run};

/// A run that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    pub rule: String,
    pub text: String,
    /// Where in the code that was noticed.
    pub place: String,
    /// How often a fault had struck.
    pub strikes: u64,
    pub virtual_ns: u64,
    pub outcome: Outcome,
    /// What happened last, oldest first; empty unless asked for.
    pub trace: Vec<String>,
}

thread_local! {
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Panics are findings here: they are kept, not printed.
pub fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string));
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PANIC.with(|last| *last.borrow_mut() = Some((text.unwrap_or_default(), place)));
    }));
}

/// Does `work`; what a panic in it said, and where.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, (String, String)> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| PANIC.with(|last| last.borrow_mut().take()).unwrap_or_default())
}

/// Plays a plan to its end.
///
/// # Errors
/// The rule that it broke.
pub fn play(plan: &Plan, trace: bool) -> Result<Outcome, Box<Failure>> {
    let mut run = Run::new(plan);
    if trace {
        run.world.trace = Some(Default::default());
    }
    caught(|| run.play()).map(|()| run.outcome()).map_err(|(message, place)| {
        let (rule, text) = rule_of(&message);
        Box::new(Failure {
            rule: rule.to_string(),
            text: text.to_string(),
            place,
            strikes: run.strikes(),
            virtual_ns: run.world.now,
            outcome: run.outcome(),
            trace: run.world.trace.take().unwrap_or_default().into(),
        })
    })
}

/// Looks for a smaller plan that still breaks `rule`: fewer steps, fewer kinds of fault, nothing special.
pub fn shrink(plan: &Plan, rule: &str, mut progress: impl FnMut(&str)) -> Plan {
    let mut best = plan.clone();
    let fails = |plan: &Plan| play(plan, false).is_err_and(|failure| failure.rule == rule);
    loop {
        let mut smaller = false;
        for fault in best.chances.keys().copied().collect::<Vec<Fault>>() {
            let mut plan = best.clone();
            plan.chances.remove(&fault);
            if fails(&plan) {
                progress(&format!("without {}", fault.name()));
                (best, smaller) = (plan, true);
            }
        }
        for steps in [best.steps / 4, best.steps / 2, best.steps * 3 / 4, best.steps * 19 / 20] {
            let plan = Plan { steps, ..best.clone() };
            if steps < best.steps && fails(&plan) {
                progress(&format!("{steps} steps"));
                (best, smaller) = (plan, true);
                break;
            }
        }
        for simpler in simpler_plans(&best) {
            if fails(&simpler) {
                progress("simpler");
                (best, smaller) = (simpler, true);
            }
        }
        if !smaller {
            return without_strikes(best, rule, progress);
        }
    }
}

/// Leaves out single strikes, many at a time first: those that stay are the schedule that the failure needs.
fn without_strikes(plan: Plan, rule: &str, mut progress: impl FnMut(&str)) -> Plan {
    let mut best = plan;
    let broken = |plan: &Plan| play(plan, false).err().filter(|failure| failure.rule == rule);
    let Some(failure) = broken(&best) else { return best };
    let (mut total, mut size) = (failure.strikes, failure.strikes.div_ceil(2));
    while size > 0 {
        let mut from = 1;
        while from <= total {
            let mut plan = best.clone();
            plan.left_out.extend(from..from + size);
            if plan.left_out.len() > best.left_out.len()
                && let Some(failure) = broken(&plan)
            {
                (best, total) = (plan, failure.strikes);
                let left = total.saturating_sub(best.left_out.range(..=total).count() as u64);
                progress(&format!("{left} strikes"));
            }
            from += size;
        }
        size /= 2;
    }
    best
}

fn simpler_plans(plan: &Plan) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut with = |change: &dyn Fn(&mut Plan) -> bool| {
        let mut simpler = plan.clone();
        if change(&mut simpler) {
            plans.push(simpler);
        }
    };
    with(&|plan| std::mem::take(&mut plan.ends_dark));
    with(&|plan| std::mem::take(&mut plan.bias_permille) > 0);
    with(&|plan| !std::mem::take(&mut plan.setup.protocols).is_empty());
    with(&|plan| std::mem::take(&mut plan.setup.ring_start) > 0);
    with(&|plan| {
        let clocks = std::mem::take(&mut plan.clocks);
        plan.clocks = vec![Default::default(); clocks.len()];
        clocks.iter().any(|clock| clock.ahead > 0)
    });
    with(&|plan| {
        plan.setup.nodes -= 1;
        plan.clocks.pop();
        plan.setup.protocols.truncate(plan.setup.nodes);
        plan.setup.nodes >= 2
    });
    plans
}
