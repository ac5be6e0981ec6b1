//! See `replicator_core::fuzz::fuzz_challenge`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator_core::fuzz::fuzz_challenge(data));
