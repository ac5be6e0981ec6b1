//! See `replicator_core::fuzz::fuzz_frame`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replicator_core::fuzz::fuzz_frame(data));
