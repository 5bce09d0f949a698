//! Any bytes as what a server says to a client's requests; what must hold is asserted in `nbd_proxy::nbd::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_proxy::nbd::fuzz::replies(data));
