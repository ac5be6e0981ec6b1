//! kill -9 at random moments, seeded: every acknowledged write is there afterwards, and the replicas end equal.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use holdfast_tests::{Client, Sandbox, wait_for};

const BLOCK: usize = 4096;
/// Blocks of one writer.
const REGION: u64 = 256;
const WRITERS: u64 = 3;

fn block(writer: u64, place: u64, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    for (index, chunk) in bytes.chunks_mut(32).enumerate() {
        chunk[..8].copy_from_slice(&number.to_le_bytes());
        chunk[8..16].copy_from_slice(&place.to_le_bytes());
        chunk[16..24].copy_from_slice(&writer.to_le_bytes());
        chunk[24..32].copy_from_slice(&(index as u64).to_le_bytes());
    }
    bytes
}

/// What one writer knows of each of its places: the number last acknowledged, and the number last sent.
type Known = Arc<Mutex<Vec<(u64, u64)>>>;

/// Writes until it is told to stop or the server is gone.
fn write_on(socket: &str, writer: u64, seed: u64, known: &Known, stop: &AtomicBool, count: &AtomicU64) {
    let Ok(mut client) = Client::connect(socket) else { return };
    let mut random = seed | 1;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (random >> 33) % REGION;
        let number = {
            let mut known = known.lock().unwrap();
            let entry = &mut known[usize::try_from(place).unwrap()];
            entry.1 += 1;
            entry.1
        };
        let offset = (writer * REGION + place) * BLOCK as u64;
        if client.write_at(offset, &block(writer, place, number)).is_err() {
            return;
        }
        known.lock().unwrap()[usize::try_from(place).unwrap()].0 = number;
        count.fetch_add(1, Ordering::Relaxed);
        if random.is_multiple_of(16) && client.flush().is_err() {
            return;
        }
    }
}

fn check(socket: &str, all: &[Known]) {
    let mut client = wait_for("the export to open", || Client::connect(socket).ok());
    for (writer, known) in (0..).zip(all) {
        for (place, (acknowledged, sent)) in (0..).zip(known.lock().unwrap().iter_mut()) {
            let mut bytes = vec![0; BLOCK];
            client.read_at((writer * REGION + place) * BLOCK as u64, &mut bytes).unwrap();
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(
                number >= *acknowledged && number <= *sent,
                "writer {writer} place {place}: {number} is there, {acknowledged} was acknowledged, {sent} sent"
            );
            assert!(
                number == 0 || bytes == block(writer, place, number),
                "writer {writer} place {place} is torn"
            );
            *acknowledged = number;
        }
    }
}

fn run(seed: u64, rounds: u64) {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "32M"]);
    let all: Vec<Known> =
        (0..WRITERS).map(|_| Arc::new(Mutex::new(vec![(0, 0); usize::try_from(REGION).unwrap()]))).collect();
    let mut primary = 0;
    for round in 0..rounds {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let socket = sandbox.nodes[primary].nbd_socket.clone();
        let threads: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (socket, known) = (socket.clone(), all[usize::try_from(writer).unwrap()].clone());
                let (stop, count) = (stop.clone(), count.clone());
                let seed = seed * 1000 + round * 10 + writer;
                std::thread::spawn(move || write_on(&socket, writer, seed, &known, &stop, &count))
            })
            .collect();
        // The moment is a number of acknowledged writes, so that it does not depend on the machine's speed.
        let moment = 50 + (seed * 7919 + round * 104_729) % 400;
        wait_for("writes to be acknowledged", || (count.load(Ordering::Relaxed) >= moment).then_some(()));
        let other = 1 - primary;
        if (seed + round).is_multiple_of(3) {
            // The Secondary dies and returns; the Primary waits for it and goes on.
            sandbox.kill(other);
            wait_for("the loss to be noticed", || {
                let status = sandbox.status(primary)?;
                (status["peers"][0]["connection"] == "Connecting").then_some(())
            });
            sandbox.restart(other);
            let before = count.load(Ordering::Relaxed);
            wait_for("writes to go on", || (count.load(Ordering::Relaxed) > before + 20).then_some(()));
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        } else {
            sandbox.kill(primary);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            wait_for("the other node to be promoted", || {
                sandbox.promote(other, true).status.success().then_some(())
            });
            sandbox.restart(primary);
            primary = other;
        }
        check(&sandbox.nodes[primary].nbd_socket, &all);
        sandbox.wait_level(primary);
    }
    let disks = sandbox.stop_and_read_disks(primary);
    assert!(disks[0] == disks[1], "both disks hold the same bytes");
}

#[test]
fn kill_nine_at_random_moments_loses_nothing_acknowledged() {
    run(1, 4);
    run(2, 4);
}

#[test]
fn a_primary_that_is_killed_and_restarted_is_promoted_again_without_force() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "32M"]);
    let mut client = Client::connect(&sandbox.nodes[0].nbd_socket).unwrap();
    client.write_at(4096, &block(1, 1, 1)).unwrap();
    sandbox.kill(0);
    sandbox.restart(0);
    sandbox.wait_role(0, "Secondary");
    wait_for("promotion without force", || sandbox.promote(0, false).status.success().then_some(()));
    let mut client = wait_for("the export to open", || Client::connect(&sandbox.nodes[0].nbd_socket).ok());
    let mut bytes = vec![0; BLOCK];
    client.read_at(4096, &mut bytes).unwrap();
    assert!(bytes == block(1, 1, 1));
}

#[test]
fn promotion_without_the_word_of_a_member_is_refused_and_says_what_to_do() {
    let mut sandbox = Sandbox::start(&["--size", "16M", "--journal-size", "32M"]);
    sandbox.kill(0);
    let refused = wait_for("the loss to be noticed", || {
        let output = sandbox.promote(1, false);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        text.contains("--force").then_some(text)
    });
    assert!(refused.contains('a'), "it names the member: {refused}");
}
