//! Any bytes as a stream of requests; what must hold is asserted in `nbd_proxy::nbd::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbd_proxy::nbd::fuzz::transmission(data));
