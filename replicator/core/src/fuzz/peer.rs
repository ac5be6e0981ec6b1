//! A replica among peers who know the secret and mean harm.

use alloc::string::String;

use super::Choices;
use super::decoders::{KINDS, seal_frame};
use super::journal::{Pages, fresh_superblock, make_frame};
use super::rig::{HostileLink, Rig};
use crate::bookmarks::BookmarkName;
use crate::chain;
use crate::disk::superblock::{DiskState, LogPoint, Record};
use crate::event::{AdminAction, Event, FreezeAt};
use crate::recovery::recover;
use crate::units::{Epoch, NodeId, NodeSet, PAGE_BYTES, Position, ReignId, Sequence};
use crate::wire::message::{Ack, Hello, Message, Seal, Sealed, Start};

/// What one run may do at most.
const STEPS_MAX: usize = 600;

/// A replica and two peers who know the secret and mean harm: any message, well-formed or not, in any order, while
/// the replica follows, waits, is promoted or serves.
///
/// # Panics
/// If anything a peer says makes the replica panic, store what it cannot start from, or write outside the volume.
pub fn fuzz_peer(data: &[u8]) {
    let mut choices = Choices(data);
    let recovered = recover(&fresh_superblock(), false, 1, &mut Pages::default()).expect("a fresh journal");
    let mut rig = Rig::new(recovered, Pages::default());
    rig.settle();
    for _ in 0..STEPS_MAX {
        if choices.0.is_empty() || rig.stopped {
            break;
        }
        hostile_step(&mut rig, &mut choices);
    }
    rig.settle();
    rig.pass_time(10);
    rig.settle();
}

fn hostile_step(rig: &mut Rig, choices: &mut Choices<'_>) {
    match choices.below(32) {
        0..=3 => rig.handle(Event::TurnEnd),
        4..=7 if !rig.ios.is_empty() => {
            let index = choices.below(rig.ios.len());
            rig.finish(index);
        }
        8 | 9 => rig.settle(),
        10 => {
            let ms = [0, 1, 10, 500, 3000][choices.below(5)];
            rig.pass_time(ms);
        }
        11 => rig.client(choices),
        12 if choices.one_in(4) => {
            let action = match choices.below(8) {
                0 => AdminAction::Demote,
                1 => AdminAction::Shrink { node: NodeId(1) },
                2 if choices.one_in(8) => AdminAction::Stop,
                2 if choices.one_in(2) => AdminAction::Resolve { discard: NodeId(choices.byte() % 2) },
                3 if choices.one_in(2) => AdminAction::FreezeApply { at: any_place(rig, choices) },
                3 => AdminAction::AddBookmark { name: BookmarkName::new("a").expect("a name") },
                kind => AdminAction::Promote { force: kind > 4, reign: ReignId(u128::from(choices.byte())) },
            };
            rig.admin(action);
        }
        13 if !rig.closing.is_empty() => {
            let id = rig.closing[0];
            rig.link_down(id);
        }
        14 if rig.links.len() < 5 => {
            let node = NodeId(1 + choices.byte() % 2);
            rig.link_up(node, choices.one_in(2));
        }
        15 if choices.one_in(8) && !rig.links.is_empty() => {
            let id = rig.links[choices.below(rig.links.len())].id;
            rig.link_down(id);
        }
        28 => play_primary(rig, NodeId(1 + choices.byte() % 2), choices),
        29 => play_secondaries(rig, choices),
        what if !rig.links.is_empty() => {
            let index = choices.below(rig.links.len());
            hostile_message(rig, index, what, choices);
        }
        _ => rig.link_up(NodeId(1 + choices.byte() % 2), true),
    }
}

/// Says hello as a peer would that holds just what the replica holds.
fn honest_hello(rig: &mut Rig, node: NodeId, record: Record, primary: bool, sync: bool) {
    if !rig.links.iter().any(|link| link.node == node) {
        rig.link_up(node, true);
    }
    let index = rig.links.iter().position(|link| link.node == node).expect("it is up");
    rig.links[index].session += 1;
    rig.links[index].record = record;
    let link = rig.links[index];
    let Some(mut hello) = rig.hello.clone() else { return };
    let status = rig.machine.status();
    (hello.node, hello.replica) = (node, 100 + u128::from(node.0));
    (hello.primary, hello.record, hello.promised) = (primary, record, record.epoch.max(status.promised));
    rig.say_plainly(&link, &Message::Hello(*hello), sync);
}

/// A peer is Primary in a new epoch and sends a few frames, as it should.
fn play_primary(rig: &mut Rig, node: NodeId, choices: &mut Choices<'_>) {
    rig.settle();
    let status = rig.machine.status();
    let epoch = Epoch(status.promised.0.saturating_add(1));
    let reign = ReignId(u128::from(epoch.0));
    let record = Record { epoch, version: 1, primary: Some(node), reign, in_sync: NodeSet(0b111) };
    honest_hello(rig, node, record, true, true);
    let Some(link) = rig.links.iter().find(|link| link.node == node).copied() else { return };
    let common = status.head.sequence;
    rig.say_plainly(&link, &Message::Start(Start { common, record, acks_received: false }), false);
    rig.settle();
    for _ in 0..choices.below(4) {
        let status = rig.machine.status();
        let head = LogPoint { position: status.head, chain: status.chain, ..LogPoint::default() };
        let bytes = make_frame(&head, epoch, reign, 2, choices);
        rig.deliver_frame_plainly(&link, &bytes);
    }
    rig.say_plainly(&link, &Message::Mark, choices.one_in(2));
    if choices.one_in(2) {
        rig.settle();
    }
}

/// The replica is made Primary, and its peers follow as they should.
fn play_secondaries(rig: &mut Rig, choices: &mut Choices<'_>) {
    rig.settle();
    let record = rig.machine.status().record;
    for node in [NodeId(1), NodeId(2)] {
        honest_hello(rig, node, record, false, true);
    }
    rig.admin(AdminAction::Promote { force: choices.one_in(2), reign: ReignId(u128::from(choices.byte())) });
    rig.settle();
    let (Some(seal), Some(hello)) = (rig.seal, rig.hello.clone()) else { return };
    let sealed = Sealed {
        attempt: seal.attempt,
        granted: true,
        promised: seal.epoch,
        record,
        disk_state: DiskState::UpToDate,
        proven: true,
        suspect: false,
        head: hello.head,
        applied: hello.applied,
    };
    for link in rig.links.clone() {
        rig.say_plainly(&link, &Message::Sealed(sealed), false);
    }
    rig.settle();
    let record = rig.machine.status().record;
    for node in [NodeId(1), NodeId(2)] {
        honest_hello(rig, node, Record { primary: None, ..record }, false, false);
    }
    for _ in 0..3 {
        rig.settle();
        let status = rig.machine.status();
        let (all, applied) = (status.head.sequence, status.applied);
        let ack = Ack { received: all, journaled: all, durable: all, applied };
        for link in rig.links.clone() {
            rig.say_plainly(&link, &Message::Ack(ack), false);
        }
        rig.settle();
        rig.client(choices);
    }
}

fn hostile_message(rig: &mut Rig, index: usize, what: usize, choices: &mut Choices<'_>) {
    let mut link = rig.links[index];
    let status = rig.machine.status();
    match what {
        16..=18 => {
            let Some(hello) = rig.hello.clone() else { return };
            rig.links[index].session += 1;
            link.session += 1;
            let hello = hostile_hello(&hello, link.node, choices);
            rig.say(&link, &Message::Hello(hello), choices);
        }
        19..=21 => {
            let mut record = any_record(&status.record, choices);
            record.epoch = choices.epoch(record.epoch.max(status.promised));
            (rig.links[index].record, link.record) = (record, record);
            let common = choices.sequence(status.head.sequence);
            let acks_received = choices.one_in(2);
            rig.say(&link, &Message::Start(Start { common, record, acks_received }), choices);
        }
        22 => rig.say(&link, &Message::Mark, choices),
        23 => {
            let head = status.head.sequence;
            let (received, journaled) = (choices.sequence(head), choices.sequence(head));
            let (durable, applied) = (choices.sequence(head), choices.sequence(Sequence(0)));
            rig.say(&link, &Message::Ack(Ack { received, journaled, durable, applied }), choices);
        }
        24 if choices.one_in(3) => {
            let seal = Seal {
                attempt: choices.number(1),
                epoch: choices.epoch(Epoch(status.promised.0.wrapping_add(1))),
            };
            rig.say(&link, &Message::Seal(seal), choices);
        }
        25 => {
            let sealed = hostile_sealed(rig, choices);
            rig.say(&link, &Message::Sealed(sealed), choices);
        }
        26 => {
            let near = Record { version: status.record.version.wrapping_add(1), ..status.record };
            let record = any_record(&near, choices);
            rig.say(&link, &Message::Record(record), choices);
        }
        27 if choices.one_in(4) => rig.say(&link, &Message::Refuse(String::from("\u{1b}[2Jno")), choices),
        30 => {
            let envelope = rig.envelope(&link, KINDS[choices.below(KINDS.len())]);
            let length = choices.below(200);
            let body = choices.take(length);
            if !envelope.kind.is_bulk() {
                rig.deliver(link.id, envelope, &body);
            }
        }
        _ => hostile_frame(rig, &link, choices),
    }
}

fn any_place(rig: &Rig, choices: &mut Choices<'_>) -> FreezeAt {
    match choices.below(4) {
        0 => FreezeAt::Time { ms: choices.number(1) },
        1 => {
            let head = rig.machine.status().head;
            FreezeAt::Position(Position { sequence: choices.sequence(head.sequence), ..head })
        }
        _ => FreezeAt::Here,
    }
}

fn hostile_hello(mine: &Hello, node: NodeId, choices: &mut Choices<'_>) -> Hello {
    let mut hello = *mine;
    (hello.node, hello.replica) = (node, 100 + u128::from(node.0));
    hello.primary = choices.one_in(2);
    hello.record = any_record(&hello.record, choices);
    hello.promised = choices.epoch(hello.promised.max(hello.record.epoch));
    match choices.below(16) {
        0 => hello.head.position.sequence = choices.sequence(mine.head.position.sequence),
        1 => hello.stable = choices.sequence(mine.stable),
        2 => hello.durable = choices.sequence(mine.durable),
        3 => hello.applied = choices.sequence(mine.applied),
        4 => hello.tail = choices.sequence(mine.tail),
        5 => hello.head.chain.0 ^= 1,
        6 => hello.node = NodeId(choices.byte() % 33),
        7 => hello.disk_state = [DiskState::Outdated, DiskState::Failed][choices.below(2)],
        8 => hello.history.truncate(choices.sequence(Sequence(1))),
        9 => hello.volume_bytes = choices.number(hello.volume_bytes),
        10 => (hello.yields, hello.diverges) = (choices.one_in(2), choices.one_in(2)),
        11 => (hello.discards_of, hello.delayed) = (Some(mine.node), choices.one_in(2)),
        _ => {}
    }
    hello
}

fn hostile_sealed(rig: &Rig, choices: &mut Choices<'_>) -> Sealed {
    let status = rig.machine.status();
    let attempt = rig.seal.map_or(0, |seal| seal.attempt);
    let position = Position { epoch: status.head.epoch, sequence: choices.sequence(status.head.sequence) };
    Sealed {
        attempt: choices.number(attempt),
        granted: !choices.one_in(4),
        promised: choices.epoch(status.promised),
        record: any_record(&status.record, choices),
        disk_state: DiskState::UpToDate,
        proven: choices.one_in(2),
        suspect: choices.one_in(8),
        head: LogPoint { position, chain: status.chain, ..LogPoint::default() },
        applied: choices.sequence(status.applied),
    }
}

fn hostile_frame(rig: &mut Rig, link: &HostileLink, choices: &mut Choices<'_>) {
    let status = rig.machine.status();
    let head = LogPoint { position: status.head, chain: status.chain, ..LogPoint::default() };
    let epoch = choices.epoch(link.record.epoch.max(head.position.epoch));
    let writes = 1 + choices.below(5);
    let mut bytes = make_frame(&head, epoch, link.record.reign, writes, choices);
    match choices.below(8) {
        0 => {
            // Anything may be in it, with sound checksums.
            for _ in 0..1 + choices.below(4) {
                let (at, value) = (choices.below(192 + 4 * chain::ENTRY_BYTES), choices.byte());
                bytes[at] = value;
            }
            seal_frame(&mut bytes, choices.one_in(2));
        }
        1 => {
            let at = choices.below(bytes.len());
            bytes[at] ^= choices.byte();
        }
        2 => bytes.truncate(choices.below(bytes.len())),
        3 => bytes.resize(bytes.len() + choices.below(3) * PAGE_BYTES, 0),
        _ => {}
    }
    rig.deliver_frame(link, &bytes, choices);
}

fn any_record(near: &Record, choices: &mut Choices<'_>) -> Record {
    let mut record = *near;
    record.epoch = choices.epoch(near.epoch);
    record.version = choices.number(near.version);
    match choices.below(8) {
        0 => record.reign.0 ^= 1,
        1 => record.in_sync = NodeSet(u32::from(choices.byte())),
        2 => record.primary = None,
        3 => record.primary = Some(NodeId(choices.byte() % 32)),
        _ => {}
    }
    record
}
