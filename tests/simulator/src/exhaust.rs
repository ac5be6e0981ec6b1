//! Small scenarios, played again and again: at the n-th I/O something happens, for every n, and then once more while
//! the nodes recover.

use std::cell::RefCell;
use std::rc::Rc;

use crate::plan::Plan;
use crate::play::caught;
use crate::run::Run;
use crate::world::Fate;

/// What happens at the n-th I/O.
const FATES: [Fate; 5] = [Fate::Kill, Fate::Power, Fate::Blackout, Fate::Fails(5), Fate::Fails(28)];

/// Where it happens: at these I/Os, counted from the first.
#[derive(Clone, Debug)]
pub struct Strike {
    pub at: Vec<u64>,
    pub fate: Fate,
}

/// The scenario: a volume with a little load and a switch of roles, nothing else.
fn plan(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed);
    plan.chances.clear();
    plan.setup.bulk_percent = 0;
    plan.steps = 150;
    plan.client_percent = 30;
    plan.bias_permille = 0;
    plan.ends_dark = false;
    plan
}

/// Plays the scenario with this strike; the number of I/Os it had.
///
/// # Errors
/// What was broken.
pub fn play_strike(seed: u64, strike: &Strike) -> Result<u64, String> {
    let mut run = Run::new(&plan(seed));
    run.rots = false;
    let (count, mut left) = (Rc::new(RefCell::new(0u64)), strike.at.clone());
    left.reverse();
    let (counter, fate, failed) = (Rc::clone(&count), strike.fate, run.failures());
    run.world.fates = Box::new(move |io, node, _| {
        let mut count = counter.borrow_mut();
        *count += 1;
        if left.last() != Some(&*count) {
            return Fate::Done;
        }
        left.pop();
        if let Fate::Fails(_) = fate {
            failed.borrow_mut().note(io, node);
        }
        fate
    });
    let outcome = caught(|| run.play());
    outcome.map_err(|(message, place)| format!("{message} ({place})"))?;
    Ok(*count.borrow())
}

/// Every I/O of the scenario of `seed`, with every fate, and pairs of them `pairs` apart at most. Calls `tell` with
/// each failure; returns how many runs there were.
pub fn exhaust(seed: u64, pairs: u64, mut tell: impl FnMut(&Strike, &str)) -> u64 {
    let quiet = Strike { at: Vec::new(), fate: Fate::Done };
    let total = play_strike(seed, &quiet).unwrap_or_else(|text| {
        tell(&quiet, &text);
        0
    });
    let mut runs = 1;
    for fate in FATES {
        for first in 1..=total {
            let second =
                (0..=pairs).map(|gap| if gap == 0 { vec![first] } else { vec![first, first + 3 * gap] });
            for at in second {
                let strike = Strike { at, fate };
                runs += 1;
                if let Err(text) = play_strike(seed, &strike) {
                    tell(&strike, &text);
                }
            }
        }
    }
    runs
}
