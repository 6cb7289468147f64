//! Streams made by the library, and bytes moved and filled on them, on the simulated driver.
#![allow(missing_docs)]

use hbmalloc::gpu::{Device, Driver, Fence, OwnedStream};
use std::sync::Arc;

const BYTES: usize = 3 << 20;

fn device() -> Arc<Device> {
    let driver = Driver::load("sim", None, Arc::default()).expect("the workspace is built");
    driver.device(0).unwrap().clone()
}

#[test]
fn bytes_come_back_as_they_were_sent() {
    let device = device();
    let (one, two) = (
        OwnedStream::create(&device).unwrap(),
        OwnedStream::create(&device).unwrap(),
    );
    assert_ne!(one.stream(), two.stream());
    let from = device.allocate_plain(BYTES as u64).unwrap();
    let to = device.allocate_plain(BYTES as u64).unwrap();
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    device.copy_from_host(from, &sent, one.stream()).unwrap();
    device.fill(from, 7, 5, one.stream()).unwrap();
    {
        let _guard = device.enter().unwrap();
        let filled = Fence::behind_streams(&device, &[one.stream()]).unwrap();
        filled.holds_back(two.stream()).unwrap();
    }
    device
        .copy_on_device(to, from, BYTES as u64, two.stream())
        .unwrap();
    let mut received = vec![0; BYTES];
    device
        .copy_to_host(&mut received, to, two.stream())
        .unwrap();
    assert_eq!(received[..5], [7; 5]);
    assert!(received[5..] == sent[5..]);
    device.free_plain(from).unwrap();
    device.free_plain(to).unwrap();
}

#[test]
fn a_range_that_is_no_memory_is_an_error() {
    let device = device();
    let stream = OwnedStream::create(&device).unwrap();
    let block = device.allocate_plain(4096).unwrap();
    let error = device.fill(block, 0, 1 << 30, stream.stream()).unwrap_err();
    assert!(error.to_string().contains("cuMemsetD8Async"), "{error}");
    assert!(
        device
            .copy_to_host(&mut [0; 16], 4096, stream.stream())
            .is_err()
    );
    device.free_plain(block).unwrap();
}
