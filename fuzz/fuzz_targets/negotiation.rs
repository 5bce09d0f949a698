//! Any bytes as a client's handshake; what must hold is asserted in `nbd_proxy::nbd::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = nbd_proxy::nbd::fuzz::negotiation(data);
});
