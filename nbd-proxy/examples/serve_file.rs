//! Serves raw files without tracking, for trying the server by hand:
//! `serve_file unix:PATH|tcp:HOST:PORT FILE [FILE…]`. Each file's export is named like the file; ends at end of input.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_proxy::backing::{Access, RawDisk};
use nbd_proxy::server::{DEFAULT_SOCKET_MODE, Export, Limits, Listen, Listener, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let place = args.next().ok_or("which socket?")?;
    let listen = match place.split_once(':') {
        Some(("unix", path)) => Listen::Unix { path: PathBuf::from(path), mode: DEFAULT_SOCKET_MODE },
        Some(("tcp", address)) => Listen::Tcp(address.parse()?),
        _ => return Err("the socket is unix:PATH or tcp:HOST:PORT".into()),
    };
    let mut exports = Vec::new();
    for file in args {
        let path = Path::new(&file);
        let device = Arc::new(RawDisk::open(path, Access::ReadWrite)?);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("disk").to_owned();
        exports.push(Export { name, description: file, device, read_only: false });
    }
    let server = Server::start(vec![Listener { listen, exports }], Limits::default())?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop();
    Ok(())
}
