//! Hostile bytes for `fuzz::fuzz_session`.

#[path = "../../replicator/core/tests/attack/mod.rs"]
mod attack;

#[test]
fn hostile_sessions_do_no_harm() {
    attack::attack("session", 3000, nbd_frontend::fuzz::fuzz_session);
}
