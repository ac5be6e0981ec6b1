//! Heartbeats: small authenticated datagrams over every link, on threads of their own, so that nothing slow here makes
//! this node look dead, and nothing stuck here makes it look alive.
//!
//! ```text
//! magic u32 | version u8 | node u8 | link u8 | 0 u8 | incarnation u64 | process u64 | to u64 | sequence u64 | HMAC-SHA-256
//! ```
//!
//! Little-endian, 72 bytes. `process` is drawn at each start, `to` is the process of the receiver if it was heard just now:
//! what was recorded before a restart cannot be played to the process after it, and a node that hears nobody counts for
//! no more than one that nobody hears.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use orchestrator_core::health::Detector;
use orchestrator_core::policy::Detection;
use orchestrator_core::units::{Instant, NodeId};
use orchestrator_core::view::Health;
use tokio::sync::watch;

use crate::clock::now;
use crate::keys::{KeySet, Keys};

const MAGIC: u32 = 0x4248_4648;
const VERSION: u8 = 1;
const BODY_BYTES: usize = 40;
const PACKET_BYTES: usize = BODY_BYTES + 32;
/// Patiences for which a node that sends nothing is still told that it is heard.
const HEARD_FOR: u64 = 2;
/// How long a receiver sleeps before it looks whether to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What heartbeats are made with.
pub(crate) struct Options {
    pub(crate) me: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) detection: Detection,
    pub(crate) keys: Keys,
    /// The addresses of each node, one for each link. Mine are among them.
    pub(crate) nodes: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// Who wants to know over which link each of the others is best reached.
    pub(crate) preferred: BTreeMap<NodeId, watch::Sender<usize>>,
}

/// A node that is watched.
struct Watched {
    detector: Detector,
    /// Its process as last heard, and when that was, though it may not have heard this one; 0 if it never was.
    process: u64,
    at: Instant,
    preferred: watch::Sender<usize>,
}

struct Shared {
    me: NodeId,
    incarnation: u64,
    process: u64,
    keys: Keys,
    watched: Mutex<BTreeMap<NodeId, Watched>>,
    /// When the deciding part of this process last turned; if it hangs, this node is as good as dead.
    pulse_ms: AtomicU64,
    stop: AtomicBool,
}

/// Running heartbeats; stopped when dropped.
pub(crate) struct Heartbeats {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Beat {
    node: NodeId,
    link: u8,
    incarnation: u64,
    process: u64,
    to: u64,
    sequence: u64,
}

impl Heartbeats {
    /// Begins to send and to listen.
    ///
    /// # Errors
    /// If an address cannot be bound.
    pub(crate) fn start(mut options: Options) -> io::Result<Self> {
        let began = now();
        let own = options.nodes.get(&options.me).cloned().unwrap_or_default();
        let mut preferred = std::mem::take(&mut options.preferred);
        let others = || options.nodes.iter().filter(|(node, _)| **node != options.me);
        let watched = others().map(|(node, links)| {
            let links = links.len().min(own.len());
            let detector = Detector::new(options.detection, links, began);
            let preferred = preferred.remove(node).unwrap_or_else(|| watch::Sender::new(0));
            (*node, Watched { detector, process: 0, at: Instant(0), preferred })
        });
        let shared = Arc::new(Shared {
            me: options.me,
            incarnation: options.incarnation,
            process: u64::from_le_bytes(crate::random()).max(1),
            keys: options.keys.clone(),
            watched: Mutex::new(watched.collect()),
            pulse_ms: AtomicU64::new(began.0),
            stop: AtomicBool::new(false),
        });
        let mut running = Self { shared, threads: Vec::new() };
        let mut sending = Vec::new();
        for (link, address) in own.iter().enumerate() {
            let socket = UdpSocket::bind(address)?;
            socket.set_read_timeout(Some(LOOK_INTERVAL))?;
            let targets = others().filter_map(|(node, links)| Some((*node, *links.get(link)?)));
            sending.push((socket.try_clone()?, targets.collect::<Vec<_>>()));
            let shared = Arc::clone(&running.shared);
            running.spawn("heartbeats-in", move || listen(&shared, &socket, link))?;
        }
        let (shared, detection) = (Arc::clone(&running.shared), options.detection);
        running.spawn("heartbeats-out", move || send(&shared, &sending, detection))?;
        Ok(running)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(work)?);
        Ok(())
    }

    /// Says that the deciding part of this process turns.
    pub(crate) fn pulse(&self) {
        self.shared.pulse_ms.store(now().0, Ordering::Relaxed);
    }

    /// When it last said so.
    pub(crate) fn pulsed_at(&self) -> Instant {
        Instant(self.shared.pulse_ms.load(Ordering::Relaxed))
    }

    /// Whom this node hears, with the suspicions not yet forgiven.
    pub(crate) fn health(&self, now: Instant) -> BTreeMap<NodeId, (Health, u32)> {
        let mut watched = self.shared.watched();
        let each = watched
            .iter_mut()
            .map(|(node, watched)| (*node, (watched.detector.advance(now), watched.detector.suspicions())));
        each.collect()
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that has panicked said so itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, BTreeMap<NodeId, Watched>> {
        self.watched.lock().expect("nobody panics with the table in hand")
    }
}

fn send(shared: &Shared, links: &[(UdpSocket, Vec<(NodeId, SocketAddr)>)], detection: Detection) {
    let interval = Duration::from_millis(detection.heartbeat_ms);
    let mut sequence = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let now = now();
        let silent_ms = now.since_ms(Instant(shared.pulse_ms.load(Ordering::Relaxed)));
        if silent_ms < detection.suspect_after_ms {
            sequence += 1;
            // By any heartbeat, also by one that does not count since this node was not heard: or two that have lost each
            // other would never begin again.
            let heard_for_ms = HEARD_FOR * detection.suspect_after_ms;
            let is_heard = |watched: &Watched| now.since_ms(watched.at) < heard_for_ms;
            let process = |watched: &Watched| if is_heard(watched) { watched.process } else { 0 };
            let processes: BTreeMap<NodeId, u64> =
                shared.watched().iter().map(|(node, watched)| (*node, process(watched))).collect();
            for (link, (socket, targets)) in links.iter().enumerate() {
                for (node, address) in targets {
                    let beat = Beat {
                        node: shared.me,
                        link: u8::try_from(link).expect("links are few"),
                        incarnation: shared.incarnation,
                        process: shared.process,
                        to: processes.get(node).copied().unwrap_or(0),
                        sequence,
                    };
                    // A link that is down is what the others are to notice.
                    let _ = socket.send_to(&encode(&beat, &shared.keys.borrow()), address);
                }
            }
        }
        std::thread::sleep(interval);
    }
}

fn listen(shared: &Shared, socket: &UdpSocket, link: usize) {
    let mut packet = [0; PACKET_BYTES + 1];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((len, _)) = socket.recv_from(&mut packet) else { continue };
        let Some(beat) = decode(&packet[..len], &shared.keys.borrow()) else { continue };
        if beat.incarnation != shared.incarnation || usize::from(beat.link) != link {
            continue;
        }
        let mut watched = shared.watched();
        let Some(node) = watched.get_mut(&beat.node) else { continue };
        let now = now();
        (node.process, node.at) = (beat.process, now);
        // One that does not know this process was perhaps sent to the one before it.
        if beat.to == shared.process {
            node.detector.heard(link, beat.process, beat.sequence, now);
            let preferred = node.detector.preferred();
            node.preferred.send_if_modified(|known| std::mem::replace(known, preferred) != preferred);
        }
    }
}

fn encode(beat: &Beat, keys: &KeySet) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    packet[..4].copy_from_slice(&MAGIC.to_le_bytes());
    packet[4..8].copy_from_slice(&[VERSION, beat.node.0, beat.link, 0]);
    for (place, word) in [beat.incarnation, beat.process, beat.to, beat.sequence].into_iter().enumerate() {
        packet[8 + place * 8..16 + place * 8].copy_from_slice(&word.to_le_bytes());
    }
    let tag = keys.sign(&packet[..BODY_BYTES]);
    packet[BODY_BYTES..].copy_from_slice(tag.as_ref());
    packet
}

fn decode(packet: &[u8], keys: &KeySet) -> Option<Beat> {
    if packet.len() != PACKET_BYTES {
        return None;
    }
    let (body, tag) = packet.split_at(BODY_BYTES);
    if !keys.verify(body, tag) {
        return None;
    }
    let word = |place: usize| body[8 + place * 8..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    if body[..4] != MAGIC.to_le_bytes() || body[4] != VERSION {
        return None;
    }
    let (node, link) = (NodeId(body[5]), body[6]);
    Some(Beat { node, link, incarnation: word(0)?, process: word(1)?, to: word(2)?, sequence: word(3)? })
}

#[cfg(test)]
mod tests {
    use replicator::options::Secret;
    use replicator::secrets::Secrets;

    use super::*;

    const BEAT: Beat = Beat { node: NodeId(2), link: 1, incarnation: 3, process: 4, to: 5, sequence: 6 };

    fn key(byte: u8) -> KeySet {
        KeySet::new(Secrets::only(Secret(vec![byte; 32])), 1, NodeId(0), None).unwrap()
    }

    #[test]
    fn a_heartbeat_is_read_back() {
        assert_eq!(decode(&encode(&BEAT, &key(1)), &key(1)), Some(BEAT));
    }

    #[test]
    fn while_keys_are_rotated_both_are_heard() {
        let secret = |byte| Secret(vec![byte; 32]);
        let using = Secrets { own: secret(2), next: None, old: Some(secret(1)) };
        let using = KeySet::new(using, 1, NodeId(0), None).unwrap();
        assert_eq!(decode(&encode(&BEAT, &key(1)), &using), Some(BEAT));
        assert_eq!(decode(&encode(&BEAT, &using), &key(2)), Some(BEAT));
        assert_eq!(decode(&encode(&BEAT, &using), &key(1)), None);
    }

    #[test]
    fn every_flipped_bit_every_length_and_another_secret_is_refused() {
        let packet = encode(&BEAT, &key(1));
        assert_eq!(decode(&packet, &key(2)), None);
        for len in 0..PACKET_BYTES {
            assert_eq!(decode(&packet[..len], &key(1)), None);
        }
        for bit in 0..PACKET_BYTES * 8 {
            let mut packet = packet;
            packet[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&packet, &key(1)), None, "bit {bit}");
        }
    }
}
