//! How fast the API server is, and, if its paths are given, kube-apiserver with etcd in the same run.
//!
//!     cargo run --release -p portolan-apiserver --example api
//!     KUBE_APISERVER=/path ETCD=/path cargo run --release -p portolan-apiserver --example api -- writes
//!
//! Parts, all of them if none is named: `writes` (with 1, 8 and 32 clients: ConfigMaps made, Leases renewed), `fanout`
//! (1,000 changes a second to 100 watchers), `state` (with 10,000 Services, EndpointSlices and Pods: the list of
//! Services, memory, and the time from the start of the process until that list is answered).
//!
//! Each contender runs in processes of its own, over TLS on the loopback, with its data under `TMPDIR`, which must be
//! on a disk that keeps what it was told to: all of these are durable writes. Clients share the machine with the
//! server, so compare only within a run. Times are what a client sees from before it sends until it has the whole
//! answer; of the fan-out, from before the change was sent until a watcher has it.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should say where")]

mod client;
mod contender;
mod work;

use std::path::Path;

use anyhow::{Result, ensure};

use contender::{Contender, Running};

/// The one that the binary has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLIENTS: [usize; 3] = [1, 8, 32];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, directory] = &arguments[..]
        && mode == contender::SERVE
    {
        return contender::serve(Path::new(directory));
    }
    for part in &arguments {
        ensure!(["writes", "fanout", "state"].contains(&part.as_str()), "there is no part {part}");
    }
    let wanted = |part: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut contenders = vec![Contender::Portolan];
    contenders.extend(Contender::stock()?);
    for contender in &contenders {
        let directory = tempfile::tempdir()?;
        runtime.block_on(async {
            let running = Running::start(contender, directory.path()).await?;
            println!("\n## {contender}");
            if wanted("writes") {
                writes(&running).await?;
            }
            if wanted("fanout") {
                let fanout = work::fan_out(&running).await?;
                println!("fan-out: {fanout}");
            }
            if wanted("state") { state(contender, running, directory.path()).await } else { Ok(()) }
        })?;
    }
    Ok(())
}

async fn writes(running: &Running) -> Result<()> {
    println!(
        "| clients | ConfigMaps made/s | p50 / p99 | µs of CPU each | Leases renewed/s | p50 / p99 | µs of CPU each |"
    );
    println!("|---|---|---|---|---|---|---|");
    for clients in CLIENTS {
        let made = work::creates(running, clients).await?;
        let renewed = work::renewals(running, clients).await?;
        let cells = [&made, &renewed].map(|times| [times.rate(), times.times(), times.cost()].join(" | "));
        println!("| {clients} | {} |", cells.join(" | "));
    }
    Ok(())
}

async fn state(contender: &Contender, running: Running, directory: &Path) -> Result<()> {
    let filled = work::fill(&running).await?;
    println!("filled at {}/s, {}", filled.rate(), filled.times());
    println!("memory after filling: {}", running.memory()?);
    let (plain, bytes) = work::list(&running, false).await?;
    let (packed, packed_bytes) = work::list(&running, true).await?;
    println!("list of {} Services: {} ({bytes} bytes)", work::OBJECTS, plain.times());
    println!("the same with gzip: {} ({packed_bytes} bytes)", packed.times());
    println!("memory after the lists: {}", running.memory()?);
    drop(running);
    let start = std::time::Instant::now();
    let running = Running::start(contender, directory).await?;
    let ready = start.elapsed();
    let (_, again) = work::list_once(&running, false).await?;
    ensure!(again == bytes, "{again} bytes after the restart, and {bytes} before");
    println!("started again after kill -9: ready in {ready:.2?}, listed in {:.2?}", start.elapsed());
    println!("memory after that: {}", running.memory()?);
    Ok(())
}
