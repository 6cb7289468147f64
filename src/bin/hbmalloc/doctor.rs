//! `hbmalloc doctor`: driver, devices, every probed capability with the reason when it is absent,
//! and every option with where its value came from.

use hbmalloc::config::table::TABLE;
use hbmalloc::config::value::{Location, format_bytes};
use hbmalloc::error::{Result, Status};
use hbmalloc::gpu::driver::{DriverKind, version_text};
use hbmalloc::gpu::{Device, Driver, Probe};
use hbmalloc::observe;
use hbmalloc::process::Process;
use std::process::ExitCode;
use std::sync::Arc;

/// The exit status of a bad option.
const BAD_OPTION: u8 = 2;

pub fn run() -> ExitCode {
    let process = observe::process();
    println!("hbmalloc {}", env!("CARGO_PKG_VERSION"));
    options(process);
    if let Err(problem) = process.settings().check() {
        println!("\n{problem}");
        return ExitCode::from(BAD_OPTION);
    }
    match process.driver() {
        Ok(driver) => driver_and_devices(driver),
        Err(error) if error.status() == Status::BadOption => {
            println!("\n{error}");
            return ExitCode::from(BAD_OPTION);
        }
        Err(error) => println!("\nNo driver: {error}."),
    }
    ExitCode::SUCCESS
}

fn options(process: &Process) {
    println!("\nOptions");
    for spec in &TABLE {
        let (value, origin) = process.settings().describe(spec.opt);
        let shown = if value.is_empty() { "(empty)" } else { &value };
        println!("  {:26} {:14} {}", spec.name, shown, origin.describe());
    }
    for notice in process.settings().notices() {
        println!("  warning: {notice}");
    }
}

fn driver_and_devices(driver: &Driver) {
    let kind = match (driver.kind(), driver.is_hip()) {
        (DriverKind::Cuda, _) => "CUDA",
        (DriverKind::Hip, _) => "HIP",
        (DriverKind::Simulator, false) => "simulated CUDA",
        (DriverKind::Simulator, true) => "simulated HIP",
    };
    println!(
        "\nDriver: {kind} {} from {}",
        version_text(driver.version()),
        driver.path().display()
    );
    let missing = driver.missing_functions();
    if !missing.is_empty() {
        println!("  functions it lacks: {}", missing.join(", "));
    }
    println!("Devices: {}", driver.device_count());
    for ordinal in 0..driver.device_count() {
        match driver.device(ordinal as i32) {
            Ok(device) => describe(device),
            Err(error) => println!("\nDevice {ordinal}: {error}"),
        }
    }
}

fn describe(device: &Arc<Device>) {
    println!(
        "\nDevice {}: {}, {}",
        device.ordinal(),
        device.name(),
        format_bytes(device.total_memory())
    );
    match device.memory_info() {
        Ok((free, _)) => println!("  free memory: {}", format_bytes(free)),
        Err(error) => println!("  free memory: {error}"),
    }
    capability("managed memory", device.managed_memory());
    capability(
        "concurrent managed access",
        device.concurrent_managed_access(),
    );
    capability("stream-ordered pools", device.memory_pools());
    capability("virtual memory management", device.vmm());
    capability("chunks shareable by file descriptor", device.posix_fd());
    capability("chunks shareable over a fabric", device.fabric());
    capability("chunks reachable by network cards", device.rdma());
    capability("virtual memory on host NUMA nodes", device.host_numa());
    capability("order point without waiting", device.context_events());
    println!(
        "  {:38} {}",
        "coherent with the host",
        match device.is_coherent() {
            Ok(true) => "yes".to_owned(),
            Ok(false) => "no".to_owned(),
            Err(error) => format!("unknown, asking failed: {error}"),
        }
    );
    match device.active_peers() {
        Ok(peers) => println!("  {:38} {peers:?}", "peers in use"),
        Err(error) => println!("  {:38} {error}", "peers in use"),
    }
    if let (Ok(granularity), Ok(chunk)) =
        (device.granularity(), device.best_chunk(Location::Device))
    {
        println!(
            "  chunks: granularity {}, shared as {:?}, RDMA {}",
            format_bytes(granularity),
            chunk.share,
            if chunk.rdma { "yes" } else { "no" }
        );
    }
}

fn capability(name: &str, outcome: Result<Probe>) {
    let text = match outcome {
        Ok(Ok(())) => "yes".to_owned(),
        Ok(Err(reason)) => format!("no: {reason}"),
        Err(error) => format!("unknown, asking failed: {error}"),
    };
    println!("  {name:38} {text}");
}
