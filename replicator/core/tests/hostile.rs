//! Hostile bytes for each function of `replicator_core::fuzz`.

mod attack;

use attack::attack;
use replicator_core::fuzz;

#[test]
fn hostile_frames_do_no_harm() {
    attack("frame", 12 << 10, fuzz::fuzz_frame);
}

#[test]
fn hostile_superblocks_do_no_harm() {
    attack("superblock", 4200, fuzz::fuzz_superblock);
}

#[test]
fn hostile_envelopes_do_no_harm() {
    attack("envelope", 128, fuzz::fuzz_envelope);
}

#[test]
fn hostile_messages_do_no_harm() {
    attack("message", 4000, fuzz::fuzz_message);
}

#[test]
fn hostile_challenges_do_no_harm() {
    attack("challenge", 80, fuzz::fuzz_challenge);
}

#[test]
fn damaged_journals_are_recovered_or_refused() {
    attack("recovery", 600, fuzz::fuzz_recovery);
}

#[test]
fn a_hostile_peer_does_no_harm() {
    attack("peer", 3000, fuzz::fuzz_peer);
}
