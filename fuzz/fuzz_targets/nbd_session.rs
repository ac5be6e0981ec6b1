//! See `nbd_frontend::fuzz::fuzz_session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_frontend::fuzz::fuzz_session(data));
