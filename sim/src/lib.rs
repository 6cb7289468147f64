//! A simulated CUDA driver: libcuda's exported symbols over host memory, so that a program's real loader and code run on a machine without a GPU.
//! What the driver checks is checked with the driver's codes; work runs later, in stream order; and everything alive is counted here, independently of the program under test.
//!
//! `api` holds the exports, `control` what a test steers the machine with, and the other files one concept each, in `impl Sim` blocks over the tables of `sim`.

mod abi;
mod api;
mod attributes;
mod calls;
mod capture;
mod chunk;
mod codes;
mod config;
mod context;
mod control;
mod cost;
mod counters;
mod device_memory;
mod entry;
mod event;
mod faults;
mod hip;
mod host;
mod inject;
mod managed;
mod physical;
mod pool;
mod pool_space;
mod region;
mod sharing;
mod sim;
mod stream;
mod transfer;
mod vmm;
mod watch;
mod work;
