//! See `replicator_core::fuzz::fuzz_peer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator_core::fuzz::fuzz_peer(data));
