//! Any bytes as a client's handshake; what must hold is asserted in `nbd_proxy::nbd::fuzz`.
#![no_main]

use nbd_proxy::nbd::Tls;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for tls in [Tls::Off, Tls::Required] {
        let _ = nbd_proxy::nbd::fuzz::negotiation(data, tls);
    }
});
