//! `lifeboat vault usage`

use std::collections::BTreeMap;

use ::uploader::keys::MACHINES;
use ::uploader::store::Counts;
use ::uploader::usage::Usage;
use jiff::civil::Date;
use nbd_proxy::Result;
use serde::Serialize;

use crate::commands::Context;
use crate::config::Prices;
use crate::output;

/// Days that are shown; --json has all.
const SHOWN: usize = 14;
const GB: f64 = 1e9;

/// What the vault holds for each machine, what was asked of it each day, and what that costs
///
/// Requests are those of this host's uploader. Prices are what [vault.prices] says, in whatever currency.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  lifeboat vault usage")]
pub struct Args {}

#[derive(Serialize)]
struct Answer {
    machines: Vec<Machine>,
    stored_bytes: u64,
    storage_price_per_month: f64,
}

#[derive(Serialize)]
struct Machine {
    name: String,
    objects: u64,
    stored_bytes: u64,
    days: Vec<Day>,
}

#[derive(Serialize)]
struct Day {
    day: Date,
    #[serde(flatten)]
    counts: Counts,
    price: f64,
}

pub async fn run(context: &Context, _: &Args) -> Result<()> {
    let config = context.load()?;
    let vault = crate::vault::open(&config.vault).await?;
    let mut held: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for object in vault.store.list(MACHINES).await? {
        let name = object.key.split('/').nth(1).unwrap_or_default();
        let (objects, bytes) = held.entry(name.to_owned()).or_default();
        (*objects, *bytes) = (*objects + 1, *bytes + object.size);
    }
    let mut machines = Vec::new();
    for (name, (objects, stored_bytes)) in held {
        let usage = Usage::load(&config.state_dir, &name)?;
        let day = |(day, counts)| Day { day, counts, price: price(&config.vault.prices, counts) };
        let days = usage.days.into_iter().map(day).collect();
        machines.push(Machine { name, objects, stored_bytes, days });
    }
    let stored_bytes = machines.iter().map(|machine| machine.stored_bytes).sum();
    let storage_price_per_month = in_gb(stored_bytes) * config.vault.prices.storage;
    output::answer(context.json, &Answer { machines, stored_bytes, storage_price_per_month }, people)
}

#[expect(clippy::cast_precision_loss, reason = "a price needs no more than 2^53 bytes' precision")]
fn in_gb(bytes: u64) -> f64 {
    bytes as f64 / GB
}

#[expect(clippy::cast_precision_loss, reason = "nobody makes 2^53 requests a day")]
fn price(prices: &Prices, counts: Counts) -> f64 {
    let per_1000 = |requests: u64| requests as f64 / 1_000.0;
    per_1000(counts.puts + counts.lists) * prices.puts
        + per_1000(counts.gets) * prices.gets
        + in_gb(counts.bytes_down) * prices.download
}

fn people(answer: &Answer) -> String {
    if answer.machines.is_empty() {
        return "the vault holds no machine".to_owned();
    }
    let mut rows = Vec::new();
    for machine in &answer.machines {
        let (objects, stored) = (machine.objects.to_string(), output::size(machine.stored_bytes));
        let blank = || ["", "", "", "", "", ""].map(str::to_owned);
        rows.push([vec![machine.name.clone(), objects, stored], blank().to_vec()].concat());
        for day in machine.days.iter().rev().take(SHOWN) {
            let (counts, blank) = (day.counts, String::new);
            rows.push(vec![
                blank(),
                blank(),
                blank(),
                day.day.to_string(),
                counts.puts.to_string(),
                counts.gets.to_string(),
                counts.lists.to_string(),
                format!("{} up, {} down", output::size(counts.bytes_up), output::size(counts.bytes_down)),
                format!("{:.2}", day.price),
            ]);
        }
    }
    let columns = ["MACHINE", "OBJECTS", "STORED", "DAY", "WRITTEN", "READ", "LISTED", "BYTES", "PRICE"];
    let table = output::table(&columns, rows);
    let (stored, month) = (output::size(answer.stored_bytes), answer.storage_price_per_month);
    format!("{table}\n{stored} stored, {month:.2} a month")
}
