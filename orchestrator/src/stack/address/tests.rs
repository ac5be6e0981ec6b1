//! Two machines on one network: namespaces that this test makes, with a pair of virtual Ethernet between them. They need
//! root; without it nothing is tested and that is said.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orchestrator_core::stack::{Action, Outcome};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Address;
use crate::clock::now;
use crate::stack::{Executor, Task};

const LONG: Duration = Duration::from_secs(30);
const IF: &str = "vip0";
const VIP: &str = "10.77.0.9";
const VIP6: &str = "fd77::9";

/// Two namespaces, one interface each, the sides of a pair; gone when dropped.
struct Net(String);

impl Net {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tested: namespaces need root");
            return None;
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hfs{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let net = Self(name);
        ip(&["netns", "add", &net.side("a")]);
        ip(&["netns", "add", &net.side("b")]);
        let (a, b) = (net.side("a"), net.side("b"));
        ip(&["-n", &a, "link", "add", "name", IF, "type", "veth", "peer", "name", IF, "netns", &b]);
        for (side, number) in [(&a, 1), (&b, 2)] {
            ip(&["-n", side, "addr", "add", &format!("10.77.0.{number}/24"), "dev", IF]);
            ip(&["-n", side, "addr", "add", &format!("fd77::{number}/64"), "dev", IF, "nodad"]);
            ip(&["-n", side, "link", "set", IF, "up"]);
        }
        Some(net)
    }

    fn side(&self, side: &str) -> String {
        format!("{}{side}", self.0)
    }

    /// What runs on one of the machines.
    fn on<T: Send + 'static>(&self, side: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.side(side));
        let thread = std::thread::spawn(move || {
            let space = File::open(path).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&space), Some(LinkNameSpaceType::Network))
                .unwrap();
            what()
        });
        thread.join().expect("it ran")
    }

    fn act(&self, side: &str, address: &str, action: Action, lease_ms: u64) -> Outcome {
        let address = address.to_owned();
        self.on(side, move || {
            let bits = if address.contains(':') { 64 } else { 24 };
            let step = Address::new(address.parse().unwrap(), bits, IF, !address.contains(':'));
            let (timeout, until) = (LONG, now().plus_ms(lease_ms));
            step.carry_out(&Task { action, timeout, until, is_broken_off: &AtomicBool::new(false) })
        })
    }

    /// The hardware address that `side` knows for an address.
    fn neighbour(&self, side: &str, address: &str) -> String {
        let text = ip(&["-n", &self.side(side), "neigh", "show", address, "dev", IF]);
        text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned()
    }

    fn hardware(&self, side: &str) -> String {
        let text = ip(&["-n", &self.side(side), "link", "show", IF]);
        text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap_or_default().to_owned()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for side in ["a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &self.side(side)]).status();
        }
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_address_comes_and_goes_and_again_does_no_harm() {
    let Some(net) = Net::new() else { return };
    for address in [VIP, VIP6] {
        assert_eq!(net.act("a", address, Action::Probe, 0), Outcome::NotRunning);
        for _ in 0..2 {
            assert_eq!(net.act("a", address, Action::Start, 60_000), Outcome::Done);
            assert_eq!(net.act("a", address, Action::Monitor, 0), Outcome::Done);
        }
        for _ in 0..2 {
            assert_eq!(net.act("a", address, Action::Stop, 0), Outcome::Done);
            assert_eq!(net.act("a", address, Action::Monitor, 0), Outcome::NotRunning);
        }
        assert_eq!(net.act("a", address, Action::Refresh, 60_000), Outcome::NotRunning, "it is not put back");
    }
}

#[test]
fn the_neighbours_learn_where_it_is_now() {
    let Some(net) = Net::new() else { return };
    for address in [VIP, VIP6] {
        // b knows the address from somebody who is gone.
        let old = "02:00:00:00:00:01";
        ip(&["-n", &net.side("b"), "neigh", "replace", address, "lladdr", old, "nud", "stale", "dev", IF]);
        assert_eq!(net.neighbour("b", address), old);
        assert_eq!(net.act("a", address, Action::Start, 60_000), Outcome::Done);
        let new = net.hardware("a");
        // As with every renewal: b believes nobody while its entry is less than a second old.
        wait_for("b to learn", || {
            assert_eq!(net.act("a", address, Action::Refresh, 60_000), Outcome::Done);
            net.neighbour("b", address) == new
        });
    }
}

#[test]
fn the_kernel_takes_it_away_when_nobody_renews() {
    let Some(net) = Net::new() else { return };
    for address in [VIP, VIP6] {
        let began = Instant::now();
        assert_eq!(net.act("a", address, Action::Start, 1_000), Outcome::Done);
        assert_eq!(net.act("a", address, Action::Refresh, 1_000), Outcome::Done);
        wait_for("the kernel", || net.act("a", address, Action::Monitor, 0) == Outcome::NotRunning);
        eprintln!("{address} was gone after {} ms", began.elapsed().as_millis());
        // Renewed, it stays longer than its first lifetime.
        assert_eq!(net.act("a", address, Action::Start, 1_000), Outcome::Done);
        assert_eq!(net.act("a", address, Action::Refresh, 60_000), Outcome::Done);
        std::thread::sleep(Duration::from_millis(2_500));
        assert_eq!(net.act("a", address, Action::Monitor, 0), Outcome::Done);
        assert_eq!(net.act("a", address, Action::Stop, 0), Outcome::Done);
    }
}

#[test]
fn an_address_that_somebody_else_has_is_not_used() {
    let Some(net) = Net::new() else { return };
    ip(&["-n", &net.side("b"), "addr", "add", &format!("{VIP}/24"), "dev", IF]);
    let Outcome::Failed(why) = net.act("a", VIP, Action::Start, 60_000) else { panic!("it was used") };
    assert!(why.contains(&net.hardware("b")), "{why}");
    assert_eq!(net.act("a", VIP, Action::Monitor, 0), Outcome::NotRunning);
}

#[test]
fn without_its_interface_it_is_not_there() {
    let Some(net) = Net::new() else { return };
    ip(&["-n", &net.side("a"), "link", "del", IF]);
    assert_eq!(net.act("a", VIP, Action::Probe, 0), Outcome::NotRunning);
    assert_eq!(net.act("a", VIP, Action::Force, 0), Outcome::Done);
    assert!(matches!(net.act("a", VIP, Action::Start, 60_000), Outcome::Failed(_)));
}
