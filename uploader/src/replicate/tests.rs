mod away;
mod basics;
mod compare;
mod errors;
mod fenced;
mod late;
mod operator;
mod oracle;
mod rounds;
mod unreadable;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::listing;
use crate::testing::{self, Rig};

/// Opens `vault` as the loop wants it.
fn connect(vault: &Vault) -> Connect {
    let vault = vault.clone();
    Box::new(move || {
        let vault = vault.clone();
        Box::pin(async move { Ok(vault) })
    })
}

fn start_on(rig: &Rig, vault: &Vault) -> Handle {
    start(rig.settings(), rig.clone(), connect(vault))
}

/// Every point in the vault shows exactly what the disks held at its cut. Returns how many there are.
async fn every_point_is_exact(vault: &Vault, rig: &Rig) -> usize {
    let cuts = rig.cuts();
    let points = listing::points(vault, "m").await.unwrap();
    for point in &points {
        let held = &cuts[&point.time];
        let shown = testing::contents(vault, "m", point.id).await.unwrap();
        assert_eq!(
            shown.keys().collect::<Vec<_>>(),
            held.keys().collect::<Vec<_>>(),
            "disks of {}",
            point.id
        );
        for (name, bytes) in held {
            let wrong = bytes.iter().zip(&shown[name]).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{} of {name} differs at this byte", point.id);
            assert_eq!(bytes.len(), shown[name].len());
        }
    }
    points.len()
}

async fn wait_for(handle: &Handle, what: &str, reached: impl Fn(&Status) -> bool) -> Status {
    let mut watch = handle.watch();
    let waiting = watch.wait_for(|status| reached(status));
    match tokio::time::timeout(Duration::from_secs(20), waiting).await {
        Ok(status) => status.unwrap().clone(),
        Err(_) => panic!("never {what}: {:?}", handle.status()),
    }
}
