//! The `address` step: an address on an interface, with a lifetime that ends soon after the lease unless it is renewed, so
//! that the kernel takes it away when nobody here does. Neighbours are told where it is when it comes and again while it
//! stays; somebody else who has it is found before.

mod announce;
mod kernel;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use orchestrator_core::stack::{Action, Outcome, address_lifetime_s};

use super::{Executor, Task};
use crate::clock::now;
use kernel::{Kernel, Present};

/// So long after the first time neighbours are told again with each renewal. Linux believes no news of an entry that is
/// less than a second old, and some of them hear only one of the first.
const ANNOUNCED_SOON: Duration = Duration::from_secs(3);
/// And how often later.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(15);

/// An address that moves.
#[derive(Debug)]
pub(super) struct Address {
    place: Place,
    refuses_duplicates: bool,
    announced: Mutex<Announced>,
}

/// Where the address is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    address: IpAddr,
    prefix_bits: u8,
    interface: String,
}

/// When neighbours were told.
#[derive(Debug, Default)]
struct Announced {
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Address {
    pub(super) fn new(address: IpAddr, prefix_bits: u8, interface: &str, refuses_duplicates: bool) -> Self {
        let place = Place { address, prefix_bits, interface: interface.to_owned() };
        Self { place, refuses_duplicates, announced: Mutex::default() }
    }

    fn start(&self, task: &Task<'_>) -> io::Result<Outcome> {
        let mut kernel = Kernel::open(&self.place.interface)?;
        let is_present = kernel.find(&self.place)?.is_some();
        if !is_present && self.refuses_duplicates && self.place.address.is_ipv4() {
            let other = announce::somebody_else(&kernel, self.place.address)?;
            if let Some(other) = other {
                return Ok(Outcome::Failed(format!("{other} has {} already", self.place.address)));
            }
        }
        // Only now: looking takes time, and what is left of the lease is what counts.
        let Some(lifetime_s) = address_lifetime_s(now(), task.until) else {
            return Ok(Outcome::Failed("the lease is nearly over".to_owned()));
        };
        kernel.put(&self.place, lifetime_s, self.refuses_duplicates)?;
        *self.announced.lock().expect("nobody panics with it in hand") = Announced::default();
        self.announce(&mut kernel)?;
        Ok(Outcome::Done)
    }

    /// Gives it more time. One that is gone is not put back: a look finds that, and it is started again.
    fn refresh(&self, task: &Task<'_>) -> io::Result<Outcome> {
        let mut kernel = Kernel::open(&self.place.interface)?;
        let Some(lifetime_s) = address_lifetime_s(now(), task.until) else {
            return Ok(Outcome::Failed("the renewal comes too late".to_owned()));
        };
        if kernel.find(&self.place)?.is_none() {
            return Ok(Outcome::NotRunning);
        }
        kernel.put(&self.place, lifetime_s, self.refuses_duplicates)?;
        self.announce(&mut kernel)?;
        Ok(Outcome::Done)
    }

    /// Tells the neighbours, if it is time.
    fn announce(&self, kernel: &mut Kernel) -> io::Result<()> {
        // What is still being checked for others must not be spoken from.
        if kernel.find(&self.place)? != Some(Present::Usable) {
            return Ok(());
        }
        let mut announced = self.announced.lock().expect("nobody panics with it in hand");
        let is_new = announced.first.is_none_or(|first| first.elapsed() < ANNOUNCED_SOON);
        if is_new || announced.last.is_none_or(|last| last.elapsed() >= ANNOUNCE_INTERVAL) {
            announce::announce(kernel, self.place.address)?;
            let told = Instant::now();
            announced.first.get_or_insert(told);
            announced.last = Some(told);
        }
        Ok(())
    }

    fn look(&self) -> io::Result<Outcome> {
        let mut kernel = match Kernel::open(&self.place.interface) {
            // What is not there has no addresses.
            Err(error) if is_absence(&error) => return Ok(Outcome::NotRunning),
            other => other?,
        };
        Ok(match kernel.find(&self.place)? {
            None => Outcome::NotRunning,
            Some(Present::Duplicate) => {
                Outcome::Failed(format!("somebody else on {} has it", self.place.interface))
            }
            Some(Present::Usable | Present::Checked) => Outcome::Done,
        })
    }

    fn remove(&self) -> io::Result<Outcome> {
        match Kernel::open(&self.place.interface).and_then(|mut kernel| kernel.remove(&self.place)) {
            Ok(()) => Ok(Outcome::Done),
            Err(error) if is_absence(&error) => Ok(Outcome::Done),
            Err(error) => Err(error),
        }
    }
}

/// Whether the kernel says that there is no such interface or address.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EADDRNOTAVAIL))
}

impl Executor for Address {
    fn carry_out(&self, task: &Task<'_>) -> Outcome {
        let result = match task.action {
            Action::Start => self.start(task),
            Action::Refresh => self.refresh(task),
            Action::Probe | Action::Monitor => self.look(),
            Action::Stop | Action::Force => self.remove(),
        };
        result.unwrap_or_else(|error| Outcome::Failed(format!("{}: {error}", self.place.interface)))
    }
}
