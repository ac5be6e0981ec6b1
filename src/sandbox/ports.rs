//! Loopback ports that nobody uses. Not a promise: they are found free, noted, and given up again, and the replica
//! that binds them a moment later says so if it was beaten to it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};
use replicator::config::fresh_uuid;

/// Below are the ports of well-known services.
const PORT_MIN: u16 = 10_000;
const ATTEMPTS_MAX: u32 = 1000;

/// `count` ports, each free at this moment.
///
/// They lie below those the kernel gives to outgoing connections: a node that is down for a while would lose such a
/// port to a client of anything, even to a peer that is just trying to reach it.
pub(super) fn free(count: usize) -> Result<Vec<u16>> {
    let end = first_outgoing().filter(|end| *end > PORT_MIN + 1000);
    let mut held = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        if held.len() == count {
            break;
        }
        let port = end.map_or(0, |end| PORT_MIN + random() % (end - PORT_MIN));
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    }
    while held.len() < count {
        let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        held.push(any.context("there is no free port on 127.0.0.1")?);
    }
    let ports = held.iter().map(|listener| Ok(listener.local_addr()?.port()));
    ports.collect::<Result<_>>().context("cannot read the port of a listener")
}

/// The lowest port that the kernel gives to outgoing connections.
fn first_outgoing() -> Option<u16> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}

fn random() -> u16 {
    let [low, high, ..] = fresh_uuid().to_le_bytes();
    u16::from_le_bytes([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_are_none_that_outgoing_connections_get() {
        let ports = free(16).unwrap();
        assert_eq!(ports.len(), 16);
        let distinct: std::collections::HashSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), 16);
        if let Some(end) = first_outgoing().filter(|end| *end > PORT_MIN + 1000) {
            assert!(ports.iter().all(|port| (PORT_MIN..end).contains(port)), "{ports:?} and {end}");
        }
    }
}
